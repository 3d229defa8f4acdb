"""Architectures of keras.io's examples on images, small, written afresh."""

import keras
from keras import layers, ops

from .registry import Case, case, integers, random

ROWS = 8
SPARSE = "sparse_categorical_crossentropy"


def _classifier(x, y, classes=4):
    y = layers.Dense(classes, "softmax", name="predictions")(y)
    shape = [size or 16 for size in x.shape[1:]]
    return Case(
        keras.Model(x, y), random(ROWS, *shape), integers(classes, ROWS), loss=SPARSE
    )


class Patches(layers.Layer):
    """Patches of an image, as keras.io cuts them."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, images):
        patches = ops.image.extract_patches(images, self.size)
        count = patches.shape[1] * patches.shape[2]
        return ops.reshape(patches, (-1, count, patches.shape[3]))

    def get_config(self):
        return {**super().get_config(), "size": self.size}


class AddPositions(layers.Layer):
    """Projects patches, and adds a vector for each place."""

    def __init__(self, count, width, **kwargs):
        super().__init__(**kwargs)
        self.count, self.width = count, width
        self.projection = layers.Dense(width)
        self.positions = layers.Embedding(count, width)

    def call(self, patches):
        return self.projection(patches) + self.positions(ops.arange(self.count))

    def get_config(self):
        return {**super().get_config(), "count": self.count, "width": self.width}


CUSTOM = {"Patches": Patches, "AddPositions": AddPositions}


def _patched(width=8):
    x = keras.Input((16, 16, 3))
    return x, AddPositions(16, width)(Patches(4)(x))


@case
def mlp_mixer():
    x, y = _patched()
    for _ in range(2):
        z = layers.Permute((2, 1))(layers.LayerNormalization()(y))
        z = layers.Dense(16)(layers.Dense(16, "gelu")(z))
        y = layers.Add()([y, layers.Permute((2, 1))(z)])
        z = layers.Dense(16, "gelu")(layers.LayerNormalization()(y))
        y = layers.Add()([y, layers.Dropout(0.2)(layers.Dense(8)(z))])
    made = _classifier(x, layers.GlobalAveragePooling1D()(y))
    made.custom = CUSTOM
    return made


@case
def gmlp():
    x, y = _patched()
    for _ in range(2):
        z = layers.Dense(16, "gelu")(layers.LayerNormalization()(y))
        u, v = ops.split(layers.Dropout(0.2)(z), 2, axis=-1)
        v = layers.Permute((2, 1))(layers.LayerNormalization()(v))
        v = layers.Dense(16, bias_initializer="ones")(v)
        y = y + layers.Dense(8)(u * layers.Permute((2, 1))(v))
    made = _classifier(x, layers.GlobalAveragePooling1D()(y))
    made.custom = CUSTOM
    return made


class FourierMixing(layers.Layer):
    """Real part of the transform over places and channels."""

    def call(self, x):
        return ops.fft2((x, ops.zeros_like(x)))[0]


@case
def fnet():
    x, y = _patched()
    for _ in range(2):
        y = layers.LayerNormalization()(y + FourierMixing()(y))
        z = layers.Dropout(0.2)(layers.Dense(8)(layers.Dense(16, "gelu")(y)))
        y = layers.LayerNormalization()(y + z)
    made = _classifier(x, layers.GlobalAveragePooling1D()(y))
    made.custom = {**CUSTOM, "FourierMixing": FourierMixing}
    return made


@case
def vision_transformer():
    x, y = _patched()
    for _ in range(2):
        z = layers.LayerNormalization(epsilon=1e-6)(y)
        z = layers.MultiHeadAttention(2, 4, dropout=0.1)(z, z)
        y = layers.Add()([z, y])
        z = layers.LayerNormalization(epsilon=1e-6)(y)
        for units in (16, 8):
            z = layers.Dropout(0.1)(layers.Dense(units, keras.activations.gelu)(z))
        y = layers.Add()([z, y])
    y = layers.Flatten()(layers.LayerNormalization(epsilon=1e-6)(y))
    made = _classifier(x, layers.Dropout(0.5)(y))
    made.custom = CUSTOM
    return made


class StochasticDepth(layers.Layer):
    """Drops whole rows of a branch, as keras.io's CCT does."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        kept = keras.random.uniform(shape, seed=self.seed_generator) > self.rate
        return x / (1 - self.rate) * ops.cast(kept, x.dtype)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


class SequencePooling(layers.Layer):
    """Attention instead of a mean, with a layer made in `__init__`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.Dense(1)

    def call(self, x):
        weights = ops.transpose(ops.softmax(self.attention(x), axis=1), (0, 2, 1))
        return ops.squeeze(ops.matmul(weights, x), -2)


@case
def compact_convolutional_transformer():
    x = keras.Input((16, 16, 3))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, activation="relu")(x)
    y = layers.MaxPooling2D(4, 4, "same")(y)
    y = layers.Reshape((16, 8))(y)
    for _ in range(2):
        z = layers.LayerNormalization()(y)
        z = layers.MultiHeadAttention(2, 4, dropout=0.1)(z, z)
        y = y + StochasticDepth(0.1)(z)
        z = layers.Dense(16, "gelu")(layers.LayerNormalization()(y))
        y = y + StochasticDepth(0.1)(layers.Dropout(0.1)(layers.Dense(8)(z)))
    made = _classifier(x, SequencePooling()(layers.LayerNormalization()(y)))
    made.custom = {
        "StochasticDepth": StochasticDepth,
        "SequencePooling": SequencePooling,
    }
    return made


@case
def conv_mixer():
    x = keras.Input((16, 16, 3))
    y = layers.Rescaling(0.5)(x)
    y = layers.Conv2D(8, 2, 2)(y)
    y = layers.BatchNormalization()(layers.Activation("gelu")(y))
    for _ in range(2):
        z = layers.DepthwiseConv2D(3, padding="same")(y)
        z = layers.BatchNormalization()(layers.Activation("gelu")(z))
        z = layers.Conv2D(8, 1)(layers.Add()([z, y]))
        y = layers.BatchNormalization()(layers.Activation("gelu")(z))
    return _classifier(x, layers.GlobalAveragePooling2D()(y))


@case
def u_net_xception():
    x = keras.Input((16, 16, 3))
    y = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    y = previous = layers.Activation("relu")(layers.BatchNormalization()(y))
    for filters in (8, 16):
        for _ in range(2):
            y = layers.Activation("relu")(y)
            y = layers.SeparableConv2D(filters, 3, padding="same")(y)
            y = layers.BatchNormalization()(y)
        y = layers.MaxPooling2D(3, strides=2, padding="same")(y)
        residual = layers.Conv2D(filters, 1, strides=2, padding="same")(previous)
        y = previous = layers.add([y, residual])
    for filters in (16, 8, 8):
        y = layers.Activation("relu")(y)
        y = layers.Conv2DTranspose(filters, 3, padding="same")(y)
        y = layers.UpSampling2D(2)(layers.BatchNormalization()(y))
        residual = layers.Conv2D(filters, 1, padding="same")(
            layers.UpSampling2D(2)(previous)
        )
        y = previous = layers.add([y, residual])
    y = layers.Conv2D(3, 3, activation="softmax", padding="same")(y)
    return Case(
        keras.Model(x, y), random(ROWS, 16, 16, 3), integers(3, ROWS, 16, 16),
        loss=SPARSE,
    )  # fmt: skip


@case
def u_net_with_skips():
    x = keras.Input((16, 16, 1))
    y, skips = x, []
    for filters in (4, 8):
        y = layers.Conv2D(filters, 3, padding="same", activation="relu")(y)
        skips.append(y)
        y = layers.Dropout(0.2)(layers.MaxPooling2D()(y))
    y = layers.Conv2D(16, 3, padding="same", activation="relu")(y)
    for filters, skip in ((8, skips[1]), (4, skips[0])):
        y = layers.Conv2DTranspose(filters, 2, strides=2)(y)
        y = layers.Concatenate()([y, skip])
        y = layers.Conv2D(filters, 3, padding="same", activation="relu")(y)
    y = layers.Conv2D(1, 1, activation="sigmoid")(y)
    targets = integers(2, ROWS, 16, 16, 1).astype("float32")
    return Case(
        keras.Model(x, y), random(ROWS, 16, 16, 1), targets, loss="binary_crossentropy"
    )


@case
def mobile_vit():
    x = keras.Input((16, 16, 3))
    y = layers.Conv2D(8, 3, strides=2, padding="same", activation="swish")(x)
    z = layers.Conv2D(16, 1, use_bias=False)(y)
    z = keras.activations.swish(layers.BatchNormalization()(z))
    z = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(z)
    z = keras.activations.swish(layers.BatchNormalization()(z))
    z = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(z))
    y = layers.Add()([y, z])
    local = layers.Conv2D(8, 1, padding="same", activation="swish")(y)
    patches = layers.Reshape((4, 16, 8))(local)
    z = layers.LayerNormalization()(patches)
    z = layers.Add()([layers.MultiHeadAttention(2, 8, dropout=0.1)(z, z), patches])
    w = layers.Dense(16, "swish")(layers.LayerNormalization()(z))
    z = layers.Add()([layers.Dropout(0.1)(layers.Dense(8)(w)), z])
    folded = layers.Conv2D(8, 1, activation="swish")(layers.Reshape((8, 8, 8))(z))
    y = layers.Concatenate(axis=-1)([y, folded])
    y = layers.Conv2D(8, 3, padding="same", activation="swish")(y)
    return _classifier(x, layers.GlobalAvgPool2D()(y))


@case
def squeeze_and_excitation():
    x = keras.Input((16, 16, 3))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    s = layers.GlobalAveragePooling2D(keepdims=True)(y)
    s = layers.Conv2D(8, 1, activation="sigmoid")(layers.Conv2D(2, 1)(s))
    y = layers.Multiply()([y, s])
    y = layers.ZeroPadding2D(1)(y)
    y = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(y)
    y = layers.Dropout(0.2)(layers.BatchNormalization()(y))
    return _classifier(x, layers.Flatten()(y))


@case
def inception_branches():
    x = keras.Input((16, 16, 3))
    a = layers.Conv2D(4, 1, activation="relu")(x)
    b = layers.Conv2D(6, 3, padding="same", activation="relu")(
        layers.Conv2D(4, 1, activation="relu")(x)
    )
    c = layers.Conv2D(2, 1)(layers.MaxPooling2D(3, strides=1, padding="same")(x))
    y = layers.BatchNormalization()(layers.concatenate([a, b, c]))
    y = layers.Cropping2D(1)(layers.LeakyReLU()(y))
    return _classifier(x, layers.Dropout(0.4)(layers.GlobalMaxPooling2D()(y)))


@case
def conv_lstm():
    x = keras.Input((4, 8, 8, 1))
    y = layers.ConvLSTM2D(4, 3, padding="same", return_sequences=True)(x)
    y = layers.BatchNormalization()(y)
    y = layers.Conv3D(1, 3, activation="sigmoid", padding="same")(y)
    targets = integers(2, 4, 4, 8, 8, 1).astype("float32")
    return Case(
        keras.Model(x, y), random(4, 4, 8, 8, 1), targets, loss="binary_crossentropy"
    )


@case
def conv_3d():
    x = keras.Input((8, 8, 8, 1))
    y = layers.Conv3D(4, 3, activation="relu")(x)
    y = layers.BatchNormalization()(layers.MaxPool3D(2)(y))
    y = layers.GlobalAveragePooling3D()(y)
    y = layers.Dropout(0.3)(layers.Dense(8, "relu")(y))
    return _classifier(x, y)


@case
def super_resolution():
    x = keras.Input((8, 8, 1))
    y = layers.Conv2D(8, 5, activation="relu", padding="same")(x)
    y = layers.Conv2D(4, 3, activation="relu", padding="same")(y)
    y = layers.Conv2D(4, 3, padding="same")(y)
    y = ops.transpose(ops.reshape(y, (-1, 8, 8, 2, 2, 1)), (0, 1, 3, 2, 4, 5))
    y = ops.reshape(y, (-1, 16, 16, 1))
    return Case(keras.Model(x, y), random(ROWS, 8, 8, 1), random(ROWS, 16, 16, 1))


def _dense_block(y):
    for _ in range(3):
        z = layers.ReLU()(layers.BatchNormalization()(y))
        z = layers.Dropout(0.2)(layers.Conv2D(4, 3, padding="same")(z))
        y = layers.Concatenate()([y, z])
    return y


@case
def dense_net():
    x = keras.Input((16, 16, 3))
    y = _dense_block(layers.Conv2D(8, 3, padding="same")(x))
    y = layers.AveragePooling2D(2)(layers.Conv2D(8, 1)(layers.BatchNormalization()(y)))
    return _classifier(x, layers.GlobalAveragePooling2D()(_dense_block(y)))


@case
def keras_applications_mobilenet_v2():
    model = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=4
    )
    return Case(model, random(4, 32, 32, 3), integers(4, 4), loss=SPARSE)


@case
def transfer_from_applications():
    body = keras.applications.MobileNetV3Small(
        (32, 32, 3), weights=None, include_top=False, include_preprocessing=True
    )
    body.trainable = False
    x = keras.Input((32, 32, 3))
    y = layers.RandomFlip("horizontal")(x)
    y = layers.GlobalAveragePooling2D()(body(y, training=False))
    y = layers.Dense(4, "softmax")(layers.Dropout(0.2)(y))
    return Case(keras.Model(x, y), random(4, 32, 32, 3), integers(4, 4), loss=SPARSE)
