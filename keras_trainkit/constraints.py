"""Constraints on the incoming weights of each unit."""

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
    """Limit the norm of each unit's incoming weights, for the kernel of any layer.

    After the optimizer's update in every training step, the incoming weights `w` of
    each unit become `w min(1, max_value / ||w||)`.

    `keras.constraints.MaxNorm` computes the norm along axis 0 by default, which is
    right for Dense and wrong for convolutions. Here, `axis="auto"` selects the axes of
    a unit's incoming weights in every Keras layer:

    | layer | axes |
    |---|---|
    | Dense, and the kernels of recurrent layers | 0 |
    | EinsumDense, MultiHeadAttention | the axes that the equation sums over |
    | Conv1D, Conv2D, Conv3D, the pointwise part of SeparableConv | all but the last |
    | Conv1DTranspose to Conv3DTranspose | all but the second to last |
    | DepthwiseConv, the depthwise part of SeparableConv | the spatial axes |
    | Embedding | 1: the norm of each item's vector |

    A tensor that belongs to no layer is treated as a Dense or convolution kernel.

    Args:
        max_value: Maximum Euclidean norm, > 0.
        axis: `"auto"`, or the axis or axes of the incoming weights.

    Raises:
        ValueError: If `max_value` is not positive or `axis` is not one of the above.

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
        # In half precision, squares would overflow and rounding would miss the bound.
        wide = (
            w
            if keras.backend.standardize_dtype(w.dtype) == "float64"
            else (ops.cast(w, "float32"))
        )
        norm = ops.sqrt(ops.sum(ops.square(wide), axis=axis, keepdims=True))
        # The factor is 1 for a norm of 0, without a division by 0.
        scale = self.max_value / ops.maximum(norm, self.max_value)
        return ops.cast(wide * scale, w.dtype)

    def get_config(self):
        return {"max_value": self.max_value, "axis": self.axis}
