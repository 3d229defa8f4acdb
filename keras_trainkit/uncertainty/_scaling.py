"""Calibrate a classifier on held-out data, without retraining it."""

from typing import Any, Self

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._model.graph import rebuild
from keras_trainkit._model.kernels import without_kernels
from keras_trainkit.uncertainty._head import check_head, last_activation
from keras_trainkit.uncertainty._outcomes import (
    labels_of,
    probabilities_of,
    softmax,
)

# Smaller probabilities count as this.
_TINY = float(np.finfo(np.float32).tiny)


class _Scaling:
    """Base class of the calibrators: outputs in, outputs of the same shape out."""

    def fit(
        self, logits: Any = None, y_true: Any = None, *, probabilities: Any = None
    ) -> Self:
        """Fit to data that the model was not trained on.

        Args:
            logits: Inputs of the softmax, `(rows, ..., classes)`, or of the sigmoid,
                `(rows,)` or `(rows, 1)`.
            y_true: Labels or one-hot targets, as in `nll`.
            probabilities: The model's probabilities, instead of `logits`.

        Returns:
            The object itself.

        Raises:
            ValueError: If the arrays do not match or are not finite, or if there is no
                optimum.
        """
        z, shape = _rows(logits, probabilities)
        labels = labels_of(y_true, shape, z.shape, multi_label=False)
        self._fit(z, labels)
        self._classes = z.shape[1]
        return self

    def predict_proba(
        self, logits: Any = None, *, probabilities: Any = None
    ) -> np.ndarray:
        """Return the calibrated probabilities, in the shape of the argument.

        Args:
            logits: As in `fit`.
            probabilities: As in `fit`.

        Raises:
            ValueError: If `fit` was not called, or the outputs do not match it.
        """
        self._check_fitted()
        z, shape = _rows(logits, probabilities)
        if z.shape[1] != self._classes:
            reject("logits", shape, f"of {self._classes} classes, as in `fit`")
        p = self._predict(z)
        return p[:, 1].reshape(shape) if _is_binary(shape) else p.reshape(shape)

    def _check_fitted(self) -> None:
        if not hasattr(self, "_classes"):
            raise ValueError("`fit` must come first. Received: no fit")

    def _fit(self, z: np.ndarray, labels: np.ndarray) -> None:
        raise NotImplementedError

    def _predict(self, z: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class TemperatureScaling(_Scaling):
    """Temperature scaling: calibrate by one number, `softmax(logits / temperature)`.

    `fit` chooses the temperature with the lowest negative log likelihood on data that
    the model was not trained on. The predicted classes do not change.

    Attributes:
        temperature_: The temperature, after `fit`; above 1 if the model was
            overconfident.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> logits = np.array([[4.0, 0.0]] * 4)  # 98% sure, and right in 3 of 4
        >>> scaling = kt.uncertainty.TemperatureScaling().fit(logits, [0, 0, 0, 1])
        >>> scaling.predict_proba(logits)[0].round(3).tolist()
        [0.75, 0.25]
        >>> sure = np.full(4, 0.98)  # outputs of a sigmoid
        >>> scaling.fit(probabilities=sure, y_true=[1, 1, 1, 0])
        TemperatureScaling(temperature=3.54)

    Reference:
        C. Guo et al., On Calibration of Modern Neural Networks (2017),
        arXiv:1706.04599, section 4.2.
    """

    def __repr__(self) -> str:
        fitted = f"temperature={self.temperature_:.3g}" if self.__dict__ else ""
        return f"TemperatureScaling({fitted})"

    def fold_into(self, model: keras.Model) -> keras.Model:
        """Return a copy of a model whose outputs are calibrated, at no runtime cost.

        The weights of its last `Dense` layer are divided by the temperature, so an
        exported file is calibrated too.

        Args:
            model: The model whose outputs were passed to `fit`: Sequential or
                Functional, with one output that ends in a `Dense` layer and a softmax,
                a sigmoid or, for logits, nothing. It is not changed.

        Returns:
            The copy, not compiled.

        Raises:
            ValueError: If `fit` was not called, or the model does not end in this way.

        Examples:
            >>> import numpy as np, keras_trainkit as kt
            >>> model = kt.models.build_mlp((4,), num_classes=3)
            >>> x = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
            >>> p = model.predict(x, verbose=0)
            >>> y = np.where(np.arange(30) % 3, p.argmax(1), 0)
            >>> scaling = kt.uncertainty.TemperatureScaling()
            >>> calibrated = scaling.fit(probabilities=p, y_true=y).fold_into(model)
            >>> expected = scaling.predict_proba(probabilities=p)
            >>> np.allclose(calibrated.predict(x, verbose=0), expected, atol=1e-5)
            True
        """
        self._check_fitted()
        dense, behind = check_head(model)
        last_activation(dense, behind)
        if reason := without_kernels(dense):
            reject("model", f"{dense.name}, which {reason}", "with a plain last layer")
        copy, pairs = rebuild(model)
        for variable in pairs[dense].weights:
            scaled = keras.ops.convert_to_numpy(variable) / self.temperature_
            variable.assign(scaled)
        return copy

    def _fit(self, z, labels):
        z = z - z.max(1, keepdims=True)
        right = z[np.arange(len(z)), labels]

        def slope(scale):
            """Return the derivative in 1 / temperature, in which the loss is convex."""
            return float(((softmax(scale * z) * z).sum(1) - right).mean())

        low, high = 1e-4, 1e4
        if slope(low) >= 0 or slope(high) <= 0:
            raise ValueError(
                "`logits` must be right more often than chance, and wrong at times, on "
                f"`y_true`. Received: logits of shape {z.shape} for which no "
                f"temperature in [{1 / high:g}, {1 / low:g}] is best"
            )
        while high / low > 1 + 1e-12:
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        self.temperature_ = 1 / low

    def _predict(self, z):
        return softmax(z / self.temperature_)


class VectorScaling(_Scaling):
    """Vector scaling: two numbers per class, `softmax(scale * logits + bias)`.

    `fit` minimizes the negative log likelihood with SciPy's L-BFGS. Unlike a
    temperature it can change which class is the likeliest, and it corrects classes
    whose probabilities are too high overall.

    Attributes:
        scale_: The factor of each class, `(classes,)`, after `fit`.
        bias_: The offset of each class, `(classes,)`, after `fit`.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> logits = np.random.default_rng(0).normal(size=(200, 3))
        >>> labels = (logits + [0, 0, 1]).argmax(1)  # class 2 comes too seldom
        >>> labels[:20] = 0
        >>> scaling = kt.uncertainty.VectorScaling().fit(logits, labels)
        >>> bool(scaling.bias_.argmax() == 2)
        True

    Reference:
        C. Guo et al., On Calibration of Modern Neural Networks (2017),
        arXiv:1706.04599, section 4.2.
    """

    def _fit(self, z, labels):
        from scipy.optimize import minimize

        rows, classes = z.shape
        truth = np.eye(classes)[labels]

        def loss(parameters):
            scale, bias = np.split(parameters, 2)
            logits = scale * z + bias
            p = softmax(logits)
            shifted = logits - logits.max(1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            gap = (p - truth) / rows
            gradient = np.concatenate([(gap * z).sum(0), gap.sum(0)])
            return -(log_p * truth).sum() / rows, gradient

        start = np.concatenate([np.ones(classes), np.zeros(classes)])
        found = minimize(loss, start, jac=True, method="L-BFGS-B")
        if not np.isfinite(found.x).all():
            reject("logits", z.shape, "such that a scale and a bias are best")
        self.scale_, self.bias_ = np.split(found.x, 2)

    def _predict(self, z):
        return softmax(self.scale_ * z + self.bias_)


class IsotonicScaling(_Scaling):
    """Isotonic calibration: an increasing step function for each class.

    Each class's probability is mapped by scikit-learn's `IsotonicRegression`, one class
    against the others, and the rows are normalized to sum to 1. It needs a few thousand
    rows: with fewer it fits their noise.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> sure = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
        >>> scaling = kt.uncertainty.IsotonicScaling()
        >>> scaling.fit(probabilities=sure, y_true=[1, 1, 1, 0, 0, 1])
        ... # doctest: +ELLIPSIS
        <keras_trainkit...IsotonicScaling object at ...>
        >>> scaling.predict_proba(probabilities=sure).tolist()
        [0.75, 0.75, 0.75, 0.75, 0.5, 0.5]

    Reference:
        B. Zadrozny and C. Elkan, Transforming Classifier Scores into Accurate
        Multiclass Probability Estimates (2002), sections 3 and 4.
    """

    def _fit(self, z, labels):
        from sklearn.isotonic import IsotonicRegression

        self._steps = [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
                column, labels == k
            )
            for k, column in enumerate(softmax(z).T)
        ]

    def _predict(self, z):
        columns = zip(self._steps, softmax(z).T, strict=True)
        p = np.stack([step.predict(column) for step, column in columns], axis=1)
        totals = p.sum(1, keepdims=True)
        # If every class is at zero, nothing is known about the row.
        p = np.where(totals > 0, p, 1.0)
        return p / p.sum(1, keepdims=True)


def _is_binary(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 or shape[-1] == 1


def _rows(logits: Any, probabilities: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return logits of shape `(rows, classes)`, and the original shape."""
    if (logits is None) == (probabilities is None):
        expected = "given, or `probabilities`, and not both"
        reject("logits", type(logits).__name__, expected)
    if probabilities is not None:
        p, _ = probabilities_of(probabilities)
        return np.log(np.maximum(p, _TINY)), np.shape(probabilities)
    shape = np.shape(logits)
    # Only to check the arguments.
    probabilities_of(logits, from_logits=True, name="logits")
    z = np.asarray(logits, np.float64)
    if _is_binary(shape):
        z = z.reshape(-1)
        return np.stack([np.zeros_like(z), z], axis=1), shape
    return z.reshape(-1, shape[-1]), shape
