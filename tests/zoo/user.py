"""What users put into their models. No class here is registered with Keras."""

import keras
from keras import layers, ops

from .registry import Case, Skip, case, integers, random

ROWS = 8


def _mlp(*middle, units=2, width=6):
    return keras.Sequential([keras.Input((width,)), *middle, layers.Dense(units)])


@case
def mlp_with_dropout():
    model = _mlp(
        layers.Dense(8, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Dropout(0.5),
    )
    return Case(model, random(ROWS, 6), random(ROWS, 2), eager=False)


@case
def adapted_normalization():
    norm = layers.Normalization()
    norm.adapt(5 + 3 * random(64, 6))
    model = _mlp(norm, layers.Dense(8, "relu"), layers.Dropout(0.5))
    return Case(model, 5 + 3 * random(ROWS, 6), random(ROWS, 2), eager=False)


class Scale(layers.Layer):
    """A layer as the guide has it."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, x):
        return self.factor * self.gain * x

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@case
def unregistered_layer():
    model = _mlp(layers.Dense(8, "relu"), Scale(3.0), layers.Dropout(0.5))
    return Case(model, random(ROWS, 6), random(ROWS, 2), custom={"Scale": Scale})


class ScaleNoKwargs(layers.Layer):
    """Its config has what its constructor does not take, as in keras.io's examples."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.inner = layers.Dense(8)
        self.dropout = layers.Dropout(0.5)

    def call(self, x):
        return self.factor * self.dropout(self.inner(x))

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@case
def unregistered_without_kwargs():
    model = _mlp(layers.Dense(8, "relu"), ScaleNoKwargs(3.0))
    return Case(
        model, random(ROWS, 6), random(ROWS, 2), custom={"ScaleNoKwargs": ScaleNoKwargs}
    )


class Gate(layers.Layer):
    """No `get_config`, though it has arguments."""

    def __init__(self, units, function):
        super().__init__()
        self.dense = layers.Dense(units)
        self.function = function

    def call(self, x):
        return x * self.function(self.dense(x))


@case
def layer_without_get_config():
    model = _mlp(layers.Dense(8, "relu"), Gate(8, ops.sigmoid), layers.Dropout(0.5))
    return Case(model, random(ROWS, 6), random(ROWS, 2), custom={"Gate": Gate})


@case
def lambda_layer():
    shift = 0.5
    model = _mlp(
        layers.Dense(8, "relu"),
        layers.Lambda(lambda x: x * 2 + shift),
        layers.Dropout(0.5),
    )
    return Case(model, random(ROWS, 6), random(ROWS, 2))


def my_function(x):
    return ops.tanh(x) * 1.5


@case
def function_as_activation():
    model = _mlp(layers.Dense(8, activation=my_function), layers.Dropout(0.5))
    return Case(
        model,
        random(ROWS, 6),
        random(ROWS, 2),
        custom={"my_function": my_function},
    )


class MinimalCell(layers.Layer):
    """The cell of Keras's documentation."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, self.units), name="recurrent_kernel"
        )

    def call(self, x, states):
        new = ops.tanh(ops.matmul(x, self.kernel) + states[0] @ self.recurrent_kernel)
        return new, [new]


@case
def rnn_of_own_cell():
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.RNN(MinimalCell(8)),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    return Case(
        model,
        random(ROWS, 5, 3),
        random(ROWS, 2),
        custom={"MinimalCell": MinimalCell},
    )


@case
def lora_dense():
    model = _mlp(layers.Dense(8, "relu", name="base"), layers.Dropout(0.5))
    model.get_layer("base").enable_lora(2)
    lora = model.get_layer("base").lora_kernel_b
    lora.assign(random(*lora.shape))
    return Case(model, random(ROWS, 6), random(ROWS, 2))


@case
def lora_embedding():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(20, 8, name="base"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
        ]
    )
    model.get_layer("base").enable_lora(2)
    lora = model.get_layer("base").lora_embeddings_b
    lora.assign(random(*lora.shape))
    return Case(model, integers(20, ROWS, 5), random(ROWS, 2))


@case
def int8_quantized():
    model = _mlp(layers.Dense(8, "relu"), layers.BatchNormalization())
    model.quantize("int8")
    return Case(model, random(ROWS, 6), random(ROWS, 2))


@case
def layer_shared_with_nested():
    shared = layers.Dense(6, "relu", name="shared")
    inner = keras.Sequential([keras.Input((6,)), shared, layers.Dropout(0.5)])
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2)(shared(inner(x))))
    return Case(model, random(ROWS, 6), random(ROWS, 2))


class Doubling(keras.Model):
    """A Functional model whose call does more than its graph."""

    def __init__(self, **kwargs):
        x = keras.Input((6,))
        y = layers.Dense(2)(layers.Dropout(0.5)(layers.Dense(8, "relu")(x)))
        super().__init__(x, y, **kwargs)

    def call(self, x, training=None, mask=None):
        return 2 * super().call(x, training=training) + 1

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls()


@case
def functional_with_own_call():
    return Case(
        Doubling(), random(ROWS, 6), random(ROWS, 2), custom={"Doubling": Doubling}
    )


@case
def nested_called_by_keyword():
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization()]
    )
    x = keras.Input((6,))
    y = layers.Dropout(0.5)(inner(inputs=x))
    model = keras.Model(x, layers.Dense(2)(y))
    return Case(model, random(ROWS, 6), random(ROWS, 2))


@case
def augmentation():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.RandomFlip(seed=1),
            layers.RandomRotation(0.2, seed=2),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, "softmax"),
        ]
    )
    return Case(
        model,
        random(ROWS, 8, 8, 3),
        integers(3, ROWS),
        loss="sparse_categorical_crossentropy",
    )


class NoisyByDefault(layers.Layer):
    """Adds noise unless it is told not to."""

    def call(self, x, training=True):
        return x + keras.random.normal(ops.shape(x), seed=1) if training else x


@case
def training_true_by_default():
    x = keras.Input((6,))
    y = layers.Dense(8, "relu")(NoisyByDefault()(x))
    model = keras.Model(x, layers.Dense(2)(layers.Dropout(0.5)(y)))
    return Case(
        model,
        random(ROWS, 6),
        random(ROWS, 2),
        custom={"NoisyByDefault": NoisyByDefault},
    )


@case
def mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _mlp(
        layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dropout(0.5)
    )
    return Case(model, random(ROWS, 6), random(ROWS, 2))


@case
def channels_first():
    if keras.backend.backend() == "tensorflow":
        raise Skip("TensorFlow has no channels_first convolution on the CPU")
    model = keras.Sequential(
        [
            keras.Input((3, 8, 8)),
            layers.Conv2D(8, 3, data_format="channels_first"),
            layers.BatchNormalization(axis=1),
            layers.ReLU(),
            layers.Conv2D(8, 3, data_format="channels_first"),
            layers.GlobalAveragePooling2D(data_format="channels_first"),
            layers.Dense(2),
        ]
    )
    return Case(model, random(ROWS, 3, 8, 8), random(ROWS, 2))


@case
def time_distributed_model():
    frame = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
        ]
    )
    model = keras.Sequential(
        [
            keras.Input((3, 8, 8, 3)),
            layers.TimeDistributed(frame),
            layers.LSTM(8, dropout=0.5),
            layers.Dense(2),
        ]
    )
    return Case(model, random(ROWS, 3, 8, 8, 3), random(ROWS, 2))


@case
def bidirectional():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(20, 8, mask_zero=True),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.Bidirectional(layers.GRU(4, dropout=0.5)),
            layers.Dense(2),
        ]
    )
    return Case(model, integers(20, ROWS, 5), random(ROWS, 2))


class Subclassed(keras.Model):
    """A subclassed model."""

    def __init__(self):
        super().__init__()
        self.body = keras.Sequential(
            [layers.Dense(8), layers.BatchNormalization(), layers.ReLU()]
        )
        self.dropout = layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.dropout(self.body(x), training=training))


@case
def subclassed_model():
    model = Subclassed()
    model(random(1, 6))
    return Case(
        model, random(ROWS, 6), random(ROWS, 2), custom={"Subclassed": Subclassed}
    )


class Tied(layers.Layer):
    """Projects on the items of an embedding that stands elsewhere."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.embedding.embeddings))


@case
def tied_embedding():
    x = keras.Input((5,), dtype="int32")
    embedding = layers.Embedding(20, 8)
    y = layers.Dropout(0.5)(layers.Dense(8, "relu")(embedding(x)))
    model = keras.Model(x, Tied(embedding)(y))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(
        model,
        integers(20, ROWS, 5),
        integers(20, ROWS, 5, seed=1),
        loss=loss,
        custom={"Tied": Tied},
    )


@case
def operations_in_the_graph():
    x = keras.Input((6, 4))
    a, b = ops.split(layers.Dense(8)(x), 2, axis=-1)
    y = ops.mean(a * ops.sigmoid(b), axis=1) + ops.max(x, axis=1)
    model = keras.Model(x, layers.Dense(2)(layers.Dropout(0.5)(y)))
    return Case(model, random(ROWS, 6, 4), random(ROWS, 2))


@case
def constants_in_the_graph():
    x = keras.Input((6,))
    y = layers.Dense(8, "relu")(x) * ops.convert_to_tensor(random(8))
    y = layers.Dropout(0.5)(y + random(8, seed=1))
    return Case(keras.Model(x, layers.Dense(2)(y)), random(ROWS, 6), random(ROWS, 2))


@case
def weight_shared_twice():
    x = keras.Input((6,))
    dense, norm = layers.Dense(6), layers.BatchNormalization()
    y = norm(dense(layers.ReLU()(norm(dense(x)))))
    model = keras.Model(x, layers.Dense(2)(layers.Dropout(0.3)(y)))
    return Case(model, random(ROWS, 6), random(ROWS, 2))


@case
def frozen_backbone():
    body = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
        ],
        name="body",
    )
    body.trainable = False
    x = keras.Input((8, 8, 3))
    y = layers.Dropout(0.5)(body(x, training=False))
    model = keras.Model(x, layers.Dense(3, "softmax")(y))
    return Case(
        model,
        random(ROWS, 8, 8, 3),
        integers(3, ROWS),
        loss="sparse_categorical_crossentropy",
    )


@case
def spectral_normalization():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.SpectralNormalization(layers.Conv2D(8, 3)),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.GlobalMaxPooling2D(),
            layers.Dense(2),
        ]
    )
    return Case(model, random(ROWS, 8, 8, 3), random(ROWS, 2))


@case
def regularized_already():
    model = _mlp(
        layers.Dense(8, "relu", kernel_regularizer="l2"),
        layers.Dense(8, kernel_constraint=keras.constraints.MaxNorm(2)),
        layers.ActivityRegularization(0.01),
        layers.GaussianNoise(0.1),
        layers.Dropout(0.5),
    )
    return Case(model, random(ROWS, 6), random(ROWS, 2))


@case
def group_and_layer_normalization():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3),
            layers.GroupNormalization(2),
            layers.Activation("silu"),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(8, 1),
            layers.LayerNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    return Case(model, random(ROWS, 8, 8, 3), random(ROWS, 2))


def my_loss(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred))


@case
def own_loss_and_open_size():
    x = keras.Input((None, None, 3))
    y = layers.SeparableConv2D(8, 3, padding="same", activation="gelu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(y))
    y = layers.SpatialDropout2D(0.5)(y)
    model = keras.Model(x, layers.Conv2D(1, 1)(layers.UpSampling2D(2)(y)))
    return Case(
        model,
        random(ROWS, 8, 8, 3),
        random(ROWS, 16, 16, 1),
        loss=my_loss,
        custom={"my_loss": my_loss},
    )
