import keras
import numpy as np
import pytest
from helpers import save_and_load
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

import keras_trainkit as kt
from keras_trainkit.uncertainty import brier_score, expected_calibration_error, nll


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


def test_nll_and_brier_against_scikit_learn(rng):
    p = rng.dirichlet(np.ones(4), size=30)
    y = rng.integers(0, 4, 30)
    np.testing.assert_allclose(nll(y, p), log_loss(y, p, labels=range(4)))
    np.testing.assert_allclose(
        brier_score(y, p), ((p - np.eye(4)[y]) ** 2).sum(1).mean()
    )


def test_calibration_error_by_hand():
    # Two bins: confidence 0.6 and right half the time, 0.9 and always right.
    p = np.array([[0.6, 0.4]] * 4 + [[0.1, 0.9]] * 4)
    y = np.array([0, 0, 1, 1, 1, 1, 1, 1])
    error = expected_calibration_error(y, p, num_bins=10)
    np.testing.assert_allclose(error, (0.1 + 0.1) / 2)
    # One bin averages over all: confidence 0.75, accuracy 0.75.
    np.testing.assert_allclose(
        expected_calibration_error(y, p, num_bins=1), 0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0], [[0.5, 0.6]], "`probabilities` must be"),
        ([0], [0.5, 0.5], "`probabilities` must be"),
        ([0, 1], [[0.5, 0.5]], "`y_true` must be 1 integer labels"),
        ([0.5], [[0.5, 0.5]], "`y_true` must be 1 integer labels"),
        ([2], [[0.5, 0.5]], r"`y_true` must be in \[0, 2\)"),
    ],
)
def test_bad_predictions(y, p, message):
    for metric in (nll, brier_score, expected_calibration_error):
        with pytest.raises(ValueError, match=message):
            metric(np.array(y), np.array(p))


@pytest.mark.parametrize("argument", ["num_samples", "batch_size", "seed"])
def test_bad_arguments(model, x, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be an integer"):
        kt.uncertainty.mc_predict(model, x, **{argument: -1})


@pytest.fixture(scope="module")
def predictions():
    """Probabilities that are too sure, and labels."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 4)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(4, p=row) for row in p])
    return 3 * logits, labels


def softmax(z):
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def test_reliability_curve_is_that_of_scikit_learn(predictions):
    logits, labels = predictions
    p = softmax(logits)
    curve = kt.uncertainty.reliability_curve(labels, p, 10)
    right = p.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, p.max(1), n_bins=10)
    full = curve.count > 0
    np.testing.assert_allclose(curve.accuracy[full], accuracy)
    np.testing.assert_allclose(curve.confidence[full], confidence)
    assert np.isnan(curve.accuracy[~full]).all()
    assert curve.count.sum() == 400
    gap = np.abs(curve.accuracy - curve.confidence)[full]
    error = (gap * curve.count[full]).sum() / 400
    np.testing.assert_allclose(expected_calibration_error(labels, p, 10), error)


def test_adaptive_calibration_error_by_hand():
    p = np.array([[c, 1 - c] for c in (0.6, 0.7, 0.8, 0.9, 1.0)])
    labels = np.array([0, 1, 0, 0, 1])
    # Bins of 3 and 2 rows: right 2 of 2.1 expected, right 1 of 1.9.
    expected = (0.1 + 0.9) / 5
    error = kt.uncertainty.adaptive_calibration_error(labels, p, 2)
    np.testing.assert_allclose(error, expected)


def test_temperature_has_the_lowest_likelihood(predictions):
    logits, labels = predictions
    scaling = kt.uncertainty.TemperatureScaling().fit(logits, labels)
    likelihoods = {t: nll(labels, softmax(logits / t)) for t in np.arange(1, 6, 0.01)}
    best = min(likelihoods, key=likelihoods.get)
    np.testing.assert_allclose(scaling.temperature_, best, atol=0.01)
    # They are three times those that the labels were drawn from.
    assert 2.5 < scaling.temperature_ < 3.5
    p = scaling.predict_proba(logits)
    np.testing.assert_allclose(p, softmax(logits / scaling.temperature_))
    np.testing.assert_array_equal(p.argmax(1), logits.argmax(1))
    # The logarithms of probabilities are logits as well.
    again = kt.uncertainty.TemperatureScaling().fit(np.log(softmax(logits)), labels)
    np.testing.assert_allclose(again.temperature_, scaling.temperature_, rtol=1e-6)


def test_rejection_curve_by_hand():
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.55, 0.45]])
    labels = np.array([0, 0, 1, 0])
    rejected, accuracy = kt.uncertainty.rejection_curve(labels, p)
    np.testing.assert_allclose(rejected, [0, 0.25, 0.5, 0.75])
    # The least certain first: 0.55 (right), 0.6 (wrong), 0.8 (right).
    np.testing.assert_allclose(accuracy, [3 / 4, 2 / 3, 1, 1])
    _, by_other = kt.uncertainty.rejection_curve(labels, p, np.array([0, 3, 1, 2]))
    np.testing.assert_allclose(by_other, [3 / 4, 1, 1, 1])


def test_ood_auroc_is_that_of_scikit_learn(rng):
    inside = rng.integers(0, 20, 50)
    outside = rng.integers(5, 30, 70)
    expected = roc_auc_score([0] * 50 + [1] * 70, [*inside, *outside])
    np.testing.assert_allclose(kt.uncertainty.ood_auroc(inside, outside), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u: u.ood_auroc([], [1.0]), r"inside=\(0,\)"),
        (lambda u: u.ood_auroc([1.0], [np.nan]), r"outside=\(1,\)"),
        (lambda u: u.TemperatureScaling().predict_proba([[1, 2]]), r"`fit` must come"),
        (lambda u: u.TemperatureScaling().fit([1.0], [0]), r"logits=\(1,\)"),
        (lambda u: u.TemperatureScaling().fit([[2.0, 1]], [0]), r"wrong at times"),
        (lambda u: u.TemperatureScaling().fit([[2.0, 1]], [1]), r"than chance"),
        (lambda u: u.rejection_curve([0], [[1.0, 0]], [np.inf]), r"uncertainty="),
        (lambda u: u.reliability_curve([0], [[1.0, 0]], 0), r"num_bins=0"),
        (lambda u: u.adaptive_calibration_error([2], [[1.0, 0]]), r"y_true=2"),
    ],
)
def test_bad_arguments_of_calibration(call, message):
    with pytest.raises(ValueError, match=message):
        call(kt.uncertainty)
