"""Copies of a model's optimizer whose learning rate or momentum is a schedule."""

from typing import Any

import keras

from keras_trainkit._keras import backend_class, batch_count, step_counter
from keras_trainkit._training.optimizer import copy_for, core_optimizer, own_class
from keras_trainkit._types import Schedule
from keras_trainkit.optimizers import _momentum as optimizers

# From the classes that Keras instantiates to those with a schedulable momentum.
_SCHEDULABLE = {
    backend_class(keras.optimizers.SGD): optimizers.SGD,
    backend_class(keras.optimizers.Adam): optimizers.Adam,
    backend_class(keras.optimizers.AdamW): optimizers.AdamW,
    backend_class(keras.optimizers.Nadam): optimizers.Nadam,
}


def momentum_name(optimizer: keras.optimizers.Optimizer) -> str | None:
    """What the optimizer calls its momentum; None if it cannot be scheduled."""
    cls = schedulable(optimizer)
    return cls._HYPERPARAMETER if cls else None


def with_schedules(
    model: keras.Model,
    learning_rate: Schedule | float,
    momentum: Schedule | None = None,
    cls: type | None = None,
) -> keras.optimizers.Optimizer:
    """A copy of the model's optimizer, its state included, that follows schedules.

    Args:
        model: The model.
        learning_rate: The learning rate, most often a schedule.
        momentum: Schedule of the momentum, where `momentum_name` is not None.
        cls: Class of the copy, where a schedule's state then stays out of the
            variables; by default that of the optimizer, or ours where a schedule needs
            it.
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
    """A copy of the model's optimizer that makes its next update with the next batch.

    It has the state, and the learning rate and momentum of the present step, which a
    callback may schedule. Gradients are not accumulated over several batches.
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
    """The class of an optimizer like this one whose momentum may be a schedule."""
    cls = own_class(optimizer)
    return cls if issubclass(cls, optimizers.Scheduled) else _SCHEDULABLE.get(cls)
