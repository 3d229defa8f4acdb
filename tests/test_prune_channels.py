import keras
import numpy as np
import pytest
from helpers import save_and_load

import keras_trainkit as kt
from keras_trainkit._model.flops import flops

layers = keras.layers
prune = kt.pruning.prune_channels


def conv_norm(x, filters, size=3, **options):
    x = layers.Conv2D(filters, size, padding="same", **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def residual():
    inputs = keras.Input((8, 8, 3))
    x = short = conv_norm(inputs, 8)
    x = conv_norm(x, 12)
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.Add()([x, short])
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    x = layers.Dense(10, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def concatenated():
    inputs = keras.Input((8, 8, 3))
    a, b = conv_norm(inputs, 8), conv_norm(inputs, 6)
    x = layers.Concatenate()([a, b])
    y = layers.SeparableConv2D(7, 3, padding="same", depth_multiplier=2)(x)
    y = layers.DepthwiseConv2D(3, depth_multiplier=2)(y)
    y = layers.PReLU(shared_axes=[1, 2])(layers.Conv2DTranspose(6, 2)(y))
    y = layers.GlobalAveragePooling2D()(y)
    z = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, [layers.Dense(2)(y), layers.Dense(2)(z)])


def grouped():
    inputs = keras.Input((6, 6, 3))
    x = conv_norm(inputs, 12)
    x = conv_norm(x, 24, groups=3)
    x = conv_norm(x, 24, groups=24, use_bias=False)
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Reshape((1, 1, 24))(gate)
    gate = layers.Conv2D(6, 1, activation="relu")(gate)
    gate = layers.Conv2D(24, 1, activation="sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.Reshape((36, 24))(x)
    x = layers.Conv1D(8, 3, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))


def attention():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, name="embedding")(tokens)
    x = layers.MultiHeadAttention(4, 3)(x, x)
    x = layers.EinsumDense("abc,cd->abd", (None, 10), bias_axes="d")(x)
    y = layers.Dense(12, activation="relu")(x)
    x = layers.Add()([x, layers.Dense(10)(y)])
    x = layers.LSTM(6, return_sequences=True)(x)
    x = layers.GRU(6)(x)
    return keras.Model(tokens, layers.Dense(2)(x))


def shared():
    inner = keras.Sequential(
        [keras.Input((8,)), layers.Dense(10, activation="relu"), layers.Dense(8)]
    )
    inputs = keras.Input((4,))
    first = layers.Dense(8, activation="relu")
    x = first(inputs)
    x = keras.ops.relu(inner(inner(x))) * 2.0 + x
    return keras.Model(inputs, layers.Dense(2)(x))


def small_resnet():
    return kt.models.build_cifar_resnet((8, 8, 3), depth=8)


MODELS = [residual, concatenated, grouped, attention, shared, small_resnet]


def example(model, rows=4):
    rng = np.random.default_rng(0)
    shape = (rows, *model.input_shape[1:])
    if "int" in model.inputs[0].dtype:
        return rng.integers(0, 9, shape)
    return rng.normal(size=shape).astype("float32")


def randomize(model):
    """Weights that tell channels apart; a zero channel stays zero on its way."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        name = weight.path.split("/")[-1]
        value = rng.normal(size=weight.shape) / np.sqrt(np.prod(weight.shape[:-1]) + 1)
        per_channel = name == "bias" and "depthwise" in weight.path
        if per_channel or name in ("beta", "moving_mean"):
            value = np.zeros(weight.shape)
        elif name in ("gamma", "moving_variance", "variance"):
            value = rng.uniform(0.5, 2, weight.shape)
        weight.assign(value)
    return model


def own_layer(model, path):
    layer = model
    for name in path.split("/"):
        layer = layer.get_layer(name)
    return layer


def zero_units(model, kept):
    """Set all weights to zero that lead into the units that are not kept."""
    for path, indices in kept.items():
        layer = own_layer(model, path)
        if isinstance(layer, layers.MultiHeadAttention):
            # A head is silent if nothing leads out of it. What it puts out is as wide
            # as the query, here the embedding.
            variables = [(layer.output_dense.kernel, 0)]
            width = kept["embedding"]
            for variable in layer.output_dense.weights:
                value = np.array(keras.ops.convert_to_numpy(variable))
                value[..., np.setdiff1d(np.arange(value.shape[-1]), width)] = 0
                variable.assign(value)
        elif isinstance(layer, layers.LSTM | layers.GRU):
            zero_recurrent(layer, indices)
            continue
        elif isinstance(layer, layers.Embedding):
            variables = [(layer.embeddings, 1)]
        else:
            kernel = getattr(layer, "pointwise_kernel", None)
            kernel = layer.kernel if kernel is None else kernel
            axis = -2 if "Transpose" in type(layer).__name__ else -1
            variables = [(kernel, axis)]
            if layer.bias is not None:
                variables.append((layer.bias, 0))
        for variable, axis in variables:
            value = np.moveaxis(np.array(keras.ops.convert_to_numpy(variable)), axis, 0)
            value[np.setdiff1d(np.arange(len(value)), indices)] = 0
            variable.assign(np.moveaxis(value, 0, axis))


def zero_recurrent(layer, indices):
    """A unit whose kernels, bias and outgoing recurrent weights are zero puts out 0."""
    gone = np.setdiff1d(np.arange(layer.units), indices)
    gates = layer.cell.kernel.shape[-1] // layer.units
    every = np.concatenate([gone + gate * layer.units for gate in range(gates)])
    for variable in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias):
        value = np.array(keras.ops.convert_to_numpy(variable))
        value[..., every] = 0
        if variable is layer.cell.recurrent_kernel:
            value[gone] = 0
        variable.assign(value)


def assert_same(a, b, x, tolerance=1e-5):
    for one, other in zip(
        keras.tree.flatten(a.predict_on_batch(x)),
        keras.tree.flatten(b.predict_on_batch(x)),
        strict=True,
    ):
        scale = np.abs(other).max()
        assert np.isfinite(scale)
        assert scale > 1e-3
        np.testing.assert_allclose(one / scale, other / scale, atol=tolerance)


@pytest.mark.parametrize("make", MODELS)
def test_channels_that_are_zero_are_not_missed(make, tmp_path):
    model = randomize(make())
    chosen = prune(model, 0.5, importance="random", seed=0)
    zero_units(model, chosen.channels)
    result = prune(model, 0.5)
    for path, indices in chosen.channels.items():
        np.testing.assert_array_equal(result.channels[path], indices)
    x = example(model)
    assert_same(result.model, model, x)
    loaded = save_and_load(result.model, tmp_path)
    assert_same(loaded, model, x)
    # Only the outputs could not be cut.
    outputs = {layer.name for layer in model.layers if layer.output in model.outputs}
    assert set(result.kept) == outputs


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MobileNetV2", 32),
        ("ResNet50", 32),
        ("DenseNet121", 32),
        ("EfficientNetB0", 32),
    ],
)
def test_applications(name, size):
    if name != "MobileNetV2" and keras.backend.backend() != "tensorflow":
        pytest.skip("the same graph on each backend, and slow to build")
    build = getattr(keras.applications, name)
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    model = randomize(build(input_shape=(size, size, 3), **options))
    chosen = prune(model, 0.5, importance="random", seed=0)
    zero_units(model, chosen.channels)
    result = prune(model, 0.5)
    assert list(result.kept) == ["predictions"]
    assert_same(result.model, model, example(model, 2))
    assert result.after.parameters < 0.4 * result.before.parameters


def test_resnet20_loses_over_70_percent_of_its_flops():
    result = prune(kt.models.build_cifar_resnet(), 0.5)
    assert result.after.flops < 0.3 * result.before.flops
    widths = {
        layer.filters for layer in result.model.layers if hasattr(layer, "filters")
    }
    assert widths == {8, 16, 32}


def test_costs():
    # By hand: 5 x 7 + 7 x 3 products, and as many weights and biases.
    model = keras.Sequential([keras.Input((5,)), layers.Dense(7), layers.Dense(3)])
    result = prune(model, 0.0, latency_batch_size=2)
    assert result.before.flops == 2 * (5 * 7 + 7 * 3)
    assert result.before.parameters == 5 * 7 + 7 + 7 * 3 + 3
    assert (result.after.parameters, result.after.flops) == (66, 112)
    assert result.before.latency > 0
    assert "parameters" in repr(result)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (lambda: layers.Conv2D(4, 3, strides=2), (9, 9, 3), 4 * 4 * 3 * 3 * 3 * 4),
        (lambda: layers.Conv2D(4, 3, groups=2), (9, 9, 6), 7 * 7 * 9 * 3 * 4),
        (lambda: layers.DepthwiseConv2D(3), (9, 9, 3), 7 * 7 * 3 * 9),
        (lambda: layers.SeparableConv2D(4, 3), (9, 9, 3), 7 * 7 * (3 * 9 + 3 * 4)),
        (lambda: layers.Conv2DTranspose(4, 2, strides=2), (5, 5, 3), 25 * 3 * 4 * 4),
        (lambda: layers.LSTM(4), (5, 3), 5 * 4 * 4 * (3 + 4)),
        (lambda: layers.Dense(4), (5, 3), 5 * 3 * 4),
        (lambda: layers.EinsumDense("...x,xy->...y", 4), (5, 6, 3), 5 * 6 * 3 * 4),
        (lambda: layers.EinsumDense("abc,cde->abde", (5, 2, 4)), (5, 3), 5 * 3 * 8),
    ],
)
def test_flops_by_hand(layer, shape, expected):
    model = keras.Sequential([keras.Input(shape), layer()])
    assert flops(model) == 2 * expected


def test_flops_of_attention():
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3)(inputs, inputs))
    projections = 4 * 5 * 6 * (2 * 3)
    assert flops(model) == 2 * (projections + 2 * 2 * 5 * 5 * 3)


@pytest.mark.parametrize("target", ["parameters", "flops"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_targets(target, scope):
    model = randomize(residual())
    result = prune(model, 0.4, target=target, scope=scope)
    left = getattr(result.after, target) / getattr(result.before, target)
    assert 0.45 < left <= 0.6
    with pytest.raises(ValueError, match=r"`ratio` must be at most 0\.\d+, more of"):
        prune(model, 0.999, target=target)


def test_rounding_and_the_least_to_keep():
    model = kt.models.build_mlp((20,), 3, hidden_units=(50, 30))
    result = prune(model, 0.5, round_to=8)
    assert [len(k) for k in result.channels.values()] == [24, 16, 3]
    result = prune(model, 0.99, min_keep=0.2)
    assert [len(k) for k in result.channels.values()] == [10, 6, 3]
    result = prune(model, 0.99, min_keep=0.2, scope="global")
    assert [len(k) for k in result.channels.values()] == [10, 6, 3]


def test_global_scope_takes_the_least_important_of_all():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(10), layers.Dense(10), layers.Dense(1)]
    )
    kernels = [np.ones((4, 10)), np.ones((10, 10))]
    kernels[0][:, :6] = 0.01
    kernels[1][:, 3] = 0.001
    for layer, kernel in zip(model.layers, kernels, strict=False):
        layer.kernel.assign(kernel)
    result = prune(model, 7 / 20, scope="global")
    kept = [k.tolist() for k in result.channels.values()]
    assert kept == [[6, 7, 8, 9], [0, 1, 2, 4, 5, 6, 7, 8, 9], [0]]


def ranked(importance, **options):
    model = options.pop("model")
    result = prune(model, 0.5, importance=importance, **options)
    return result.channels["conv"].tolist()


def test_importances():
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(4, 3, name="conv", use_bias=False)(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 4))
    model.get_layer("conv").kernel.assign(kernel)
    model.get_layer("norm").gamma.assign([0.1, -2.0, 1.0, 0.3])
    l1 = np.abs(kernel).sum((0, 1, 2))
    l2 = np.sqrt((kernel**2).sum((0, 1, 2)))
    assert ranked("l1", model=model) == sorted(np.argsort(l1)[2:])
    assert ranked("l2", model=model) == sorted(np.argsort(l2)[2:])
    assert ranked("bn_gamma", model=model) == [1, 2]
    assert ranked("random", model=model, seed=0) == ranked(
        "random", model=model, seed=0
    )
    x, y = rng.normal(size=(8, 5, 5, 2)).astype("float32"), rng.normal(size=(8, 1))
    # With one weight doubled at a time the loss changes by gradient times weight.
    taylor = ranked("taylor", model=model, x=x, y=y)
    assert taylor == sorted(np.argsort(numeric_taylor(model, kernel, x, y))[2:])
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, np.zeros(4))


def numeric_taylor(model, kernel, x, y):
    """The squared change of the training loss along each filter, by differences."""

    def loss(scale):
        model.get_layer("conv").kernel.assign(kernel * scale)
        output = keras.ops.convert_to_numpy(model(x, training=True))
        return float(np.mean((output - y) ** 2))

    norm = model.get_layer("norm")
    statistics = [np.array(norm.moving_mean), np.array(norm.moving_variance)]
    changes = []
    for i in range(4):
        up, down = np.ones(4), np.ones(4)
        up[i], down[i] = 1.01, 0.99
        changes.append((loss(up) - loss(down)) ** 2)
    model.get_layer("conv").kernel.assign(kernel)
    norm.moving_mean.assign(statistics[0])
    norm.moving_variance.assign(statistics[1])
    return changes


def test_what_cannot_be_cut_is_listed():
    class Own(layers.Layer):
        def call(self, x):
            return x[..., ::-1]

        def compute_output_shape(self, shape):
            return shape

    inputs = keras.Input((4,))
    x = layers.Dense(6, name="first")(inputs)
    x = Own(name="own")(x)
    x = layers.Dense(8, name="second")(x)
    x = layers.Dense(5, name="third")(x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    result = prune(model, 0.5, exclude="third")
    assert result.kept == {
        "first": "feeds Own 'own', which is left whole",
        "third": "is excluded",
        "last": "is an output",
    }
    assert [len(k) for k in result.channels.values()] == [6, 4, 5, 2]
    assert "kept first: feeds Own" in result.summary()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": 1}, r"`ratio` must be a number in \[0, 1\)"),
        ({"importance": "l3"}, "`importance` must be one of"),
        ({"importance": "taylor"}, "`x` must be a batch"),
        ({"importance": "bn_gamma"}, "`importance` must be another one"),
        ({"target": "time"}, "`target` must be one of"),
        ({"round_to": 0}, "`round_to` must be an integer"),
        ({"min_keep": 0}, r"`min_keep` must be a number in \(0, 1\]"),
        ({"exclude": "nothing"}, "`exclude` must be such that it matches a layer"),
    ],
)
def test_bad_arguments(options, match):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(2)])
    with pytest.raises(ValueError, match=match):
        prune(model, **{"ratio": 0.5, **options})


def test_nothing_to_cut():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"can be cut \('dense.*' is an output\)"):
        prune(model, 0.5)
    with pytest.raises(ValueError, match="a Functional or a built Sequential"):
        prune(keras.Model(), 0.5)
