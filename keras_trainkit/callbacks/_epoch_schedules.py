"""Schedules as callbacks, with epochs as the unit."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.optimizers.schedules import ExponentialDecay, PiecewiseConstantDecay

from keras_trainkit import schedules
from keras_trainkit._checks import check_items, check_positive, reject
from keras_trainkit._types import Schedule
from keras_trainkit.callbacks._automatic_rate import automatic_rate
from keras_trainkit.callbacks._schedule_callback import ScheduleCallback
from keras_trainkit.lr_finder import LRFinderResult

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


class ApplySchedule(ScheduleCallback):
    """Make the learning rate follow any schedule during `fit`.

    Works on a compiled model with any optimizer. Step 0 of the schedule is the first
    batch of epoch 0. After the fit, the optimizer has its own learning rate again.

    Args:
        schedule: A `LearningRateSchedule` from `kt.schedules` or Keras, counted in
            batches; or `"auto"`, to find a rate before the first step as
            `kt.callbacks.OneCycle("auto")` does, and train with `found.suggestion`.
        make: With `"auto"`, a function from the rate to the schedule, such as
            `lambda rate: kt.schedules.Step(rate, 500)`; by default the rate is
            constant.
        optimizer: Which optimizer, if a custom `train_step` uses several; as in
            `kt.callbacks.OneCycle`.

    Attributes:
        found: What `kt.find_lr` found for `"auto"`, an `LRFinderResult`; None before.

    Raises:
        ValueError: If an argument is wrong; from `fit`, if no rate can be found.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", loss="mse")
        >>> schedule = kt.schedules.Step(0.5, step_size=4, gamma=0.5)
        >>> x = np.ones((64, 2), "float32")
        >>> history = model.fit(
        ...     x, x[:, :1], batch_size=16, epochs=3, verbose=0,
        ...     callbacks=[kt.callbacks.ApplySchedule(schedule)],
        ... )
        >>> history.history["learning_rate"]
        [0.5, 0.25, 0.125]
    """

    def __init__(
        self,
        schedule: Schedule | str,
        make: Callable[[float], Schedule] | None = None,
        optimizer: str | None = None,
    ):
        super().__init__(optimizer)
        self._finds = isinstance(schedule, str) and schedule == "auto"
        if not self._finds:
            _check(schedule)
            if make is not None:
                reject("make", make, 'None unless `schedule` is "auto"')
        elif make is not None and not callable(make):
            reject("make", make, "a function of the rate that returns a schedule")
        self.schedule, self.make = schedule, make
        self.found: LRFinderResult | None = None

    def set_params(self, params):
        """Find the rate if it is `"auto"`, then install the schedule."""
        if self._finds:
            make = self.make or schedules.Constant
            rate = automatic_rate(self, "schedule", "suggestion")
            self.schedule = _check(make(rate))
        super().set_params(params)

    def make_schedules(self, optimizer, steps_per_epoch):
        """Return the schedule that the user passed."""
        return self.schedule, None


def _check(schedule: Any) -> Schedule:
    if not isinstance(schedule, LearningRateSchedule):
        reject("schedule", schedule, 'a LearningRateSchedule or "auto"')
    return schedule


class _EpochSchedule(ScheduleCallback):
    """Base class: a schedule counted in epochs that changes at every step."""

    def in_steps(self, steps_per_epoch: int) -> Schedule:
        """Return the schedule in steps."""
        raise NotImplementedError

    def make_schedules(self, optimizer, steps_per_epoch):
        """Return the schedule in steps, for epochs of this length."""
        if steps_per_epoch is None:
            raise ValueError(
                f"{type(self).__name__} counts in epochs and cannot know how many "
                "batches an epoch of these data has: pass steps_per_epoch to fit. "
                "Received: steps_per_epoch=None"
            )
        return self.in_steps(steps_per_epoch), None


class ExponentialSchedule(_EpochSchedule):
    """Exponential scheduling: `initial * 0.1 ** (e / epochs)` after `e` epochs.

    `e` includes fractions of epochs: the rate changes at every step.

    Args:
        initial: The initial learning rate.
        epochs: Epochs in which it falls to a tenth.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", loss="mse")
        >>> x = np.ones((64, 2), "float32")
        >>> history = model.fit(
        ...     x, x[:, :1], batch_size=16, epochs=2, verbose=0,
        ...     callbacks=[kt.callbacks.ExponentialSchedule(0.1, epochs=2)],
        ... )
        >>> [round(rate, 3) for rate in history.history["learning_rate"]]
        [0.042, 0.013]

    Reference:
        A. Géron, Hands-On Machine Learning, 2nd ed. (2019), chapter 11.
    """

    def __init__(self, initial: float, epochs: float):
        super().__init__()
        self.initial = check_positive("initial", initial)
        self.epochs = check_positive("epochs", epochs)

    def in_steps(self, steps_per_epoch: int) -> Schedule:
        """Keras's `ExponentialDecay`."""
        return ExponentialDecay(self.initial, self.epochs * steps_per_epoch, 0.1)


class PowerSchedule(_EpochSchedule):
    """Power scheduling: `initial / (1 + e / epochs) ** power` after `e` epochs.

    `e` includes fractions of epochs: the rate changes at every step.

    Args:
        initial: The initial learning rate.
        epochs: Epochs until the rate has fallen to `1 / 2 ** power` of `initial`.
        power: The exponent.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", loss="mse")
        >>> x = np.ones((64, 2), "float32")
        >>> history = model.fit(
        ...     x, x[:, :1], batch_size=16, epochs=2, verbose=0,
        ...     callbacks=[kt.callbacks.PowerSchedule(0.1, epochs=2)],
        ... )
        >>> [round(rate, 3) for rate in history.history["learning_rate"]]
        [0.073, 0.053]

    Reference:
        A. Géron, Hands-On Machine Learning, 2nd ed. (2019), chapter 11.
    """

    def __init__(self, initial: float, epochs: float, power: float = 1.0):
        super().__init__()
        self.epochs = check_positive("epochs", epochs)
        self._in_epochs = schedules.Power(initial, self.epochs, power)

    def in_steps(self, steps_per_epoch: int) -> Schedule:
        """`kt.schedules.Power`."""
        unit = self._in_epochs
        return schedules.Power(unit.initial, self.epochs * steps_per_epoch, unit.power)


class PiecewiseConstantSchedule(_EpochSchedule):
    """Piecewise constant scheduling: the rate changes at given epochs.

    Args:
        boundaries: Epochs after which the rate changes, increasing; fractions of epochs
            are rounded to whole batches.
        values: The rates, one more than there are boundaries.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", loss="mse")
        >>> x = np.ones((64, 2), "float32")
        >>> steps = kt.callbacks.PiecewiseConstantSchedule([2, 3], [1, 0.5, 0.25])
        >>> history = model.fit(
        ...     x, x[:, :1], batch_size=16, epochs=4, verbose=0, callbacks=[steps]
        ... )
        >>> history.history["learning_rate"]
        [1.0, 1.0, 0.5, 0.25]

    Reference:
        A. Géron, Hands-On Machine Learning, 2nd ed. (2019), chapter 11.
    """

    def __init__(self, boundaries: Sequence[float], values: Sequence[float]):
        super().__init__()
        self.boundaries = [
            check_positive("boundaries", boundary)
            for boundary in check_items("boundaries", boundaries, "a list of epochs")
        ]
        self.values = [
            check_positive("values", value)
            for value in check_items("values", values, "a list of rates")
        ]
        if sorted(set(self.boundaries)) != self.boundaries:
            reject("boundaries", boundaries, "in increasing order")
        if len(self.values) != len(self.boundaries) + 1:
            reject("values", values, f"{len(self.boundaries) + 1} rates")

    def in_steps(self, steps_per_epoch: int) -> Schedule:
        """Keras's `PiecewiseConstantDecay`."""
        # In Keras's schedule the step at the boundary still has the earlier rate.
        last_steps = [round(b * steps_per_epoch) - 1 for b in self.boundaries]
        return PiecewiseConstantDecay(last_steps, self.values)
