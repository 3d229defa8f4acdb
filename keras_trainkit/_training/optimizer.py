"""The optimizer of a model: copying and replacing it."""

import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._keras import (
    batch_count,
    copy_exclusions,
    moving_averages,
    set_inner_optimizer,
    set_saved_optimizer,
    step_counter,
    sublayers,
    updated_variables,
)
from keras_trainkit._keras.fitting import rate_variables
from keras_trainkit._training.fit_scope import end_if_over
from keras_trainkit._types import Schedule


def core_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Return the optimizer that updates the weights, without any loss scaling."""
    end_if_over(model)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(
        optimizer, getattr(keras.optimizers, "MultiOptimizer", ())
    ):
        reject("optimizer", optimizer, "a single Keras optimizer")
    return optimizer


def optimizers_of(model: keras.Model) -> dict[str, Any]:
    """Return all optimizers of a model, keyed by where they are found.

    A custom `train_step` may use several, as in a GAN. The key names an attribute of
    the model (`"d_optimizer"`), an entry of a list or dict (`"optimizers[0]"`), or the
    optimizer of a model inside it (`"generator.optimizer"`). `model.optimizer` comes
    first, and each optimizer is listed once. `set_optimizer` replaces one.
    """
    found = {name: value for name, value, _ in _optimizer_places(model)}
    first = {"optimizer": found["optimizer"]} if "optimizer" in found else {}
    by_id = {id(value): name for name, value in reversed((first | found).items())}
    return {name: o for name, o in (first | found).items() if by_id[id(o)] == name}


def set_optimizer(model: keras.Model, optimizer: Any, other: Any) -> None:
    """Replace `optimizer` by another one everywhere in a model."""
    for _, value, put in list(_optimizer_places(model)):
        if value is optimizer:
            put(other)


def _optimizer_places(model, prefix="", seen=None) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and value of each optimizer, and a function that replaces it."""
    seen = set() if seen is None else seen
    if id(model) in seen:
        return
    seen.add(id(model))
    for attribute, value in list(vars(model).items()):
        name = f"{prefix}{attribute}"
        if isinstance(value, keras.optimizers.Optimizer):
            yield name, value, functools.partial(setattr, model, attribute)
        elif isinstance(value, list | dict) and not attribute.startswith("_"):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in list(pairs):
                if isinstance(item, keras.optimizers.Optimizer):
                    put = functools.partial(value.__setitem__, key)
                    yield f"{name}[{key!r}]", item, put
    for layer in sublayers(model, recursive=False):
        if isinstance(layer, keras.Model):
            # PyTorch stores them separately from other attributes.
            attributes = {**vars(model), **vars(model).get("_modules", {})}
            names = [name for name, value in attributes.items() if value is layer]
            name = names[0] if names else layer.name
            yield from _optimizer_places(layer, f"{prefix}{name}.", seen)


def own_class(optimizer: keras.optimizers.Optimizer) -> type:
    """Return the class that the optimizer has outside of a fit with schedules."""
    follows = vars(optimizer).get("_follows")
    return type(optimizer) if follows is None else follows.cls


def check_not_following(optimizer: keras.optimizers.Optimizer) -> None:
    """Raise if a callback schedules an optimizer that is about to be replaced."""
    follows = vars(optimizer).get("_follows")
    if follows is not None:
        owner = type(follows.owner).__name__
        reject("callbacks", owner, "without one that replaces the optimizer")


def batches_seen(model: keras.Model) -> int:
    """Return the step at which the optimizer's schedules are evaluated."""
    optimizer = core_optimizer(model)
    return batch_count(optimizer)


def has_schedule(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer's learning rate is a schedule."""
    return isinstance(optimizer.get_config()["learning_rate"], dict)


def own_schedule(optimizer: keras.optimizers.Optimizer) -> Schedule | float:
    """Return the learning rate in the optimizer's config: a schedule or a number."""
    rate = optimizer.get_config()["learning_rate"]
    return (
        keras.saving.deserialize_keras_object(rate) if isinstance(rate, dict) else rate
    )


def install(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, *, rewrap: bool = False
) -> None:
    """Make `optimizer` the one that updates the model's weights from the next step on.

    Args:
        model: The model.
        optimizer: The optimizer, without a loss-scaling optimizer around it.
        rewrap: If the model uses loss scaling, wrap `optimizer` in a new loss-scaling
            optimizer. The current one and the optimizer named in the model's file stay
            unchanged. For callers that restore `model.optimizer` themselves.
    """
    if not rewrap:
        check_not_following(core_optimizer(model))
    outer = model.optimizer
    if outer is core_optimizer(model):
        model.optimizer = optimizer
    elif rewrap:
        scale = float(outer.dynamic_scale) if outer.built else outer.initial_scale
        model.optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=scale
        )
    else:
        set_inner_optimizer(outer, optimizer)
    if not rewrap:
        set_saved_optimizer(model, optimizer)
    # The compiled step refers to the old one; None makes `fit` build a new step.
    model.train_function = None


def save_like(
    optimizer: keras.optimizers.Optimizer, original: keras.optimizers.Optimizer
) -> None:
    """Save a copied optimizer's state in the format of the original optimizer.

    Keras saves the config of the optimizer given to `compile` with the variables of
    `model.optimizer`, and loads none of them if their numbers differ. They do differ if
    the copy's learning rate is a schedule, which has no variable for the rate.
    """
    core = getattr(optimizer, "inner_optimizer", optimizer)

    def save_own_variables(store):
        variables = list(optimizer.variables)
        counter = step_counter(core)
        place = next(i for i, v in enumerate(variables) if v is counter) + 1
        variables[place:place] = rate_variables(original)
        for i, variable in enumerate(variables):
            store[str(i)] = keras.ops.convert_to_numpy(variable)

    # Not `setattr`, because Keras overrides it to track the value.
    vars(optimizer)["save_own_variables"] = save_own_variables


def fresh_copy(model: keras.Model) -> keras.optimizers.Optimizer:
    """Copy the model's optimizer, including its state."""
    return copy_for(model, own_class(core_optimizer(model)), {})


def follow_trainable(model: keras.Model) -> None:
    """Make the next step train the variables that are currently trainable.

    If the optimizer was built for other variables, it is replaced by a copy that
    keeps the slots of the variables that are still trained.
    """
    match_trainable(model)
    model.train_function = None


def match_trainable(model: keras.Model) -> None:
    """Replace the optimizer if the trainable variables have changed since its build."""
    optimizer = core_optimizer(model)
    if optimizer.built and not same_variables(
        updated_variables(optimizer), model.trainable_variables
    ):
        install(model, fresh_copy(model))


def give_back(model: keras.Model, original: keras.optimizers.Optimizer) -> None:
    """Make `original` the model's optimizer again, with the current optimizer's state.

    If its slots don't match the trainable variables, a copy of it is used instead.
    """
    current = core_optimizer(model)
    if current.built:
        trained = updated_variables(current)
        if original.built and not same_variables(updated_variables(original), trained):
            original = _unbuilt(original, type(original), {})
        if not original.built:
            original.build(trained)
        carry_over(current, original)
    install(model, original)
    follow_trainable(model)


def carry_over(
    source: keras.optimizers.Optimizer, target: keras.optimizers.Optimizer
) -> None:
    """Copy step counts and slots that both optimizers have, but no learning rate."""
    values = defaultdict(list)
    for variable in source.variables:
        values[variable.name].append(variable)
    for variable in target.variables:
        found = values[variable.name]
        if variable.name != "learning_rate" and found:
            # A copy, because JAX donates the old buffers to the compiled step.
            variable.assign(np.array(keras.ops.convert_to_numpy(found.pop(0))))


def start_averages(
    optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]
) -> None:
    """Initialize the moving averages of variables with their values.

    Keras does so only in the optimizer's first step, which may already be over when
    these variables become trainable.
    """
    averages = moving_averages(optimizer)
    for variable in variables if averages else ():
        # A copy, because JAX donates the old buffers to the compiled step.
        value = np.array(keras.ops.convert_to_numpy(variable))
        averages[id(variable)].assign(value)


def same_variables(variables: list, others: list) -> bool:
    """Whether two lists contain the same variables in the same order."""
    return [id(v) for v in variables] == [id(v) for v in others]


def converted(
    optimizer: keras.optimizers.Optimizer, cls: type, changes: dict[str, Any]
) -> keras.optimizers.Optimizer:
    """Copy an optimizer, with its state, to another class and a changed config."""
    copy = _unbuilt(optimizer, cls, changes)
    if optimizer.built:
        copy.build(updated_variables(optimizer))
        carry_over(optimizer, copy)
    return copy


def copy_for(
    model: keras.Model,
    cls: type,
    changes: dict[str, Any],
    stateful: bool = False,
) -> keras.optimizers.Optimizer:
    """Copy the model's optimizer, with its state, to another class and changed config.

    If the optimizer is built, the copy is built for the variables that are currently
    trainable.

    Args:
        model: The model.
        cls: The class of the copy.
        changes: The arguments that differ from the original's.
        stateful: Whether the learning rate is a schedule with variables.
    """
    optimizer = core_optimizer(model)
    copy = _unbuilt(optimizer, cls, changes)
    if stateful and not changes["learning_rate"].bound:
        changes["learning_rate"].bind(copy.add_variable)
    if optimizer.built:
        copy.build(model.trainable_variables)
        carry_over(optimizer, copy)
        known = {id(variable) for variable in updated_variables(optimizer)}
        new = [v for v in model.trainable_variables if id(v) not in known]
        start_averages(copy, new)
    return copy


def _unbuilt(optimizer, cls, changes):
    if cls is type(optimizer):
        cls = own_class(optimizer)
    copy = cls.from_config({**optimizer.get_config(), **changes})
    copy_exclusions(optimizer, copy)
    return copy
