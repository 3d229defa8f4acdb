"""How each type of layer is quantized to int8, and why some stay float."""

import math
from typing import Any

import keras
from keras import activations, layers

from keras_trainkit._model.kernels import own_kernels
from keras_trainkit._model.kinds import channels_first
from keras_trainkit.quantization._operation import Operation
from keras_trainkit.quantization._products import product_axes

LINEAR = (
    layers.Dense,
    layers.EinsumDense,
    layers.Embedding,
    layers.Conv1D,
    layers.Conv2D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
NORM = (layers.BatchNormalization,)
ACTIVATION = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Softmax,
)
# Layers whose output needs its own range.
MERGING = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Maximum,
    layers.Minimum,
    layers.Concatenate,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
)
# Layers whose output is on the grid of their input, in LiteRT too.
SAME_GRID = (
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.RepeatVector,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Identity,
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.ActivityRegularization,
)
WRAPPED = (*LINEAR, *NORM, *ACTIVATION, *MERGING)

# Functions of `keras.ops`, by the names of Keras's classes for them.
_ACTIVATION_OPS = {
    "Relu": activations.relu,
    "Relu6": activations.relu6,
    "LeakyRelu": activations.leaky_relu,
    "Gelu": activations.gelu,
    "Silu": activations.silu,
    "HardSilu": activations.hard_silu,
    "Sigmoid": activations.sigmoid,
    "Tanh": activations.tanh,
    "Softmax": activations.softmax,
}
_MERGING_OPS = (
    "Add", "Subtract", "Multiply", "Maximum", "Minimum", "Concatenate", "Mean",
    "Matmul", "Einsum",
)  # fmt: skip
_SAME_GRID_OPS = (
    "Reshape", "Transpose", "Swapaxes", "Moveaxis", "Squeeze", "ExpandDims", "GetItem",
    "Repeat", "MaxPool", "AveragePool",
)  # fmt: skip

FUSED = (activations.relu, activations.relu6)
_INT8 = (
    *FUSED,
    activations.linear,
    activations.leaky_relu,
    activations.gelu,
    activations.silu,
    activations.hard_silu,
    activations.sigmoid,
    activations.tanh,
    activations.softmax,
)


def operation_of(layer: Any) -> str | None:
    """The class of a function of `keras.ops`; None for a layer."""
    if type(layer) is Operation:
        layer = layer.operation
    if isinstance(layer, layers.Layer):
        return None
    return type(layer).__name__ if type(layer).__module__.startswith("keras.") else ""


def is_same_grid(layer: Any) -> bool:
    """Whether a layer's output is on the same grid as its input."""
    return type(layer) in SAME_GRID or operation_of(layer) in _SAME_GRID_OPS


def is_activation(layer: Any) -> bool:
    """Whether a layer is only an activation."""
    return type(layer) in ACTIVATION or operation_of(layer) in _ACTIVATION_OPS


def takes_one_grid(layer: Any) -> bool:
    """Whether LiteRT requires all inputs of a layer to have its output's range."""
    return type(layer) is layers.Concatenate or operation_of(layer) == "Concatenate"


def activation_of(layer: Any) -> Any:
    """Return the activation function at the end of a layer; None if it has none."""
    if (operation := operation_of(layer)) is not None:
        return _ACTIVATION_OPS.get(operation)
    if type(layer) is layers.ReLU:
        plain = layer.negative_slope == 0 and layer.threshold == 0
        if plain and layer.max_value in (None, 6):
            return activations.relu6 if layer.max_value else activations.relu
        return layer.call
    of_layer = {
        layers.LeakyReLU: activations.leaky_relu,
        layers.Softmax: activations.softmax,
        layers.ELU: activations.elu,
    }
    return of_layer.get(type(layer), getattr(layer, "activation", None))


def fixed_range(activation: Any, bits: int) -> tuple[float, float] | None:
    """The range that LiteRT prescribes for the output of an activation."""
    if activation is activations.tanh:
        return (-1.0, 127 / 128) if bits == 8 else (-32767 / 32768, 32767 / 32768)
    if activation in (activations.sigmoid, activations.softmax):
        return (0.0, 255 / 256) if bits == 8 else (-32767 / 32768, 32767 / 32768)
    return None


def kernel_axes(layer: Any) -> dict[str, tuple[int, ...]]:
    """The attributes that hold a layer's kernels, and the axes that share a scale."""
    found = {}
    for kernel in own_kernels(layer):
        for name in ("_kernel", "_embeddings", *vars(layer)):
            if vars(layer).get(name) is kernel.variable:
                # LiteRT's lookup has a single scale for the whole table.
                whole = type(layer) is layers.Embedding
                rank = len(kernel.variable.shape)
                found[name] = tuple(range(rank)) if whole else kernel.inputs
                break
    return found


def why_float(layer: Any) -> str | None:
    """Why a layer cannot be quantized; None if it can."""
    kind = type(layer)
    if kind not in WRAPPED:
        if isinstance(layer, WRAPPED):
            return f"{kind.__name__} is a subclass, which may compute something else"
        return _REASONS.get(kind, f"there is no rule for {kind.__name__}")
    if getattr(layer, "quantization_mode", None) is not None:
        return "Keras has quantized it already (`layer.quantize`)"
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights"
    if kind in LINEAR and not layer.built:
        return "it is not built"
    if kind is layers.EinsumDense and not product_axes(layer):
        return f"{layer.equation} is not a product of a matrix with each position"
    if channels_first(layer):
        return 'LiteRT has no kernels for data_format="channels_first"'
    if kind in SEPARABLE and layer.padding == "causal":
        return 'a separable convolution with padding="causal" has no rule'
    if kind in ACTIVATION:
        return why_float_activation(layer)
    return None


def why_float_operation(operation: Any, arguments: Any) -> str | None:
    """Why a call of a function of `keras.ops` cannot be quantized; None if it can."""
    name = operation_of(operation)
    if name not in (*_ACTIVATION_OPS, *_MERGING_OPS):
        return f"a function of `keras.ops` without a rule ({type(operation).__name__})"
    for value in keras.tree.flatten(arguments):
        if isinstance(value, keras.KerasTensor):
            if "float" not in value.dtype:
                return f"it takes {value.dtype}"
        elif math.prod(getattr(value, "shape", ())) > 1:
            return (
                "it is computed with an array, and LiteRT would have one scale for it"
            )
    return None


def why_float_activation(layer: Any) -> str | None:
    """Why the activation that a layer ends in is computed in float."""
    activation = activation_of(layer)
    if activation is None or activation in _INT8:
        return None
    name = getattr(activation, "__name__", type(activation).__name__)
    if isinstance(layer, (layers.ReLU, layers.Activation)) and name == "call":
        name = "a ReLU with a slope, threshold or maximum other than 6"
    return f"LiteRT's converter has no int8 kernel for {name}"


_RECURRENT = "LiteRT's converter unrolls or loops recurrent layers in float"
_REASONS: dict[type[keras.layers.Layer], str] = {
    layers.LSTM: _RECURRENT,
    layers.GRU: _RECURRENT,
    layers.SimpleRNN: _RECURRENT,
    layers.Bidirectional: _RECURRENT,
    layers.Conv3D: "LiteRT has no int8 kernel for it",
    layers.Conv3DTranspose: "LiteRT has no int8 kernel for it",
    layers.Lambda: "what its function computes is not known",
    layers.LayerNormalization: "LiteRT computes it in float",
    layers.GroupNormalization: "LiteRT computes it in float",
    layers.Average: "LiteRT has no kernel for it",
    layers.PReLU: "its slopes have no range",
}
