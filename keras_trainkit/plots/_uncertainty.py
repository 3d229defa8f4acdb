"""Figures of uncertainty."""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_trainkit._checks import check_in_range, check_integer, reject
from keras_trainkit.plots._arguments import names_arguments
from keras_trainkit.plots._axes import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@names_arguments
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

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> images, p = rng.random((4, 8, 8, 1)), rng.dirichlet([1, 1, 1], size=4)
        >>> axes = kt.plots.uncertain_images(images, p, [0, 1, 2, 0], ["a", "b", "c"])
        >>> axes.shape
        (2, 6)
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
    ax.barh(range(len(best)), p[best], color=colours)
    for place, k in enumerate(best):
        ax.text(0.02, place, f"{class_names[k]} {p[k]:.0%}", va="center", fontsize=7)
    ax.set(xlim=(0, 1), ylim=(2.6, -0.6))


@names_arguments
def reliability(curve: Any, ax: Any = None) -> Any:
    """Draw a reliability diagram: accuracy over confidence, and the rows of each bin.

    Args:
        curve: A `kt.uncertainty.ReliabilityCurve`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.random.default_rng(0).dirichlet([1, 1, 1], size=200)
        >>> curve = kt.uncertainty.reliability_curve(p.argmax(-1), p)
        >>> ax = kt.plots.reliability(curve)
    """
    ax = axes_or_new(ax)
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


@names_arguments
def regression_band(
    x: np.ndarray,
    prediction: Any,
    level: float = 0.95,
    ax: Any = None,
    *,
    y: np.ndarray | None = None,
    feature: int = 0,
    groups: int = 20,
) -> Any:
    """Draw a regression with its uncertainty along one feature.

    Where the rows differ in other features too, mean and bands are averages over
    groups of rows that are next to each other along this one.

    Args:
        x: The input of each row, `(rows,)` or `(rows, features)`, in any order.
        prediction: An `MCPrediction` of those rows with one output. With samples, the
            darker band has the central fraction `level` of them; else it is what a
            normal distribution gives. Where there is aleatoric noise, a lighter band
            adds it.
        level: Fraction of the distribution inside the bands.
        ax: Where to draw; a new figure by default.
        y: The true values, `(rows,)` or `(rows, 1)`, drawn as points; the legend has
            how many of them the widest band of their own row covers.
        feature: The column of `x` to draw along.
        groups: How many groups of rows, of about equal size, are averaged.

    Returns:
        The Axes.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((1,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)
        ... ])
        >>> x = np.linspace(-1, 1, 20, dtype="float32")[:, None]
        >>> mc = kt.uncertainty.mc_predict(model, x, 20, seed=0)
        >>> ax = kt.plots.regression_band(x[:, 0], mc)
    """
    x, means = _along(x, feature, groups)
    if prediction.mean.shape != (len(x), 1):
        reject("prediction", prediction.mean.shape, f"of one output and {len(x)} rows")
    check_in_range("level", level, 0, 1, closed="neither")
    ax = axes_or_new(ax)
    mean = prediction.mean[:, 0]
    width = NormalDist().inv_cdf((1 + level) / 2)

    def band(low, high, alpha, label):
        low, high = means(low), means(high)
        ax.fill_between(means(x), low, high, color="C0", alpha=alpha, lw=0, label=label)

    if prediction.aleatoric_std is not None:
        total = width * prediction.total_std[:, 0]
        band(mean - total, mean + total, 0.15, f"{level:.0%}, with the noise")
    if prediction.samples is None:
        own = width * prediction.std[:, 0]
        low, high = mean - own, mean + own
    else:
        low, high = (bound[:, 0] for bound in prediction.interval(level))
    band(low, high, 0.35, f"{level:.0%} of the model")
    ax.plot(means(x), means(mean), color="C0", label="mean")
    if y is not None:
        label = f"true, {prediction.coverage(y, level):.1%} covered"
        ax.plot(x, np.ravel(y), ".", ms=4, color="0.3", label=label)
    ax.set(xlabel="x", ylabel="y")
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


def _along(x: Any, feature: int, groups: int) -> tuple[np.ndarray, Callable]:
    """A feature of each row, and what sorts a value of each row by it and averages."""
    x = np.asarray(x)
    check_integer("groups", groups, minimum=2)
    if x.ndim not in (1, 2):
        reject("x", x.shape, "of shape (rows,) or (rows, features)")
    columns = x.reshape(len(x), -1)
    last = columns.shape[1] - 1
    check_integer("feature", feature, minimum=0)
    if feature > last:
        reject("feature", feature, f"a column of x, from 0 to {last}")
    own, others = columns[:, feature], np.delete(columns, feature, axis=1)
    order = np.argsort(own, kind="stable")
    if (others == others[:1]).all():
        return own, lambda values: values[order]
    parts = np.array_split(order, min(groups, len(order)))
    return own, lambda values: np.array([values[part].mean() for part in parts])


@names_arguments
def intervals(
    x: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    y: np.ndarray | None = None,
    ax: Any = None,
) -> Any:
    """Draw intervals over one input, such as those of a `ConformalRegressor`.

    Args:
        x: The input of each row, `(rows,)`, in any order.
        lower: The lower bounds, `(rows,)` or `(rows, 1)`.
        upper: The upper bounds, in the same shape.
        y: The true values, in the same shape; those outside are red, and the legend
            gives the fraction inside.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.linspace(0, 1, 50)
        >>> ax = kt.plots.intervals(x, x - 0.1, x + 0.1, y=x)
    """
    x, low, high = np.ravel(x), np.ravel(lower), np.ravel(upper)
    if not len(x) == len(low) == len(high):
        reject("lower", np.shape(lower), f"one bound for each of the {len(x)} rows")
    ax = axes_or_new(ax)
    order = np.argsort(x)
    ax.fill_between(
        x[order],
        low[order],
        high[order],
        color="C0",
        alpha=0.25,
        lw=0,
        label="interval",
    )
    if y is not None:
        truth = np.ravel(y)
        inside = (low <= truth) & (truth <= high)
        for here, colour, name in (
            (inside, "0.3", "inside"),
            (~inside, "C3", "outside"),
        ):
            label = f"{name}: {here.mean():.1%}"
            ax.plot(x[here], truth[here], ".", ms=4, color=colour, label=label)
    ax.set(xlabel="x", ylabel="y")
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


@names_arguments
def set_sizes(sets: np.ndarray, y: np.ndarray | None = None, ax: Any = None) -> Any:
    """Draw how many sets have how many classes, and how often each size is right.

    Args:
        sets: Booleans `(rows, classes)`, from `ConformalClassifier.predict`.
        y: Integer labels, `(rows,)`, for the coverage of each size.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.random.default_rng(0).dirichlet([1, 1, 1], size=200)
        >>> y = p.argmax(-1)
        >>> conformal = kt.uncertainty.ConformalClassifier()
        >>> conformal = conformal.fit(p[:100], y[:100])
        >>> ax = kt.plots.set_sizes(conformal.predict(p[100:]), y[100:])
    """
    sets = np.asarray(sets, bool)
    if sets.ndim != 2:
        reject("sets", sets.shape, "of shape (rows, classes)")
    ax = axes_or_new(ax)
    sizes = sets.sum(1)
    found = np.arange(sizes.min(), sizes.max() + 1)
    share = np.array([np.mean(sizes == size) for size in found])
    ax.bar(found, share, color="C7", alpha=0.4, label="share of rows")
    if y is not None:
        right = sets[np.arange(len(sets)), np.asarray(y)]
        some = share > 0
        covered = [right[sizes == size].mean() for size in found[some]]
        ax.plot(found[some], covered, "o-", color="C0", label="coverage")
        ax.axhline(right.mean(), ls="--", color="C7", label=f"all: {right.mean():.1%}")
    ax.set(xlabel="classes in the set", ylabel="fraction", ylim=(0, 1.02), xticks=found)
    ax.legend()
    ax.grid(alpha=0.3)
    return ax
