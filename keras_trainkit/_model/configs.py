"""Repair layer configs from which the layer cannot be recreated."""

import copy
import inspect
import types
from typing import Any

import keras
from keras.layers import Layer

from keras_trainkit._keras import arguments, sublayers

_OF_EVERY_LAYER = {"name", "trainable", "dtype"}


def mend_config(layer: Any, node: Any) -> None:
    """Replace a layer's config by one that its class accepts, if possible.

    Some layers, several of KerasHub's among them, are only ever created by the model
    that contains them. Their configs have more entries than the class has arguments, or
    fewer. But a plain model's file recreates each layer from its config. The config is
    replaced only if the new one creates the same parts, with the same options and
    shapes.

    Args:
        layer: A layer; an operation is not changed.
        node: Keras's record of a call of it.
    """
    kind = type(layer)
    known = kind.__module__.split(".")[0] in ("keras", "keras_trainkit")
    if known or not isinstance(layer, Layer) or isinstance(layer, keras.Model):
        return
    taken = inspect.signature(kind.__init__).parameters.keys()
    try:
        config = layer.get_config()
    except Exception:
        config = Layer.get_config(layer)
    else:
        if config.keys() <= taken | _OF_EVERY_LAYER or _makes(config, layer, node):
            return
    kept = config.keys() & (taken | _OF_EVERY_LAYER)
    # An argument may be stored on the layer, or on an inner layer that receives it.
    found = {
        name: vars(part)[name]
        for part in reversed(sublayers(layer))
        for name in taken - config.keys()
        if name in vars(part)
    }
    if not _makes({name: config[name] for name in kept} | found, layer, node):
        return

    def get_config(self):
        try:
            full = type(self).get_config(self)
        except Exception:
            full = Layer.get_config(self)
        return {name: full[name] for name in kept} | found

    layer.get_config = types.MethodType(get_config, layer)


def _makes(config: dict[str, Any], layer: Layer, node) -> bool:
    """Whether a config creates a layer with the same parts."""
    try:
        new = type(layer).from_config(copy.deepcopy(config))
        inputs = [
            keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in node.input_tensors
        ]
        args, kwargs = arguments(node, inputs)
        new(*args, **kwargs)
    except Exception:
        return False
    return _described(layer) == _described(new)


def _described(layer: Layer) -> list[Any]:
    """Describe the parts of a layer: types, options and shapes, but no names."""
    found = []
    for part in sublayers(layer):
        try:
            config = type(part).get_config(part)
        except Exception:
            config = {}
        options = {
            name: value
            for name, value in config.items()
            if name != "name" and isinstance(value, bool | int | float | str | list)
        }
        found.append((type(part), options))
    return [*found, [tuple(v.shape) for v in layer.variables]]
