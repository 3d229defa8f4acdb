"""Find the learning rate: the range test."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, check_positive, reject
from keras_trainkit._state import as_it_was
from keras_trainkit.optimizers import _exchange
from keras_trainkit.schedules import Delay, Lambda

# Standard deviation of the smoothing, in decades of the learning rate. A rate that is
# wrong by less than its factor 2 trains alike, and wider kernels flatten the descent.
_BANDWIDTH = 0.3
# A loss this many times the lowest one, over what it began with, ends the test.
_DIVERGED = 4.0


@dataclass(frozen=True, repr=False)
class LRFinderResult:
    """A learning-rate range test.

    Attributes:
        lrs: The learning rate of each step, increasing.
        losses: The loss of each step, on its own batch.
        smoothed: The losses, smoothed over the logarithm of the rate.
        suggestions: Rates by name: `"steepest"`, where the smoothed loss falls fastest
            per decade; `"minimum"`, a tenth of the rate of the lowest smoothed loss;
            `"one_cycle"`, half-way on the logarithmic axis from that to the lowest.
        suggestion: The rate to use, `"one_cycle"`; None if the test found none. It is
            meant for the peak of a cycle; for a constant rate, `"minimum"` is safer.
        verdict: `"clear"`, or what is wrong with the test and what to do.
    """

    lrs: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestions: dict[str, float] = field(default_factory=dict)
    suggestion: float | None = None
    verdict: str = "clear"

    def summary(self) -> str:
        """The suggestion and the verdict in one line."""
        rate = "none" if self.suggestion is None else f"{self.suggestion:.3g}"
        return (
            f"LRFinderResult(suggestion {rate}, verdict {self.verdict!r}, "
            f"{len(self.lrs)} steps from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g})"
        )

    __repr__ = summary


def find_lr(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    num_steps: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> LRFinderResult:
    """Find the learning rate with a range test, and leave the model as it was.

    Trains for some steps while the learning rate grows exponentially from `min_lr` to
    `max_lr`, stops where the loss explodes, and puts weights, optimizer, metrics and
    seed generators back, also after an error or Ctrl-C.

    Args:
        model: A compiled model.
        x: Inputs as an array (or a list or dict of arrays), or an iterable of batches
            `(inputs, targets)` or `(inputs, targets, sample_weights)`, such as a
            `tf.data.Dataset` or a PyTorch `DataLoader`; a generator is used up.
        y: Targets, where `x` is an array.
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of steps, by default 100 to 300 by the size of the data.
        batch_size: Rows of a batch where `x` is an array; 32 by default.
        seed: Seed of the order of the rows where `x` is an array.

    Returns:
        An `LRFinderResult`.

    Raises:
        ValueError: If an argument is wrong or the model is not compiled.

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186, section 3.3.
    """
    check_positive("min_lr", min_lr)
    check_positive("max_lr", max_lr)
    if max_lr <= min_lr:
        reject("max_lr", max_lr, f"> min_lr={min_lr:g}")
    if not model.compiled:
        reject("model", model.name, "compiled")
    batches, length = _batches(x, y, batch_size, seed)
    if num_steps is None:
        num_steps = _default_steps(length)
    check_integer("num_steps", num_steps, minimum=10)

    ratio = math.log(max_lr / min_lr) / (num_steps - 1)
    schedule = Lambda(
        lambda t: min_lr * keras.ops.exp(ratio * keras.ops.cast(t, "float32"))
    )
    lrs = min_lr * np.exp(ratio * np.arange(num_steps))
    first = next(batches)
    if not model.built:
        model(first[0])
    losses: list[float] = []
    with as_it_was(model):
        begin = _exchange.batches_seen(model)
        _exchange.replace(model, Delay(schedule, begin))
        model.steps_per_execution = 1
        for batch in _chain(first, batches, num_steps):
            # Else the loss would be the mean over all batches so far.
            model.reset_metrics()
            logs = model.train_on_batch(*batch, return_dict=True)
            losses.append(float(logs["loss"]))
            if _exploded(losses):
                break
    return analyse(lrs[: len(losses)], losses)


def analyse(lrs: Any, losses: Any) -> LRFinderResult:
    """Suggest a learning rate from the losses of a range test.

    The losses are smoothed by local linear regression over the logarithm of the rate,
    with a Gaussian kernel; its slope is the descent per decade. Points from the first
    loss on that is not finite, or far above the start, do not count.

    Args:
        lrs: Increasing learning rates.
        losses: The loss at each.

    Returns:
        An `LRFinderResult` with the arrays that were given.

    Raises:
        ValueError: If the arrays do not fit, or have fewer than 10 points.
    """
    lrs, losses = np.asarray(lrs, float), np.asarray(losses, float)
    if lrs.ndim != 1 or len(lrs) < 10 or np.any(np.diff(lrs) <= 0) or lrs[0] <= 0:
        reject("lrs", lrs, "at least 10 positive learning rates in increasing order")
    if losses.shape != lrs.shape:
        reject("losses", losses.shape, f"of the shape of lrs, {lrs.shape}")
    usable = _usable(losses)
    if usable < 10:
        return LRFinderResult(
            lrs, losses, losses, verdict="diverges at min_lr: lower it"
        )
    decades = np.log10(lrs[:usable])
    level, slope, unit_error = _local_linear(decades, losses[:usable])
    smoothed = np.concatenate([level, losses[usable:]])
    lowest = int(np.argmin(level))
    steepest = int(np.argmin(slope[: lowest + 1]))
    suggestions = {
        "steepest": lrs[steepest],
        "minimum": lrs[lowest] / 10,
        "one_cycle": lrs[lowest] / math.sqrt(10),
    }
    # Behind the minimum the losses scatter far more than on the way down.
    residuals = np.abs(losses[:usable] - level)[: lowest + 1]
    noise = max(1.4826 * float(np.median(residuals)), 1e-12)
    # The steepest slope in standard errors: of pure noise it hardly passes 4.
    evidence = -slope[steepest] / (noise * unit_error[steepest])
    descent = level[: lowest + 1].max() - level[lowest]
    verdict = "clear"
    if evidence < 4 or descent < 0.02 * abs(level[0]):
        verdict = "no descent: the model does not learn at any rate"
    elif lowest == usable - 1 == len(lrs) - 1 and slope[-1] < slope[steepest] / 2:
        verdict = "still falling at max_lr: raise it"
    elif evidence < 8:
        verdict = "noisy"
    return LRFinderResult(
        lrs,
        losses,
        smoothed,
        {name: float(rate) for name, rate in suggestions.items()},
        None if verdict.startswith("no descent") else float(suggestions["one_cycle"]),
        verdict,
    )


def _default_steps(batches: int | None) -> int:
    """An epoch, but no fewer than 100 steps and no more than 300."""
    return 100 if batches is None else int(np.clip(batches, 100, 300))


def _usable(losses: np.ndarray) -> int:
    """Number of points before the loss explodes."""
    start = np.median(losses[:5])
    if not np.isfinite(start):
        return 0
    bad = ~np.isfinite(losses) | (losses > _DIVERGED * max(start, 1e-12))
    return int(np.argmax(bad)) if bad.any() else len(losses)


def _exploded(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    return len(losses) > 10 and losses[-1] > 2 * _DIVERGED * float(
        np.median(losses[:5])
    )


def _local_linear(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Level and slope of `y` at each `x`, by weighted least squares around it.

    Returns:
        The levels, the slopes, and the slopes' standard errors for noise of 1.
    """
    offset = x[np.newaxis] - x[:, np.newaxis]
    weight = np.exp(-0.5 * (offset / _BANDWIDTH) ** 2)
    weight /= weight.sum(1, keepdims=True)
    mean_x, mean_y = (weight * offset).sum(1), (weight * y).sum(1)
    centred = weight * (offset - mean_x[:, np.newaxis])
    spread = (centred * offset).sum(1)
    slope = (centred * y).sum(1) / spread
    unit_error = np.sqrt((centred**2).sum(1)) / spread
    return mean_y - slope * mean_x, slope, unit_error


def _batches(x, y, batch_size, seed) -> tuple[Iterator[tuple], int | None]:
    if y is not None or hasattr(x, "shape"):
        if y is None:
            reject("y", None, "given where x is an array")
        batch_size = check_integer("batch_size", batch_size or 32, minimum=1)
        rows = len(keras.tree.flatten(x)[0])
        return _array_batches(x, y, rows, batch_size, seed), -(-rows // batch_size)
    if batch_size is not None:
        reject("batch_size", batch_size, "None where x yields batches")
    if not isinstance(x, Iterable | keras.utils.PyDataset):
        reject("x", type(x), "an array or an iterable of batches")
    if isinstance(x, keras.utils.PyDataset):
        x = _PyDatasetBatches(x)
    length = len(x) if hasattr(x, "__len__") else None
    return (tuple(batch) for batch in _again(x)), length


class _PyDatasetBatches:
    """A `PyDataset` as a list of batches."""

    def __init__(self, data: keras.utils.PyDataset):
        self._data = data

    def __len__(self) -> int:
        return self._data.num_batches

    def __iter__(self) -> Iterator[Any]:
        yield from (self._data[index] for index in range(len(self)))
        self._data.on_epoch_end()


def _again(batches: Iterable) -> Iterator[Any]:
    """One pass after the other; one alone where the batches can be had only once."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty or iter(batches) is batches:
            return


def _array_batches(x, y, rows, batch_size, seed) -> Iterator[tuple]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(rows)
        for start in range(0, rows, batch_size):
            chosen = order[start : start + batch_size]
            yield keras.tree.map_structure(lambda a, c=chosen: np.asarray(a)[c], (x, y))


def _chain(first, rest, limit: int) -> Iterator[tuple]:
    yield first
    for _, batch in zip(range(limit - 1), rest, strict=False):
        yield batch
