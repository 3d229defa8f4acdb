"""The last layer's Laplace approximation against Gaussian processes and differences."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

import keras_trainkit as kt
from keras_trainkit.uncertainty import LastLayerLaplace

TAU, NOISE = 0.7, 0.3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2)).astype("float32")
NEW = RNG.normal(size=(7, 2)).astype("float32") * 3


class Bent(layers.Layer):
    """Somebody's own layer, not registered."""

    def call(self, x):
        return keras.ops.sin(x) + 0.5 * x


def network(units, activation=None):
    inputs = keras.Input((2,))
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(4), Bent()])
    x = layers.Dropout(0.2)(inner(inputs))
    head = layers.Dense(units, activation, bias_initializer="normal")
    return keras.Model(inputs, head(x))


def features(model, x):
    found = keras.Model(model.input, model.layers[-1].input).predict(x, verbose=0)
    return np.hstack([found, np.ones((len(x), 1))]).astype("float64")


def weights(model):
    kernel, bias = (np.array(w, "float64") for w in model.layers[-1].get_weights())
    return np.vstack([kernel, bias])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def hessian(loss, w, h=1e-4):
    """By differences, in the flat order of `w`."""
    eye = h * np.eye(w.size).reshape(-1, *w.shape)
    return np.array(
        [
            [
                loss(w + a + b) - loss(w + a - b) - loss(w - a + b) + loss(w - a - b)
                for a in eye
            ]
            for b in eye
        ]
    ) / (4 * h * h)


def test_regression_is_a_gaussian_process():
    model = network(1)
    phi, new = features(model, X), features(model, NEW)
    y = np.sin(X.sum(1)) + NOISE * RNG.normal(size=40)
    # Its own 1 is the bias.
    kernel = ConstantKernel(1 / TAU) * DotProduct(1.0)
    process = GaussianProcessRegressor(kernel, alpha=NOISE**2, optimizer=None)
    mean, std = process.fit(phi[:, :4], y).predict(new[:, :4], return_std=True)
    # The network at the mode of its last weights.
    best = np.linalg.solve(phi.T @ phi + NOISE**2 * TAU * np.eye(5), phi.T @ y)
    model.layers[-1].set_weights([best[:4, None], best[4:]])
    found = LastLayerLaplace(model, TAU, NOISE).fit(X).predict(NEW)
    np.testing.assert_allclose(found.mean[:, 0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.std[:, 0], std, rtol=1e-4)
    np.testing.assert_array_equal(found.aleatoric_std, np.full((7, 1), NOISE))


def test_noise_and_prior_are_the_likeliest():
    model = network(2)
    phi, w = features(model, X), weights(model)
    y = phi @ w + RNG.normal(size=(40, 2)) * [0.1, 1]
    found = LastLayerLaplace(model).fit(X, y)
    noise = np.sqrt(((y - model.predict(X, verbose=0)) ** 2).mean(0))
    np.testing.assert_allclose(found.noise_std_, noise, rtol=1e-5)

    def evidence(tau):
        curvatures = [phi.T @ phi / s**2 + tau * np.eye(5) for s in noise]
        determinants = sum(np.linalg.slogdet(c)[1] for c in curvatures)
        return 10 * np.log(tau) - tau * (w**2).sum() - determinants

    grid = np.geomspace(0.01, 100, 20001)
    best = grid[np.argmax([evidence(tau) for tau in grid])]
    np.testing.assert_allclose(found.prior_precision_, best, rtol=1e-3)


def probit(z, covariance):
    variance = np.einsum("nkk->nk", covariance)
    return z / np.sqrt(1 + np.pi / 8 * variance)


def test_full_softmax_by_differences():
    model = network(3, "softmax")
    phi, new, w = features(model, X), features(model, NEW), weights(model)
    labels = RNG.integers(3, size=40)

    def loss(w):
        return -np.log(softmax(phi @ w)[np.arange(40), labels]).sum()

    posterior = np.linalg.inv(hessian(loss, w) + TAU * np.eye(15))
    jacobian = np.einsum("nd,km->nkdm", new, np.eye(3)).reshape(7, 3, 15)
    covariance = np.einsum("nkp,pq,nlq->nkl", jacobian, posterior, jacobian)
    z = new @ w
    found = LastLayerLaplace(model, TAU, structure="full").fit(X).predict(NEW)
    np.testing.assert_allclose(found.mean, softmax(probit(z, covariance)), atol=1e-4)
    slope = np.array(
        [
            (softmax(z + 1e-5 * e) - softmax(z - 1e-5 * e)).T / 2e-5 for e in np.eye(3)
        ]  # (l, k, n)
    )
    std = np.sqrt(np.einsum("lkn,nlm,mkn->nk", slope, covariance, slope))
    np.testing.assert_allclose(found.std, std, rtol=2e-3, atol=1e-5)
    entropy = -(found.mean * np.log(found.mean)).sum(1)
    np.testing.assert_allclose(found.predictive_entropy, entropy, rtol=1e-6)


def test_kronecker_is_exact_where_all_rows_are_alike():
    model = network(3, "softmax")
    same = np.repeat(X[:1], 20, axis=0)
    kron, full = (
        LastLayerLaplace(model, TAU, structure=name).fit(same).predict(NEW)
        for name in ("kron", "full")
    )
    np.testing.assert_allclose(kron.mean, full.mean, atol=1e-6)
    np.testing.assert_allclose(kron.std, full.std, atol=1e-6)


def test_binary_by_differences():
    model = network(1, "sigmoid")
    phi, new, w = features(model, X), features(model, NEW), weights(model)

    def loss(w):
        return np.logaddexp(0, phi @ w).sum()

    posterior = np.linalg.inv(hessian(loss, w) + TAU * np.eye(5))
    variance = np.einsum("nd,de,ne->n", new, posterior, new)
    mean = 1 / (1 + np.exp(-(new @ w)[:, 0] / np.sqrt(1 + np.pi / 8 * variance)))
    found = LastLayerLaplace(model, TAU).fit(X).predict(NEW)
    np.testing.assert_allclose(found.mean[:, 0], mean, atol=1e-4)


def test_it_is_of_the_model_as_it_was_fitted():
    model = network(3, "softmax")
    before = [w.copy() for w in model.get_weights()]
    laplace = LastLayerLaplace(model).fit(X)
    first = laplace.predict(NEW).mean
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # An output of the last layer can still be had, so it has no other calls.
    assert model.layers[-1].output is model.output
    model.set_weights([2 * w for w in before])
    np.testing.assert_array_equal(laplace.predict(NEW).mean, first)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LastLayerLaplace(network(2, "relu")), "last activation is softmax"),
        (
            lambda: LastLayerLaplace(network(2, "softmax"), task="binary"),
            '`task` must be "classification"',
        ),
        (lambda: LastLayerLaplace(network(2), -1.0), "`prior_precision` must be"),
        (lambda: LastLayerLaplace(network(2), 1.0, [0.1] * 3), "a number or 2"),
        (
            lambda: LastLayerLaplace(network(2, "softmax"), noise_std=0.1),
            "None for classification",
        ),
        (lambda: LastLayerLaplace(network(2)).fit(X), "the targets, for regression"),
        (
            lambda: LastLayerLaplace(network(2)).fit(X, X[:5]),
            r"`y` must be of shape \(40, 2\)",
        ),
        (lambda: LastLayerLaplace(network(2)).predict(X), "`fit` must come first"),
        (
            lambda: LastLayerLaplace(
                keras.Sequential([keras.Input((4, 1)), layers.Conv1D(2, 2)])
            ),
            "one output, which ends in a Dense layer. Received: model='Conv1D'",
        ),
        (
            lambda: LastLayerLaplace(
                keras.Sequential([keras.Input((4, 3)), layers.Dense(2)])
            ),
            r"one with outputs \(rows, outputs\)",
        ),
    ],
)
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_logits_have_a_task():
    given = network(3)
    p = LastLayerLaplace(given, TAU, task="classification").fit(X).predict(NEW)
    same = keras.Model(given.input, layers.Softmax()(given.output))
    expected = LastLayerLaplace(same, TAU).fit(X).predict(NEW)
    np.testing.assert_allclose(p.mean, expected.mean, rtol=1e-5)
    assert (
        kt.uncertainty.ConformalClassifier("lac", 0.3).fit(p, [0] * 7).predict(p).any()
    )
