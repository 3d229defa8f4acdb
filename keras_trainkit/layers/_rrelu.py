"""Randomized leaky ReLU."""

import keras
from keras import ops

from keras_trainkit._checks import (
    check_finite,
    check_integer,
    reject,
)
from keras_trainkit.layers._axis import check_not_empty


@keras.saving.register_keras_serializable(package="keras_trainkit")
class RReLU(keras.layers.Layer):
    """Randomized leaky ReLU: the slope is random in training.

    `x` where `x >= 0`, else `a x`: in training `a ~ U(lower, upper)` is drawn for each
    element, at inference `a = (lower + upper) / 2`. This matches `torch.nn.RReLU`. For
    a fixed slope use `keras.layers.LeakyReLU`, for a learned one `keras.layers.PReLU`.

    Args:
        lower: Smallest slope.
        upper: Largest slope, >= `lower`.
        seed: Integer seed of the slopes.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of any shape.
        training: Whether the slopes are random.

    Output shape:
        Same as the input.

    Raises:
        ValueError: If a slope is not finite, or `upper` is below `lower`.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.RReLU(lower=0.25, upper=0.75)
        >>> y = layer(np.array([-1.0, 2.0], "float32"))
        >>> keras.ops.convert_to_numpy(y).tolist()
        [-0.5, 2.0]

    Reference:
        B. Xu et al., Empirical Evaluation of Rectified Activations in Convolutional
        Network (2015), arXiv:1505.00853, section 2.4.
    """

    def __init__(self, lower: float = 1 / 8, upper: float = 1 / 3, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.lower = check_finite("lower", lower)
        self.upper = check_finite("upper", upper)
        if self.upper < self.lower:
            reject("upper", upper, f">= lower={lower:g}")
        self.seed = None if seed is None else check_integer("seed", seed, minimum=0)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def build(self, input_shape):
        check_not_empty(input_shape)

    def call(self, inputs, training=False):
        if training and self.upper > self.lower:
            # Drawn in float32: half precision has few numbers between the bounds.
            slope = keras.random.uniform(
                ops.shape(inputs),
                self.lower,
                self.upper,
                dtype="float32",
                seed=self.seed_generator,
            )
            slope = ops.cast(slope, inputs.dtype)
        else:
            slope = (self.lower + self.upper) / 2
        return ops.where(inputs >= 0, inputs, inputs * slope)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"lower": self.lower, "upper": self.upper, "seed": self.seed}
        return {**super().get_config(), **config}
