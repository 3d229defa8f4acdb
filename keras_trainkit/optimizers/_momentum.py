"""Optimizers whose momentum may be a schedule."""

from typing import Any

import keras
from keras import ops

from keras_trainkit._checks import reject
from keras_trainkit._keras import backend_class, step_counter
from keras_trainkit._types import Schedule, Tensor

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule

_register = keras.saving.register_keras_serializable(package="keras_trainkit")


class Scheduled(keras.optimizers.Optimizer):
    """A mixin that lets one hyperparameter, `_HYPERPARAMETER`, be a schedule."""

    _HYPERPARAMETER: str
    _value: float | Schedule
    # The value in a step, computed once and not for each variable.
    _current: Tensor | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A schedule with a state keeps it in this optimizer's variables from the
        # beginning: a checkpoint loads into variables of the same number and order.
        rate: Any = kwargs.get("learning_rate", args[0] if args else None)
        bind = getattr(rate, "bind", None)
        if bind:
            bind(self.add_variable)

    def _get(self) -> Tensor:
        if not isinstance(self._value, LearningRateSchedule):
            return self._value
        if self._current is not None:
            return self._current
        return self._value(step_counter(self))

    def _set(self, value: float | Schedule) -> None:
        if not isinstance(value, LearningRateSchedule | int | float):
            reject(self._HYPERPARAMETER, value, "a number or a LearningRateSchedule")
        self._value = value

    @property
    def momentum_schedule(self) -> Schedule | None:
        """Return the schedule of the momentum; None if it is a constant."""
        return self._value if isinstance(self._value, LearningRateSchedule) else None

    @momentum_schedule.setter
    def momentum_schedule(self, schedule: Schedule) -> None:
        # A step that was already compiled would not see the change.
        self._set(schedule)

    def apply(self, grads, trainable_variables=None):
        """Update all variables, with the momentum of this step."""
        schedule = self.momentum_schedule
        if schedule is None:
            return super().apply(grads, trainable_variables)
        self._current = schedule(step_counter(self))
        try:
            return super().apply(grads, trainable_variables)
        finally:
            self._current = None

    def get_config(self) -> dict:
        config = super().get_config()
        schedule = self.momentum_schedule
        if schedule is not None:
            config[self._HYPERPARAMETER] = keras.optimizers.schedules.serialize(
                schedule
            )
        return config

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None):
        value = config.get(cls._HYPERPARAMETER)
        if isinstance(value, dict):
            schedule = keras.saving.deserialize_keras_object(value, custom_objects)
            config = {**config, cls._HYPERPARAMETER: schedule}
        return super().from_config(config, custom_objects)


class ScheduledMomentum(Scheduled):
    """A mixin that makes `keras.optimizers.SGD` accept a momentum schedule."""

    _HYPERPARAMETER = "momentum"

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, **kwargs):
        # Keras expects a float; any value but 0 creates the slots.
        scheduled = isinstance(momentum, LearningRateSchedule)
        super().__init__(
            learning_rate,
            momentum=1.0 if scheduled else momentum,
            nesterov=nesterov,
            **kwargs,
        )
        self.momentum = momentum

    @property
    def momentum(self):
        """Return the momentum of the current step."""
        value = self._get()
        if self.momentum_schedule is None or keras.backend.backend() != "torch":
            return value
        # Keras's update for PyTorch does not update the velocity if momentum == 0.
        return max(float(value), 1e-30)

    @momentum.setter
    def momentum(self, value):
        self._set(value)

    def build(self, variables):
        """Build the slots, including the velocity if the momentum is a schedule."""
        schedule, self._value = self._value, 1.0 if self._value else 0.0
        try:
            super().build(variables)
        finally:
            self._value = schedule

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable."""
        if self.momentum_schedule is None:
            super().update_step(gradient, variable, learning_rate)
            return
        rate = ops.cast(learning_rate, variable.dtype)
        momentum = ops.cast(self.momentum, variable.dtype)
        step = rate * ops.cast(gradient, variable.dtype)
        velocity = self.momentums[self._get_variable_index(variable)]
        self.assign(velocity, momentum * velocity - step)
        if self.nesterov:
            self.assign_add(variable, momentum * velocity - step)
        else:
            self.assign_add(variable, velocity)


class ScheduledBeta(Scheduled):
    """A mixin for the Adam family, whose momentum is `beta_1`."""

    _HYPERPARAMETER = "beta_1"

    @property
    def beta_1(self):
        """Return the first moment's decay at the current step."""
        value = self._get()
        if self.momentum_schedule is None or keras.backend.backend() != "torch":
            return value
        return float(value)

    @beta_1.setter
    def beta_1(self, value):
        self._set(value)


@_register
class SGD(ScheduledMomentum, backend_class(keras.optimizers.SGD)):  # type: ignore[misc]
    """`keras.optimizers.SGD` whose `momentum` may be a schedule.

    Args:
        learning_rate: A float or a `LearningRateSchedule`.
        momentum: A float in `[0, 1]` or a `LearningRateSchedule` of the batches seen.
        nesterov: Whether to apply Nesterov momentum.
        **kwargs: As in `keras.optimizers.SGD`.

    Examples:
        >>> import keras_trainkit as kt
        >>> optimizer = kt.optimizers.SGD(
        ...     kt.schedules.OneCycle(0.1, total_steps=100),
        ...     momentum=kt.schedules.OneCycleMomentum(total_steps=100),
        ... )
        >>> round(float(optimizer.momentum), 4)
        0.95

    Reference:
        L. Smith, A disciplined approach to neural network hyper-parameters (2018),
        arXiv:1803.09820, section 4.3.
    """


@_register
class Adam(ScheduledBeta, backend_class(keras.optimizers.Adam)):  # type: ignore[misc]
    """`keras.optimizers.Adam` whose `beta_1` may be a schedule.

    The bias correction at step `t` is `1 - beta_1(t) ** t`, the formula for a constant
    with the current value, as in PyTorch's Adam when `OneCycleLR` cycles its momentum.

    Args:
        learning_rate: A float or a `LearningRateSchedule`.
        beta_1: A float or a `LearningRateSchedule` of the batches seen.
        **kwargs: As in `keras.optimizers.Adam`.

    Examples:
        >>> import keras_trainkit as kt
        >>> momentum = kt.schedules.OneCycleMomentum(total_steps=100)
        >>> round(float(kt.optimizers.Adam(1e-3, beta_1=momentum).beta_1), 4)
        0.95

    Reference:
        D. Kingma and J. Ba, Adam (2014), arXiv:1412.6980, algorithm 1.
    """


@_register
class AdamW(ScheduledBeta, backend_class(keras.optimizers.AdamW)):  # type: ignore[misc]
    """`keras.optimizers.AdamW` whose `beta_1` may be a schedule.

    Args:
        learning_rate: A float or a `LearningRateSchedule`.
        weight_decay: Fraction of the weights, times the rate, to subtract each step.
        beta_1: A float or a `LearningRateSchedule` of the batches seen.
        **kwargs: As in `keras.optimizers.AdamW`.

    Examples:
        >>> import keras_trainkit as kt
        >>> momentum = kt.schedules.OneCycleMomentum(1000)
        >>> optimizer = kt.optimizers.AdamW(
        ...     kt.schedules.OneCycle(1e-3, 1000), weight_decay=0.01, beta_1=momentum
        ... )

    Reference:
        I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization (2017),
        arXiv:1711.05101.
    """


@_register
class Nadam(ScheduledBeta, backend_class(keras.optimizers.Nadam)):  # type: ignore[misc]
    """`keras.optimizers.Nadam` whose `beta_1` may be a schedule.

    Args:
        learning_rate: A float or a `LearningRateSchedule`.
        beta_1: A float or a `LearningRateSchedule` of the batches seen.
        **kwargs: As in `keras.optimizers.Nadam`.

    Examples:
        >>> import keras_trainkit as kt
        >>> momentum = kt.schedules.OneCycleMomentum(1000)
        >>> rate = kt.schedules.OneCycle(1e-3, 1000)
        >>> optimizer = kt.optimizers.Nadam(rate, beta_1=momentum)

    Reference:
        T. Dozat, Incorporating Nesterov Momentum into Adam (2016).
    """
