import keras
import numpy as np
import pytest
from helpers import once, randomize_norms, save_and_load, to_numpy
from keras import layers, ops

import keras_trainkit as kt
from keras_trainkit._keras import sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit.folding import _affine

fold = kt.folding.fold_batch_norm
BN = layers.BatchNormalization
# Convolutions over channels_first exist on a CPU with these.
CHANNELS_FIRST = keras.backend.backend() != "tensorflow"
first = {"data_format": "channels_first"}

# Stacks of which every BatchNorm folds, and the shape of an input.
FOLDS = {
    "Dense": (lambda: [layers.Dense(5), BN()], (4,)),
    "no bias": (lambda: [layers.Dense(5, use_bias=False), BN()], (4,)),
    "no gamma and beta": (
        lambda: [layers.Dense(5), BN(scale=False, center=False)],
        (4,),
    ),
    "no beta": (lambda: [layers.Dense(5, use_bias=False), BN(center=False)], (4,)),
    "epsilon": (lambda: [layers.Dense(5), BN(epsilon=0.1)], (4,)),
    "Dense on sequences": (lambda: [layers.Dense(5), BN()], (3, 4)),
    "EinsumDense": (
        lambda: [layers.EinsumDense("abc,cd->abd", (None, 5)), BN()],
        (3, 4),
    ),
    "EinsumDense, two axes": (
        lambda: [layers.EinsumDense("abc,cde->abde", (3, 2, 5), bias_axes="de"), BN()],
        (3, 4),
    ),
    "EinsumDense, ellipsis": (
        lambda: [layers.EinsumDense("...x,xy->...y", 5, bias_axes="y"), BN()],
        (4,),
    ),
    "EinsumDense, bias of another axis": (
        lambda: [layers.EinsumDense("abc,cd->abd", (3, 5), bias_axes="b"), BN()],
        (3, 4),
    ),
    "Embedding": (lambda: [layers.Embedding(2, 5), BN()], "int"),
    "Conv1D": (lambda: [layers.Conv1D(5, 3), BN()], (9, 2)),
    "Conv1D, causal": (lambda: [layers.Conv1D(5, 3, padding="causal"), BN()], (9, 2)),
    "Conv2D": (lambda: [layers.Conv2D(5, 3, strides=2), BN()], (9, 9, 2)),
    "Conv2D, groups": (
        lambda: [layers.Conv2D(6, 3, groups=2, padding="same"), BN()],
        (7, 7, 4),
    ),
    "Conv3D": (lambda: [layers.Conv3D(3, 2, dilation_rate=2), BN()], (4, 4, 4, 2)),
    "DepthwiseConv1D": (
        lambda: [layers.DepthwiseConv1D(3, depth_multiplier=2), BN()],
        (9, 2),
    ),
    "DepthwiseConv2D": (
        lambda: [layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=False), BN()],
        (7, 7, 2),
    ),
    "SeparableConv1D": (lambda: [layers.SeparableConv1D(4, 3), BN()], (9, 2)),
    "SeparableConv2D": (
        lambda: [layers.SeparableConv2D(4, 3, depth_multiplier=2), BN()],
        (7, 7, 2),
    ),
    "Conv1DTranspose": (lambda: [layers.Conv1DTranspose(4, 3), BN()], (5, 2)),
    "Conv2DTranspose": (
        lambda: [layers.Conv2DTranspose(4, 3, strides=2, padding="same"), BN()],
        (5, 5, 2),
    ),
    "Conv3DTranspose": (lambda: [layers.Conv3DTranspose(3, 2), BN()], (3, 3, 3, 2)),
    "TimeDistributed": (
        lambda: [
            layers.TimeDistributed(layers.Conv1D(4, 2, use_bias=False)),
            layers.TimeDistributed(BN()),
        ],
        (3, 5, 2),
    ),
    "through dropout and the like": (
        lambda: [
            layers.Dense(5),
            layers.Dropout(0.3),
            layers.Identity(),
            layers.Activation("linear"),
            layers.AlphaDropout(0.1),
            BN(),
        ],
        (4,),
    ),
    "through Reshape": (
        lambda: [layers.Dense(24), layers.Reshape((2, 3, 4)), BN()],
        (5,),
    ),
    "through Permute": (
        lambda: [layers.Conv2D(4, 2), layers.Permute((3, 2, 1)), BN(axis=1)],
        (4, 5, 3),
    ),
    "through average pooling": (
        lambda: [layers.Conv2D(4, 2), layers.AveragePooling2D(2), BN()],
        (5, 5, 3),
    ),
    "through average pooling with padding": (
        lambda: [layers.Conv2D(4, 2), layers.AveragePooling2D(2, padding="same"), BN()],
        (6, 6, 3),
    ),
    "through global average pooling": (
        lambda: [layers.Conv2D(4, 2), layers.GlobalAveragePooling2D(), BN()],
        (5, 5, 3),
    ),
    "through upsampling and cropping": (
        lambda: [
            layers.Conv2D(4, 2),
            layers.UpSampling2D(),
            layers.Cropping2D(1),
            BN(),
        ],
        (5, 5, 3),
    ),
    "axis 1": (lambda: [layers.Dense(20), layers.Reshape((4, 5)), BN(axis=1)], (3,)),
    "BN, Dense": (lambda: [BN(), layers.Dense(3, use_bias=False)], (4,)),
    "BN, Dense on sequences": (lambda: [BN(), layers.Dense(3)], (5, 4)),
    "BN, dropout, Dense": (lambda: [BN(), layers.Dropout(0.3), layers.Dense(3)], (4,)),
    "BN, Conv1D": (lambda: [BN(), layers.Conv1D(5, 3)], (9, 2)),
    "BN, Conv2D": (lambda: [BN(), layers.Conv2D(5, 3, use_bias=False)], (7, 7, 2)),
    "BN, Conv2D of 1x1, same": (
        lambda: [BN(), layers.Conv2D(5, 1, padding="same")],
        (7, 7, 2),
    ),
    "BN, Conv2D, groups": (lambda: [BN(), layers.Conv2D(6, 3, groups=2)], (7, 7, 4)),
    "BN, Conv3D": (lambda: [BN(), layers.Conv3D(3, 2)], (4, 4, 4, 2)),
    "BN, DepthwiseConv2D": (
        lambda: [BN(), layers.DepthwiseConv2D(3, depth_multiplier=2)],
        (7, 7, 2),
    ),
    "BN, SeparableConv2D": (
        lambda: [BN(), layers.SeparableConv2D(4, 3, depth_multiplier=2)],
        (7, 7, 2),
    ),
    "BN, EinsumDense": (
        lambda: [BN(), layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")],
        (3, 4),
    ),
    "BN, EinsumDense over two axes": (
        lambda: [BN(), layers.EinsumDense("abc,bcd->ad", (5,))],
        (3, 4),
    ),
    "BN, Flatten, Dense": (
        lambda: [BN(), layers.Flatten(), layers.Dense(3)],
        (4, 4, 2),
    ),
    "BN, pooling, Dense": (
        lambda: [BN(), layers.GlobalAveragePooling2D(), layers.Dense(3)],
        (4, 4, 2),
    ),
    "activation, BN, Dense": (
        lambda: [layers.Dense(5, activation="elu"), BN(), layers.Dense(3)],
        (4,),
    ),
    "a chain of BNs": (lambda: [BN(), layers.Dense(5), BN(), BN()], (4,)),
    "a chain of BNs behind": (lambda: [BN(), BN(), layers.Dense(5)], (4,)),
}
if CHANNELS_FIRST:
    FOLDS |= {
        "channels first": (
            lambda: [layers.Conv2D(4, 2, **first), BN(axis=1)],
            (3, 5, 5),
        ),
        "channels first, depthwise": (
            lambda: [
                layers.DepthwiseConv2D(2, depth_multiplier=2, **first),
                BN(axis=1),
            ],
            (3, 5, 5),
        ),
        "channels first, Flatten, Dense": (
            lambda: [BN(axis=1), layers.Flatten(**first), layers.Dense(3)],
            (3, 4, 5),
        ),
        "channels first, pooling": (
            lambda: [
                layers.Conv2D(4, 2, **first),
                layers.GlobalAveragePooling2D(**first),
                BN(),
            ],
            (3, 5, 5),
        ),
        "BN, channels first": (
            lambda: [BN(axis=1), layers.Conv2D(4, 2, **first)],
            (3, 5, 5),
        ),
    }


def norms(model):
    return [layer for layer in sublayers(model) if isinstance(layer, BN)]


def inputs_of(shape):
    if shape == "int":
        return keras.Input((3,), dtype="int32"), np.array([[0, 1, 1], [1, 0, 0]])
    x = np.random.default_rng(2).normal(size=(6, *shape)).astype("float32")
    return keras.Input(shape), x


def relative_error(model, copy, x):
    expected = to_numpy(model(x, training=False))
    difference = np.abs(to_numpy(copy(x, training=False)) - expected).max()
    return difference / np.abs(expected).max()


@pytest.mark.parametrize("name", FOLDS)
def test_every_batch_norm_folds(name, tmp_path):
    make, shape = FOLDS[name]
    entry, x = inputs_of(shape)
    model = randomize_norms(keras.Sequential([entry, *make()]))
    before = [w.copy() for w in model.get_weights()]
    result = fold(model)
    assert result.kept == {}
    assert len(result.folded) == len(norms(model))
    assert norms(result.model) == []
    assert result.max_error <= 1e-5
    assert relative_error(model, result.model, x) <= 1e-5
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    loaded = save_and_load(result.model, tmp_path)
    assert relative_error(result.model, loaded, x) <= 1e-6
    again = fold(result.model)
    assert (again.folded, again.kept) == ((), {})


class OwnNorm(BN):
    pass


def two_branches(x):
    x = layers.Dense(4, name="dense")(x)
    return layers.Add()([BN(name="bn")(x), x])


def shared_consumer(x):
    dense = layers.Dense(3, name="dense")
    return layers.Add()([dense(BN(name="bn")(x)), dense(x)])


def shared_producer(x):
    dense = layers.Dense(4, name="dense")
    return layers.Add()([BN(name="bn")(dense(x)), dense(ops.tanh(x))])


# What stays: a function of the input, its shape, and the reason.
KEPT = {
    "same padding behind": (
        lambda x: layers.Conv2D(3, 3, padding="same", name="conv")(BN(name="bn")(x)),
        (5, 5, 2),
        r"conv pads with zeros \(padding='same'\)",
    ),
    "transposed behind": (
        lambda x: layers.Conv2DTranspose(3, 3, name="conv")(BN(name="bn")(x)),
        (5, 5, 2),
        r"conv sums fewer terms at its borders",
    ),
    "activation in front": (
        lambda x: BN(name="bn")(layers.Dense(3, activation="relu", name="dense")(x)),
        (4,),
        r"activation relu of dense is in between; .*output of the model",
    ),
    "activation layer": (
        lambda x: BN(name="bn")(layers.ReLU(name="relu")(layers.Dense(3)(x))),
        (4,),
        r"relu is in front of it",
    ),
    "alone": (lambda x: BN(name="bn")(x), (4,), r"no layer is in front"),
    "two branches": (two_branches, (4,), r"output of dense is used elsewhere too"),
    "shared producer": (shared_producer, (4,), r"dense is shared with another branch"),
    "shared consumer": (shared_consumer, (4,), r"dense is shared with another branch"),
    "training": (
        lambda x: BN(name="bn")(layers.Dense(3)(x), training=True),
        (4,),
        r"called with training=True",
    ),
    "another class": (
        lambda x: OwnNorm(name="bn")(layers.Dense(3)(x)),
        (4,),
        r"a OwnNorm may compute something else",
    ),
    "zero padding": (
        lambda x: BN(name="bn")(
            layers.ZeroPadding2D(name="pad")(layers.Conv2D(3, 2)(x))
        ),
        (5, 5, 2),
        r"pad is in front of it",
    ),
    "a channel for each place": (
        lambda x: BN(name="bn")(layers.Flatten()(layers.Conv2D(3, 2, name="conv")(x))),
        (3, 3, 2),
        r"differ along other axes than the channels",
    ),
    "maximum and negative gammas": (
        lambda x: BN(name="bn")(
            layers.MaxPooling2D(name="max")(layers.Conv2D(9, 2)(x))
        ),
        (5, 5, 2),
        r"max is in between, and some of its scales are negative",
    ),
    "Monte Carlo dropout": (
        lambda x: BN(name="bn")(
            kt.layers.MCDropout(0.1, name="mc")(layers.Dense(3)(x))
        ),
        (4,),
        r"mc is in front of it",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_says_why(name):
    connect, shape, reason = KEPT[name]
    entry, x = inputs_of(shape)
    model = randomize_norms(keras.Model(entry, connect(entry)))
    if name == "training" or name == "Monte Carlo dropout":
        x = None
    result = fold(model, np.zeros((1, *shape)) if name == "Monte Carlo dropout" else x)
    assert result.folded == ()
    assert list(result.kept) == ["bn"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.kept["bn"])
    assert f"kept bn: {result.kept['bn']}" in result.summary()


def test_padding_is_no_obstacle_without_a_shift(rng):
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            BN(center=False),
            layers.Conv2D(3, 3, padding="same"),
        ]
    )
    for w in model.layers[0].weights:
        # The moving mean stays 0.
        if "mean" not in w.path:
            w.assign(rng.uniform(0.5, 2, w.shape))
    assert len(fold(model).folded) == 1


def test_maximum_is_no_obstacle_to_positive_gammas():
    model = randomize_norms(
        keras.Sequential(
            [keras.Input((5, 5, 2)), layers.Conv2D(4, 2), layers.MaxPooling2D(), BN()]
        )
    )
    gamma = model.layers[-1].gamma
    gamma.assign(ops.abs(gamma))
    assert len(fold(model).folded) == 1


def test_one_batch_norm_goes_into_two_branches(rng):
    entry = keras.Input((4,))
    x = BN()(layers.ReLU()(entry))
    y = layers.Dense(3)(layers.Dropout(0.2)(x))
    model = randomize_norms(keras.Model(entry, [layers.Dense(2)(x), y]))
    result = fold(model)
    assert len(result.folded) == 1
    x = rng.normal(size=(5, 4)).astype("float32")
    for a, b in zip(model(x), result.model(x), strict=True):
        np.testing.assert_allclose(to_numpy(b), to_numpy(a), rtol=1e-4, atol=1e-5)


def nested_model():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, name="d"), BN(name="bn"), layers.ReLU()],
        name="inner",
    )
    step = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, name="d"), BN(name="bn")], name="step"
    )
    a = keras.Input((4,), name="a")
    b = keras.Input((4,), name="b")
    c = keras.Input((3, 4), name="c")
    steps = layers.TimeDistributed(step)(c)
    # Behind the nested model, across its border; the second use takes it back.
    x = layers.Dense(2, name="head")(BN(name="border")(inner(a)))
    outputs = {"x": x, "y": ops.tanh(inner(b)), "steps": steps}
    return keras.Model({"a": a, "b": b, "c": c}, outputs, name="outer")


def test_nested_shared_and_time_distributed_models(rng, tmp_path):
    model = randomize_norms(nested_model())
    result = fold(model)
    assert sorted(result.folded) == [
        "border",
        "inner/bn",
        "time_distributed/bn",
    ]
    assert result.kept == {}
    x = {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=(5, 4))}
    x["c"] = rng.normal(size=(5, 3, 4))
    expected, got = model(x), save_and_load(result.model, tmp_path)(x)
    for name in expected:
        np.testing.assert_allclose(
            to_numpy(got[name]), to_numpy(expected[name]), rtol=1e-4, atol=1e-5
        )
    assert result.model.name == "outer"
    assert result.model.get_layer("inner").get_layer("d").bias is not None


def test_settings_of_the_layers_are_carried_over():
    model = keras.Sequential(
        [
            keras.Input((4,), name="entry"),
            layers.Dense(5, kernel_regularizer="l2", name="d", trainable=False),
            BN(),
            layers.Dense(3, kernel_constraint="non_neg"),
        ],
        name="named",
    )
    folded = fold(model).model
    dense, last = folded.layers
    assert (folded.name, dense.name) == ("named", "d")
    assert not dense.trainable
    assert isinstance(dense.kernel_regularizer, keras.regularizers.L2)
    assert isinstance(last.kernel_constraint, keras.constraints.NonNeg)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, rng):
    keras.config.set_dtype_policy(policy)
    model = randomize_norms(
        keras.Sequential(
            [keras.Input((5, 5, 2)), layers.Conv2D(4, 2), BN(), layers.ReLU()]
        )
    )
    result = fold(model)
    assert len(result.folded) == 1
    conv = result.model.layers[0]
    assert conv.dtype_policy.name == policy
    assert conv.kernel.dtype == "float32"


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = keras.Sequential([keras.Input((4,)), layers.Dense(5), BN()])
        self.norm = BN(name="loose")
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.norm(ops.tanh(self.body(x))))


def test_the_functional_parts_of_a_subclassed_model(rng):
    model = Subclassed()
    x = rng.normal(size=(6, 4)).astype("float32")
    model(x)
    randomize_norms(model)
    result = fold(model, x)
    assert len(result.folded) == 1
    assert result.kept == {
        "loose": "the code of a subclassed model cannot be rewritten"
    }
    assert relative_error(model, result.model, x) <= 1e-5
    with pytest.raises(ValueError, match=r"`x` must be given.*x=None"):
        fold(model)


def test_the_folded_model_trains(rng):
    model = randomize_norms(
        kt.models.build_mlp(
            (3, 3), 4, hidden_units=(8, 6), normalization="batch", dropout="dropout"
        )
    )
    folded = fold(model).model
    assert norms(folded) == []
    folded.compile("sgd", "sparse_categorical_crossentropy")
    before = folded.get_weights()
    folded.fit(rng.normal(size=(8, 3, 3)), np.arange(8) % 4, verbose=0)
    for old, new in zip(before, folded.get_weights(), strict=True):
        assert not np.array_equal(old, new)


@once
def test_real_networks():
    # With all that the architectures of keras.applications are made of.
    if keras.backend.backend() == "tensorflow":  # the same graph on each, slow to build
        network = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None)
        result = fold(randomize_norms(network))
        assert (len(result.folded), result.kept) == (52, {})
    resnet = randomize_norms(kt.models.build_cifar_resnet((32, 32, 3), 10, depth=8))
    result = fold(resnet)
    assert result.kept == {}
    assert norms(result.model) == []


def test_a_deep_network_may_make_more_of_rounding(rng):
    # Chaos: each layer multiplies a difference by more than 1.
    deep = [keras.Input((30,))]
    for seed in range(18):
        normal = keras.initializers.RandomNormal(0, 1, seed=seed)
        deep += [layers.Dense(30, kernel_initializer=normal), BN()]
        deep.append(layers.Activation("tanh"))
    result = fold(randomize_norms(keras.Sequential(deep)))
    assert len(result.folded) == 18
    assert result.max_error > 1e-5


def test_a_wrong_fold_raises(monkeypatch):
    model = randomize_norms(
        keras.Sequential([keras.Input((4,)), layers.Dense(5), BN()])
    )
    right = _affine.of_batch_norm
    monkeypatch.setattr(
        _affine, "of_batch_norm", lambda *args: right(*args).map(lambda a: 1.01 * a)
    )
    with pytest.raises(RuntimeError, match="outputs differ by"):
        fold(model)


def test_what_is_no_built_model_is_refused():
    for model in (keras.Sequential([layers.Dense(3)]), "model"):
        with pytest.raises(ValueError, match=r"`model` must be a built Keras model"):
            fold(model)


def test_a_rebuilt_graph_is_the_same(rng):
    model = randomize_norms(nested_model())
    copy, pairs = _graph.rebuild(model)
    x = {name: rng.normal(size=(5, 4)) for name in "ab"}
    x["c"] = rng.normal(size=(5, 3, 4))
    for name, y in model(x).items():
        np.testing.assert_array_equal(to_numpy(y), to_numpy(copy(x)[name]))
    assert all(new is not old for old, new in pairs.items())
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    paths = [call.path for call in _graph.read(model).calls]
    assert paths.count("inner/d") == 2
    assert "time_distributed/bn" in paths


def test_synchronized_norms_and_masks(rng):
    model = randomize_norms(
        keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                layers.Embedding(2, 4, mask_zero=True),
                layers.TimeDistributed(layers.Dense(5)),
                BN(synchronized=keras.backend.backend() == "tensorflow"),
                layers.LSTM(2),
            ]
        )
    )
    result = fold(model)
    assert len(result.folded) == 1
    x = np.array([[1, 1, 0], [1, 0, 0]])
    assert relative_error(model, result.model, x) <= 1e-5


def test_quantized_and_lora_layers_are_left_alone():
    for change in (
        lambda layer: layer.quantize("int8"),
        lambda layer: layer.enable_lora(1),
    ):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="d"), BN()])
        change(model.layers[0])
        result = fold(model)
        assert "d is in front of it" in next(iter(result.kept.values()))


def test_a_folded_model_is_exported(tmp_path, rng):
    model = randomize_norms(
        keras.Sequential([keras.Input((4,)), layers.Dense(5), BN(), layers.ReLU()])
    )
    folded = fold(model).model
    x = rng.normal(size=(3, 4)).astype("float32")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        folded.export(tmp_path / "saved", verbose=False)
        served = tf.saved_model.load(tmp_path / "saved")
        np.testing.assert_allclose(
            to_numpy(served.serve(x)), to_numpy(model(x)), atol=1e-5
        )
    kt.export.to_litert(folded, tmp_path / "folded.tflite")
    got = kt.export.predict_litert(tmp_path / "folded.tflite", x)
    np.testing.assert_allclose(got, to_numpy(model(x)), atol=1e-5)


def test_weight_normalization_is_stripped_and_folds(rng):
    wrap = kt.layers.WeightNormalization
    model = randomize_norms(
        keras.Sequential([keras.Input((5, 5, 2)), wrap(layers.Conv2D(4, 3)), BN()])
    )
    assert "is in front of it" in fold(model).kept["batch_normalization"]
    plain = kt.folding.strip_weight_normalization(model)
    x = rng.normal(size=(3, 5, 5, 2)).astype("float32")
    assert relative_error(model, plain, x) <= 1e-5
    assert relative_error(model, fold(plain).model, x) <= 1e-5
    with pytest.raises(ValueError, match=r"WeightNormalization layer.*model='"):
        kt.folding.strip_weight_normalization(plain)


class Residual(keras.layers.Layer):
    """Not registered, without a config, with layers inside layers."""

    def __init__(self, filters, depth=1):
        super().__init__()
        self.conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = keras.layers.BatchNormalization()
        self.inner = Residual(filters, depth - 1) if depth else None

    def build(self, input_shape):
        self.conv.build(input_shape)
        shape = self.conv.compute_output_shape(input_shape)
        self.norm.build(shape)
        if self.inner:
            self.inner.build(shape)

    def call(self, x, training=None):
        y = keras.ops.relu(self.norm(self.conv(x), training=training))
        return y + (self.inner(y, training=training) if self.inner else x)


class Shifted(keras.layers.Layer):
    """With a weight of its own beside its layers."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.shift = self.add_weight(shape=(input_shape[-1],))

    def call(self, x):
        return self.norm(x) + self.shift


def test_blocks_of_ones_own(rng, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), Residual(3), Residual(3)])
    result = fold(randomize_norms(model))
    assert (len(result.folded), result.kept) == (4, {})
    assert norms(result.model) == []
    # It needs no class of the user's any more.
    result.model.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5
    )


def test_a_block_that_cannot_be_opened_up_stays():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Shifted()])
    result = fold(randomize_norms(model))
    assert result.folded == ()
    (reason,) = result.kept.values()
    assert "has weights of its own" in reason
    assert norms(model)[0].name in result.kept
