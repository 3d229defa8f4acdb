"""Build a model without some of its channels."""

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._model.copy import remake
from keras_trainkit._model.graph import inner_model, rebuild
from keras_trainkit.pruning._channel_groups import Channels, Numbers


def cut(model: keras.Model, channels: Channels, gone: set[int]) -> keras.Model:
    """Copy a model with some of its channels removed.

    Args:
        model: The model.
        channels: Its channels.
        gone: The roots of the channels to remove.
    """

    def left(numbers: Numbers) -> np.ndarray:
        return np.array([root not in gone for root in channels.roots(numbers)], bool)

    def is_cut(layer) -> bool:
        """Whether a layer must be rebuilt; others are copied as they are."""
        if layer in channels.changes:
            return True
        widths = channels.widths.get(layer, {}).values()
        along = [numbers for every, _ in widths for numbers in every]
        for weight in getattr(layer, "weights", []):
            if id(weight) in channels.slices:
                along += channels.slices[id(weight)].axes.values()
        return not all(left(numbers).all() for numbers in along)

    def replacement(layer):
        if inner_model(layer) or not is_cut(layer):
            return None
        new = _remade(layer)
        change = channels.changes.get(layer)
        if change is None:
            return new
        # The graph of the copy contains the inner call, with its arguments cut.
        return lambda *args, **kwargs: _called(new, *change(left, args, kwargs))

    def _remade(layer):
        changes = {
            name: make(*(int(left(numbers).sum()) for numbers in every))
            for name, (every, make) in channels.widths.get(layer, {}).items()
        }
        if isinstance(layer, layers.TimeDistributed):
            changes["layer"] = _remade(layer.layer)
            return layers.TimeDistributed(**{**layer.get_config(), **changes})
        if isinstance(layer, layers.Bidirectional):
            changes["layer"] = _remade(layer.forward_layer)
            changes["backward_layer"] = _remade(layer.backward_layer)
            return layers.Bidirectional(**{**layer.get_config(), **changes})
        return remake(layer, **changes)

    def input_shape(x) -> tuple:
        lay = channels.entries[id(x)]
        return tuple(
            size if isinstance(numbers, str) else int(left(numbers).sum())
            for size, numbers in zip(x.shape, lay, strict=True)
        )

    copy, pairs = rebuild(model, replacement, input_shape)
    for old, new in pairs.items():
        if not isinstance(old, keras.Model) and is_cut(old):
            _set_weights(old, new, channels, left)
    return copy


def _called(layer: Any, args: tuple, kwargs: dict) -> Any:
    return layer(*args, **kwargs)


def _set_weights(old: Any, new: Any, channels: Channels, left) -> None:
    for variable, target in zip(
        getattr(old, "weights", []), getattr(new, "weights", []), strict=True
    ):
        value = keras.ops.convert_to_numpy(variable)
        found = channels.slices.get(id(variable))
        for axis, numbers in found.axes.items() if found else ():
            value = np.compress(left(numbers), value, axis)
        target.assign(value)
