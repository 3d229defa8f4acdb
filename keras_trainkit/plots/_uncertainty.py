"""Figures of uncertainty."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def uncertain_images(
    images: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    columns: int = 6,
) -> np.ndarray:
    """Show images, each above bars of its most probable classes.

    Args:
        images: `(n, height, width, channels)` with pixels in `[0, 1]`.
        probabilities: `(n, classes)`.
        labels: The true classes, `(n,)`; the bar of the true class is green, that of a
            wrong first guess red.
        class_names: The name of each class.
        columns: Images in a row.

    Returns:
        The Axes, two for each image: `(2 * rows, columns)`.
    """
    from matplotlib import pyplot

    rows = -(-len(images) // columns)
    _, axes = pyplot.subplots(
        2 * rows,
        columns,
        figsize=(1.7 * columns, 3.0 * rows),
        height_ratios=[2, 1] * rows,
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (image, p, label) in enumerate(
        zip(images, probabilities, labels, strict=True)
    ):
        top, below = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        top.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
        top.set_title(class_names[label], fontsize=9)
        _bars(below, p, int(label), class_names)
    return axes


def _bars(ax: "Axes", p: np.ndarray, label: int, class_names: Sequence[str]) -> None:
    best = np.argsort(p)[::-1][:3]
    colours = ["C2" if k == label else "C3" if k == best[0] else "0.7" for k in best]
    ax.barh(range(3), p[best], color=colours)
    for place, k in enumerate(best):
        ax.text(0.02, place, f"{class_names[k]} {p[k]:.0%}", va="center", fontsize=7)
    ax.set(xlim=(0, 1), ylim=(2.6, -0.6))


def reliability(curve: Any, ax: Any = None) -> Any:
    """Draw a reliability diagram: accuracy over confidence, and the rows of each bin.

    Args:
        curve: A `kt.uncertainty.ReliabilityCurve`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.
    """
    from matplotlib import pyplot

    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    bins = len(curve.count)
    middles = (np.arange(bins) + 0.5) / bins
    share = curve.count / max(curve.count.sum(), 1)
    ax.bar(middles, share, width=1 / bins, color="C7", alpha=0.3, label="share of rows")
    ax.plot([0, 1], [0, 1], "--", color="C7", label="calibrated")
    ax.plot(curve.confidence, curve.accuracy, "o-", color="C0", label="accuracy")
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    ax.legend()
    ax.grid(alpha=0.3)
    return ax
