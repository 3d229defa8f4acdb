"""Architectures of keras.io's examples on text, tables, series and graphs."""

import keras
import numpy as np
from keras import layers, ops

from .registry import Case, Skip, case, integers, random

ROWS = 8
SPARSE = "sparse_categorical_crossentropy"


class TransformerBlock(layers.Layer):
    """keras.io's own, with a config but no `**kwargs`."""

    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.sizes = embed_dim, num_heads, ff_dim, rate
        self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential(
            [layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs):
        attended = self.dropout1(self.att(inputs, inputs))
        out1 = self.layernorm1(inputs + attended)
        return self.layernorm2(out1 + self.dropout2(self.ffn(out1)))

    def get_config(self):
        names = "embed_dim", "num_heads", "ff_dim", "rate"
        return {**super().get_config(), **dict(zip(names, self.sizes, strict=True))}


class TokenAndPositionEmbedding(layers.Layer):
    """keras.io's own, without a config."""

    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = layers.Embedding(vocab_size, embed_dim)
        self.pos_emb = layers.Embedding(maxlen, embed_dim)

    def call(self, x):
        positions = ops.arange(0, ops.shape(x)[-1], 1)
        return self.token_emb(x) + self.pos_emb(positions)


CUSTOM = {
    "TransformerBlock": TransformerBlock,
    "TokenAndPositionEmbedding": TokenAndPositionEmbedding,
}


@case
def text_classification_transformer():
    x = keras.Input((6,), dtype="int32")
    y = TokenAndPositionEmbedding(6, 20, 8)(x)
    y = layers.GlobalAveragePooling1D()(TransformerBlock(8, 2, 16)(y))
    y = layers.Dropout(0.1)(layers.Dense(8, "relu")(layers.Dropout(0.1)(y)))
    model = keras.Model(x, layers.Dense(2, "softmax")(y))
    return Case(
        model, integers(20, ROWS, 6), integers(2, ROWS), loss=SPARSE, custom=CUSTOM
    )


class CausalAttention(layers.Layer):
    """A block of a small GPT."""

    def __init__(self, heads, width, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.width = heads, width
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.norm = layers.LayerNormalization()
        self.supports_masking = True

    def call(self, x):
        return self.norm(x + self.attention(x, x, use_causal_mask=True))

    def get_config(self):
        return {**super().get_config(), "heads": self.heads, "width": self.width}


@case
def small_gpt():
    x = keras.Input((6,), dtype="int32")
    y = CausalAttention(2, 8)(layers.Embedding(20, 8)(x))
    y = y + layers.Dropout(0.1)(layers.Dense(8)(layers.Dense(16, "gelu")(y)))
    model = keras.Model(x, layers.Dense(20)(layers.LayerNormalization()(y)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(
        model, integers(20, ROWS, 6), integers(20, ROWS, 6, seed=1), loss=loss,
        custom={"CausalAttention": CausalAttention},
    )  # fmt: skip


@case
def sequence_to_sequence_lstm():
    source = keras.Input((None, 5))
    _, h, c = layers.LSTM(8, return_state=True)(source)
    target = keras.Input((None, 4))
    y, _, _ = layers.LSTM(8, return_sequences=True, return_state=True)(
        target, initial_state=[h, c]
    )
    model = keras.Model([source, target], layers.Dense(4, "softmax")(y))
    data = [random(ROWS, 5, 5), random(ROWS, 3, 4)]
    return Case(model, data, integers(4, ROWS, 3), loss=SPARSE)


@case
def sequence_to_sequence_attention():
    source = keras.Input((5,), dtype="int32")
    target = keras.Input((4,), dtype="int32")
    encoded = layers.GRU(8, return_sequences=True)(
        layers.Embedding(20, 8, mask_zero=True)(source)
    )
    decoded = layers.GRU(8, return_sequences=True)(
        layers.Embedding(20, 8, mask_zero=True)(target)
    )
    context = layers.Attention()([decoded, encoded])
    y = layers.Dropout(0.2)(layers.Concatenate()([decoded, context]))
    model = keras.Model([source, target], layers.Dense(20, "softmax")(y))
    data = [integers(20, ROWS, 5), integers(20, ROWS, 4)]
    return Case(model, data, integers(20, ROWS, 4, seed=1), loss=SPARSE)


@case
def wave_net():
    x = y = keras.Input((16, 2))
    y = layers.Conv1D(8, 1)(y)
    for rate in (1, 2, 4):
        z = layers.Conv1D(8, 2, padding="causal", dilation_rate=rate)(y)
        g = layers.Conv1D(8, 2, padding="causal", dilation_rate=rate)(y)
        z = layers.Multiply()([layers.Activation("tanh")(z), ops.sigmoid(g)])
        y = layers.Add()([y, layers.SpatialDropout1D(0.1)(layers.Conv1D(8, 1)(z))])
    model = keras.Model(x, layers.Conv1D(1, 1)(layers.ReLU()(y)))
    return Case(model, random(ROWS, 16, 2), random(ROWS, 16, 1))


@case
def time_series_fcn():
    x = y = keras.Input((16, 1))
    for _ in range(2):
        y = layers.Conv1D(8, 3, padding="same")(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Dense(3, "softmax")(layers.GlobalAveragePooling1D()(y))
    return Case(keras.Model(x, y), random(ROWS, 16, 1), integers(3, ROWS), loss=SPARSE)


@case
def time_series_transformer():
    x = y = keras.Input((16, 1))
    z = layers.MultiHeadAttention(key_dim=8, num_heads=2, dropout=0.25)(y, y)
    y = layers.LayerNormalization(epsilon=1e-6)(layers.Dropout(0.25)(z)) + y
    z = layers.Conv1D(4, kernel_size=1, activation="relu")(y)
    z = layers.Conv1D(1, kernel_size=1)(layers.Dropout(0.25)(z))
    y = layers.LayerNormalization(epsilon=1e-6)(z) + y
    y = layers.GlobalAveragePooling1D(data_format="channels_last")(y)
    y = layers.Dropout(0.4)(layers.Dense(8, activation="relu")(y))
    model = keras.Model(x, layers.Dense(3, "softmax")(y))
    return Case(model, random(ROWS, 16, 1), integers(3, ROWS), loss=SPARSE)


@case
def wide_and_deep_with_strings():
    if keras.backend.backend() != "tensorflow":
        raise Skip("strings inside a model need TensorFlow")
    import tensorflow as tf

    x = {
        "job": keras.Input((1,), dtype="string", name="job"),
        "age": keras.Input((1,), name="age"),
        "income": keras.Input((1,), name="income"),
    }
    lookup = layers.StringLookup(vocabulary=["cook", "pilot", "nurse"])
    job = layers.Flatten()(layers.Embedding(4, 4)(lookup(x["job"])))
    age = layers.Normalization(mean=40.0, variance=100.0)(x["age"])
    y = layers.concatenate([job, age, x["income"]])
    wide = layers.BatchNormalization()(y)
    deep = y
    for _ in range(2):
        deep = layers.ReLU()(layers.BatchNormalization()(layers.Dense(8)(deep)))
        deep = layers.Dropout(0.3)(deep)
    y = layers.Dense(2, "softmax")(layers.concatenate([wide, deep]))
    jobs = np.array([["cook"], ["pilot"], ["nurse"], ["king"]] * 2)
    data = {
        "job": tf.constant(jobs),
        "age": tf.constant(40 + 10 * random(ROWS, 1)),
        "income": tf.constant(random(ROWS, 1)),
    }
    return Case(keras.Model(x, y), data, integers(2, ROWS), loss=SPARSE)


@case
def tab_transformer():
    x = {
        "kind": keras.Input((), dtype="int32", name="kind"),
        "place": keras.Input((), dtype="int32", name="place"),
        "size": keras.Input((1,), name="size"),
    }
    y = ops.stack(
        [layers.Embedding(6, 8)(x["kind"]), layers.Embedding(6, 8)(x["place"])], axis=1
    )
    ids = ops.stack([x["kind"], x["place"]], axis=1)
    y = y + layers.Embedding(2, 8)(ops.cumsum(ops.ones_like(ids), axis=1) - 1)
    z = layers.MultiHeadAttention(2, 8, dropout=0.2)(y, y)
    y = layers.LayerNormalization()(layers.Add()([z, y]))
    numeric = layers.LayerNormalization(epsilon=1e-6)(x["size"])
    y = layers.concatenate([layers.Flatten()(y), numeric])
    y = layers.Dropout(0.2)(layers.Dense(8, "selu")(layers.BatchNormalization()(y)))
    model = keras.Model(x, layers.Dense(1, "sigmoid")(y))
    data = {
        "kind": integers(6, ROWS),
        "place": integers(6, ROWS, seed=1),
        "size": random(ROWS, 1),
    }
    targets = integers(2, ROWS, 1).astype("float32")
    return Case(model, data, targets, loss="binary_crossentropy")


class GraphConvolution(layers.Layer):
    """A node's messages go along the edges of one graph."""

    def __init__(self, units, edges, **kwargs):
        super().__init__(**kwargs)
        self.edges = np.asarray(edges)
        self.message = layers.Dense(units, "gelu")
        self.update = layers.Dense(units, "gelu")

    def call(self, nodes):
        sent = ops.take(self.message(nodes), self.edges[0], axis=0)
        heard = ops.segment_sum(sent, self.edges[1], num_segments=ROWS)
        return self.update(ops.concatenate([nodes, heard], axis=-1))

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.message.units,
            "edges": self.edges.tolist(),
        }


@case
def graph_network():
    edges = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 0, 5, 6, 7, 4]])
    x = keras.Input((5,), batch_size=ROWS)
    y = layers.BatchNormalization()(layers.Dense(8, "gelu")(x))
    y = y + GraphConvolution(8, edges)(y)
    model = keras.Model(x, layers.Dense(3, "softmax")(layers.Dropout(0.2)(y)))
    return Case(
        model, random(ROWS, 5), integers(3, ROWS), loss=SPARSE,
        custom={"GraphConvolution": GraphConvolution}, fit={"batch_size": ROWS},
    )  # fmt: skip


@keras.saving.register_keras_serializable(package="zoo")
class OrthogonalFeatures(keras.regularizers.Regularizer):
    """Of keras.io's PointNet."""

    def __init__(self, size, strength=0.001):
        self.size, self.strength = size, strength

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.size, self.size))
        product = ops.einsum("bij,bkj->bik", x, x)
        return ops.sum(self.strength * ops.square(product - ops.eye(self.size)))

    def get_config(self):
        return {"size": self.size, "strength": self.strength}


def _conv_bn(y, filters):
    y = layers.Conv1D(filters, 1, padding="valid")(y)
    return layers.Activation("relu")(layers.BatchNormalization(momentum=0.0)(y))


@case
def point_net():
    x = keras.Input((12, 3))
    y = layers.GlobalMaxPooling1D()(_conv_bn(_conv_bn(x, 8), 8))
    y = layers.Dense(8)(y)
    y = layers.Activation("relu")(layers.BatchNormalization(momentum=0.0)(y))
    y = layers.Dense(
        9, kernel_initializer="zeros", activity_regularizer=OrthogonalFeatures(3)
    )(y)
    y = layers.Dot(axes=(2, 1))([x, layers.Reshape((3, 3))(y)])
    y = layers.GlobalMaxPooling1D()(_conv_bn(_conv_bn(y, 8), 16))
    model = keras.Model(x, layers.Dense(3, "softmax")(layers.Dropout(0.3)(y)))
    return Case(model, random(ROWS, 12, 3), integers(3, ROWS), loss=SPARSE)


@case
def collaborative_filtering():
    user, item = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")
    u = layers.Embedding(9, 4, embeddings_regularizer="l2")(user)
    v = layers.Embedding(7, 4)(item)
    y = layers.Flatten()(layers.Dot(axes=2)([u, v]))
    y = layers.Add()([y, layers.Flatten()(layers.Embedding(9, 1)(user))])
    model = keras.Model([user, item], layers.Activation("sigmoid")(y))
    data = [integers(9, ROWS, 1), integers(7, ROWS, 1)]
    return Case(model, data, random(ROWS, 1))


@case
def mixture_of_experts():
    x = keras.Input((6,))
    gates = layers.Dense(3, "softmax")(x)
    experts = [layers.Dropout(0.2)(layers.Dense(8, "relu")(x)) for _ in range(3)]
    y = ops.einsum("be,bed->bd", gates, ops.stack(experts, axis=1))
    model = keras.Model(x, layers.Dense(2)(y))
    return Case(model, random(ROWS, 6), random(ROWS, 2))


@case
def rotary_and_grouped_attention():
    x = keras.Input((6,), dtype="int32")
    y = layers.Embedding(20, 8)(x)
    z = layers.RMSNormalization()(y)
    y = y + layers.GroupQueryAttention(4, 4, 2)(z, z, use_causal_mask=True)
    z = layers.RMSNormalization()(y)
    gate = layers.Dense(16, "silu", use_bias=False)(z)
    up = layers.Dense(16, use_bias=False)(z)
    y = y + layers.Dense(8, use_bias=False)(gate * up)
    model = keras.Model(x, layers.Dense(20, use_bias=False)(y))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Case(model, integers(20, ROWS, 6), integers(20, ROWS, 6, seed=1), loss=loss)
