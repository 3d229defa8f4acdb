"""The kernels of Keras's layers, and which of their axes a unit sums over."""

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import keras
from keras import layers

from keras_trainkit._keras import live_layers, sublayers
from keras_trainkit._model.kinds import (
    CELLS,
    CONVS,
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    einsum_labels,
)


@dataclass(frozen=True)
class Kernel:
    """A kernel, embedding table or recurrent kernel of a layer.

    Attributes:
        layer: The layer that owns it, which may be inside another, as a cell is in an
            RNN.
        variable: The variable.
        inputs: The axes over which each unit sums: those of its incoming weights. For
            an embedding, those of one item's vector.
        prefix: The prefix of the layer's arguments for it, such as `"kernel"` in
            `kernel_constraint`.
        channels: The axis of the channels of a depthwise kernel, over which no unit
            sums; None for other kernels.
    """

    layer: keras.layers.Layer
    variable: keras.Variable
    inputs: tuple[int, ...]
    prefix: str = "kernel"
    channels: int | None = None

    @property
    def row(self) -> int:
        """The axis along which hardware reads it and `N:M` patterns run."""
        return self.inputs[-1] if self.channels is None else self.channels

    @property
    def units(self) -> int:
        """Number of units, each with its own incoming weights."""
        return math.prod(self.variable.shape) // max(self.fan_in, 1)

    @property
    def fan_in(self) -> int:
        """Number of incoming weights of a unit."""
        return math.prod(self.variable.shape[axis] for axis in self.inputs)


def kernels(layer: keras.layers.Layer) -> Iterator[Kernel]:
    """The kernels of a built layer or model and of all layers inside it."""
    for part in sublayers(layer):
        yield from own_kernels(part)


def own_kernels(layer: keras.layers.Layer) -> Iterator[Kernel]:
    """The kernels of a layer without those of the layers inside it."""
    for kernel in _own(layer):
        # Skips a kernel that Keras computes, as after `enable_lora`.
        if isinstance(kernel.variable, keras.Variable):
            yield kernel


def without_kernels(layer: keras.layers.Layer) -> str | None:
    """Why the kernel of a layer cannot be changed; None if it can."""
    if getattr(layer, "lora_enabled", False):
        return "has LoRA, which computes its kernel at each step"
    if getattr(layer, "quantization_mode", None):
        return f"is quantized to {layer.quantization_mode}"
    return None


def inputs_of(tensor) -> tuple[int, ...]:
    """The axes of the incoming weights, of a kernel or of a plain tensor.

    A tensor that does not belong to a layer is treated as a kernel whose last axis is
    its units.
    """
    if isinstance(tensor, keras.Variable):
        for _ in range(2):
            variable, inputs = _known.get(id(tensor), (None, None))
            if variable is not None and variable() is tensor:
                return inputs
            _look_for_kernels()
    return _all_but_last(len(tensor.shape))


# By identity, since a variable has no hash.
_known: dict = {}


def _look_for_kernels() -> None:
    _known.clear()
    for layer in live_layers():
        for kernel in own_kernels(layer):
            _known[id(kernel.variable)] = weakref.ref(kernel.variable), kernel.inputs


def _all_but_last(rank: int) -> tuple[int, ...]:
    return tuple(range(rank - 1)) if rank > 1 else (0,)


def _own(layer: keras.layers.Layer) -> Iterator[Kernel]:
    def kernel(name, inputs, prefix="kernel", channels=None):
        return Kernel(layer, getattr(layer, name), tuple(inputs), prefix, channels)

    if not layer.built:
        return
    if isinstance(layer, layers.EinsumDense):
        yield kernel("kernel", _einsum_inputs(layer))
    elif isinstance(layer, layers.Embedding):
        yield kernel("embeddings", [1], "embeddings")
    elif isinstance(layer, SEPARABLE):
        rank = len(layer.depthwise_kernel.shape)
        yield kernel("depthwise_kernel", range(rank - 2), "depthwise", rank - 2)
        yield kernel("pointwise_kernel", range(rank - 1), "pointwise")
    elif isinstance(layer, DEPTHWISE):
        rank = len(layer.kernel.shape)
        yield kernel("kernel", range(rank - 2), "depthwise", rank - 2)
    elif isinstance(layer, TRANSPOSED):
        rank = len(layer.kernel.shape)
        yield kernel("kernel", [*range(rank - 2), rank - 1])
    elif isinstance(layer, (layers.Dense, *CONVS)):
        yield kernel("kernel", _all_but_last(len(layer.kernel.shape)))
    elif isinstance(layer, CELLS) or type(layer).__name__ == "ConvLSTMCell":
        yield kernel("kernel", _all_but_last(len(layer.kernel.shape)))
        inputs = _all_but_last(len(layer.recurrent_kernel.shape))
        yield kernel("recurrent_kernel", inputs, "recurrent")


def _einsum_inputs(layer: keras.layers.EinsumDense) -> list[int]:
    labels = einsum_labels(layer)
    return [
        axis for axis, label in enumerate(labels.kernel) if label not in labels.output
    ]
