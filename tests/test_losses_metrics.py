"""`kt.losses` and `kt.metrics` in the compiled step."""

import keras
import numpy as np
import pytest
from helpers import JIT_OPTIONS, check_config, save_and_load, to_numpy

import keras_trainkit as kt
from keras_trainkit.uncertainty import expected_calibration_error

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6)).astype("float32")


def evaluated(outputs, y, metric, jit):
    """The metric over batches of 16 of a model that outputs its inputs."""
    inputs = keras.Input(outputs.shape[1:])
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile(loss="mse", weighted_metrics=[metric], jit_compile=jit)
    found = model.evaluate(outputs, y, batch_size=16, verbose=0, return_dict=True)
    return found[metric.name]


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


@pytest.mark.parametrize("jit", JIT_OPTIONS)
def test_calibration_error_over_batches_is_that_of_all_rows(jit):
    p, y = softmax(3 * X), RNG.integers(0, 6, 50)
    metric = kt.metrics.ExpectedCalibrationError(num_bins=10)
    expected = expected_calibration_error(y, p, 10)
    one_hot = np.eye(6, dtype="float32")[y]
    assert evaluated(p, one_hot, metric, jit) == pytest.approx(expected, abs=1e-6)
    for targets in (y, y[:, None], one_hot):
        metric.reset_state()
        metric.update_state(targets, p)
        assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_sigmoid_outputs(shape):
    z = 2 * RNG.normal(size=shape).astype("float32")
    y = RNG.integers(0, 2, 50)
    expected = expected_calibration_error(y, z, from_logits=True)
    metric = kt.metrics.ExpectedCalibrationError(from_logits=True)
    metric.update_state(y.reshape(shape), z)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_segmentation_and_several_labels():
    z = RNG.normal(size=(5, 4, 3, 6)).astype("float32")
    y = RNG.integers(0, 6, (5, 4, 3))
    metric = kt.metrics.ExpectedCalibrationError(from_logits=True)
    metric.update_state(y, z)
    expected = expected_calibration_error(y, z, from_logits=True)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    p, y = softmax(X), RNG.integers(0, 2, (50, 6))
    metric = kt.metrics.ExpectedCalibrationError(multi_label=True)
    metric.update_state(y, p)
    expected = expected_calibration_error(y, p, multi_label=True)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_a_weight_of_two_is_a_row_twice():
    p, y = softmax(X), RNG.integers(0, 6, 50)
    weights = RNG.integers(0, 3, 50)
    metric = kt.metrics.ExpectedCalibrationError()
    metric.update_state(y, p, sample_weight=weights)
    rows = np.repeat(np.arange(50), weights)
    expected = expected_calibration_error(y[rows], p[rows])
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_metric_and_loss_come_back_from_their_configs():
    check_config(kt.metrics.ExpectedCalibrationError(7, from_logits=True, name="ece"))
    check_config(kt.losses.GaussianNLL(0.5))
    with pytest.raises(ValueError, match="num_bins=0"):
        kt.metrics.ExpectedCalibrationError(0)
    with pytest.raises(ValueError, match=r"beta=1\.5"):
        kt.losses.GaussianNLL(1.5)


def test_gaussian_likelihood_is_that_of_scipy():
    from scipy.stats import norm

    y, outputs = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 6))
    mean, log_variance = outputs[:, :3], outputs[:, 3:]
    expected = -norm.logpdf(y, mean, np.exp(log_variance / 2)).mean()
    loss = kt.losses.GaussianNLL()(y, outputs.astype("float32"))
    assert float(loss) == pytest.approx(expected - np.log(2 * np.pi) / 2, abs=1e-5)
    assert to_numpy(kt.losses.GaussianNLL(reduction=None)(y, outputs)).shape == (20,)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_scales_the_gradient_by_the_variance(beta):
    """One step of SGD on a bias: its change is the closed form's gradient."""
    layer = keras.layers.Dense(2, use_bias=True)
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.set_weights([np.zeros((1, 2)), np.array([0.5, np.log(4.0)])])
    model.compile(keras.optimizers.SGD(1.0), kt.losses.GaussianNLL(beta))
    model.train_on_batch(np.zeros((1, 1)), np.array([2.5]))
    change = layer.get_weights()[1] - [0.5, np.log(4.0)]
    error, variance = 2.0, 4.0
    expected = [error / variance, (error**2 / variance - 1) / 2]
    expected = np.array(expected) * variance**beta
    np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-7)


def test_a_wrong_number_of_units_is_refused():
    with pytest.raises(ValueError, match=r"`y_pred` must be 2 units"):
        kt.losses.GaussianNLL()(np.ones((4, 1)), np.ones((4, 3)))


def test_a_heteroscedastic_model_trains_and_is_read(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2),
        ]
    )
    model.compile("adam", kt.losses.GaussianNLL(beta=0.5))
    model.fit(X, X[:, 0], epochs=2, verbose=0)
    loaded = save_and_load(model, tmp_path)
    assert loaded.loss.beta == 0.5
    mc = kt.uncertainty.mc_predict(loaded, X, 5, task="heteroscedastic")
    assert mc.aleatoric_std.shape == (50, 1)
