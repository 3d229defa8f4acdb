import keras
import numpy as np
import pytest
import torch
from helpers import check_layer, save_and_load, to_numpy

import keras_trainkit as kt

DROPOUTS = [
    (kt.layers.MCDropout, (4, 6)),
    (kt.layers.MCAlphaDropout, (4, 6)),
    (kt.layers.MCGaussianDropout, (4, 6)),
    (kt.layers.MCSpatialDropout1D, (2, 5, 6)),
    (kt.layers.MCSpatialDropout2D, (2, 3, 5, 6)),
    (kt.layers.MCSpatialDropout3D, (2, 3, 2, 5, 6)),
]


@pytest.mark.parametrize(("cls", "shape"), DROPOUTS)
def test_is_a_keras_citizen(cls, shape, tmp_path):
    check_layer(lambda **k: cls(0.5, seed=3, **k), shape, shape, tmp_path)


@pytest.mark.parametrize(("cls", "shape"), DROPOUTS)
def test_predict_is_a_sample_and_training_makes_no_difference(cls, shape):
    x = np.ones(shape, "float32")

    def samples(seed, training):
        layer = cls(0.5, seed=seed)
        return [to_numpy(layer(x, training=training)) for _ in range(2)]

    first, second = samples(1, training=False)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, samples(1, training=True)[0])
    assert not np.array_equal(first, samples(2, training=False)[0])
    model = keras.Sequential([keras.Input(shape[1:]), cls(0.5, seed=1)])
    one, two = (model.predict(x, verbose=0) for _ in range(2))
    assert not np.array_equal(one, two)


RECURRENT = [
    ("SimpleRNN", {"units": 3}, (4, 5, 2)),
    ("LSTM", {"units": 3}, (4, 5, 2)),
    ("GRU", {"units": 3}, (4, 5, 2)),
    ("ConvLSTM1D", {"filters": 2, "kernel_size": 2}, (2, 3, 4, 2)),
    ("ConvLSTM2D", {"filters": 2, "kernel_size": 2}, (2, 3, 4, 3, 2)),
    ("ConvLSTM3D", {"filters": 2, "kernel_size": 2}, (2, 3, 4, 3, 2, 2)),
]


@pytest.mark.parametrize(("name", "size", "shape"), RECURRENT)
def test_recurrent_layers_drop_at_inference(name, size, shape, tmp_path, rng):
    x = rng.normal(size=shape).astype("float32")
    cls, plain = getattr(kt.layers, f"MC{name}"), getattr(keras.layers, name)
    layer = cls(**size, dropout=0.5, recurrent_dropout=0.3, seed=1)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    loaded = save_and_load(model, tmp_path)
    assert type(loaded.layers[0]) is cls
    one, two = (loaded.predict(x, verbose=0) for _ in range(2))
    assert not np.allclose(one, two)
    # Without dropout it is Keras's layer, and a mask means the same to both.
    mask = np.arange(shape[1]) < np.array([[2]] * shape[0])
    if "Conv" in name:
        # On JAX, Keras's own fail with one.
        mask = None
    pair = [kind(**size, name="same") for kind in (cls, plain)]
    for other in pair:
        other.build(shape)
    pair[0].set_weights(pair[1].get_weights())
    one, two = (to_numpy(other(x, mask=mask)) for other in pair)
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_attention_drops_at_inference(tmp_path, rng):
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    inputs = keras.Input((3, 4))
    layer = kt.layers.MCMultiHeadAttention(2, 2, dropout=0.5, seed=1)
    model = keras.Model(inputs, layer(inputs, inputs, use_causal_mask=True))
    loaded = save_and_load(model, tmp_path)
    assert type(loaded.layers[-1]) is kt.layers.MCMultiHeadAttention
    one, two = (loaded.predict(x, verbose=0) for _ in range(2))
    assert not np.allclose(one, two)


def test_rate_and_scale_over_a_million_elements():
    y = to_numpy(kt.layers.MCDropout(0.3, seed=0)(np.ones((1000, 1000), "float32")))
    # Five standard deviations of a binomial fraction.
    assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1e6)
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)


def test_alpha_dropout_keeps_mean_and_variance(rng):
    x = rng.normal(size=(1000, 1000)).astype("float32")
    y = to_numpy(kt.layers.MCAlphaDropout(0.3, seed=0)(x))
    assert abs(y.mean()) < 0.01
    assert abs(y.std() - 1) < 0.01


def test_gaussian_dropout_has_the_stated_noise():
    y = to_numpy(kt.layers.MCGaussianDropout(0.2, seed=0)(np.ones((1000, 1000))))
    # Noise of mean 1 and variance rate / (1 - rate), to five standard errors.
    std = np.sqrt(0.2 / 0.8)
    assert abs(y.mean() - 1) < 5 * std / 1e3
    assert abs(y.std() - std) < 5 * std / np.sqrt(2e6)


def test_spatial_dropout_drops_whole_channels():
    layer = kt.layers.MCSpatialDropout2D(0.3, seed=0)
    y = to_numpy(layer(np.ones((1000, 3, 3, 1000), "float32"))).reshape(1000, 9, 1000)
    assert ((y == 0).all(1) | (y > 0).all(1)).all()
    assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1e6)


OTHERS = [
    (lambda **k: kt.layers.RReLU(seed=1, **k), (4, 3, 6), (4, 3, 6)),
    (lambda **k: kt.layers.CReLU(**k), (4, 6), (4, 12)),
    (lambda **k: kt.layers.CReLU(axis=1, **k), (2, 3, 5, 5), (2, 6, 5, 5)),
    (
        lambda **k: kt.layers.LocalResponseNormalization(3, 0.1, **k),
        (2, 5, 5, 4),
        (2, 5, 5, 4),
    ),
    (
        lambda **k: kt.layers.LocalResponseNormalization(axis=1, **k),
        (2, 3, 5, 4),
        (2, 3, 5, 4),
    ),
    (
        lambda dtype=None, **k: kt.layers.WeightNormalization(
            keras.layers.Dense(3, activation="relu", dtype=dtype), dtype=dtype, **k
        ),
        (4, 6),
        (4, 3),
    ),
    (
        lambda dtype=None, **k: kt.layers.WeightNormalization(
            keras.layers.Conv2D(3, 2, dtype=dtype), dtype=dtype, **k
        ),
        (2, 5, 5, 4),
        (2, 4, 4, 3),
    ),
]


@pytest.mark.parametrize(("make", "shape", "output"), OTHERS)
def test_other_layers_are_keras_citizens(make, shape, output, tmp_path):
    check_layer(make, shape, output, tmp_path, masking=False)


def test_rrelu_at_inference_is_torchs(rng):
    x = rng.normal(size=(20, 30)).astype("float32")
    expected = torch.nn.RReLU(0.1, 0.4).eval()(torch.tensor(x)).numpy()
    y = to_numpy(kt.layers.RReLU(0.1, 0.4)(x, training=False))
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    default = torch.nn.RReLU().eval()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(to_numpy(kt.layers.RReLU()(x)), default, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_rrelu_slopes_are_uniform_in_training(dtype):
    layer = kt.layers.RReLU(0.1, 0.4, seed=0, dtype=dtype)
    x = np.concatenate([-np.ones(10**6), np.arange(5.0)]).astype("float32")
    y = to_numpy(layer(x, training=True))
    np.testing.assert_array_equal(y[-5:], x[-5:])
    slopes = np.sort(-y[:-5])
    # Kolmogorov-Smirnov: D passes 1.95 / sqrt(n) once in 1000 times. bfloat16 rounds
    # slopes by up to 1/1024, of a range of 0.3.
    uniform = (slopes - 0.1) / 0.3
    rank = np.arange(1, 10**6 + 1) / 10**6
    bound = 1.95e-3 + (dtype != "float32") / 1024 / 0.3
    assert np.abs(uniform - rank).max() < bound
    again = kt.layers.RReLU(0.1, 0.4, seed=0, dtype=dtype)
    np.testing.assert_array_equal(y, to_numpy(again(x, training=True)))
    assert not np.array_equal(y, to_numpy(layer(x, training=True)))


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_local_response_normalization_is_torchs(size, rng):
    x = 3 * rng.normal(size=(2, 6, 4, 4)).astype("float32")
    theirs = torch.nn.LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.7)
    expected = theirs(torch.tensor(x)).numpy()
    ours = kt.layers.LocalResponseNormalization(size, 0.3, 0.6, 1.7, axis=1)
    np.testing.assert_allclose(to_numpy(ours(x)), expected, rtol=1e-5)
    last = kt.layers.LocalResponseNormalization(size, 0.3, 0.6, 1.7)
    np.testing.assert_allclose(
        to_numpy(last(np.moveaxis(x, 1, -1))), np.moveaxis(expected, 1, -1), rtol=1e-5
    )


def test_local_response_normalization_does_not_overflow_in_half_precision():
    layer = kt.layers.LocalResponseNormalization(dtype="float16", alpha=1e-4)
    y = to_numpy(layer(np.full((1, 5), 1000, "float16")))
    # 1000 / (1 + 1e-4 / 5 * n * 1e6)^0.75 for n = 3, 4, 5 neighbours
    expected = 1000 / (1 + 20 * np.array([3, 4, 5, 4, 3])) ** 0.75
    np.testing.assert_allclose(y[0], expected, rtol=1e-3)


WRAPPED = {
    "dense": (lambda: keras.layers.Dense(3, activation="relu"), (16, 5)),
    "conv": (lambda: keras.layers.Conv2D(4, 2), (16, 5, 5, 3)),
    "transposed": (lambda: keras.layers.Conv2DTranspose(4, 2), (16, 5, 5, 3)),
    "depthwise": (
        lambda: keras.layers.DepthwiseConv2D(2, depth_multiplier=2),
        (16, 5, 5, 3),
    ),
    "no bias": (lambda: keras.layers.Conv1D(4, 2, use_bias=False), (16, 5, 3)),
    "separable": (lambda: keras.layers.SeparableConv2D(4, 2), (16, 5, 5, 3)),
    "lstm": (lambda: keras.layers.LSTM(4), (16, 5, 3)),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weight_normalization_trains_and_folds_back(kind, rng):
    make, shape = WRAPPED[kind]
    x = rng.normal(size=shape).astype("float32")
    layer = kt.layers.WeightNormalization(make())
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    # Wrapping changes no output.
    np.testing.assert_allclose(
        to_numpy(layer(x)), to_numpy(layer.layer(x)), rtol=1e-4, atol=1e-6
    )
    model.compile("sgd", "mse")
    before = model.get_weights()
    model.fit(x, np.ones(model(x).shape), epochs=2, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert not np.array_equal(old, new)
    np.testing.assert_allclose(
        to_numpy(layer(x)), to_numpy(layer.strip()(x)), rtol=1e-4, atol=1e-6
    )


def test_weight_normalization_is_length_times_direction(rng):
    layer = kt.layers.WeightNormalization(keras.layers.Dense(2, use_bias=False))
    x = rng.normal(size=(3, 4)).astype("float32")
    layer(x)
    direction = rng.normal(size=(4, 2)).astype("float32")
    layer.set_weights([np.array([[2.0, 3.0]]), direction])
    by_hand = x @ (direction / np.linalg.norm(direction, axis=0) * [2, 3])
    np.testing.assert_allclose(to_numpy(layer(x)), by_hand, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv", "transposed", "depthwise"])
def test_weight_normalization_adapts_to_data(kind, rng):
    make, shape = WRAPPED[kind]
    inner = make()
    inner.activation = keras.activations.linear
    layer = kt.layers.WeightNormalization(inner)
    x = (3 + 2 * rng.normal(size=shape)).astype("float32")
    layer(x)
    layer.adapt(x)
    y = to_numpy(layer(x))
    y = y.reshape(-1, y.shape[-1])
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kt.layers.RReLU(lower="a"), r"lower='a'"),
        (lambda: kt.layers.RReLU(0.5, 0.1), r"upper.*Received: upper=0.1"),
        (lambda: kt.layers.CReLU(0.5), r"axis=0.5"),
        (lambda: kt.layers.CReLU()(np.ones((2, 0))), r"input_shape=\(2, 0\)"),
        (lambda: kt.layers.RReLU()(np.ones((2, 0))), r"input_shape=\(2, 0\)"),
        (lambda: kt.layers.MCDropout(0.5)(np.ones((2, 0))), r"input_shape=\(2, 0\)"),
        (lambda: kt.layers.CReLU(axis=0)(np.ones((2, 3))), r"axis=0"),
        (lambda: kt.layers.CReLU(axis=2)(np.ones((2, 3))), r"axis=2"),
        (lambda: kt.layers.LocalResponseNormalization(0), r"size=0"),
        (lambda: kt.layers.LocalResponseNormalization(k=0), r"k=0"),
        (
            lambda: kt.layers.LocalResponseNormalization()(np.ones((2, 0))),
            r"input_shape=\(2, 0\)",
        ),
        (
            lambda: kt.layers.WeightNormalization(keras.layers.ReLU())(np.ones((2, 3))),
            r"a layer with a kernel.*layer='re_lu",
        ),
        (
            lambda: kt.layers.WeightNormalization(keras.layers.Dense(2))(
                np.ones((2, 0))
            ),
            r"input_shape=\(2, 0\)",
        ),
        (
            lambda: kt.layers.WeightNormalization(keras.layers.Dense(2)).strip(),
            r"built",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
