"""Figures of a training run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def schedule(
    learning_rates: Sequence[float],
    momenta: Sequence[float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot the learning rate, and the momentum if there is one, over the steps.

    Args:
        learning_rates: The learning rate of each step.
        momenta: The momentum of each step; drawn against an axis on the right.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes of the learning rate.
    """
    ax = ax or _new_axes()
    lines = ax.plot(learning_rates, color="C0", label="learning rate")
    ax.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    if momenta is not None:
        right = ax.twinx()
        lines += right.plot(momenta, color="C1", linestyle="--", label="momentum")
        right.set_ylabel("momentum")
    ax.legend(handles=lines, loc="lower center")
    ax.grid(alpha=0.3)
    return ax


def learning_curves(
    history: Mapping[str, Sequence[float]],
    metric: str = "loss",
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot a metric over the epochs, for training and validation.

    Args:
        history: `History.history` as `model.fit` returns it.
        metric: The metric's name; `val_` is put in front for the validation.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Raises:
        ValueError: If the history has no such metric.
    """
    if metric not in history:
        known = ", ".join(repr(key) for key in history)
        raise ValueError(
            f"`metric` must be one of {known}. Received: metric={metric!r}"
        )
    ax = ax or _new_axes()
    epochs = range(1, len(history[metric]) + 1)
    ax.plot(epochs, history[metric], label="training")
    if f"val_{metric}" in history:
        ax.plot(epochs, history[f"val_{metric}"], label="validation")
    ax.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


def variants(
    table: Mapping[str, Mapping[str, float]], axes: "Sequence[Axes] | None" = None
) -> "Sequence[Axes]":
    """Plot variants of a model side by side, one panel for each measure.

    Args:
        table: For each variant its measures by name, all variants the same ones.
        axes: Where to draw, one for each measure; a new figure by default.

    Returns:
        The Axes, one for each measure.
    """
    measures = list(next(iter(table.values())))
    if axes is None:
        from matplotlib import pyplot

        size = (3.2 * len(measures), 0.6 + 0.4 * len(table))
        figure, panels = pyplot.subplots(
            1, len(measures), figsize=size, sharey=True, layout="constrained"
        )
        axes = list(figure.axes) if len(measures) > 1 else [panels]
    for ax, measure in zip(axes, measures, strict=True):
        values = [row[measure] for row in table.values()]
        bars = ax.barh(list(table), values, color="C0")
        ax.bar_label(bars, fmt="{:.4g}", padding=3)
        ax.set(xlabel=measure, xlim=(0, 1.25 * max(values)))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return axes


def _new_axes() -> Any:
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]
