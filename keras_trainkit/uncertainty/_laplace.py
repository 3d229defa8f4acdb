"""The Laplace approximation of the last layer, in closed form."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_positive, reject
from keras_trainkit._model.kernels import without_kernels
from keras_trainkit.uncertainty._head import body, check_head, last_activation
from keras_trainkit.uncertainty._outcomes import sigmoid, softmax
from keras_trainkit.uncertainty._prediction import MCPrediction, surprise

_TASKS = ("classification", "binary", "regression")
# Number of rows to process at once if each has its own matrix.
_ROWS = 256


class LastLayerLaplace:
    """Laplace approximation of the last layer of a trained model.

    The weights of the last `Dense` layer have a normal distribution around their
    trained values, whose inverse covariance is the curvature of the loss there plus the
    prior's; all other layers are unchanged. Everything is in closed form: one pass
    computes the features, and a few matrix products the rest. The model needs no
    dropout and is not retrained. For regression this is exact Bayesian linear
    regression on the features, which is equivalent to a Gaussian process.

    Args:
        model: A Sequential or Functional model that ends in a `Dense` layer, with one
            output of `(rows, outputs)`. It is not changed.
        prior_precision: The inverse variance of each weight before the data; by default
            the one with the largest marginal likelihood.
        noise_std: Of regression: the standard deviation of the noise in the targets, a
            number or one for each output; by default that of the residuals in `fit`.
        structure: Of classification: `"kron"` approximates the curvature by a
            Kronecker product, whose size is that of the features squared plus that of
            the classes squared; `"full"` has all of it, which is
            `((features + 1) * classes)` squared.
        task: `"classification"` (softmax, or logits of one), `"binary"` (sigmoid, or
            logits of one) or `"regression"`. By default inferred from the last
            activation; regression if there is none.

    Attributes:
        prior_precision_: The prior precision, after `fit`.
        noise_std_: The standard deviations of the noise, `(outputs,)`, after `fit`;
            None except for regression.

    Raises:
        ValueError: If an argument is wrong, or the model does not end in a `Dense`
            layer.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> x = np.linspace(-1, 1, 50)[:, None]
        >>> y = 0.1 * np.random.default_rng(0).normal(size=(50, 1))
        >>> model.set_weights([np.zeros((1, 1)), np.zeros(1)])
        >>> laplace = kt.uncertainty.LastLayerLaplace(model, prior_precision=1.0)
        >>> near, far = laplace.fit(x, y).predict(np.array([[0.0], [10.0]])).std
        >>> bool(far > 5 * near)
        True

    Reference:
        E. Daxberger et al., Laplace Redux (2021), arXiv:2106.14806, sections 2 and 3;
        the probit approximation: D. MacKay, The Evidence Framework Applied to
        Classification Networks (1992), equation 10.
    """

    def __init__(
        self,
        model: keras.Model,
        prior_precision: float | None = None,
        noise_std: Any = None,
        *,
        structure: str = "kron",
        task: str | None = None,
    ):
        dense, behind = check_head(model)
        if reason := without_kernels(dense):
            reject("model", f"{dense.name}, which {reason}", "with a plain last layer")
        if len(model.outputs[0].shape) != 2:
            reject("model", model.outputs[0].shape, "one with outputs (rows, outputs)")
        if task is not None:
            check_choice("task", task, _TASKS)
        ends_in = last_activation(dense, behind)
        found = {"softmax": "classification", "sigmoid": "binary"}.get(ends_in)
        if None not in (found, task) and found != task:
            reject("task", task, f'"{found}", since the model ends in {ends_in}')
        self.task = found or task or "regression"
        self.structure = check_choice("structure", structure, ("kron", "full"))
        if prior_precision is not None:
            check_positive("prior_precision", prior_precision)
        if noise_std is not None:
            if self.task != "regression":
                reject("noise_std", noise_std, f"None for {self.task}")
            for std in np.ravel(noise_std):
                check_positive("noise_std", std)
            if np.shape(noise_std) not in ((), (1,), (dense.units,)):
                expected = f"a number or {dense.units} of them"
                reject("noise_std", noise_std, expected)
        self.prior_precision, self.noise_std = prior_precision, noise_std
        self._model, self._dense = model, dense

    def fit(self, x: Any, y: Any = None) -> Self:
        """Compute the curvature on training data.

        Args:
            x: The inputs that the model was trained on, as for `model.predict`.
            y: The targets, `(rows, outputs)` or `(rows,)`; required for regression
                without `noise_std`, otherwise unused, because the curvature of the
                other losses does not depend on them.

        Returns:
            The object itself.

        Raises:
            ValueError: If the targets are missing or do not match the outputs.
        """
        # Copies, because the model may be trained further.
        self._body = body(self._model)
        weights = keras.ops.convert_to_numpy(self._dense.kernel).astype(np.float64)
        if self._dense.bias is not None:
            bias = keras.ops.convert_to_numpy(self._dense.bias).astype(np.float64)
            weights = np.vstack([weights, bias])
        self._weights = weights
        features = self._features(x)
        outputs = features @ weights
        self.noise_std_ = None
        if self.task == "regression":
            self.noise_std_ = self._noise(outputs, y)
            scale = np.broadcast_to(1 / self.noise_std_**2, outputs.shape)
            self._curvature: Any = _Independent(features, scale)
        elif self.task == "binary":
            p = sigmoid(outputs)
            self._curvature = _Independent(features, p * (1 - p))
        else:
            kind = _Kron if self.structure == "kron" else _Full
            self._curvature = kind(features, softmax(outputs))
        self.prior_precision_ = self.prior_precision or _evidence_maximum(
            self._curvature.eigenvalues, float((weights**2).sum())
        )
        return self

    def predict(self, x: Any) -> MCPrediction:
        """Predict, with the uncertainty of the last layer.

        Args:
            x: As for `model.predict`.

        Returns:
            An `MCPrediction` with no samples. For classification its `mean` is the
            probit approximation of the mean probabilities, its `std` the standard
            deviation of the probabilities to first order, and `predictive_entropy` the
            entropy of the mean. For regression `mean` is what the model outputs, `std`
            is due to the weights, and `aleatoric_std` is the noise.

        Raises:
            ValueError: If `fit` was not called.
        """
        if not hasattr(self, "prior_precision_"):
            raise ValueError("`fit` must come first. Received: no fit")
        features = self._features(x)
        outputs, tau = features @ self._weights, self.prior_precision_
        parts = [self._read(f, z, tau) for f, z in _slices(features, outputs)]
        mean, std = map(np.concatenate, zip(*parts, strict=True))
        entropy = noise = None
        if self.task == "binary":
            entropy = surprise(mean) + surprise(1 - mean)
        elif self.task == "classification":
            entropy = surprise(mean).sum(-1)
        elif self.noise_std_ is not None:
            noise = np.broadcast_to(self.noise_std_, mean.shape).copy()
        return MCPrediction(mean, std, entropy, None, None, 0, aleatoric_std=noise)

    def _read(self, features, outputs, tau) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the standard deviation of some rows' outputs."""
        if self.task == "regression":
            return outputs, np.sqrt(self._curvature.variance(features, tau))
        if self.task == "binary":
            variance = self._curvature.variance(features, tau)
            p = sigmoid(outputs)
            mean = sigmoid(outputs / np.sqrt(1 + math.pi / 8 * variance))
            return mean, p * (1 - p) * np.sqrt(variance)
        covariance = self._curvature.covariance(features, tau)
        variance = np.einsum("nkk->nk", covariance)
        p = softmax(outputs)
        slope = p[:, :, None] * (np.eye(p.shape[1]) - p[:, None])
        std = np.sqrt(np.einsum("nkl,nlm,nkm->nk", slope, covariance, slope))
        return softmax(outputs / np.sqrt(1 + math.pi / 8 * variance)), std

    def _features(self, x: Any) -> np.ndarray:
        """Return the input of the last layer, with a 1 appended for its bias."""
        features = np.asarray(self._body.predict(x, verbose=0), np.float64)
        if len(self._weights) == features.shape[1]:
            return features
        return np.hstack([features, np.ones((len(features), 1))])

    def _noise(self, outputs: np.ndarray, y: Any) -> np.ndarray:
        if self.noise_std is not None:
            given = np.asarray(self.noise_std, np.float64).reshape(-1)
            return np.broadcast_to(given, outputs.shape[1:])
        if y is None:
            reject("y", y, "the targets, for regression without `noise_std`")
        truth = np.asarray(y, np.float64)
        if truth.size != outputs.size or len(truth) != len(outputs):
            reject("y", truth.shape, f"of shape {outputs.shape}")
        residuals = truth.reshape(outputs.shape) - outputs
        std = np.sqrt((residuals**2).mean(0))
        if not (np.isfinite(std).all() and std.min() > 0):
            reject("y", std.tolist(), "finite, with residuals that are not all 0")
        return std


def _slices(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    for start in range(0, len(arrays[0]), _ROWS):
        yield tuple(array[start : start + _ROWS] for array in arrays)


def _evidence_maximum(eigenvalues: np.ndarray, squares: float) -> float:
    """Return the prior precision with the largest marginal likelihood.

    There the slope in its logarithm, `sum(l / (l + tau)) - tau * squares`, is 0; it
    falls in `tau`. D. MacKay, Bayesian Interpolation (1992), equation 4.8.
    """
    low, high = 1e-10, 1e10
    while high / low > 1 + 1e-10:
        middle = math.sqrt(low * high)
        slope = (eigenvalues / (eigenvalues + middle)).sum() - middle * squares
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


class _Eigen(NamedTuple):
    """Decompose a positive semi-definite matrix into eigenvalues and eigenvectors."""

    values: np.ndarray
    vectors: np.ndarray


def _eigen(matrix: np.ndarray) -> _Eigen:
    values, vectors = np.linalg.eigh(matrix)
    return _Eigen(np.maximum(values, 0), vectors)


class _Independent:
    """Curvature of outputs whose losses do not depend on each other's.

    Args:
        features: `(rows, features)`.
        slopes: The second derivative of each row's loss in each output,
            `(rows, outputs)`.
    """

    def __init__(self, features, slopes):
        self._parts = [
            _eigen((features * slope[:, None]).T @ features) for slope in slopes.T
        ]
        self.eigenvalues = np.concatenate([part.values for part in self._parts])

    def variance(self, features, tau):
        """Return the variance of each output, `(rows, outputs)`."""
        columns = [
            ((features @ vectors) ** 2 / (values + tau)).sum(1)
            for values, vectors in self._parts
        ]
        return np.stack(columns, axis=1)


class _Kron:
    """Curvature of a softmax: the Kronecker product of features' and classes'."""

    def __init__(self, features, p):
        # The mean over the rows of diag(p) - p p^T.
        mean = np.diag(p.mean(0)) - p.T @ p / len(p)
        self._left, self._right = _eigen(features.T @ features), _eigen(mean)
        self.eigenvalues = np.outer(self._left.values, self._right.values).ravel()

    def covariance(self, features, tau):
        """Of the logits, `(rows, classes, classes)`."""
        values = np.outer(self._left.values, self._right.values)
        along = (features @ self._left.vectors) ** 2 @ (1 / (values + tau))
        q = self._right.vectors
        return np.einsum("kb,nb,lb->nkl", q, along, q)


class _Full:
    """All of a softmax's curvature, in the order (class, feature)."""

    def __init__(self, features, p):
        size, classes = features.shape[1], p.shape[1]
        whole = np.empty((classes, size, classes, size))
        for k in range(classes):
            for m in range(classes):
                slope = p[:, k] * ((k == m) - p[:, m])
                whole[k, :, m] = (features * slope[:, None]).T @ features
        self._eigen = _eigen(whole.reshape(classes * size, -1))
        self.eigenvalues = self._eigen.values

    def covariance(self, features, tau):
        """Of the logits, `(rows, classes, classes)`."""
        values, vectors = self._eigen
        root = vectors / np.sqrt(values + tau)
        # (rows, classes, all): each row's features times those of each class.
        along = np.einsum("nd,kdp->nkp", features, _by_class(root, features))
        return np.einsum("nkp,nlp->nkl", along, along)


def _by_class(root, features):
    return root.reshape(-1, features.shape[1], root.shape[1])
