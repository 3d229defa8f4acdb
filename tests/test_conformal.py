"""Conformal prediction against MAPIE, hand-written loops and its own promise."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression, QuantileRegressor

from keras_trainkit.uncertainty import (
    ConformalClassifier,
    ConformalRegressor,
    MCPrediction,
)


@pytest.fixture(scope="module")
def digits():
    """A weak classifier's probabilities of held-out digits, and their labels."""
    x, y = load_digits(return_X_y=True)
    fit = LogisticRegression(max_iter=50, C=1e-4).fit(x[:400], y[:400])
    return fit, x[400:], y[400:], fit.predict_proba(x[400:])


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return LinearRegression().fit(x[:150], y[:150]), x[150:], y[150:]


CLASSIFIERS = [
    {"method": "lac"},
    {"method": "aps"},
    {"method": "aps", "randomized": True},
    {"method": "raps"},
    {"method": "raps", "randomized": True, "penalty": 0.1},
]


@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
def test_coverage_over_splits(digits, options):
    """The mean over 100 splits is in the band that the theory gives."""
    *_, y, p = digits
    rows, rng, covered = len(y), np.random.default_rng(0), []
    for _ in range(100):
        order = rng.permutation(rows)
        fit, test = order[:500], order[500:]
        conformal = ConformalClassifier(alpha=0.1, **options).fit(p[fit], y[fit])
        covered.append(conformal.coverage(p[test], y[test]))
    low, high = binom.interval(0.999, 100 * len(test), 0.9) / np.float64(
        len(test) * 100
    )
    # A split's coverage also varies with its quantile.
    margin = 3 * np.std(covered) / 10
    assert low - margin < np.mean(covered) < high + margin + 1 / 501


def test_lac_is_mapie(digits):
    classification = pytest.importorskip("mapie.classification")
    fit, x, y, p = digits
    theirs = classification.SplitConformalClassifier(
        fit, confidence_level=0.9, conformity_score="lac"
    ).conformalize(x[:300], y[:300])
    _, sets = theirs.predict_set(x[300:])
    ours = ConformalClassifier("lac").fit(p[:300], y[:300]).predict(p[300:])
    np.testing.assert_array_equal(ours, sets[..., 0])


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_aps_and_raps_by_a_loop(digits, penalty):
    *_, y, p = digits

    def score(row, label):
        ranked = sorted(range(10), key=lambda k: -row[k])
        place = ranked.index(label)
        return sum(row[k] for k in ranked[: place + 1]) + penalty * max(place - 1, 0)

    scores = sorted(
        score(row, label) for row, label in zip(p[:99], y[:99], strict=True)
    )
    threshold = scores[89]  # the 90th of 99: ceil(100 * 0.9)
    expected = [[score(row, k) <= threshold for k in range(10)] for row in p[99:150]]
    method = {"penalty": penalty, "free_classes": 2, "method": "raps"}
    ours = ConformalClassifier(**method).fit(p[:99], y[:99])
    np.testing.assert_array_equal(ours.predict(p[99:150]), expected)
    if not penalty:
        plain = ConformalClassifier("aps").fit(p[:99], y[:99])
        np.testing.assert_array_equal(plain.predict(p[99:150]), expected)


def test_class_conditional_covers_each_class():
    rng = np.random.default_rng(0)
    y = rng.choice(3, p=[0.8, 0.1, 0.1], size=30000)
    z = np.eye(3)[y] + rng.normal(size=(30000, 3)) + [1, 0, 0]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    half = slice(15000), slice(15000, None)

    def by_class(**options):
        conformal = ConformalClassifier("lac", **options).fit(p[half[0]], y[half[0]])
        sets = conformal.predict(p[half[1]])
        return [sets[y[half[1]] == k, k].mean() for k in range(3)]

    assert min(by_class()) < 0.8
    np.testing.assert_allclose(by_class(class_conditional=True), 0.9, atol=0.03)


def test_groups_are_covered_each():
    rng = np.random.default_rng(0)
    groups = rng.choice(["calm", "wild"], size=20000)
    y = rng.normal(size=20000) * np.where(groups == "wild", 5, 1)
    mean = np.zeros(20000)
    fit, test = slice(10000), slice(10000, None)
    grouped = ConformalRegressor().fit(mean[fit], y[fit], groups=groups[fit])
    low, high = grouped.predict(mean[test], groups=groups[test])
    inside = (low <= y[test]) & (y[test] <= high)
    for name, width in (("calm", 1.645), ("wild", 5 * 1.645)):
        here = groups[test] == name
        np.testing.assert_allclose(inside[here].mean(), 0.9, atol=0.02)
        np.testing.assert_allclose(high[here], width, rtol=0.05)
    with pytest.raises(ValueError, match=r"`groups` must be one of \['calm', 'wild'\]"):
        grouped.predict(mean[:1], groups=["new"])


def test_absolute_is_mapie(diabetes):
    regression = pytest.importorskip("mapie.regression")
    fit, x, y = diabetes
    theirs = regression.SplitConformalRegressor(fit, confidence_level=0.9)
    _, bounds = theirs.conformalize(x[:150], y[:150]).predict_interval(x[150:])
    ours = ConformalRegressor("absolute").fit(fit.predict(x[:150]), y[:150])
    low, high = ours.predict(fit.predict(x[150:]))
    np.testing.assert_allclose(low, bounds[:, 0, 0])
    np.testing.assert_allclose(high, bounds[:, 1, 0])


def test_cqr_is_mapie(diabetes):
    regression = pytest.importorskip("mapie.regression")
    _, x, y = diabetes
    x_all, y_all = load_diabetes(return_X_y=True)
    models = [
        QuantileRegressor(quantile=q, alpha=0).fit(x_all[:150], y_all[:150])
        for q in (0.05, 0.95, 0.5)
    ]
    theirs = regression.ConformalizedQuantileRegressor(
        models, confidence_level=0.9, prefit=True
    ).conformalize(x[:150], y[:150])
    _, bounds = theirs.predict_interval(x[150:], symmetric_correction=True)
    outputs = [model.predict(x) for model in models[:2]]
    ours = ConformalRegressor("cqr").fit([part[:150] for part in outputs], y[:150])
    low, high = ours.predict([part[150:] for part in outputs])
    np.testing.assert_allclose(low, bounds[:, 0, 0])
    np.testing.assert_allclose(high, bounds[:, 1, 0])
    both = np.stack(outputs, axis=1)
    again = ConformalRegressor("cqr").fit(both[:150], y[:150]).predict(both[150:])
    np.testing.assert_array_equal(again, (low, high))


@pytest.mark.parametrize("method", ["absolute", "normalized", "cqr"])
def test_regression_coverage_over_splits(diabetes, method):
    fit, x, y = diabetes
    mean, std = fit.predict(x), 1 + np.abs(x[:, 2]) * 20
    outputs = {
        "absolute": (mean,),
        "normalized": (mean, std),
        "cqr": (mean - std, mean + std),
    }[method]
    rng, covered = np.random.default_rng(0), []
    for _ in range(100):
        order = rng.permutation(len(y))
        some, rest = order[:150], order[150:]

        def of(rows):
            parts = [part[rows] for part in outputs]
            return parts if len(parts) > 1 else parts[0]

        conformal = ConformalRegressor(method).fit(of(some), y[some])
        covered.append(conformal.coverage(of(rest), y[rest]))
    margin = 3 * np.std(covered) / 10
    assert 0.9 - margin < np.mean(covered) < 0.9 + 1 / 151 + margin


def prediction(mean, std):
    """What `mc_predict` returns, of these."""
    return MCPrediction(mean, std, None, None, None, 10)


def test_a_monte_carlo_prediction_is_taken_as_it_is():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(400, 2)), rng.uniform(0.5, 3, (400, 2))
    y = mean + std * rng.normal(size=(400, 2))
    mc = prediction(mean, std)
    conformal = ConformalRegressor("normalized").fit(mc, y)
    low, high = conformal.predict((mean, std))
    # One width for each output, in units of the standard deviation.
    widths = (high - mean) / std
    np.testing.assert_allclose(widths, np.broadcast_to(widths[0], widths.shape))
    np.testing.assert_allclose(widths[0], 1.645, atol=0.25)
    assert (low < high).all()
    p = rng.dirichlet(np.ones(3), 400)
    labels = p.argmax(1)
    sets = ConformalClassifier("lac").fit(prediction(p, p), labels).predict(p)
    assert sets.shape == (400, 3)


def test_sigmoid_outputs_are_two_classes():
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    y = (rng.random(2000) < p).astype(int)
    conformal = ConformalClassifier("lac").fit(p[:1000, None], y[:1000, None])
    assert conformal.predict(p).shape == (2000, 2)
    np.testing.assert_allclose(conformal.coverage(p[1000:], y[1000:]), 0.9, atol=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConformalClassifier("best"), r"method='best'"),
        (lambda: ConformalClassifier(alpha=1), r"alpha=1"),
        (lambda: ConformalRegressor(alpha=0), r"alpha=0"),
        (lambda: ConformalClassifier().predict([[1.0, 0]]), "`fit` must come first"),
        (lambda: ConformalRegressor().predict([1.0]), "`fit` must come first"),
        (lambda: ConformalClassifier().fit([[2.5, -1.5]] * 9, [0] * 9), "outputs=2.5"),
        (lambda: ConformalClassifier().fit([[1.0, 0]] * 8, [0] * 8), "at least 9 rows"),
        (lambda: ConformalClassifier().fit([[1.0, 0]] * 9, [2] * 9), "y_true=2"),
        (lambda: ConformalRegressor().fit([1.0] * 9, [np.nan] * 9), "`y` must be fini"),
        (lambda: ConformalRegressor().fit([1.0] * 9, [1.0] * 8), r"y=\(8,\)"),
        (lambda: ConformalRegressor("cqr").fit([1.0] * 9, [1.0] * 9), "`outputs` must"),
        (
            lambda: ConformalRegressor("normalized").fit(([1.0], [0.0]), [1.0]),
            "deviations > 0",
        ),
        (
            lambda: ConformalClassifier(class_conditional=True).fit(
                [[0.5, 0.5]] * 30, [0] * 30
            ),
            "labels of every class",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
