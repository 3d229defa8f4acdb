"""Plots for choosing the learning rate."""

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_trainkit._checks import check_choice
from keras_trainkit.plots._arguments import names_arguments
from keras_trainkit.plots._axes import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# The title for each verdict.
_TITLES = {
    "clear": "Learning rate {rate:.2g}",
    "noisy": "Learning rate {rate:.2g}, from a noisy curve",
    "still falling at max_lr: raise it": "Still falling at the end: raise max_lr",
    "diverges at min_lr: lower it": "Diverges from the beginning: lower min_lr",
    "no descent: model does not learn at any rate": "No descent at any learning rate",
}


@names_arguments
def lr_finder(
    result: Any, ax: "Axes | None" = None, *, show_all: bool = False
) -> "Axes":
    """Plot the loss over the learning rate of a range test.

    Marks the recommended rate, the peak rate for one cycle, and the range where the
    loss diverges.

    Args:
        result: An `LRFinderResult`.
        ax: Where to draw; a new figure by default.
        show_all: Whether to also mark the rates that the other rules suggest.

    Returns:
        The Axes.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> lrs = np.logspace(-6, 0, 60)
        >>> losses = 2 / (1 + (lrs / 1e-3)) + 50 * lrs
        >>> ax = kt.plots.lr_finder(kt.lr_finder.analyse(lrs, losses))
        >>> ax.figure.savefig("range_test.png")  # doctest: +SKIP
    """
    ax = axes_or_new(ax)
    ax.plot(result.lrs, result.losses, color="C0", alpha=0.3, label="loss of a batch")
    ax.plot(result.lrs, result.smoothed, color="C0", label="smoothed")
    _mark_rates(ax, result, show_all)
    low, high = _limits(result)
    begin = _divergence(result, high)
    if begin is not None:
        ax.axvspan(begin, result.lrs[-1], color="C3", alpha=0.1, label="diverged")
    title = _TITLES.get(result.verdict, result.verdict)
    ax.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        ylim=(low - 0.1 * (high - low), high),
        title=title.format(rate=result.suggestion),
    )
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


def _mark_rates(ax, result, show_all: bool) -> None:
    """Draw a vertical line for each rate to be shown."""
    main = {"recommended": result.suggestion, "peak of one cycle": result.one_cycle}
    for label, rate in main.items():
        if rate is not None:
            style = "-" if label == "recommended" else "--"
            colour = "C1" if label == "recommended" else "C2"
            ax.axvline(
                rate, color=colour, linestyle=style, label=f"{label}: {rate:.2g}"
            )
    others = {
        name: rate
        for name, rate in result.suggestions.items()
        if show_all and rate not in main.values()
    }
    for number, (name, rate) in enumerate(others.items(), 4):
        ax.axvline(
            rate,
            color=f"C{number}",
            linestyle=":",
            linewidth=1.2,
            label=f"{name}: {rate:.2g}",
        )


def _limits(result) -> tuple[float, float]:
    """Return the range of losses to show, without the explosion at high rates."""
    finite = result.smoothed[np.isfinite(result.smoothed)]
    low = float(finite.min()) if len(finite) else 0.0
    high = float(np.median(result.losses[:5])) * 1.3
    if not np.isfinite(high) or high <= low:
        high = float(finite.max(initial=low)) if len(finite) else 1.0
    return low, high if high > low else low + 1


def _divergence(result, high: float) -> float | None:
    """Return the first rate from which on most losses exceed `high`; None if none."""
    beyond = ~(result.losses <= high)
    share = np.cumsum(beyond[::-1])[::-1]
    diverged = beyond & (share > 0.5 * np.arange(len(beyond), 0, -1))
    return float(result.lrs[int(np.argmax(diverged))]) if diverged[-1] else None


@names_arguments
def compare_learning_rates(
    sweep: Any, monitor: str = "loss", ax: "Axes | None" = None
) -> "Axes":
    """Plot the learning curves for several learning rates in one figure.

    Args:
        sweep: An `LRSweepResult`.
        monitor: The name of the curve, such as `"val_loss"`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Raises:
        ValueError: If there is no curve of that name.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> def build():
        ...     model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        ...     return kt.models.PRESETS["default"].compile(model)
        >>> y = (x[:, 0] > 0).astype(int)
        >>> sweep = kt.lr_finder.lr_sweep(build, [1e-3, 1e-2], x, y, progress=False)
        >>> ax = kt.plots.compare_learning_rates(sweep)
    """
    from matplotlib import colormaps, ticker

    check_choice("monitor", monitor, sweep.curves)
    ax = axes_or_new(ax)
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
