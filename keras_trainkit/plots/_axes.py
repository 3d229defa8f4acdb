"""Where a figure is drawn that got no axes."""

from typing import Any


def axes_or_new(ax: Any) -> Any:
    """The axes that were given, or those of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]
