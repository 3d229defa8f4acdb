"""Plain layers in place of weight-normalized ones."""

import keras

from keras_trainkit._checks import reject
from keras_trainkit._model import graph as _graph
from keras_trainkit.layers import WeightNormalization


def strip_weight_normalization(model: keras.Model) -> keras.Model:
    """Copy a model with plain layers in place of `kt.layers.WeightNormalization`.

    The copy computes the same and has no custom class for it. Folding BatchNorms comes
    after this.

    Args:
        model: A Functional or built Sequential model, with nested ones if need be; it
            is not changed.

    Returns:
        The copy, not compiled.

    Raises:
        ValueError: If the model is neither, or has no such layer.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     kt.layers.WeightNormalization(keras.layers.Dense(8)),
        ... ])
        >>> plain = kt.folding.strip_weight_normalization(model)
        >>> type(plain.layers[0]).__name__
        'Dense'
    """
    stripped = []

    def plain(layer):
        if not isinstance(layer, WeightNormalization):
            return None
        stripped.append(layer)
        return layer.strip()

    copy, _ = _graph.rebuild(model, plain)
    if not stripped:
        reject("model", model.name, "a model with a WeightNormalization layer")
    return copy
