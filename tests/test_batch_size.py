"""The gradient noise scale against its closed form, and what a batch size costs."""

import keras
import numpy as np
import pytest

import keras_trainkit as kt
from keras_trainkit.batch_size import _throughput, gradient_noise_scale

FEATURES, ROWS = 4, 8192


def linear_regression(seed, noise=2.0):
    """`y = x w + e` and a model at `w = 0`, with the closed form of its noise scale.

    With the loss `(x v - y)^2` a row's gradient is `2 (x (v - w) - e) x`. For standard
    normal `x`, `d = v - w` and noise of variance `s`, Isserlis's theorem gives
    `|G|^2 = 4 |d|^2` and `E |g|^2 = 4 ((n + 2) |d|^2 + n s)`.
    """
    rng = np.random.default_rng(seed)
    w = rng.normal(size=FEATURES)
    x = rng.normal(size=(ROWS, FEATURES))
    y = x @ w + noise * rng.normal(size=ROWS)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    norm = w @ w
    expected = ((FEATURES + 2) * norm + FEATURES * noise**2 - norm) / norm
    return model, x.astype("float32"), y.astype("float32"), float(expected)


@pytest.mark.parametrize("seeds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_noise_scale_is_that_of_the_closed_form(seeds):
    """In the mean over seeds, and each as far off as its standard error says."""
    ratios, misses = [], []
    for seed in range(seeds):
        model, x, y, expected = linear_regression(seed)
        found = gradient_noise_scale(model, x, y, max_rows=ROWS)
        ratios.append(found.noise_scale / expected)
        misses.append((found.noise_scale - expected) / found.standard_error)
        assert found.rows == ROWS
    np.testing.assert_allclose(ratios, 1, atol=0.15)
    assert np.abs(misses).max() < 4


def test_one_large_gradient_is_the_mean_of_small_ones():
    """The parts of the estimate, by gradients of single rows in NumPy."""
    model, x, y, _ = linear_regression(0)
    x, y = x[:64], y[:64]
    rows = 2 * (0 - y)[:, None] * x
    order = np.random.default_rng(0).permutation(64).reshape(2, 16, 2)
    small = rows[order].mean(2)
    alone = (small**2).sum(-1).mean()
    together = (small.mean(1) ** 2).sum(-1).mean()
    found = gradient_noise_scale(model, x, y, small_batch=2)
    norm = (32 * together - 2 * alone) / 30
    variance = (alone - together) / (1 / 2 - 1 / 32)
    assert found.squared_norm == pytest.approx(norm, rel=1e-4)
    assert found.variance == pytest.approx(variance, rel=1e-4)
    assert found.noise_scale == pytest.approx(variance / norm, rel=1e-4)


def small_model():
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Normalization(mean=1.0, variance=4.0),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", loss="mse", metrics=["mae"])
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def test_the_model_is_as_it_was():
    model, x = small_model(), np.ones((512, FEATURES), "float32")
    model.fit(x, x[:, 0], verbose=0)
    before, optimizer = state(model), model.optimizer
    found = kt.find_batch_size(model, x, x[:, 0], max_batch_size=32)
    assert model.optimizer is optimizer
    for a, b in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.batch_sizes.tolist() == [16, 32]
    assert found.rate_rule == "square root"
    assert "rows per second" in found.summary()
    steps = 1 + found.noise_scale / found.batch_sizes
    np.testing.assert_allclose(found.relative_steps, steps)
    assert found.suggestion is None or found.suggestion in (16, 32)


def test_memory_that_runs_out_ends_the_search(monkeypatch):
    model, x, y, _ = linear_regression(0)
    real = _throughput._seconds

    def limited(model, data, rows):
        if len(rows) > 64:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to")
        return real(model, data, rows)

    monkeypatch.setattr(_throughput, "_seconds", limited)
    found = kt.find_batch_size(model, x[:512], y[:512])
    assert found.batch_sizes.tolist() == [16, 32, 64]
    assert found.memory_limit
    assert "do not fit" in repr(found)

    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(_throughput, "_seconds", broken)
    with pytest.raises(RuntimeError, match="something else"):
        kt.find_batch_size(model, x[:512], y[:512])


def test_the_rate_goes_with_the_batch():
    model, x, y, _ = linear_regression(0)
    found = kt.find_batch_size(model, x, y, max_batch_size=16)
    n = found.noise_scale
    expected = 0.1 * (1 + n / 16) / (1 + n / 64)
    assert found.learning_rate(0.1, 16, 64) == pytest.approx(expected)
    assert found.learning_rate(0.1, 16, 16) == pytest.approx(0.1)
    # Far above the noise scale a larger batch takes the same rate.
    assert found.learning_rate(0.1, 10**9, 10**10) == pytest.approx(0.1)


def test_callback_measures_and_changes_nothing():
    x = np.random.default_rng(0).normal(size=(512, FEATURES)).astype("float32")
    weights = []
    for callbacks in ([], [kt.callbacks.NoiseScale(x, x[:, 0], every=2)]):
        keras.utils.set_random_seed(1)
        model = small_model()
        history = model.fit(
            x, x[:, 0], epochs=3, batch_size=64, verbose=0, callbacks=callbacks
        )
        weights.append(model.get_weights())
    assert len(history.history["noise_scale"]) == 2
    assert sorted(callbacks[0].measured) == [0, 2]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small_batch": 0}, "small_batch=0"),
        ({"max_batch_size": 8}, "max_batch_size=8"),
        ({"optimizer_rule": "cube"}, "optimizer_rule='cube'"),
        ({"max_rows": 100}, r"`x` must be at least 256 rows .* Received: x=100"),
    ],
)
def test_bad_arguments(change, message):
    model, x, y, _ = linear_regression(0)
    with pytest.raises(ValueError, match=message):
        kt.find_batch_size(model, x, y, **change)
    with pytest.raises(ValueError, match="`model` must be a compiled"):
        kt.find_batch_size(keras.Sequential(), x, y)
