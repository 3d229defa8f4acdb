"""Local response normalization."""

import keras
from keras import ops

from keras_trainkit._checks import check_finite, check_integer, check_positive
from keras_trainkit.layers._axis import channels


@keras.saving.register_keras_serializable(package="keras_trainkit")
class LocalResponseNormalization(keras.layers.Layer):
    """Normalize each activation by the activations in neighbouring channels.

    `x_c / (k + alpha / size * sum_j x_j^2)^beta`, over the `size` channels `j` around
    `c`, from `c - size // 2` to `c + (size - 1) // 2`; missing channels count as 0.
    This matches `torch.nn.LocalResponseNorm`. The AlexNet paper does not divide by
    `size`: its values correspond to `size=5, alpha=5e-4, beta=0.75, k=2` here.

    Modern networks use `keras.layers.BatchNormalization` or `GroupNormalization`.

    Args:
        size: Number of channels to sum over.
        alpha: Factor of the sum of squares, >= 0.
        beta: Exponent.
        k: Offset, > 0.
        axis: Axis of the channels; 1 for `channels_first`.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of rank 2 or more.

    Output shape:
        Same as the input.

    Raises:
        ValueError: If an argument is out of range, or the input has no channels.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.LocalResponseNormalization(size=3, alpha=3, beta=1, k=1)
        >>> y = layer(np.array([[1.0, 1.0, 0.0, 1.0]], "float32"))
        >>> keras.ops.convert_to_numpy(1 / y[0, :2]).round(4).tolist()  # 1 + 1 + 1
        [3.0, 3.0]

    Reference:
        A. Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural
        Networks (2012), section 3.3.
    """

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        axis: int = -1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = check_integer("size", size, minimum=1)
        self.alpha = check_positive("alpha", alpha, allow_zero=True)
        self.beta = check_finite("beta", beta)
        self.k = check_positive("k", k)
        self.axis = check_integer("axis", axis, minimum=-8)
        self.supports_masking = True

    def build(self, input_shape):
        channels(self, input_shape)

    def call(self, inputs):
        # In float16 the square of 256 already overflows.
        narrow = keras.backend.standardize_dtype(inputs.dtype) != "float64"
        x = ops.cast(inputs, "float32") if narrow else inputs
        axis = self.axis % len(x.shape)
        padding = [(0, 0)] * len(x.shape)
        padding[axis] = (self.size // 2, (self.size - 1) // 2)
        squares = ops.pad(ops.square(x), padding)
        count = x.shape[axis]
        total = 0.0
        for offset in range(self.size):
            window = [slice(None)] * len(x.shape)
            window[axis] = slice(offset, offset + count)
            total = total + squares[tuple(window)]
        scale = ops.power(self.k + self.alpha / self.size * total, -self.beta)
        return ops.cast(x * scale, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {
            "size": self.size,
            "alpha": self.alpha,
            "beta": self.beta,
            "k": self.k,
            "axis": self.axis,
        }
        return {**super().get_config(), **config}
