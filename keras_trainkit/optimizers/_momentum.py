"""Optimizers whose momentum may be a schedule."""

import keras
from keras import ops

from keras_trainkit._keras import backend_class
from keras_trainkit._training.scheduled import Scheduled, schedules_for_keras

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


def _register(cls):
    """Make an optimizer loadable, and the one to take in place of Keras's own."""
    schedules_for_keras(cls, cls.__bases__[1])
    return keras.saving.register_keras_serializable(package="keras_trainkit")(cls)


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
