"""Fake quantization: round floating-point values to an integer grid."""

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.quantizers import abs_max_quantize, fake_quant_with_min_max_vars

from keras_trainkit._types import Tensor

# Weight of a new batch in the moving averages; the first 1 / _RATE batches weigh the
# same.
_RATE = 0.01


def fake_quantize_kernel(kernel: Any, axes: tuple[int, ...], bits: int) -> Tensor:
    """Round a kernel to a symmetric grid, with the gradient of the identity.

    Args:
        kernel: A tensor or a variable.
        axes: The axes that share a scale.
        bits: Bits of a weight; the grid has `2^bits - 1` points.

    Returns:
        `round(w / s) s` with `s = max|w| / (2^(bits-1) - 1)`, of the kernel's dtype.
    """
    kernel = ops.convert_to_tensor(kernel)
    exact = ops.cast(kernel, "float32")
    top = 2 ** (bits - 1) - 1
    integers, scale = abs_max_quantize(
        exact, axes, value_range=(-top, top), epsilon=1e-12
    )
    rounded = ops.cast(integers, "float32") / scale
    # Clipping cannot happen, since the range is that of the kernel itself.
    return ops.cast(exact + ops.stop_gradient(rounded - exact), kernel.dtype)


class Range(keras.layers.Layer):
    """Round activations to a grid between moving averages of their minima and maxima.

    In training each batch moves the averages. A model that has not been trained since
    has no ranges, and leaves values as they are.

    Args:
        bits: 8, for any range that includes zero; or 16, for a symmetric one.
        fixed: The range, where LiteRT prescribes it. Rounding is then left out in
            training: a probability that is rounded to zero has no useful gradient.
        margin: How far below the minimum the range begins.

    Reference:
        B. Jacob et al., Quantization and Training of Neural Networks (2017),
        arXiv:1712.05877, section 3.1.
    """

    def __init__(
        self,
        bits: int,
        fixed: tuple[float, float] | None = None,
        margin: float = 0.0,
        **kwargs,
    ):
        # Compute in float32, whatever the input's dtype.
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.bits = bits
        self.fixed = fixed
        self.margin = margin
        # Set while a model is converted, since the converter can only read constants.
        self._constant: tuple[float, float] | None = None

    def build(self, input_shape=None):
        if self.fixed is None:
            self.low, self.high, self.count = (
                self.add_weight(
                    shape=(),
                    initializer="zeros",
                    dtype="float32",
                    trainable=False,
                    autocast=False,
                    name=name,
                )
                for name in ("low", "high", "count")
            )

    def call(self, x, training=None):
        if self.fixed is not None or self._constant is not None:
            if training and self.fixed is not None:
                return x
            low, high = self._constant or self.fixed or (0.0, 0.0)
            return self._round(x, low, high)
        if training:
            self._update(x)
        rounded = self._round(x, *self._ends(self.low, self.high, ops))
        # In training, the ranges have just been updated, so `count` is positive.
        return rounded if training else ops.where(self.count > 0, rounded, x)

    def _update(self, x: Tensor) -> None:
        x = ops.cast(ops.stop_gradient(x), "float32")
        # At first the mean of all batches, so that the initial zeros do not count.
        rate = ops.maximum(1 / (self.count + 1), _RATE)
        for average, value in ((self.low, ops.min(x)), (self.high, ops.max(x))):
            average.assign(average + rate * (value - average))
        self.count.assign(self.count + 1)

    def _ends(self, low: Any, high: Any, ops: Any) -> tuple[Any, Any]:
        """Widen a range to be nonempty and include zero, which must be exact."""
        low, high = ops.minimum(low - self.margin, 0.0), ops.maximum(high, 0.0)
        if self.bits == 16:
            high = ops.maximum(high, -low)
            low = -high
        return low, ops.maximum(high, low + 1e-6)

    def _round(self, x: Tensor, low: Any, high: Any) -> Tensor:
        # LiteRT's int16 has no zero point.
        rounded = fake_quant_with_min_max_vars(
            ops.cast(x, "float32"),
            low,
            high,
            num_bits=self.bits,
            narrow_range=self.bits == 16,
        )
        return ops.cast(rounded, x.dtype)

    @property
    def value(self) -> tuple[float, float] | None:
        """The range; None before the first training step."""
        if self.fixed is not None:
            return self.fixed
        if not float(ops.convert_to_numpy(self.count)):
            return None
        low, high = (ops.convert_to_numpy(v) for v in (self.low, self.high))
        low, high = self._ends(low, high, np)
        return float(low), float(high)
