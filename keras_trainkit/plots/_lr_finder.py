"""Figures about the choice of the learning rate."""

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_trainkit._checks import check_choice

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
    high = high if np.isfinite(high) else finite.max()
    beyond = ~(result.losses <= high)
    # From the first rate on behind which most losses are out of the picture.
    exploded = np.cumsum(beyond[::-1])[::-1] > 0.5 * np.arange(len(beyond), 0, -1)
    if exploded[-1]:
        begin = result.lrs[int(np.argmax(exploded))]
        ax.axvspan(begin, result.lrs[-1], color="C3", alpha=0.1, label="diverged")
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


def compare_learning_rates(
    sweep: Any, monitor: str = "loss", ax: "Axes | None" = None
) -> "Axes":
    """Plot the learning curves of several rates over each other.

    Args:
        sweep: An `LRSweepResult`.
        monitor: The name of the curve, such as `"val_loss"`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Raises:
        ValueError: If there is no curve of that name.
    """
    from matplotlib import colormaps, pyplot, ticker

    check_choice("monitor", monitor, sweep.curves)
    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    curves = sweep.curves[monitor]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    epochs = np.arange(1, curves.shape[1] + 1)
    for rate, curve, colour in zip(sweep.rates, curves, colours, strict=True):
        gone = " (diverged)" if np.isnan(curve[-1]) else ""
        ax.plot(epochs, curve, ".-", color=colour, label=f"{rate:.2g}{gone}")
    ax.set(xlabel="epoch", ylabel=monitor)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    ax.legend(title="learning rate")
    ax.grid(alpha=0.3)
    return ax
