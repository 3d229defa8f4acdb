"""Default Axes for the plot functions."""

from typing import Any


def axes_or_new(ax: Any) -> Any:
    """Return `ax`, or the Axes of a new figure if it is None."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]
