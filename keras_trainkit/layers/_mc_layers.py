"""Recurrent and attention layers whose own dropout stays on at inference."""

import keras

from keras_trainkit._model.dropout import AlwaysOn, in_training

_register = keras.saving.register_keras_serializable(package="keras_trainkit")


@_register
class MCSimpleRNN(AlwaysOn, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` that drops at inference too.

    Its `dropout` and `recurrent_dropout` use one mask for all steps of a sequence.
    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> inputs = keras.Input((5, 3))
        >>> x = kt.layers.MCSimpleRNN(4, dropout=0.5, seed=0)(inputs)
        >>> model = keras.Model(inputs, keras.layers.Dense(1)(x))
        >>> row = np.ones((1, 5, 3), "float32")
        >>> one, other = (model.predict(row, verbose=0) for _ in range(2))
        >>> bool((one != other).any())
        True

    Reference:
        Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks (2016), arXiv:1512.05287.
    """

    call = in_training(keras.layers.SimpleRNN.call)


@_register
class MCLSTM(AlwaysOn, keras.layers.LSTM):
    """`keras.layers.LSTM` that drops at inference too.

    Its `dropout` and `recurrent_dropout` use one mask for all steps of a sequence.
    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> inputs = keras.Input((5, 3))
        >>> x = kt.layers.MCLSTM(4, dropout=0.5, seed=0)(inputs)
        >>> model = keras.Model(inputs, keras.layers.Dense(1)(x))
        >>> row = np.ones((1, 5, 3), "float32")
        >>> one, other = (model.predict(row, verbose=0) for _ in range(2))
        >>> bool((one != other).any())
        True

    Reference:
        Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks (2016), arXiv:1512.05287.
    """

    call = in_training(keras.layers.LSTM.call)


@_register
class MCGRU(AlwaysOn, keras.layers.GRU):
    """`keras.layers.GRU` that drops at inference too.

    Its `dropout` and `recurrent_dropout` use one mask for all steps of a sequence.
    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> inputs = keras.Input((5, 3))
        >>> x = kt.layers.MCGRU(4, dropout=0.5, seed=0)(inputs)
        >>> model = keras.Model(inputs, keras.layers.Dense(1)(x))
        >>> row = np.ones((1, 5, 3), "float32")
        >>> one, other = (model.predict(row, verbose=0) for _ in range(2))
        >>> bool((one != other).any())
        True

    Reference:
        Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks (2016), arXiv:1512.05287.
    """

    call = in_training(keras.layers.GRU.call)


@_register
class MCConvLSTM1D(AlwaysOn, keras.layers.ConvLSTM1D):
    """`keras.layers.ConvLSTM1D` that drops at inference too.

    Its `dropout` and `recurrent_dropout` use one mask for all steps of a sequence.
    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> inputs = keras.Input((2, 4, 1))
        >>> x = kt.layers.MCConvLSTM1D(2, 3, dropout=0.5, seed=0)(inputs)
        >>> model = keras.Model(inputs, keras.layers.Flatten()(x))
        >>> row = np.ones((1, 2, 4, 1), "float32")
        >>> one, other = (model.predict(row, verbose=0) for _ in range(2))
        >>> bool((one != other).any())
        True

    Reference:
        Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks (2016), arXiv:1512.05287.
    """

    call = in_training(keras.layers.ConvLSTM1D.call)


@_register
class MCConvLSTM2D(AlwaysOn, keras.layers.ConvLSTM2D):
    """`keras.layers.ConvLSTM2D` that drops at inference too.

    Its `dropout` and `recurrent_dropout` use one mask for all steps of a sequence.
    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> inputs = keras.Input((2, 4, 4, 1))
        >>> x = kt.layers.MCConvLSTM2D(2, 3, dropout=0.5, seed=0)(inputs)
        >>> model = keras.Model(inputs, keras.layers.Flatten()(x))
        >>> row = np.ones((1, 2, 4, 4, 1), "float32")
        >>> one, other = (model.predict(row, verbose=0) for _ in range(2))
        >>> bool((one != other).any())
        True

    Reference:
        Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks (2016), arXiv:1512.05287.
    """

    call = in_training(keras.layers.ConvLSTM2D.call)


@_register
class MCConvLSTM3D(AlwaysOn, keras.layers.ConvLSTM3D):
    """`keras.layers.ConvLSTM3D` that drops at inference too.

    Its `dropout` and `recurrent_dropout` use one mask for all steps of a sequence.
    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> inputs = keras.Input((2, 4, 4, 4, 1))
        >>> x = kt.layers.MCConvLSTM3D(2, 3, dropout=0.5, seed=0)(inputs)
        >>> model = keras.Model(inputs, keras.layers.Flatten()(x))
        >>> row = np.ones((1, 2, 4, 4, 4, 1), "float32")
        >>> one, other = (model.predict(row, verbose=0) for _ in range(2))
        >>> bool((one != other).any())
        True

    Reference:
        Y. Gal and Z. Ghahramani, A Theoretically Grounded Application of Dropout in
        Recurrent Neural Networks (2016), arXiv:1512.05287.
    """

    call = in_training(keras.layers.ConvLSTM3D.call)


@_register
class MCMultiHeadAttention(AlwaysOn, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` that drops at inference too.

    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> inputs = keras.Input((5, 8))
        >>> attention = kt.layers.MCMultiHeadAttention(2, 4, dropout=0.5, seed=0)
        >>> x = attention(inputs, inputs)
        >>> model = keras.Model(inputs, keras.layers.Flatten()(x))
        >>> row = np.random.default_rng(0).normal(size=(1, 5, 8)).astype("float32")
        >>> one, other = (model.predict(row, verbose=0) for _ in range(2))
        >>> bool((one != other).any())
        True

    Reference:
        Y. Gal and Z. Ghahramani, Dropout as a Bayesian Approximation (2016),
        arXiv:1506.02142.
    """

    call = in_training(keras.layers.MultiHeadAttention.call)


@_register
class MCAttention(AlwaysOn, keras.layers.Attention):
    """`keras.layers.Attention` that drops at inference too.

    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.ones((2, 3, 4), "float32")
        >>> y = kt.layers.MCAttention(dropout=0.5, seed=0)([x, x])
        >>> tuple(y.shape)
        (2, 3, 4)

    Reference:
        Y. Gal and Z. Ghahramani, Dropout as a Bayesian Approximation (2016),
        arXiv:1506.02142.
    """

    call = in_training(keras.layers.Attention.call)


@_register
class MCAdditiveAttention(AlwaysOn, keras.layers.AdditiveAttention):
    """`keras.layers.AdditiveAttention` that drops at inference too.

    Arguments and call arguments are those of that layer; `training` is ignored.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.ones((2, 3, 4), "float32")
        >>> y = kt.layers.MCAdditiveAttention(dropout=0.5, seed=0)([x, x])
        >>> tuple(y.shape)
        (2, 3, 4)

    Reference:
        Y. Gal and Z. Ghahramani, Dropout as a Bayesian Approximation (2016),
        arXiv:1506.02142.
    """

    call = in_training(keras.layers.AdditiveAttention.call)
