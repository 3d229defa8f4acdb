"""The wrapper around each layer that is quantized."""

from typing import Any

import keras
import numpy as np
from keras import activations, ops

from keras_trainkit._keras import patched
from keras_trainkit._model.quantized import QuantizedLayer
from keras_trainkit._types import Tensor
from keras_trainkit.quantization import _kinds
from keras_trainkit.quantization._fake import Range, fake_quantize_kernel
from keras_trainkit.quantization._products import as_product, is_on_positions

# Softmax inputs this far below the maximum yield less than one int8 step.
_NEGLIGIBLE = 12.0


@keras.saving.register_keras_serializable(package="keras_trainkit")
class Quantized(QuantizedLayer, keras.layers.Wrapper):
    """A Keras layer whose kernel, inputs and outputs are rounded as LiteRT rounds them.

    `quantize_aware` makes these. The layer inside is Keras's own, with its float
    weights.

    Args:
        layer: A Dense, convolution, BatchNormalization, activation or merging layer; or
            a function of `keras.ops` as a layer.
        weight_bits: Bits of a weight.
        activation_bits: Bits of an activation.
        quantize_inputs: For each input, whether to round it here because no earlier
            layer does.
        quantize_output: Whether to round the output; False if LiteRT merges this layer
            with a BatchNormalization or ReLU that follows.
        alone: For a BatchNormalization: whether it is a separate operation, not merged
            with the layer before it.
        masked: For a Softmax: whether it is called with a mask.
        freeze_after: For a BatchNormalization: the number of training steps after which
            it uses its moving statistics, and keeps them.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        weight_bits: int = 8,
        activation_bits: int = 8,
        quantize_inputs: tuple[bool, ...] = (False,),
        quantize_output: bool = True,
        alone: bool = False,
        masked: bool = False,
        freeze_after: int | None = None,
        **kwargs: Any,
    ):
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("autocast", layer.autocast)
        super().__init__(layer, **kwargs)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.quantize_inputs = tuple(quantize_inputs)
        self.quantize_output = quantize_output
        self.alone = alone
        self.masked = masked
        self.freeze_after = freeze_after
        self.supports_masking = layer.supports_masking
        self.activity_regularizer = layer.activity_regularizer
        self._make_ranges()
        # Set while a model is converted: the kernels as constants.
        self._constant: dict[str, Any] | None = None

    def _make_ranges(self) -> None:
        bits = self.activation_bits
        activation = _kinds.activation_of(self.layer)
        self.input_ranges = [Range(bits) if q else None for q in self.quantize_inputs]
        is_linear = type(self.layer) in _kinds.LINEAR
        free = (None, activations.linear, *_kinds.FUSED)
        inner = is_linear and activation not in free
        self.inner_range = Range(bits) if inner else None
        gates = activation is activations.silu
        gate = _kinds.fixed_range(activations.sigmoid, bits)
        self.gate_range = Range(bits, gate) if gates else None
        # LiteRT sets masked positions to the low end of the range.
        self.masked_range = Range(bits, margin=_NEGLIGIBLE) if self.masked else None
        separable = type(self.layer) in _kinds.SEPARABLE
        self.middle_range = Range(bits) if separable else None
        fixed = _kinds.fixed_range(activation, bits)
        self.output_range = Range(bits, fixed) if self.quantize_output else None

    @property
    def ranges(self) -> list[Range]:
        """All ranges of this layer."""
        own = [self.inner_range, self.gate_range, self.middle_range]
        own += [self.masked_range, self.output_range]
        return [r for r in (*self.input_ranges, *own) if r is not None]

    def build(self, input_shape=None):
        super().build(input_shape)
        for part in self.ranges:
            part.build()
        if self.freeze_after is not None:
            self.steps = self.add_weight(
                shape=(), initializer="zeros", trainable=False, dtype="int32"
            )

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_spec(self, inputs, training=None, **masks):
        # Tracing `call` would not find the dtype of mixed precision on PyTorch.
        return self.layer.compute_output_spec(inputs)

    def call(self, inputs, training=None, **masks):
        # With a named `mask` argument, Keras would record a mask that `strip` would
        # have to remove.
        inputs = self._round_inputs(inputs, training)
        if type(self.layer) in _kinds.LINEAR:
            outputs = self._linear(inputs, training)
        elif type(self.layer) in _kinds.NORM:
            outputs = self._norm(inputs, training)
        elif self.masked_range is not None:
            inputs = self.masked_range(inputs, training=training)
            outputs = self.layer.call(inputs, **masks)
        elif self.gate_range is not None:
            outputs = self._activate(inputs, training)
        else:
            outputs = self.layer.call(inputs)
        if self.output_range is None:
            return outputs
        return self.output_range(outputs, training=training)

    def _round_inputs(self, inputs: Any, training: Any) -> Any:
        flat = keras.tree.flatten(inputs)
        flat = [
            x if part is None else part(x, training=training)
            for x, part in zip(flat, self.input_ranges, strict=True)
        ]
        return keras.tree.pack_sequence_as(inputs, flat)

    def rounded_kernels(self) -> dict[str, Tensor]:
        """The kernels on their grids, by the attribute of the layer."""
        return {
            name: ops.cast(
                fake_quantize_kernel(vars(self.layer)[name], axes, self.weight_bits),
                self.compute_dtype,
            )
            for name, axes in _kinds.kernel_axes(self.layer).items()
        }

    def _linear(self, x: Tensor, training: Any) -> Tensor:
        kernels = self._constant or self.rounded_kernels()
        changes = [(self.layer, name, kernel) for name, kernel in kernels.items()]
        if self.middle_range is not None:
            x = self.middle_range(_depthwise(self.layer, x, kernels), training=training)
        activation: Any = getattr(self.layer, "activation", None)
        fused = activation in _kinds.FUSED

        def finish(x):
            if self.inner_range is not None:
                return self.inner_range(x, training=training)
            return activation(x) if fused else x

        with patched([*changes, (self.layer, "activation", None)]):
            if self.middle_range is not None:
                x = finish(_pointwise(self.layer, x, kernels))
            elif self._constant is not None and is_on_positions(self.layer, x.ndim):
                (kernel,) = kernels.values()
                x = as_product(self.layer, x, kernel, finish)
            else:
                x = finish(self.layer.call(x))
        return x if fused else self._activate(x, training)

    def _activate(self, x: Tensor, training: Any) -> Tensor:
        if self.gate_range is None:
            activation = getattr(self.layer, "activation", None)
            return x if activation is None else activation(x)
        # LiteRT rounds the sigmoid too.
        return x * self.gate_range(ops.sigmoid(x), training=training)

    def _norm(self, x: Tensor, training: Any) -> Tensor:
        norm = self.layer
        if self.alone and self._constant is not None:
            return _scale_channels(x, **self._constant)
        if not training or self.freeze_after is None or not norm.trainable:
            return norm.call(x, training=training)
        frozen = self.steps >= self.freeze_after
        self.steps.assign(self.steps + 1)
        # A sum, since TensorFlow reads a variable itself only where it is used.
        before = [ops.add(v, 0.0) for v in _statistics(norm)]
        with_moving = norm.call(x, training=False)
        with_batch = norm.call(x, training=True)
        for variable, value in zip(_statistics(norm), before, strict=True):
            now = ops.convert_to_tensor(variable)
            variable.assign(ops.where(frozen, value, now))
        return ops.where(frozen, with_moving, with_batch)

    def constants(self) -> list[tuple[Any, str, Any]]:
        """Return the kernels (or a separate BatchNormalization's scale) and ranges."""
        arrays = {n: ops.convert_to_numpy(k) for n, k in self.rounded_kernels().items()}
        if self.alone:
            arrays = _scale_and_shift(self.layer)
        ranges = [(part, "_constant", part.value) for part in self.ranges]
        return [(self, "_constant", arrays), *ranges]

    def get_config(self):
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "quantize_inputs": list(self.quantize_inputs),
            "quantize_output": self.quantize_output,
            "alone": self.alone,
            "masked": self.masked,
            "freeze_after": self.freeze_after,
        }


def _statistics(norm: keras.layers.BatchNormalization) -> list[keras.Variable]:
    return [norm.moving_mean, norm.moving_variance]


def _depthwise(layer: Any, x: Tensor, kernels: dict[str, Tensor]) -> Tensor:
    return ops.depthwise_conv(
        x,
        kernels["depthwise_kernel"],
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _pointwise(layer: Any, x: Tensor, kernels: dict[str, Tensor]) -> Tensor:
    x = ops.conv(x, kernels["pointwise_kernel"], data_format=layer.data_format)
    return x + layer.bias if layer.use_bias else x


def _scale_channels(x: Tensor, scale: Any, shift: Any) -> Tensor:
    """Compute a BatchNormalization as a depthwise convolution.

    A convolution has a scale per channel. A product with a constant would have one
    scale for all channels, and small values would be lost.
    """
    channels = len(scale)
    flat = ops.reshape(x, (-1, 1, 1, channels))
    flat = ops.depthwise_conv(flat, scale.reshape(1, 1, channels, 1)) + shift
    return ops.reshape(flat, (-1, *x.shape[1:]))


def _scale_and_shift(norm: keras.layers.BatchNormalization) -> dict[str, Any]:
    """Compute a BatchNormalization's scale and shift from two of its outputs."""
    shape = [1] * (norm.input_spec.ndim - 1) + list(norm.moving_mean.shape)
    at = [norm(np.full(shape, v, "float32"), training=False) for v in (0, 1)]
    shift, both = (np.ravel(ops.convert_to_numpy(y)) for y in at)
    return {"scale": both - shift, "shift": shift}
