"""Dropout that stays on at inference."""

import keras

from keras_trainkit._checks import check_in_range
from keras_trainkit._model.dropout import AlwaysOn
from keras_trainkit.layers._axis import check_not_empty

_register = keras.saving.register_keras_serializable(package="keras_trainkit")


class _Dropping(AlwaysOn):
    """A mixin in front of one of Keras's dropout layers."""

    def __init__(self, rate, *args, **kwargs):
        rate = check_in_range("rate", rate, 0, 1)
        super().__init__(rate, *args, **kwargs)  # type: ignore[call-arg]

    def build(self, input_shape):
        check_not_empty(input_shape)
        super().build(input_shape)  # type: ignore[misc]

    def call(self, inputs, training=False):
        return super().call(inputs, training=True)  # type: ignore[misc]


@_register
class MCDropout(_Dropping, keras.layers.Dropout):
    """Dropout that is active at inference too (Monte Carlo dropout).

    In training it is identical to `keras.layers.Dropout`. At inference it keeps
    dropping, so each prediction is a sample; `kt.uncertainty.mc_predict` draws many.

    Args:
        rate: Fraction of the inputs to drop, in `[0, 1]`.
        noise_shape: As in `keras.layers.Dropout`.
        seed: Integer seed of the masks.
        **kwargs: For `keras.layers.Layer`.

    Call arguments:
        inputs: Input tensor of any rank.
        training: Ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.MCDropout(0.5, seed=0)
        >>> y = layer(np.ones((1, 1000), "float32"), training=False)
        >>> np.unique(keras.ops.convert_to_numpy(y)).tolist()
        [0.0, 2.0]

    Reference:
        Y. Gal and Z. Ghahramani, Dropout as a Bayesian Approximation (2016),
        arXiv:1506.02142.
    """


@_register
class MCAlphaDropout(_Dropping, keras.layers.AlphaDropout):
    """Alpha dropout that is active at inference too, for self-normalizing networks.

    Args:
        rate: As in `keras.layers.AlphaDropout`.
        noise_shape: As in `keras.layers.AlphaDropout`.
        seed: Integer seed of the masks.
        **kwargs: For `keras.layers.Layer`.

    Call arguments:
        inputs: Input tensor of any rank.
        training: Ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.MCAlphaDropout(0.1, seed=0)
        >>> x = np.random.default_rng(0).normal(size=(1, 10000)).astype("float32")
        >>> y = keras.ops.convert_to_numpy(layer(x, training=False))
        >>> abs(float(y.mean())) < 0.1, abs(float(y.std()) - 1) < 0.1
        (True, True)

    Reference:
        G. Klambauer et al., Self-Normalizing Neural Networks (2017), arXiv:1706.02515.
    """


@_register
class MCGaussianDropout(_Dropping, keras.layers.GaussianDropout):
    """Gaussian dropout that is active at inference too.

    Args:
        rate: As in `keras.layers.GaussianDropout`.
        seed: Integer seed of the noise.
        **kwargs: For `keras.layers.Layer`.

    Call arguments:
        inputs: Input tensor of any rank.
        training: Ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.MCGaussianDropout(0.5, seed=0)
        >>> y = keras.ops.convert_to_numpy(layer(np.ones((1, 10000), "float32")))
        >>> abs(float(y.mean()) - 1) < 0.1, abs(float(y.std()) - 1) < 0.1
        (True, True)

    Reference:
        N. Srivastava et al., Dropout (2014), section 10.
    """


@_register
class MCSpatialDropout1D(_Dropping, keras.layers.SpatialDropout1D):
    """Spatial dropout of whole channels of a sequence, active at inference too.

    Args:
        rate: As in `keras.layers.SpatialDropout1D`.
        seed: Integer seed of the masks.
        **kwargs: For `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, steps, channels)`.
        training: Ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.MCSpatialDropout1D(0.5, seed=0)
        >>> y = layer(np.ones((1, 4, 100), "float32"), training=False)
        >>> channels = keras.ops.convert_to_numpy(y).reshape(-1, 100)
        >>> bool((channels == channels[0]).all()), np.unique(channels).tolist()
        (True, [0.0, 2.0])

    Reference:
        J. Tompson et al., Efficient Object Localization Using Convolutional Networks
        (2014), arXiv:1411.4280.
    """


@_register
class MCSpatialDropout2D(_Dropping, keras.layers.SpatialDropout2D):
    """Spatial dropout of whole channels of images, active at inference too.

    Args:
        rate: As in `keras.layers.SpatialDropout2D`.
        data_format: As in `keras.layers.SpatialDropout2D`.
        seed: Integer seed of the masks.
        **kwargs: For `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of rank 4.
        training: Ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.MCSpatialDropout2D(0.5, seed=0)
        >>> y = layer(np.ones((1, 4, 4, 100), "float32"), training=False)
        >>> channels = keras.ops.convert_to_numpy(y).reshape(-1, 100)
        >>> bool((channels == channels[0]).all()), np.unique(channels).tolist()
        (True, [0.0, 2.0])

    Reference:
        J. Tompson et al., Efficient Object Localization Using Convolutional Networks
        (2014), arXiv:1411.4280.
    """


@_register
class MCSpatialDropout3D(_Dropping, keras.layers.SpatialDropout3D):
    """Spatial dropout of whole channels of volumes, active at inference too.

    Args:
        rate: As in `keras.layers.SpatialDropout3D`.
        data_format: As in `keras.layers.SpatialDropout3D`.
        seed: Integer seed of the masks.
        **kwargs: For `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of rank 5.
        training: Ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.MCSpatialDropout3D(0.5, seed=0)
        >>> y = layer(np.ones((1, 4, 4, 4, 100), "float32"), training=False)
        >>> channels = keras.ops.convert_to_numpy(y).reshape(-1, 100)
        >>> bool((channels == channels[0]).all()), np.unique(channels).tolist()
        (True, [0.0, 2.0])

    Reference:
        J. Tompson et al., Efficient Object Localization Using Convolutional Networks
        (2014), arXiv:1411.4280.
    """
