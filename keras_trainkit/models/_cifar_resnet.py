"""The residual networks for small images."""

from collections.abc import Sequence

import keras
from keras import layers, ops

from keras_trainkit._checks import check_integer, check_items, check_positive, reject


def build_cifar_resnet(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    depth: int = 20,
    weight_decay: float = 1e-4,
) -> keras.Model:
    """Build a residual network for CIFAR-10, with parameter-free shortcuts.

    Three stages of `(depth - 2) / 6` residual blocks with 16, 32 and 64 filters; where
    the resolution halves, the shortcut is subsampled and padded with zero channels
    (option A of the paper).

    Args:
        input_shape: `(height, width, channels)` of one image, in the order of
            `keras.config.image_data_format()`.
        num_classes: Number of classes, at least 2.
        depth: `6 n + 2` weighted layers: 20, 32, 44, 56 or 110 in the paper.
        weight_decay: Strength of the L2 penalty on every kernel; the paper's.

    Returns:
        A Functional model with a softmax output of shape `(batch, num_classes)`, not
        compiled: `kt.models.PRESETS["default"].compile(model)` makes it ready.

    Raises:
        ValueError: If an argument is wrong.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_cifar_resnet(depth=20)
        >>> f"{model.count_params() / 1e6:.2f}M parameters"
        '0.27M parameters'

    Reference:
        K. He et al., Deep Residual Learning for Image Recognition (2015),
        arXiv:1512.03385, section 4.2 and table 6.
    """
    sizes = check_items("input_shape", input_shape, "(height, width, channels)")
    if len(sizes) != 3:
        reject("input_shape", input_shape, "(height, width, channels)")
    for size in sizes:
        if size is not None:
            check_integer("input_shape", size, minimum=1)
    check_integer("num_classes", num_classes, minimum=2)
    weight_decay = check_positive("weight_decay", weight_decay, allow_zero=True)
    if (check_integer("depth", depth, minimum=8) - 2) % 6:
        reject("depth", depth, "6 n + 2, such as 20, 32, 56 or 110")
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    penalty = keras.regularizers.L2(weight_decay) if weight_decay else None

    def conv_norm(x, filters, strides=1):
        x = layers.Conv2D(
            filters,
            3,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=penalty,
        )(x)
        return layers.BatchNormalization(axis=axis)(x)

    def shortcut(x, filters):
        missing = filters - x.shape[axis]
        if not missing:
            return x
        x = layers.AveragePooling2D(pool_size=1, strides=2)(x)
        padding = [[0, 0]] * 4
        padding[axis] = [missing // 2, missing - missing // 2]
        return ops.pad(x, padding)

    inputs = keras.Input(tuple(input_shape))
    x = layers.ReLU()(conv_norm(inputs, 16))
    for filters in (16, 32, 64):
        for block in range((depth - 2) // 6):
            strides = 2 if filters > 16 and block == 0 else 1
            y = layers.ReLU()(conv_norm(x, filters, strides))
            y = conv_norm(y, filters)
            x = layers.ReLU()(layers.Add()([shortcut(x, filters), y]))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(
        num_classes,
        activation="softmax",
        kernel_initializer="he_normal",
        kernel_regularizer=penalty,
        dtype="float32",
    )(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")
