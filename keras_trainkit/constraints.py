"""Constraints that know which weights lead into a unit."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_trainkit._checks import check_integer, check_positive, reject
from keras_trainkit._model.kernels import inputs_of

__all__ = ["MaxNorm"]


def __dir__() -> list[str]:
    return __all__


@keras.saving.register_keras_serializable(package="keras_trainkit")
class MaxNorm(keras.constraints.Constraint):
    """Bound the norm of each unit's incoming weights, whatever the kernel.

    `w -> w min(1, max_value / ||w||)` for the incoming weights `w` of each unit, in
    every training step after the optimizer's update.

    `keras.constraints.MaxNorm` takes its norm along axis 0 unless told, which is right
    for Dense and wrong for convolutions. With `axis="auto"` it is the unit's inputs in
    every layer of Keras:

    | layer | axes |
    |---|---|
    | Dense, and the kernels of recurrent layers | 0 |
    | EinsumDense, MultiHeadAttention | those that the equation sums over |
    | Conv1D, Conv2D, Conv3D, the pointwise part of SeparableConv | all but the last |
    | Conv1DTranspose to Conv3DTranspose | all but the last but one |
    | DepthwiseConv, the depthwise part of SeparableConv | the spatial ones |
    | Embedding | 1: the norm of each item's vector |

    A tensor that belongs to no layer counts as a convolution's or Dense's kernel.

    Args:
        max_value: Largest Euclidean norm, > 0.
        axis: `"auto"`, or the axis or axes of the incoming weights.

    Raises:
        ValueError: If `max_value` is not positive or `axis` is none of these.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> kernel = np.ones((3, 3, 4, 2), "float32")  # of a Conv2D: norms of 6
        >>> bound = keras.ops.convert_to_numpy(kt.constraints.MaxNorm(1.5)(kernel))
        >>> np.linalg.norm(bound.reshape(36, 2), axis=0).round(6).tolist()
        [1.5, 1.5]

    Reference:
        N. Srivastava et al., Dropout (2014), section 5.1.
    """

    def __init__(
        self, max_value: float = 1.0, axis: str | int | Sequence[int] = "auto"
    ):
        self.max_value = check_positive("max_value", max_value)
        if isinstance(axis, str):
            if axis != "auto":
                reject("axis", axis, '"auto", an integer or a list of integers')
            self.axis: str | int | list[int] = axis
        elif isinstance(axis, Sequence):
            self.axis = [check_integer("axis", a, minimum=-8) for a in axis]
        else:
            self.axis = check_integer("axis", axis, minimum=-8)

    def __call__(self, w):
        axis = inputs_of(w) if self.axis == "auto" else self.axis
        w = ops.convert_to_tensor(w)
        # Half precision would overflow on squares and miss the bound by its rounding.
        wide = (
            w
            if keras.backend.standardize_dtype(w.dtype) == "float64"
            else (ops.cast(w, "float32"))
        )
        norm = ops.sqrt(ops.sum(ops.square(wide), axis=axis, keepdims=True))
        # Where the norm is 0 the factor is 1, with no division by 0.
        scale = self.max_value / ops.maximum(norm, self.max_value)
        return ops.cast(wide * scale, w.dtype)

    def get_config(self):
        return {"max_value": self.max_value, "axis": self.axis}
