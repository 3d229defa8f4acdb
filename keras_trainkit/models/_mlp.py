"""Multilayer perceptrons from a preset."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_trainkit._checks import check_choice, check_integer, check_items, reject
from keras_trainkit.layers import MCDropout
from keras_trainkit.models._presets import PRESETS, Preset

_DROPOUTS = {
    "dropout": layers.Dropout,
    "alpha": layers.AlphaDropout,
    "mc": MCDropout,
}


def build_mlp(
    input_shape: Sequence[int],
    num_classes: int,
    preset: str = "default",
    hidden_units: Sequence[int] = (300, 100),
    **overrides: Any,
) -> keras.Sequential:
    """Build a multilayer perceptron for classification.

    Args:
        input_shape: Shape of one example; an image is flattened.
        num_classes: Number of classes, at least 2.
        preset: A name in `kt.models.PRESETS`.
        hidden_units: Width of each hidden layer.
        **overrides: Attributes of the preset to change, such as
            `normalization="batch"` or `dropout="mc"`.

    Returns:
        A built `keras.Sequential` with a softmax output of shape
        `(batch, num_classes)`, not compiled: `kt.models.PRESETS[preset].compile(model)`
        makes it ready for `fit`.

    Raises:
        ValueError: If an argument is wrong, or an override breaks the preset (such as
            BatchNorm in a self-normalizing network).

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((28, 28), 10)
        >>> model.output_shape, model.count_params()
        ((None, 10), 266610)

    Reference:
        A. Géron, Hands-On Machine Learning, 2nd ed. (2019), tables 11-3 and 11-4.
    """
    check_choice("preset", preset, PRESETS)
    check_integer("num_classes", num_classes, minimum=2)
    sizes = check_items("input_shape", input_shape, "a shape, without the batch")
    shape = tuple(check_integer("input_shape", n, minimum=1) for n in sizes)
    if not shape:
        reject("input_shape", input_shape, "at least one axis")
    hidden_units = check_items("hidden_units", hidden_units, "a list of integers")
    config = PRESETS[preset].override(**overrides)
    batch_norm = config.normalization == "batch" or (
        config.normalization == "deep" and len(hidden_units) >= Preset.DEEP
    )

    model = keras.Sequential([keras.Input(shape)], name=f"mlp_{preset}")
    if len(shape) > 1:
        model.add(layers.Flatten())
    for units in hidden_units:
        check_integer("hidden_units", units, minimum=1)
        # A BatchNorm right behind the layer has the bias.
        norm_first = batch_norm and config.normalize_first
        model.add(_dense(units, config, use_bias=not norm_first))
        if norm_first:
            model.add(layers.BatchNormalization())
        model.add(layers.Activation(config.activation))
        if batch_norm and not norm_first:
            model.add(layers.BatchNormalization())
        if config.dropout:
            model.add(_DROPOUTS[config.dropout](config.dropout_rate))
    # float32 whatever the policy: a softmax in half precision loses the small classes.
    model.add(layers.Dense(num_classes, activation="softmax", dtype="float32"))
    return model


def _dense(units: int, config: Preset, use_bias: bool) -> layers.Dense:
    penalty = keras.regularizers.L1L2(config.l1, config.l2)
    return layers.Dense(
        units,
        use_bias=use_bias,
        kernel_initializer=config.kernel_initializer,
        kernel_regularizer=penalty if config.l1 or config.l2 else None,
    )
