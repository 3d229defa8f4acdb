"""The range test."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_integer, check_positive, reject
from keras_trainkit._compat import loss_tracker, sync_state
from keras_trainkit._state import as_it_was
from keras_trainkit._types import Schedule
from keras_trainkit.lr_finder._analyse import (
    DIVERGES,
    LRFinderResult,
    analyse,
    exploded,
)
from keras_trainkit.optimizers import _exchange
from keras_trainkit.schedules import Delay, Lambda


def find_lr(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
    num_steps: int | None = None,
    batch_size: int | None = None,
    sample_weight: Any = None,
    class_weight: dict[int, float] | None = None,
    scale: str = "exponential",
    seed: int = 0,
) -> LRFinderResult:
    """Find the learning rate with a range test, and leave the model as it was.

    Trains for some steps while the learning rate grows from `min_lr` to `max_lr`, stops
    where the loss explodes, and puts weights, optimizer, metrics, history and random
    states back, also after an error or Ctrl-C. A `fit` afterwards does what it would
    have done.

    Args:
        model: A compiled model.
        x: What `fit` takes: inputs as an array (or a list or dict of arrays), or an
            iterable of batches `(inputs, targets)` or `(inputs, targets,
            sample_weights)`, such as a `tf.data.Dataset`, a `PyDataset` or a PyTorch
            `DataLoader`; a generator is used up.
        y: Targets, where `x` is an array.
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of steps, by default an epoch, but no fewer than 100 and no
            more than 300.
        batch_size: Rows of a batch where `x` is an array; 32 by default.
        sample_weight: A weight for each row, where `x` is an array.
        class_weight: A weight for each class, as in `fit`.
        scale: `"exponential"` or `"linear"` growth of the rate.
        seed: Seed of the order of the rows where `x` is an array.

    Returns:
        An `LRFinderResult`.

    Raises:
        ValueError: If an argument is wrong or the model is not compiled.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(256, 8)).astype("float32")
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> found = kt.find_lr(model, x, (x[:, 0] > 0).astype(int))
        >>> 1e-4 < found.suggestion < 1, found.verdict
        (True, 'clear')

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186, section 3.3.
    """
    _check_model(model)
    batches, length = _batches(x, y, sample_weight, batch_size, seed)
    if num_steps is None:
        num_steps = default_steps(length)
    if class_weight is not None:
        if sample_weight is not None:
            reject("class_weight", class_weight, "None where there is `sample_weight`")
        batches = (_weighted(batch, class_weight) for batch in batches)
    test = RangeTest(min_lr, max_lr, num_steps, scale)
    source = _Source(islice(batches, num_steps))
    if not model.built:
        model(source.first[0])
    history = getattr(model, "history", None), model.stop_training
    try:
        with as_it_was(model):
            # One step is one loss, also where a call runs many.
            model.steps_per_execution = 1
            with test.installed(model):
                model.fit(
                    iter(source),
                    callbacks=[_Watch(test)],
                    shuffle=False,
                    verbose=0,
                )
    except BaseException:
        # TensorFlow reports an error in the data as one of its own.
        if source.error is not None:
            raise source.error from None
        raise
    finally:
        model.history, model.stop_training = history
    return test.result()


class LRFinder(keras.callbacks.Callback):
    """The range test of `kt.find_lr` as a callback.

    `model.fit(..., callbacks=[finder])` trains for `num_steps` batches while the
    learning rate grows, stops, and puts the model back as it was before the fit. The
    loss of each step is taken inside the compiled step, whatever
    `steps_per_execution`.

    Args:
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of steps; by default those of the fit, but no fewer than 100
            and no more than 300.
        scale: `"exponential"` or `"linear"` growth of the rate.

    Attributes:
        result: An `LRFinderResult`, after the fit.

    Raises:
        ValueError: If an argument is wrong; at the beginning of the fit, if it has
            fewer than 10 steps.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(256, 8)).astype("float32")
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> finder = kt.callbacks.LRFinder()
        >>> history = model.fit(
        ...     x, (x[:, 0] > 0).astype(int), epochs=20, callbacks=[finder], verbose=0
        ... )
        >>> 1e-4 < finder.result.suggestion < 1
        True

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186, section 3.3.
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        num_steps: int | None = None,
        scale: str = "exponential",
    ):
        super().__init__()
        # For its checks; the number of steps follows from the fit.
        RangeTest(min_lr, max_lr, 100 if num_steps is None else num_steps, scale)
        self.min_lr, self.max_lr, self.scale = min_lr, max_lr, scale
        self.num_steps = num_steps
        self.result: LRFinderResult | None = None
        self._kept = contextlib.ExitStack()

    def set_params(self, params):
        """Install the growing rate, before `fit` compiles its step."""
        super().set_params(params)
        self.restore()
        steps, epochs = self.params["steps"], self.params["epochs"]
        num_steps = self.num_steps
        if num_steps is None:
            num_steps = default_steps(steps)
            if steps is not None:
                num_steps = min(num_steps, steps * epochs)
        self._test = RangeTest(self.min_lr, self.max_lr, num_steps, self.scale)
        self._watch = _Watch(self._test)
        self._watch.set_model(self.model)
        self._kept.enter_context(as_it_was(self.model))
        self._kept.enter_context(self._test.installed(self.model))

    def on_train_batch_end(self, batch, logs=None):
        self._watch.on_train_batch_end(batch, logs)

    def on_train_end(self, logs=None):
        sync_state(self.model)
        if self._test.steps:
            self.result = self._test.result()
        self.restore()

    def restore(self) -> None:
        """Put the model back; only a fit that raised or was interrupted needs it."""
        self._kept.close()


class RangeTest:
    """A growing learning rate, and the loss of each step."""

    def __init__(self, min_lr, max_lr, num_steps, scale):
        low, high = check_positive("min_lr", min_lr), check_positive("max_lr", max_lr)
        if high <= low:
            reject("max_lr", max_lr, f"> min_lr={low:g}")
        count = check_integer("num_steps", num_steps, minimum=10)
        check_choice("scale", scale, ("exponential", "linear"))
        step = keras.ops.cast
        if scale == "exponential":
            ratio = math.log(high / low) / (count - 1)
            self._rate = lambda t: low * keras.ops.exp(ratio * step(t, "float32"))
            self.lrs = low * np.exp(ratio * np.arange(count))
        else:
            slope = (high - low) / (count - 1)
            self._rate = lambda t: low + slope * step(t, "float32")
            self.lrs = np.linspace(low, high, count)
        self._recorder = _LossOfEachStep(count)
        # The losses that the logs show.
        self.logged: list[float] = []

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return max(int(self._recorder.count.value), len(self.logged))

    @contextlib.contextmanager
    def installed(self, model: keras.Model) -> Iterator[None]:
        """Lets the next `fit` follow the rate and record its losses."""
        schedule: Schedule = Lambda(self._rate)
        _exchange.replace(model, Delay(schedule, _exchange.batches_seen(model)))
        with loss_tracker(model, self._recorder):
            yield

    def records(self) -> bool:
        """Whether the model's training step updates Keras's own tracker of the loss."""
        return int(self._recorder.count.value) > 0

    def result(self) -> LRFinderResult:
        """What the losses say."""
        found = self._recorder.losses() if self.records() else self.logged
        count = min(len(found), len(self.lrs))
        lrs, losses = self.lrs[:count], np.array(found[:count])
        if count < 10:
            # It exploded at once: `num_steps` is never that small.
            return LRFinderResult(lrs, losses, losses, verdict=DIVERGES)
        return analyse(lrs, losses)


class _LossOfEachStep(keras.metrics.Metric):
    """Keeps the loss of each step, where Keras keeps their mean over the epoch."""

    def __init__(self, num_steps: int):
        super().__init__(name="loss", dtype="float32")
        zeros = keras.initializers.Zeros()
        self.values = self.add_weight(shape=(num_steps,), initializer=zeros)
        self.count = self.add_weight(shape=(), initializer=zeros, dtype="int32")

    def update_state(self, value, sample_weight=None):
        steps = keras.ops.arange(self.values.shape[0], dtype="int32")
        here = keras.ops.equal(steps, self.count.value)
        value = keras.ops.cast(value, "float32")
        self.values.assign(keras.ops.where(here, value, self.values.value))
        self.count.assign(self.count.value + 1)

    def result(self):
        last = keras.ops.clip(self.count.value - 1, 0, self.values.shape[0] - 1)
        return keras.ops.take(self.values.value, last)

    def reset_state(self):
        """Nothing, since the test goes on over the epochs."""

    def losses(self) -> list[float]:
        """The losses so far."""
        values = keras.ops.convert_to_numpy(self.values.value).tolist()
        return values[: int(self.count.value)]


class _Watch(keras.callbacks.Callback):
    """Ends the test when it is through, or the loss explodes."""

    def __init__(self, test: RangeTest):
        super().__init__()
        self._test = test
        self._through = 0

    def on_train_batch_end(self, batch, logs=None):
        logged = self._test.logged
        if "loss" not in (logs or {}):
            raise ValueError(
                "`train_step` must return the loss under the name 'loss'. "
                f"Received: train_step with {sorted(logs or {})}"
            )
        logged.append(float(logs["loss"]))
        if len(logged) == 1:
            sync_state(self.model)
            self._records = self._test.records()
            self._steps_per_call = self.model.steps_per_execution
        if not self._records:
            # The mean of an own tracker is the loss of a step if it begins with each.
            self.model.reset_metrics()
        self._through += self._steps_per_call
        if self._through >= len(self._test.lrs):
            # The last call of an epoch may have run fewer.
            sync_state(self.model)
            self._through = self._test.steps
        if self._through >= len(self._test.lrs) or exploded(logged):
            self.model.stop_training = True


class _Source:
    """Batches in NumPy, and the error that ended them."""

    def __init__(self, batches: Iterator[Any]):
        self._batches = batches
        self.error: BaseException | None = None
        self.first = next(iter(self._through()))

    def __iter__(self) -> Iterator[Any]:
        yield self.first
        yield from self._through()

    def _through(self) -> Iterator[Any]:
        try:
            for batch in self._batches:
                yield keras.tree.map_structure(_as_array, batch)
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise


def _as_array(value: Any) -> Any:
    """A tensor of any library as an array; what has no array as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value) if hasattr(value, "__array__") else value


def _weighted(batch: tuple, class_weight: dict[int, float]) -> tuple:
    """A batch with the weight of each row's class, which `fit` wants with arrays."""
    x, y, *_ = batch
    y = _as_array(y)
    if not isinstance(y, np.ndarray):
        reject("class_weight", class_weight, "None where there are several outputs")
    classes = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(len(y))
    return x, y, np.array([class_weight.get(int(c), 1.0) for c in classes], "float32")


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model) or not model.compiled:
        reject("model", getattr(model, "name", model), "a compiled Keras model")


def default_steps(batches: int | None) -> int:
    """An epoch, but no fewer than 100 steps and no more than 300."""
    return 100 if batches is None else int(np.clip(batches, 100, 300))


def _batches(
    x, y, sample_weight, batch_size, seed
) -> tuple[Iterator[tuple], int | None]:
    if y is not None or hasattr(x, "shape") or isinstance(x, dict):
        if y is None:
            reject("y", None, "given where x is an array")
        batch_size = check_integer("batch_size", batch_size or 32, minimum=1)
        data = (x, y) if sample_weight is None else (x, y, sample_weight)
        data = keras.tree.map_structure(_as_array, data)
        sizes = {len(array) for array in keras.tree.flatten(data)}
        if len(sizes) > 1:
            reject("x", sorted(sizes), "of as many rows as `y` and `sample_weight`")
        (rows,) = sizes
        return _array_batches(data, rows, batch_size, seed), -(-rows // batch_size)
    for name, value in (("batch_size", batch_size), ("sample_weight", sample_weight)):
        if value is not None:
            reject(name, value, "None where x yields batches")
    if isinstance(x, str) or not isinstance(x, Iterable | keras.utils.PyDataset):
        reject("x", type(x), "an array or an iterable of batches")
    if isinstance(x, keras.utils.PyDataset):
        x = _PyDatasetBatches(x)
    try:
        length = len(x)
    except TypeError:
        # No length, or, as a `tf.data.Dataset` may say, an unknown or infinite one.
        length = None
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


def _array_batches(data, rows, batch_size, seed) -> Iterator[tuple]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(rows)
        for start in range(0, rows, batch_size):
            chosen = order[start : start + batch_size]
            yield keras.tree.map_structure(lambda a, c=chosen: a[c], data)
