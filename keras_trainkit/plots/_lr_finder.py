"""Figure of a learning-rate range test."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def lr_finder(result: Any, ax: "Axes | None" = None) -> "Axes":
    """Plot the losses of a range test over the learning rate.

    Args:
        result: An `LRFinderResult`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    ax.plot(result.lrs, result.losses, color="C0", alpha=0.3, label="loss of a batch")
    ax.plot(result.lrs, result.smoothed, color="C0", label="smoothed")
    colours = {name: f"C{i}" for i, name in enumerate(result.suggestions, 1)}
    for name, rate in result.suggestions.items():
        chosen = rate == result.suggestion
        label = f"{name}: {rate:.2g}" + (" (suggested)" if chosen else "")
        ax.axvline(
            rate,
            color=colours[name],
            linestyle="-" if chosen else ":",
            linewidth=2 if chosen else 1.2,
            label=label,
        )
    finite = result.smoothed[np.isfinite(result.smoothed)]
    low = finite.min()
    # An explosion at the end would flatten all that matters.
    high = np.median(result.losses[:5]) * 1.3
    ax.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        ylim=(low - 0.1 * (high - low), high),
        title=result.verdict,
    )
    ax.legend()
    ax.grid(alpha=0.3)
    return ax
