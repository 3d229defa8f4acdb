"""Copy layers from the live object rather than from its config.

A config lacks the statistics of adapted layers, lookup tables, functions, unregistered
classes and LoRA. So layers that stay the same are copied from the live object. Only
layers that change are created from a config, by `remake`.
"""

import copy
from collections.abc import Callable
from typing import Any

import keras
from keras.layers import Layer

from keras_trainkit._keras import functional_part, sublayers
from keras_trainkit._keras.copying import copied_by, copy_attributes, tracked

Memo = dict[int, Any]
"""The copy of each object by the object's id, as in `copy.deepcopy`."""


def live_copy(
    thing: Any, memo: Memo, graph: Callable[[keras.Model, Memo], Any] | None = None
) -> Any:
    """Copy a layer or operation with all of its state and none of its call history.

    Args:
        thing: A layer, model or operation of `keras.ops`.
        memo: The copies made so far; those of this call are added.
        graph: Copies the graph of a Functional or Sequential model.

    Raises:
        ValueError: If a layer's variables cannot be copied.
    """

    def copy_one(old: Any, memo: Memo) -> Any:
        if isinstance(old, keras.optimizers.Optimizer):
            # An optimizer identifies variables by id, so it cannot be copied.
            return type(old).from_config(old.get_config())
        if graph is not None and functional_part(old) is not None:
            with tracked():
                return graph(old, memo)
        return copy_attributes(old, memo)

    with copied_by(copy_one):
        new = copy.deepcopy(thing, memo)
    if isinstance(thing, Layer) and functional_part(thing) is None:
        _check_apart(thing, new)
    return new


def _check_apart(old: Layer, new: Layer) -> None:
    shared = {id(variable) for variable in old.variables}
    for layer in sublayers(new):
        if any(id(variable) in shared for variable in layer.variables):
            raise ValueError(
                f"`model` must have layers that can be copied, with their variables. "
                f"Received: {layer.name}, a {type(layer).__name__}"
            )


def remake(layer: Layer, **changes: Any) -> Layer:
    """Create an unbuilt copy of a layer with some arguments changed.

    It uses the functions, initializers, regularizers and constraints of the live
    layer, so none of them needs to be registered.
    """
    config = layer.get_config()
    for name in config:
        value = vars(layer).get(name)
        if callable(value):
            config[name] = value
    return type(layer).from_config({**config, **changes})


def known_objects(layer: Layer) -> dict[str, Any]:
    """Return the classes and functions that a layer uses, as `custom_objects`."""
    found: dict[str, Any] = {}
    for part in sublayers(layer):
        for value in (type(part), *(type(v) for v in vars(part).values())):
            if issubclass(value, keras.Operation | keras.constraints.Constraint):
                found[value.__name__] = value
        for value in vars(part).values():
            name = getattr(value, "__name__", "<lambda>")
            if callable(value) and name != "<lambda>":
                found[name] = value
    return found
