"""Copies of a model's optimizer whose learning rate or momentum is a schedule."""

from typing import Any

import keras

from keras_trainkit._keras import backend_class, batch_count, step_counter
from keras_trainkit._training.optimizer import copy_for, core_optimizer, own_class
from keras_trainkit._types import Schedule
from keras_trainkit.optimizers import _momentum as optimizers

# Maps Keras's classes to ours, whose momentum can be a schedule.
_SCHEDULABLE = {
    backend_class(keras.optimizers.SGD): optimizers.SGD,
    backend_class(keras.optimizers.Adam): optimizers.Adam,
    backend_class(keras.optimizers.AdamW): optimizers.AdamW,
    backend_class(keras.optimizers.Nadam): optimizers.Nadam,
}


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
        cls: Class of the copy; a schedule's state then stays out of the variables. By
            default that of the optimizer, or ours if a schedule needs it.
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
    """Copy the model's optimizer so that the next batch is the next update.

    The copy has the state, and the learning rate and momentum of the current step, even
    if a callback schedules them. Gradients are not accumulated over several batches.
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
    """Return the class like this optimizer's whose momentum may be a schedule."""
    cls = own_class(optimizer)
    return cls if issubclass(cls, optimizers.Scheduled) else _SCHEDULABLE.get(cls)
