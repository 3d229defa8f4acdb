"""Optimizers whose learning rate or momentum is a schedule."""

from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._keras import batch_count, step_counter
from keras_trainkit._training.optimizer import copy_for, core_optimizer, own_class
from keras_trainkit._types import Schedule, Tensor

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


class Scheduled(keras.optimizers.Optimizer):
    """A mixin that lets one hyperparameter, `_HYPERPARAMETER`, be a schedule."""

    _HYPERPARAMETER: str
    _value: float | Schedule
    # The value in the current step, computed once rather than for each variable.
    _current: Tensor | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A stateful schedule stores its state in this optimizer's variables. They are
        # created here, because a checkpoint requires the same number and order.
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
        # Takes effect only in steps that are compiled from now on.
        self._set(schedule)

    def apply(self, grads, trainable_variables=None):
        """Update all variables, using the momentum of this step."""
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


# Maps Keras's classes to our replacements whose momentum can be a schedule.
_SCHEDULABLE: dict[type, type] = {}


def schedules_for_keras(cls: type, base: type) -> None:
    """Register `cls` as the replacement for Keras's `base` with a momentum schedule."""
    _SCHEDULABLE[base] = cls


def momentum_name(optimizer: keras.optimizers.Optimizer) -> str | None:
    """Return the name of the optimizer's momentum; None if it cannot be scheduled."""
    cls = schedulable(optimizer)
    return cls._HYPERPARAMETER if cls else None


def with_schedules(
    model: keras.Model,
    learning_rate: Schedule | float,
    momentum: Schedule | None = None,
    cls: type | None = None,
) -> keras.optimizers.Optimizer:
    """Copy the model's optimizer, including its state, to follow schedules.

    Args:
        model: The model.
        learning_rate: The learning rate, usually a schedule.
        momentum: Schedule of the momentum, if `momentum_name` is not None.
        cls: Class of the copy; a schedule's state is then not one of its variables. By
            default the class of the optimizer, or ours if a schedule needs it.
    """
    optimizer = core_optimizer(model)
    changes = {"learning_rate": learning_rate}
    ours = schedulable(optimizer)
    if momentum is not None and ours:
        changes[ours._HYPERPARAMETER] = momentum
    if cls is not None:
        return copy_for(model, cls, changes)
    stateful = hasattr(learning_rate, "bind")
    needs_ours = momentum is not None or stateful
    cls = ours if ours and needs_ours else own_class(optimizer)
    return copy_for(model, cls, changes, stateful)


def as_of_now(model: keras.Model) -> keras.optimizers.Optimizer:
    """Copy the model's optimizer, frozen at the current learning rate and momentum.

    The copy has the optimizer's state. Its learning rate and momentum are constants,
    even if a callback schedules them. It updates the weights at every batch, without
    gradient accumulation.
    """
    optimizer = core_optimizer(model)
    changes: dict[str, Any] = {"learning_rate": _number(optimizer.learning_rate)}
    schedule = getattr(optimizer, "momentum_schedule", None)
    if schedule is not None:
        momentum = schedule(step_counter(optimizer))
        changes[schedulable(optimizer)._HYPERPARAMETER] = _number(momentum)
    accumulated = optimizer.gradient_accumulation_steps
    if accumulated:
        changes["gradient_accumulation_steps"] = None
    copy = copy_for(model, own_class(optimizer), changes)
    if accumulated and copy.built:
        step_counter(copy).assign(batch_count(optimizer) // accumulated)
    return copy


def _number(value: Any) -> float:
    return float(keras.ops.convert_to_numpy(value))


def schedulable(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the variant of the optimizer's class whose momentum may be a schedule.

    None if there is no such class.
    """
    cls = own_class(optimizer)
    return cls if issubclass(cls, Scheduled) else _SCHEDULABLE.get(cls)
