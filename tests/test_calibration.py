"""Calibration: metrics, scaling, rejection, for every kind of target."""

import keras
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

import keras_trainkit as kt
from keras_trainkit.uncertainty import (
    TemperatureScaling,
    brier_score,
    expected_calibration_error,
    nll,
)


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
        ([0], [[2.5, -1.5]], r"in \[0, 1\] \(for logits set.*Received: probabi.*=2.5"),
        ([0], [[np.nan, 0.5]], "`probabilities` must be finite"),
        ([0], [["a", "b"]], "`probabilities` must be an array of numbers"),
        ([], np.zeros((0, 3)), "`probabilities` must be at least one row"),
        ([0], [0.5, 0.5], r"`y_true` must be labels of shape \(2,\)"),
        ([0, 1], [[0.5, 0.5]], r"`y_true` must be labels of shape \(1,\)"),
        ([0.5], [[0.5, 0.5]], "`y_true` must be integer labels"),
        ([[1, 1]], [[0.5, 0.5]], "`y_true` must be one-hot"),
        ([2], [[0.5, 0.5]], r"`y_true` must be labels in \[0, 2\). Received: y_true=2"),
    ],
)
def test_bad_predictions(y, p, message):
    for metric in (nll, brier_score, expected_calibration_error):
        with pytest.raises(ValueError, match=message):
            metric(np.array(y), np.array(p))


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
        (lambda u: u.TemperatureScaling().fit([[1.0, 2]], [2]), r"y_true=2"),
        (lambda u: u.TemperatureScaling().fit(y_true=[0]), r"logits='NoneType'"),
        (lambda u: u.TemperatureScaling().fit([[2.0, 1]], [0]), r"wrong at times"),
        (lambda u: u.TemperatureScaling().fit([[2.0, 1]], [1]), r"than chance"),
        (lambda u: u.rejection_curve([0], [[1.0, 0]], [np.inf]), r"uncertainty="),
        (lambda u: u.reliability_curve([0], [[1.0, 0]], 0), r"num_bins=0"),
        (lambda u: u.adaptive_calibration_error([2], [[1.0, 0]]), r"y_true=2"),
        (lambda u: u.expected_calibration_error([0], [0.5], norm="l3"), r"norm='l3'"),
    ],
)
def test_bad_arguments_of_calibration(call, message):
    with pytest.raises(ValueError, match=message):
        call(kt.uncertainty)


@pytest.fixture(scope="module")
def binary():
    """Outputs of a sigmoid that is too sure, and labels."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=300)
    y = (rng.random(300) < 1 / (1 + np.exp(-z))).astype(int)
    return 2 * z, y


METRICS = [
    nll,
    brier_score,
    expected_calibration_error,
    kt.uncertainty.adaptive_calibration_error,
]


@pytest.mark.parametrize("metric", METRICS)
def test_targets_of_every_shape_give_one_answer(predictions, metric):
    logits, labels = predictions
    p = softmax(logits)
    expected = metric(labels, p)
    one_hot = np.eye(4)[labels]
    for y in (labels[:, None], labels.astype("float32"), one_hot, labels.tolist()):
        assert metric(y, p) == expected
    assert metric(labels, logits, from_logits=True) == pytest.approx(expected)
    # Segmentation: 400 rows as 4 images of 10 x 10.
    images = p.reshape(4, 10, 10, 4)
    assert metric(labels.reshape(4, 10, 10), images) == expected
    assert metric(labels.reshape(4, 10, 10, 1), images) == expected
    assert metric(one_hot.reshape(4, 10, 10, 4), images) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_sigmoid_outputs_of_every_shape_give_one_answer(binary, metric):
    z, y = binary
    p = 1 / (1 + np.exp(-z))
    expected = metric(y, p)
    assert metric(y, p[:, None]) == metric(y[:, None], p[:, None]) == expected
    assert metric(y[:, None], p) == expected
    assert metric(y, z, from_logits=True) == pytest.approx(expected)
    together = y.reshape(100, 3), p.reshape(100, 3)
    assert metric(*together, multi_label=True) == expected
    with pytest.raises(ValueError, match="multi_label"):
        metric(*together)


def test_binary_measures_are_those_of_scikit_learn(binary):
    z, y = binary
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(nll(y, p), log_loss(y, p))
    np.testing.assert_allclose(brier_score(y, p), brier_score_loss(y, p))
    curve = kt.uncertainty.reliability_curve(y, p, 10)
    accuracy, confidence = calibration_curve(y, p, n_bins=10)
    np.testing.assert_allclose(curve.accuracy[curve.count > 0], accuracy)
    np.testing.assert_allclose(curve.confidence[curve.count > 0], confidence)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_norms_are_those_of_torchmetrics(predictions, binary, norm):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = predictions
    # Not so sure that float32 says 1, for which torchmetrics has a bin of its own.
    p = softmax(logits / 3)
    theirs = functional.multiclass_calibration_error(
        torch.tensor(p), torch.tensor(labels), num_classes=4, n_bins=15, norm=norm
    )
    ours = expected_calibration_error(labels, p, norm=norm)
    np.testing.assert_allclose(ours, float(theirs), atol=1e-6)
    z, y = binary
    p = 1 / (1 + np.exp(-z))
    theirs = functional.binary_calibration_error(
        torch.tensor(p), torch.tensor(y), n_bins=15, norm=norm
    )
    np.testing.assert_allclose(
        expected_calibration_error(y, p, norm=norm), float(theirs), atol=1e-6
    )


def test_classwise_error_is_the_mean_over_one_class_against_the_others(predictions):
    logits, labels = predictions
    p = softmax(logits)
    each = [expected_calibration_error(labels == k, p[:, k]) for k in range(4)]
    error = kt.uncertainty.classwise_calibration_error(labels, p)
    np.testing.assert_allclose(error, np.mean(each))


def test_area_under_risk_coverage_does_not_depend_on_the_order_of_ties():
    p = np.full((1000, 2), 0.5)
    labels = np.repeat([0, 1], 500)
    order = np.random.default_rng(0).permutation(1000)
    for rows in (slice(None), slice(None, None, -1), order):
        area = kt.uncertainty.aurc(labels[rows], p[rows])
        np.testing.assert_allclose(area, 0.5)
    # Without ties: the mean error of the surest 1, 2, ... rows.
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    np.testing.assert_allclose(
        kt.uncertainty.aurc([0, 0, 0], p), (0 + 1 / 2 + 1 / 3) / 3
    )


def test_binary_temperature(binary):
    z, y = binary
    scaling = kt.uncertainty.TemperatureScaling().fit(z, y)
    p = scaling.predict_proba(z)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-z / scaling.temperature_)))
    best = min(np.arange(0.5, 5, 0.005), key=lambda t: nll(y, z / t, from_logits=True))
    np.testing.assert_allclose(scaling.temperature_, best, atol=0.006)
    # Probabilities of 0 and 1 are no obstacle.
    sure = np.where(z > 0, 1.0, 0.0)
    again = kt.uncertainty.TemperatureScaling().fit(probabilities=sure, y_true=y)
    assert np.isfinite(again.predict_proba(probabilities=sure)).all()
    assert scaling.predict_proba(z[:, None]).shape == (300, 1)


def test_segmentation_keeps_its_shape(predictions):
    logits, labels = predictions
    images, masks = logits.reshape(4, 10, 10, 4), labels.reshape(4, 10, 10)
    scaling = kt.uncertainty.TemperatureScaling().fit(images, masks)
    plain = kt.uncertainty.TemperatureScaling().fit(logits, labels)
    assert scaling.temperature_ == plain.temperature_
    assert scaling.predict_proba(images).shape == images.shape


def test_vector_scaling_is_where_the_likelihood_has_no_slope(predictions):
    logits, labels = predictions
    logits = logits + np.array([0, 1, 0, -1])
    scaling = kt.uncertainty.VectorScaling().fit(logits, labels)
    p = scaling.predict_proba(logits)
    # The optimum of a softmax regression: mean probabilities are the class frequencies.
    np.testing.assert_allclose(p.mean(0), np.bincount(labels) / 400, atol=1e-4)
    one = kt.uncertainty.TemperatureScaling().fit(logits, labels)
    assert nll(labels, p) < nll(labels, one.predict_proba(logits))


def test_isotonic_scaling_is_that_of_scikit_learn(binary):
    z, y = binary
    p = 1 / (1 + np.exp(-z))
    scaling = kt.uncertainty.IsotonicScaling().fit(probabilities=p, y_true=y)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p, y).predict(p)
    np.testing.assert_allclose(
        scaling.predict_proba(probabilities=p), theirs, atol=1e-12
    )


def test_a_scaling_refuses_other_classes(predictions):
    scaling = kt.uncertainty.TemperatureScaling().fit(*predictions)
    with pytest.raises(ValueError, match=r"`logits` must be of 4 classes"):
        scaling.predict_proba(np.zeros((2, 3)))


def _probabilities(model, x, activation):
    outputs = model.predict(x, verbose=0)
    return {"logits": outputs} if activation is None else {"probabilities": outputs}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None, "layer"])
def test_a_temperature_is_folded_into_the_last_layer(activation):
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, "tanh")])
    units = 1 if activation == "sigmoid" else 4
    last = "linear" if activation == "layer" else activation
    head = keras.layers.Dense(units, last, bias_initializer="normal")
    outputs = head(keras.layers.Dropout(0.3)(inner(inputs)))
    if activation == "layer":
        outputs = keras.layers.Softmax()(keras.layers.Dropout(0.1)(outputs))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype("float32")
    y = rng.integers(2 if units == 1 else 4, size=60)
    given = _probabilities(model, x, activation)
    scores = next(iter(given.values()))
    best = scores.argmax(1) if units > 1 else (scores[:, 0] > 0.5).astype(int)
    y[::2] = best[::2]
    before = [np.array(w) for w in model.get_weights()]
    scaling = TemperatureScaling().fit(**given, y_true=y)
    folded = scaling.fold_into(model)
    found = folded.predict(x, verbose=0)
    if activation is None:
        expected = scores / scaling.temperature_
    else:
        expected = scaling.predict_proba(**given)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_no_temperature_is_folded_into():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu")])
    with pytest.raises(ValueError, match="`fit` must come first"):
        TemperatureScaling().fold_into(model)
    scaling = TemperatureScaling().fit(np.eye(2)[[0, 0, 0]], [0, 0, 1])
    with pytest.raises(ValueError, match="last activation is softmax"):
        scaling.fold_into(model)
    lora = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    lora.layers[-1].enable_lora(1)
    with pytest.raises(ValueError, match="with a plain last layer"):
        scaling.fold_into(lora)
