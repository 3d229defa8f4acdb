"""Plots of predictive uncertainty and calibration."""

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
    """Show images, each with bars for its most probable classes below it.

    Args:
        images: `(n, height, width, channels)` with pixels in `[0, 1]`.
        probabilities: `(n, classes)`.
        labels: The true classes, `(n,)`. The bar of the true class is green; if the
            prediction is wrong, the bar of the predicted class is red.
        class_names: The name of each class.
        columns: Images per row.

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
    """Draw a reliability diagram: accuracy and share of rows by confidence bin.

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
    """Plot regression predictions with uncertainty bands along one feature.

    If the rows also differ in other features, the rows are sorted by this feature and
    split into groups, and mean and bands are averages over each group.

    Args:
        x: The input of each row, `(rows,)` or `(rows, features)`, in any order.
        prediction: An `MCPrediction` for these rows, with one output. With samples, the
            darker band contains the central fraction `level` of them; without, it is
            the interval of a normal distribution. If there is aleatoric noise, a
            lighter band includes it.
        level: Fraction of the distribution inside the bands.
        ax: Where to draw; a new figure by default.
        y: The true values, `(rows,)` or `(rows, 1)`, drawn as points. The legend shows
            the fraction that is inside the widest band of its own row.
        feature: The column of `x` to use as the x-axis.
        groups: Number of groups of rows to average, of about equal size.

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
    """Return a feature of each row, and a function that groups row values along it.

    The function sorts by the feature. It averages over groups only if the rows differ
    in other features.
    """
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
    """Plot prediction intervals over one input, such as from a `ConformalRegressor`.

    Args:
        x: The input of each row, `(rows,)`, in any order.
        lower: The lower bounds, `(rows,)` or `(rows, 1)`.
        upper: The upper bounds, in the same shape.
        y: The true values, in the same shape. Values outside the intervals are red, and
            the legend shows the fractions inside and outside.
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
    """Plot the distribution of prediction set sizes, and the coverage of each size.

    Args:
        sets: Booleans `(rows, classes)`, from `ConformalClassifier.predict`.
        y: Integer labels, `(rows,)`; if given, the coverage of each size is drawn.
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
