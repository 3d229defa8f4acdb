"""The parts of a range test: a growing rate, and the loss of each step."""

import contextlib
import math
import random
import sys
from collections.abc import Iterator

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_integer, check_positive, reject
from keras_trainkit._keras import batch_count, loss_tracker, sync_state
from keras_trainkit._training.optimizer import (
    batches_seen,
    converted,
    core_optimizer,
    install,
    own_class,
    save_like,
    set_optimizer,
)
from keras_trainkit._training.scheduled import with_schedules
from keras_trainkit._training.several_optimizers import (
    Movements,
    optimizer_named,
    others_as_they_were,
)
from keras_trainkit.lr_finder._analyse import (
    DIVERGES,
    LRFinderResult,
    analyse,
    exploded,
)
from keras_trainkit.schedules import Delay, Lambda


class RangeTest:
    """A growing learning rate, and the loss of each step."""

    def __init__(
        self,
        min_lr,
        max_lr,
        num_steps,
        scale="exponential",
        optimizer=None,
        monitor="loss",
        stop_factor=8.0,
        skip_start=0,
    ):
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
        if stop_factor is not None and check_positive("stop_factor", stop_factor) <= 1:
            reject("stop_factor", stop_factor, "> 1, or None")
        self._skip_start = check_integer("skip_start", skip_start, minimum=0)
        if skip_start > count - 10:
            reject("skip_start", skip_start, f"at most num_steps - 10, {count - 10}")
        self._stop_factor = stop_factor
        self._optimizer, self.monitor = optimizer, monitor
        self._movements: Movements | None = None
        self.phase = f"range test from {low:.3g} to {high:.3g}, {count} steps"
        # The losses that Keras's logs show.
        self.logged: list[float] = []

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return max(int(self._recorder.count.value), len(self.logged))

    @contextlib.contextmanager
    def installed(self, model: keras.Model) -> Iterator[None]:
        """Make the next `fit` follow the rate and record its losses."""
        name = self._optimizer or "optimizer"
        check_one_replica(model)
        optimizer_named(model, name)
        with others_as_they_were(model, name), loss_tracker(model, self._recorder):
            with self._following(model, name):
                self._movements = Movements(model)
                yield

    @contextlib.contextmanager
    def _following(self, model: keras.Model, name: str) -> Iterator[None]:
        """Make an optimizer follow the rate."""
        if name == "optimizer":
            # `as_it_was` restores the user's optimizer.
            original = core_optimizer(model)
            rate = Delay(Lambda(self._rate), batches_seen(model))
            install(model, with_schedules(model, rate), rewrap=True)
            save_like(model.optimizer, original)
            yield
            return
        original = optimizer_named(model, name)
        if hasattr(original, "inner_optimizer"):
            reject("optimizer", original, "one without loss scaling")
        begin = batch_count(original)
        rate = Delay(Lambda(self._rate), begin)
        copy = converted(original, own_class(original), {"learning_rate": rate})
        set_optimizer(model, original, copy)
        model.train_function = None
        try:
            yield
        finally:
            set_optimizer(model, copy, original)

    def check(self) -> None:
        """Raise unless only the optimizer of the test trains the model."""
        if self._movements is not None:
            self._movements.check(self._optimizer)

    def records(self) -> bool:
        """Whether the training step updates Keras's own tracker of the loss."""
        return self.monitor == "loss" and int(self._recorder.count.value) > 0

    def losses(self) -> np.ndarray:
        """The loss of each step so far."""
        found = self._recorder.losses() if self.records() else self.logged
        return np.array(found[: len(self.lrs)])

    def result(self) -> LRFinderResult:
        """Analyse the losses recorded so far."""
        losses = self.losses()
        lrs, count = self.lrs[: len(losses)], len(losses)
        if count < 10 + self._skip_start:
            # The loss exploded at once: `num_steps` is never that small.
            return LRFinderResult(lrs, losses, losses, verdict=DIVERGES)
        return analyse(lrs, losses, skip_start=self._skip_start)

    def is_through(self) -> bool:
        """Whether the loss has exploded."""
        losses = self.logged[self._skip_start :]
        if self._stop_factor is None or not losses:
            return False
        return exploded(losses, self._stop_factor)


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the random states that shuffle and augment data.

    Python's, NumPy's and, where it is loaded, PyTorch's, from which every `DataLoader`
    draws when it is read.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch = sys.modules.get("torch")
    drawn = torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch:
            torch.set_rng_state(drawn)


class Watch(keras.callbacks.Callback):
    """End the test after its last step or when the loss explodes."""

    def __init__(self, test: RangeTest):
        super().__init__()
        self._test = test
        self._through = 0

    def on_train_batch_end(self, batch, logs=None):
        logged, name = self._test.logged, self._test.monitor
        if name not in (logs or {}):
            raise ValueError(
                f"`train_step` must return the loss under the name {name!r}, or "
                "`monitor` must be the name under which it does. "
                f"Received: train_step with {sorted(logs or {})}"
            )
        logged.append(float(logs[name]))
        if len(logged) == 1:
            sync_state(self.model)
            self._test.check()
            self._records = self._test.records()
            self._steps_per_call = self.model.steps_per_execution
        if not self._records:
            # A custom tracker that is reset each step has the loss of that step.
            self.model.reset_metrics()
        self._through += self._steps_per_call
        if self._through >= len(self._test.lrs):
            # The last call of an epoch may have run fewer steps.
            sync_state(self.model)
            self._through = self._test.steps
        if self._through >= len(self._test.lrs) or self._test.is_through():
            self.model.stop_training = True


def check_one_replica(model: keras.Model) -> None:
    """Raise if a `tf.distribute` strategy has several replicas of the model.

    Each replica would record the loss of its part of the batch as a separate step.
    """
    strategy = getattr(model, "distribute_strategy", None)
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    if replicas > 1:
        reject(
            "model",
            f"{model.name} with {replicas} replicas",
            "made outside the scope of a tf.distribute strategy: find the rate on one "
            "device, with the global batch size, for which it holds on all",
        )


def default_steps(batches: int | None) -> int:
    """Return the steps of one epoch, but at least 100 and at most 300."""
    return 100 if batches is None else int(np.clip(batches, 100, 300))


class _LossOfEachStep(keras.metrics.Metric):
    """Keep the loss of each step; Keras keeps only their mean over the epoch."""

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
        """Do nothing, because the test continues across epochs."""

    def losses(self) -> list[float]:
        """The losses so far."""
        values = keras.ops.convert_to_numpy(self.values.value).tolist()
        return values[: int(self.count.value)]
