"""Plots of training runs and of the variants of a model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_trainkit._checks import check_choice, check_integer, reject
from keras_trainkit.plots._arguments import names_arguments
from keras_trainkit.plots._axes import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@names_arguments
def schedule(
    learning_rates: Any,
    momenta: Any = None,
    ax: "Axes | None" = None,
    *,
    steps: int | None = None,
    steps_per_epoch: int | None = None,
) -> "Axes":
    """Plot a learning rate over the steps, with the momentum if given.

    Args:
        learning_rates: The learning rate of each step, a `LearningRateSchedule`, or a
            schedule callback such as `kt.callbacks.OneCycle`, which also provides the
            momentum.
        momenta: The momentum of each step, or its schedule; uses a second y-axis on
            the right.
        ax: Where to draw; a new figure by default.
        steps: Number of steps of a schedule to plot; defaults to the length of the
            schedule, if it has one.
        steps_per_epoch: Batches per epoch, for a callback that counts in epochs.

    Returns:
        The Axes of the learning rate.

    Raises:
        ValueError: If `learning_rates` is none of these, or the number of steps is
            unknown.

    Examples:
        >>> import keras_trainkit as kt
        >>> cycle = kt.callbacks.OneCycle(0.1)
        >>> ax = kt.plots.schedule(cycle, steps=200)
        >>> ax.get_xlabel()
        'step'
    """
    if hasattr(learning_rates, "make_schedules"):
        learning_rates, momenta = _of_callback(learning_rates, steps, steps_per_epoch)
        steps = len(learning_rates)
    rates = _values("learning_rates", learning_rates, steps)
    ax = axes_or_new(ax)
    lines = ax.plot(rates, color="C0", label="learning rate")
    ax.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    if momenta is not None:
        right = ax.twinx()
        values = _values("momenta", momenta, len(rates))
        lines += right.plot(values, color="C1", linestyle="--", label="momentum")
        right.set_ylabel("momentum")
    ax.legend(handles=lines, loc="lower center")
    ax.grid(alpha=0.3)
    return ax


def _of_callback(callback, steps, steps_per_epoch) -> tuple[np.ndarray, Any]:
    """Return the rates and momenta that a callback would set in `steps` steps."""
    import keras

    name = type(callback).__name__
    if getattr(callback, "_finds", False) and callback.found is None:
        reject("learning_rates", name, "a callback whose rate is found already")
    own = getattr(callback, "schedule", callback)
    if own is None:
        reject("learning_rates", name, "a callback that has a schedule of its own")
    steps = steps or getattr(callback, "total_steps", None) or _length(own)
    if steps is None:
        reject("steps", None, "given for a schedule that does not know its length")
    per_epoch = steps_per_epoch or check_integer("steps", steps, minimum=2)
    before = callback.params
    callback.params = {"steps": per_epoch, "epochs": -(-steps // per_epoch)}
    try:
        optimizer = keras.optimizers.SGD(momentum=0.9)
        rates, momenta = callback.make_schedules(optimizer, per_epoch)
    finally:
        callback.params = before
    return _values("learning_rates", rates, steps), momenta


def _length(schedule: Any) -> int | None:
    """Return the number of steps of a schedule, or None if it does not have one."""
    names = ("total_steps", "steps", "decay_steps")
    found = (getattr(schedule, name, None) for name in names)
    return next((steps for steps in found if steps), None)


def _values(name: str, given: Any, steps: int | None) -> np.ndarray:
    """Return the value at each step of a sequence or a schedule."""
    if not callable(given):
        values = np.asarray(() if isinstance(given, str) else given, float)
        if values.ndim != 1 or not len(values):
            expected = "a value for each step, a schedule or a schedule callback"
            reject(name, type(given).__name__, expected)
        return values
    steps = steps or _length(given)
    if steps is None:
        reject("steps", None, "given for a schedule that does not know its length")
    count = check_integer("steps", steps, minimum=1)
    return np.array([float(given(step)) for step in range(count)])


@names_arguments
def learning_curves(
    history: Any, metric: str = "loss", ax: "Axes | None" = None
) -> "Axes":
    """Plot a metric over the epochs, for training and validation.

    Args:
        history: The result of `model.fit`, or its `history` attribute.
        metric: The metric's name, without `val_`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Raises:
        ValueError: If the history has no such metric.

    Examples:
        >>> import keras_trainkit as kt
        >>> history = {"loss": [0.9, 0.5, 0.3], "val_loss": [0.9, 0.6, 0.5]}
        >>> ax = kt.plots.learning_curves(history)
        >>> [line.get_label() for line in ax.get_lines()]
        ['training', 'validation']
    """
    curves = _curves(history, metric)
    ax = axes_or_new(ax)
    for name, label in ((metric, "training"), (f"val_{metric}", "validation")):
        if name in curves:
            ax.plot(_epochs(curves[name]), curves[name], label=label)
    return _finished(ax, metric)


@names_arguments
def compare(
    histories: Mapping[str, Any], metric: str = "val_loss", ax: "Axes | None" = None
) -> "Axes":
    """Plot one metric of several training runs in one figure.

    Args:
        histories: A dict from the name of each run to the result of `model.fit`, or
            its `history` attribute. A list of these, such as one per seed, is drawn as
            mean and range.
        metric: The metric's name, which every run must have.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Raises:
        ValueError: If there are no runs, or a run lacks the metric.

    Examples:
        >>> import keras_trainkit as kt
        >>> one = {"val_loss": [0.9, 0.5, 0.4]}
        >>> other = {"val_loss": [0.8, 0.6, 0.5]}
        >>> ax = kt.plots.compare({"one cycle": one, "constant": other})
        >>> [line.get_label() for line in ax.get_lines()]
        ['one cycle', 'constant']
    """
    if not isinstance(histories, Mapping) or not histories:
        reject("histories", type(histories).__name__, "a dict of at least one history")
    runs = {
        name: [
            np.asarray(_curves(one, metric)[metric], float)
            for one in (given if isinstance(given, list | tuple) else [given])
        ]
        for name, given in histories.items()
    }
    ax = axes_or_new(ax)
    for place, (name, curves) in enumerate(runs.items()):
        # If some seeds stopped early, truncate all to the shortest.
        together = np.stack([curve[: min(map(len, curves))] for curve in curves])
        epochs, colour = _epochs(together[0]), f"C{place}"
        ax.plot(epochs, together.mean(0), color=colour, label=name)
        if len(curves) > 1:
            low, high = together.min(0), together.max(0)
            ax.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
    return _finished(ax, metric)


def _curves(history: Any, metric: str) -> Mapping[str, Sequence[float]]:
    curves = getattr(history, "history", history)
    if not isinstance(curves, Mapping):
        reject("history", type(history).__name__, "a History, or its `history`")
    check_choice("metric", metric, curves)
    return curves


def _epochs(values: Any) -> range:
    return range(1, len(values) + 1)


def _finished(ax: "Axes", metric: str) -> "Axes":
    ax.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


@names_arguments
def variants(
    table: Mapping[str, Mapping[str, float]], axes: "Sequence[Axes] | None" = None
) -> "Sequence[Axes]":
    """Plot variants of a model side by side, one panel per measure.

    Args:
        table: A dict from each variant to a dict of its measures. All variants must
            have the same measures.
        axes: Where to draw, one Axes per measure; a new figure by default.

    Returns:
        The Axes, one per measure.

    Examples:
        >>> import keras_trainkit as kt
        >>> sizes = {
        ...     "float32": {"kB": 528, "accuracy": 0.91},
        ...     "int8": {"kB": 134, "accuracy": 0.90},
        ... }
        >>> axes = kt.plots.variants(sizes)
        >>> len(axes)
        2
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


@names_arguments
def front(result: Any, ax: "Axes | None" = None) -> "Axes":
    """Plot metric against file size for every candidate of a compression.

    Args:
        result: A `CompressResult`.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes.

    Examples:
        >>> import keras_trainkit as kt
        >>> result = kt.compress(
        ...     model, x, y, validation_data=(x_val, y_val), max_bytes=100_000
        ... )  # doctest: +SKIP
        >>> ax = kt.plots.front(result)  # doctest: +SKIP
    """
    from matplotlib.ticker import LogLocator, ScalarFormatter

    ax = axes_or_new(ax)
    kilobytes = [one.bytes / 1e3 for one in result.front]
    metrics = [one.metric for one in result.front]
    ax.plot(kilobytes, metrics, "o", color="C0", label="int8 files")
    for name, one, colour in (
        ("original, float32", result.original, "C7"),
        ("chosen", result.chosen, "C3"),
    ):
        ax.plot(one.bytes / 1e3, one.metric, "o", color=colour, ms=9, mfc="none")
        ax.annotate(
            name,
            (one.bytes / 1e3, one.metric),
            textcoords="offset points",
            # The original is the largest file, so its label goes to the left.
            xytext=(-8, -14) if one is result.original else (6, -14),
            ha="right" if one is result.original else "left",
            color=colour,
        )
    ax.set(xscale="log", xlabel="kB", ylabel="metric")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter("")
    ax.margins(y=0.1)
    ax.legend()
    ax.grid(alpha=0.3)
    return ax
