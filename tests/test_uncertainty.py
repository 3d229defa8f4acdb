import keras
import numpy as np
import pytest
from helpers import save_and_load

import keras_trainkit as kt


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    inner = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.AlphaDropout(0.2),
        ],
        name="inner",
    )
    inputs = keras.Input((8,))
    x = keras.layers.BatchNormalization()(inner(inputs))
    x = keras.layers.Dropout(0.4)(x)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(50, 8)).astype("float32")


def test_to_mc_switches_every_dropout_on(model, x, tmp_path):
    before = model.get_weights()
    mc = kt.uncertainty.to_mc(model)
    assert type(mc.get_layer("inner").layers[-1]) is kt.layers.MCAlphaDropout
    assert any(type(layer) is kt.layers.MCDropout for layer in mc.layers)
    for a, b in zip(before, mc.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    one, two = (mc.predict(x, verbose=0) for _ in range(2))
    assert not np.allclose(one, two)
    # The BatchNorm's statistics did not move, in the copy or in the original.
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, mc.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert type(save_and_load(mc, tmp_path).layers[-2]) is kt.layers.MCDropout


def test_to_mc_reaches_into_wrappers(rng, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            keras.layers.Bidirectional(
                keras.layers.LSTM(2, dropout=0.4, return_sequences=True)
            ),
            keras.layers.TimeDistributed(keras.layers.Dropout(0.4)),
            keras.layers.GRU(2, recurrent_dropout=0.4),
        ]
    )
    mc = kt.uncertainty.to_mc(model, seed=5)
    both, steps, last = mc.layers
    assert type(both.forward_layer) is type(both.backward_layer) is kt.layers.MCLSTM
    assert type(steps.layer) is kt.layers.MCDropout
    assert type(last) is kt.layers.MCGRU
    parts = both.forward_layer, both.backward_layer, steps.layer, last
    assert len({part.get_config()["seed"] for part in parts}) == 4
    for a, b in zip(model.get_weights(), mc.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    one, two = (save_and_load(mc, tmp_path).predict(x, verbose=0) for _ in range(2))
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert not np.allclose(mc.predict(x, verbose=0), mc.predict(x, verbose=0))


def test_linear_network_has_the_closed_form():
    # y = sum_i w_i x_i m_i / (1 - p): mean w x, variance p / (1 - p) sum (w x)**2.
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dropout(0.25), keras.layers.Dense(2)]
    )
    x = np.linspace(-1, 1, 12, dtype="float32").reshape(2, 6)
    kernel = model.layers[-1].get_weights()[0]
    terms = x[:, :, np.newaxis] * kernel
    variance = 0.25 / 0.75 * (terms**2).sum(1)
    n = 10_000
    rows = np.repeat(x, n // 10, axis=0)
    mc = kt.uncertainty.mc_predict(model, rows, 10, seed=0, keep_samples=True)
    samples = mc.samples.reshape(10, 2, n // 10, 2).transpose(1, 0, 2, 3)
    samples = samples.reshape(2, n, 2)
    z = (samples.mean(1) - terms.sum(1)) / np.sqrt(variance / n)
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(samples.var(1), variance, rtol=0.1)


def test_a_model_without_dropout_is_refused(x):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be a model with at least one"):
        kt.uncertainty.mc_predict(model, x)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(
        ValueError, match="must be a Functional or a built Sequential model"
    ):
        kt.uncertainty.to_mc(Own())


@pytest.mark.parametrize("argument", ["num_samples", "batch_size", "seed"])
def test_bad_arguments(model, x, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be an integer"):
        kt.uncertainty.mc_predict(model, x, **{argument: -1})


def test_coverage_of_the_intervals_of_a_regression():
    from scipy import stats

    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(500, 2)), rng.uniform(0.5, 2, size=(500, 2))
    y = rng.normal(mean, std + 1)
    make = kt.uncertainty.MCPrediction
    normal = make(mean, std, None, None, None, 5)
    low, high = stats.norm.interval(0.8, mean, std)
    inside = ((low <= y) & (y <= high)).mean()
    assert 0.4 < inside < 0.7
    assert normal.coverage(y, 0.8) == pytest.approx(inside)
    said = f"80% intervals cover {inside:.1%} of the true values"
    assert said in normal.summary(y, 0.8)
    assert "cover" not in normal.summary()
    noisy = make(mean, std, None, None, None, 5, aleatoric_std=std)
    low, high = stats.norm.interval(0.8, mean, np.sqrt(2) * std)
    assert noisy.coverage(y, 0.8) == ((low <= y) & (y <= high)).mean()
    samples = rng.gumbel(size=(40, 500, 1))
    kept = make(mean[:, :1], std[:, :1], None, None, None, 40, samples=samples)
    low, high = np.quantile(samples, [0.1, 0.9], axis=0)
    found = ((low <= y[:, :1]) & (y[:, :1] <= high)).mean()
    assert kept.coverage(y[:, 0], 0.8) == found
    classes = make(mean, std, mean[:, 0], mean[:, 0], mean[:, 0], 5)
    for one, labels, match in (
        (normal, y[:, :1], r"`y` must be of shape \(500, 2\)"),
        (classes, y, "`prediction` must be a regression"),
    ):
        with pytest.raises(ValueError, match=match):
            one.coverage(labels)
