"""Layers that were trained with the rounding of int8, as a converter sees them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._keras import native_dilation, patched, sublayers


class QuantizedLayer:
    """What a converter may ask of a layer that rounds.

    Attributes:
        weight_bits: Bits of a weight.
        activation_bits: Bits of an activation.
    """

    weight_bits: int
    activation_bits: int

    @property
    def ranges(self) -> list[Any]:
        """All ranges of the layer, whose `value` is None before any training."""
        raise NotImplementedError

    def constants(self) -> list[tuple[Any, str, Any]]:
        """What a file has as constants: attributes, as `(object, name, value)`."""
        raise NotImplementedError


def quantized_layers(model: keras.layers.Layer) -> list[Any]:
    """All quantized layers in a model."""
    return [layer for layer in sublayers(model) if isinstance(layer, QuantizedLayer)]


@contextlib.contextmanager
def as_constants(model: keras.Model) -> Iterator[None]:
    """Lets a model have its kernels and ranges as constants, for a converter."""
    layers = quantized_layers(model)
    changes = [change for layer in layers for change in layer.constants()]
    with patched(changes), native_dilation():
        yield


def check_trained(model: keras.Model) -> None:
    """Raise unless all ranges are known, and 8 bits wide."""
    for layer in quantized_layers(model):
        if layer.activation_bits != 8:
            reject("activation_bits", layer.activation_bits, '8 for "int8"')
        if any(part.value is None for part in layer.ranges):
            reject("model", model.name, "trained for a step or more, to have ranges")
