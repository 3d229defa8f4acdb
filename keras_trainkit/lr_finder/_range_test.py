"""What a range test is made of: a growing rate, and the loss of each step."""

import contextlib
import math
from collections.abc import Iterator

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_integer, check_positive, reject
from keras_trainkit._keras import loss_tracker, sync_state
from keras_trainkit._training.optimizer import batches_seen, install
from keras_trainkit._types import Schedule
from keras_trainkit.lr_finder._analyse import (
    DIVERGES,
    LRFinderResult,
    analyse,
    exploded,
)
from keras_trainkit.optimizers._scheduled import with_schedules
from keras_trainkit.schedules import Delay, Lambda


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
        install(
            model,
            with_schedules(model, Delay(schedule, batches_seen(model))),
            rewrap=True,
        )
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


class Watch(keras.callbacks.Callback):
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


def default_steps(batches: int | None) -> int:
    """An epoch, but no fewer than 100 steps and no more than 300."""
    return 100 if batches is None else int(np.clip(batches, 100, 300))


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
