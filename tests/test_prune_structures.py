"""`prune_channels` on networks that are more than a chain of convolutions.

The oracle for most: in the model itself the channels that go are made zero, and each
normalization is taken over the channels that are not zero. The smaller model must put
out the same. It knows nothing of how the channels were found or cut.
"""

import keras
import numpy as np
import pytest
from helpers import save_and_load
from keras import layers, ops
from test_prune_channels import example, randomize, zero_units

import keras_trainkit as kt

prune = kt.pruning.prune_channels


def positions(x):
    return ops.cumsum(ops.ones_like(x), axis=1) - 1


def encoder_block(x, heads, norm=layers.LayerNormalization):
    y = norm()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(heads, 3, dropout=0.1)(y, y)])
    y = layers.Dense(4 * x.shape[-1], activation="gelu")(norm()(x))
    return layers.Add()([x, layers.Dense(x.shape[-1])(y)])


def vision_transformer():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 4, 4, name="stream")(inputs)
    x = layers.Reshape((-1, 16))(x)
    places = positions(ops.cast(x[:, :, 0], "int32"))
    x = x + layers.Embedding(4, 16)(places)
    for _ in range(2):
        x = encoder_block(x, 4)
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(3)(x[:, 0]))


def language_model():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 16, name="stream")(tokens)
    x = x + layers.Embedding(6, 16)(positions(tokens))
    for _ in range(2):
        y = layers.RMSNormalization()(x)
        x = x + layers.GroupQueryAttention(3, 8, 4)(y, y, use_causal_mask=True)
        gate, y = ops.split(layers.Dense(24)(layers.RMSNormalization()(x)), 2, -1)
        x = x + layers.Dense(16)(ops.silu(gate) * y)
    return keras.Model(tokens, layers.Dense(9)(layers.RMSNormalization()(x)))


def tied():
    tokens = keras.Input((6,), dtype="int32")
    embedding = layers.ReversibleEmbedding(9, 16, name="stream")
    x = encoder_block(embedding(tokens), 2)
    return keras.Model(tokens, embedding(x, reverse=True))


def group_norm():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3)(inputs)
    x = layers.ReLU()(layers.GroupNormalization(3)(x))
    x = layers.Conv2D(8, 3)(x)
    x = layers.GroupNormalization(-1)(x)
    x = layers.GroupNormalization(1)(layers.Conv2D(8, 1)(x))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


def attention_by_hand():
    inputs = keras.Input((5, 7))
    x = layers.Dense(16)(inputs)
    queries, keys, values = (
        ops.transpose(layers.Reshape((5, 2, 8))(layers.Dense(16)(x)), (0, 2, 1, 3))
        for _ in range(3)
    )
    scores = ops.matmul(queries, ops.swapaxes(keys, 2, 3)) / 3.0
    y = ops.moveaxis(ops.matmul(ops.softmax(scores, axis=-1), values), 1, 2)
    x = x + layers.Dense(16, use_bias=False)(ops.reshape(y, (-1, 5, 16)))
    return keras.Model(inputs, layers.Dense(2)(ops.mean(x, axis=1)))


def mixer():
    inputs = keras.Input((5, 7))
    x = layers.Dense(16)(inputs)
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    # Without biases, which would wake the channels that are zero.
    y = layers.Dense(12, activation="relu", use_bias=False)(y)
    y = layers.Dense(5, use_bias=False)(y)
    x = x + layers.Permute((2, 1))(y)
    return keras.Model(inputs, layers.Dense(2)(layers.LayerNormalization()(x)))


def recurrent():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8)(tokens)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(10, activation="relu"))(x)
    x = layers.Bidirectional(layers.GRU(8), merge_mode="mul")(x)
    return keras.Model(tokens, layers.Dense(3)(x))


def frames():
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu")(image)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    inputs = keras.Input((4, 6, 6, 3))
    x = layers.TimeDistributed(keras.Model(image, x), name="frames")(inputs)
    x = layers.TimeDistributed(layers.Conv1D(6, 2))(layers.Reshape((4, 2, 2))(x))
    x = layers.TimeDistributed(layers.BatchNormalization())(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def shuffled():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(24, 3, padding="same")(inputs)
    x = layers.Reshape((4, 4, 3, 8))(layers.Conv2D(24, 1, groups=3)(x))
    x = layers.Reshape((4, 4, 24))(layers.Permute((1, 2, 4, 3))(x))
    x = layers.Conv2D(24, 1, groups=3)(layers.DepthwiseConv2D(3)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def sliced():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = x * np.linspace(1, 2, 16).astype("float32")
    a, b = x[..., :6], ops.pad(x[..., 6:], [(0, 0), (1, 1), (1, 1), (0, 0)])
    b = layers.Conv2D(6, 3, activation="relu")(b)
    x = ops.concatenate([ops.max(a, axis=[1, 2]), ops.mean(b, axis=(1, 2))], axis=-1)
    return keras.Model(inputs, layers.Dense(3)(x))


def two_sequences():
    a, b = keras.Input((4, 5)), keras.Input((6, 5))
    query, value, key = layers.Dense(8)(a), layers.Dense(6)(b), layers.Dense(8)(b)
    x = layers.Attention()([query, value, key])
    y = layers.AdditiveAttention()([query, value, key])
    z = ops.einsum("btd,bsd->bts", query, key)
    return keras.Model(
        [a, b], layers.Dense(2)(layers.Concatenate()([x, y, layers.Dense(4)(z)]))
    )


def channels_first():
    options = {"data_format": "channels_first", "padding": "same"}
    inputs = keras.Input((3, 6, 6))
    x = layers.Conv2D(8, 3, **options)(inputs)
    y = layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, **options)(x))
    x = layers.MaxPooling2D(data_format="channels_first")(layers.Add()([x, y]))
    x = layers.GroupNormalization(2, axis=1)(layers.Conv2D(8, 1, **options)(x))
    x = layers.Flatten(data_format="channels_first")(x)
    return keras.Model(inputs, layers.Dense(3)(x))


MODELS = [
    vision_transformer, language_model, tied, group_norm, attention_by_hand, mixer,
    recurrent, frames, shuffled, sliced, two_sequences, channels_first,
]  # fmt: skip

QUICK = [tied, channels_first]


def zero_the_rest(model, kept):
    """Have nothing lead into the channels and heads that are not kept."""
    plain, stream = dict(kept), kept.get("stream")
    for layer in model._flatten_layers():
        output = getattr(layer, "_output_dense", None)
        if output is None:
            continue
        heads = plain.pop(layer.name)
        for weight, axes in (
            (output.kernel, {0: heads, -1: stream}),
            (output.bias, {0: stream}),
        ):
            weight.assign(zeros_but(weight, axes))
    for path in [path for path in plain if "/" in path]:
        name, inner = path.split("/")
        around, indices = model.get_layer(name), plain.pop(path)
        if isinstance(around, layers.Bidirectional):
            zero_cell(getattr(around, inner.split("_")[0] + "_layer"), indices)
            continue
        layer = around.layer
        layer = layer.get_layer(inner) if isinstance(layer, keras.Model) else layer
        layer.kernel.assign(zeros_but(layer.kernel, {-1: indices}))
        layer.bias.assign(zeros_but(layer.bias, {0: indices}))
    zero_units(model, plain)


def zero_cell(layer, indices):
    gates = layer.cell.kernel.shape[-1] // layer.units
    every = np.concatenate([indices + gate * layer.units for gate in range(gates)])
    cell = layer.cell
    cell.recurrent_kernel.assign(
        zeros_but(cell.recurrent_kernel, {0: indices, 1: every})
    )
    for variable in (cell.kernel, cell.bias):
        variable.assign(zeros_but(variable, {-1: every}))


def zeros_but(variable, axes):
    value = np.array(ops.convert_to_numpy(variable))
    for axis, indices in axes.items():
        rest = np.setdiff1d(np.arange(value.shape[axis]), indices)
        np.moveaxis(value, axis, 0)[rest] = 0
    return value


def over_what_is_left(layer):
    """A normalization's function, over the channels that are not zero everywhere."""
    axis = int(np.ravel(layer.axis)[0])

    def call(x, *args, **kwargs):
        x = np.moveaxis(ops.convert_to_numpy(x), axis, -1)
        alive = (x != 0).any(axis=tuple(range(x.ndim - 1)))
        assert alive.any()
        if isinstance(layer, layers.GroupNormalization):
            groups = alive.reshape(layer.groups, -1)
            parts = np.split(np.arange(x.shape[-1]), layer.groups)
            parts = [part[own] for part, own in zip(parts, groups, strict=True)]
            over = tuple(range(1, x.ndim))
        else:
            parts, over = [np.flatnonzero(alive)], -1
        out = np.zeros_like(x)
        for part in parts:
            if not len(part):
                continue
            own = x[..., part]
            if isinstance(layer, layers.RMSNormalization):
                mean, square = 0, (own**2).mean(over, keepdims=True)
            else:
                mean = own.mean(over, keepdims=True)
                square = own.var(over, keepdims=True)
            out[..., part] = (own - mean) / np.sqrt(square + layer.epsilon)
        for name, function in (
            ("gamma", np.multiply), ("scale", np.multiply), ("beta", np.add),
        ):  # fmt: skip
            weight = getattr(layer, name, None)
            if isinstance(weight, keras.Variable):
                out = np.where(alive, function(out, ops.convert_to_numpy(weight)), 0)
        return ops.convert_to_tensor(np.moveaxis(out, -1, axis).astype("float32"))

    return call


NORMALIZATIONS = (
    layers.LayerNormalization, layers.RMSNormalization, layers.GroupNormalization,
)  # fmt: skip


def inputs_of(model):
    rng = np.random.default_rng(0)
    if len(model.inputs) == 1:
        return example(model)
    return [rng.normal(size=(4, *x.shape[1:])).astype("float32") for x in model.inputs]


@pytest.mark.parametrize("make", MODELS)
def test_smaller_model_is_the_one_whose_channels_are_zero(make, tmp_path):
    if make is channels_first and keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no such convolutions on CPU")
    if make not in QUICK and keras.backend.backend() == "jax":
        pytest.skip("JAX compiles each operation by itself; what is cut is the same")
    model = randomize(make())
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if weight.path.split("/")[-1] in ("beta", "bias") and "norm" in weight.path:
            if "batch" not in weight.path:
                weight.assign(rng.normal(size=weight.shape))
    chosen = prune(model, 0.5, importance="random", seed=0)
    zero_the_rest(model, chosen.channels)
    result = prune(model, 0.5)
    for path, indices in chosen.channels.items():
        np.testing.assert_array_equal(result.channels[path], indices)
    x = inputs_of(model)
    loaded = save_and_load(result.model, tmp_path)
    assert result.after.parameters < 0.62 * result.before.parameters
    for layer in model._flatten_layers():
        if isinstance(layer, NORMALIZATIONS):
            layer.call = over_what_is_left(layer)
    for one, other in zip(
        keras.tree.flatten(loaded(x)), keras.tree.flatten(model(x)), strict=True
    ):
        one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        assert np.abs(other).max() > 1e-3
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-5)


class OnTheItemsOf(layers.Layer):
    """Reads the weights of a layer elsewhere, and has no config."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.embedding.embeddings))


def test_weights_that_a_layer_of_ones_own_reads_stay():
    x = keras.Input((5,), dtype="int32")
    embedding = layers.Embedding(20, 8, name="items")
    y = layers.Dense(6, name="first")(embedding(x))
    y = layers.Dense(8, name="second")(y)
    model = keras.Model(x, OnTheItemsOf(embedding)(y))
    result = prune(model, 0.5)
    assert len(result.channels["first"]) == 3
    assert "is read by OnTheItemsOf" in result.kept["items"]
    assert "feeds OnTheItemsOf" in result.kept["second"]
    assert result.model(np.zeros((2, 5), "int32")).shape == (2, 5, 20)


class Block(layers.Layer):
    """A residual block of one's own, not registered."""

    def __init__(self, units):
        super().__init__()
        self.wide = layers.Dense(units, activation="relu", name="wide")
        self.narrow = layers.Dense(4, name="narrow")

    def build(self, shape):
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], self.wide.units))

    def call(self, x):
        return x + self.narrow(self.wide(x))


def test_layers_made_of_layers_are_opened(tmp_path):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, name="in"), Block(8), layers.Dense(2)]
    )
    model.layers[1].name = "block"
    result = prune(randomize(model), 0.5)
    assert len(result.channels["block/wide"]) == 4
    assert len(result.channels["in"]) == len(result.channels["block/narrow"]) == 2
    zero = prune(model, 0.0).model
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    expected = ops.convert_to_numpy(model(x))
    # Neither needs the class of the block.
    for copy in (zero, save_and_load(zero, tmp_path)):
        found = ops.convert_to_numpy(copy(x))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert save_and_load(result.model, tmp_path)(x).shape == (3, 2)
    # The paths of what is inside select as they do in the model.
    assert len(prune(model, 0.5, exclude="block/wide").channels["block/wide"]) == 8
    # Where a layer is given, the layers must be those of the model.
    with pytest.raises(ValueError, match="'in' feeds Block 'block', which is left"):
        prune(model, 0.5, exclude=model.layers[-1])


def deep_vision_transformer():
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((-1, 64))(layers.Conv2D(64, 4, 4)(inputs))
    patches = ops.reshape(inputs[:, ::4, ::4, 0], (-1, 64))
    places = positions(ops.cast(patches, "int32"))
    x = x + layers.Embedding(64, 64)(places)
    for _ in range(6):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16)(y, y)
        y = layers.Dense(256, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(64)(y)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def conv_next():
    inputs = keras.Input((32, 32, 3))
    x = layers.LayerNormalization()(layers.Conv2D(32, 4, 4)(inputs))
    for width in (32, 64):
        if x.shape[-1] != width:
            x = layers.Conv2D(width, 2, 2)(layers.LayerNormalization()(x))
        for _ in range(2):
            y = layers.DepthwiseConv2D(7, padding="same")(x)
            y = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(y))
            x = x + layers.Dense(width)(y)
    x = layers.LayerNormalization()(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


def group_norm_cnn():
    x = inputs = keras.Input((32, 32, 3))
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.GroupNormalization(8)(x)))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("make", "most"),
    # What Torch-Pruning 1.6.1 leaves of such networks at 50%.
    [(deep_vision_transformer, 0.263), (conv_next, 0.296), (group_norm_cnn, 0.259)],
)
def test_no_more_is_left_than_torch_pruning_leaves(make, most):
    if keras.backend.backend() == "jax":
        pytest.skip("JAX compiles each operation by itself; what is cut is the same")
    model = make()
    left = prune(model, 0.5).model.count_params() / model.count_params()
    assert left <= most
