"""How well probabilities agree with outcomes; plain NumPy."""

from dataclasses import dataclass

import numpy as np

from keras_trainkit._checks import check_integer, reject


def nll(y_true: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log likelihood of the true classes, in nats.

    Args:
        y_true: Integer labels, `(rows,)`.
        probabilities: `(rows, classes)`, each row sums to 1.

    Returns:
        The mean of `-log p(true class)`, lower is better; probabilities below the
        smallest float32 count as that.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> round(kt.uncertainty.nll(np.array([0, 1]), np.full((2, 2), 0.5)), 4)
        0.6931
    """
    labels, p = _checked(y_true, probabilities)
    right = p[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def brier_score(y_true: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the one-hot truth.

    Args:
        y_true: Integer labels, `(rows,)`.
        probabilities: `(rows, classes)`, each row sums to 1.

    Returns:
        A number in `[0, 2]`, lower is better.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> kt.uncertainty.brier_score(np.array([0]), np.array([[0.5, 0.5]]))
        0.5

    Reference:
        G. Brier, Verification of Forecasts Expressed in Terms of Probability (1950).
    """
    labels, p = _checked(y_true, probabilities)
    truth = np.eye(p.shape[1])[labels]
    return float(((p - truth) ** 2).sum(1).mean())


def expected_calibration_error(
    y_true: np.ndarray, probabilities: np.ndarray, num_bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over bins of equal width.

    The rows are sorted into `num_bins` bins `(k/n, (k+1)/n]` by the largest
    probability; the gaps are weighted by the rows of a bin.

    Args:
        y_true: Integer labels, `(rows,)`.
        probabilities: `(rows, classes)`, each row sums to 1.
        num_bins: Number of bins.

    Returns:
        A number in `[0, 1]`, lower is better.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.75, 0.25]] * 4)
        >>> kt.uncertainty.expected_calibration_error(np.array([0, 0, 0, 1]), p)
        0.0
        >>> kt.uncertainty.expected_calibration_error(np.array([0, 0, 1, 1]), p)
        0.25

    Reference:
        C. Guo et al., On Calibration of Modern Neural Networks (2017),
        arXiv:1706.04599, equation 3.
    """
    bins, confidence, right = _binned(y_true, probabilities, num_bins)
    gaps = np.bincount(bins, right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(right))


def adaptive_calibration_error(
    y_true: np.ndarray, probabilities: np.ndarray, num_bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over bins of as many rows each.

    As `expected_calibration_error`, but the rows are sorted by the largest probability
    and cut into `num_bins` parts that differ by one row at most, so that no bin is
    empty and none has most of the rows.

    Args:
        y_true: Integer labels, `(rows,)`.
        probabilities: `(rows, classes)`, each row sums to 1.
        num_bins: Number of bins.

    Returns:
        A number in `[0, 1]`, lower is better.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.75, 0.25], [0.75, 0.25], [1.0, 0.0], [1.0, 0.0]])
        >>> labels = np.array([0, 1, 0, 0])
        >>> kt.uncertainty.adaptive_calibration_error(labels, p, num_bins=2)
        0.125

    Reference:
        K. Nguyen and B. O'Connor, Posterior Calibration and Exploratory Analysis for
        Natural Language Processing Models (2015), arXiv:1508.05154, section 3.2.
    """
    labels, p = _checked(y_true, probabilities)
    check_integer("num_bins", num_bins, minimum=1)
    order = np.argsort(p.max(1), kind="stable")
    surplus = (p.argmax(1) == labels)[order] - p.max(1)[order]
    parts = np.array_split(surplus, min(num_bins, len(labels)))
    return float(sum(abs(part.sum()) for part in parts) / len(labels))


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy over confidence, bin by bin.

    Attributes:
        confidence: Mean largest probability in each bin, `(bins,)`; NaN where empty.
        accuracy: Fraction of right rows in each bin, `(bins,)`; NaN where empty.
        count: Number of rows in each bin, `(bins,)`.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability_curve(
    y_true: np.ndarray, probabilities: np.ndarray, num_bins: int = 15
) -> ReliabilityCurve:
    """How often the rows of each confidence are right.

    The bins are those of `expected_calibration_error`, which is the mean of
    `|accuracy - confidence|` weighted by `count`.

    Args:
        y_true: Integer labels, `(rows,)`.
        probabilities: `(rows, classes)`, each row sums to 1.
        num_bins: Number of bins.

    Returns:
        A `ReliabilityCurve`, for `kt.plots.reliability`.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.75, 0.25]] * 4)
        >>> curve = kt.uncertainty.reliability_curve(np.array([0, 0, 1, 1]), p, 2)
        >>> curve.accuracy.tolist(), curve.confidence.tolist(), curve.count.tolist()
        ([nan, 0.5], [nan, 0.75], [0, 4])

    Reference:
        C. Guo et al., On Calibration of Modern Neural Networks (2017),
        arXiv:1706.04599, section 2.
    """
    bins, confidence, right = _binned(y_true, probabilities, num_bins)
    count = np.bincount(bins, minlength=num_bins)
    sums = (
        np.bincount(bins, values, minlength=num_bins) for values in (confidence, right)
    )
    with np.errstate(invalid="ignore"):
        mean_confidence, accuracy = (total / count for total in sums)
    return ReliabilityCurve(mean_confidence, accuracy, count)


class TemperatureScaling:
    """Calibrate a classifier by one number: `softmax(logits / temperature)`.

    `fit` chooses the temperature with the lowest negative log likelihood on data that
    the model was not trained on. The predicted classes stay as they are.

    Attributes:
        temperature_: The temperature, after `fit`; above 1 where the model was too
            sure.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> logits = np.array([[4.0, 0.0]] * 4)  # 98% sure, and right in 3 of 4
        >>> scaling = kt.uncertainty.TemperatureScaling().fit(logits, [0, 0, 0, 1])
        >>> scaling.predict_proba(logits)[0].round(3).tolist()
        [0.75, 0.25]

    Reference:
        C. Guo et al., On Calibration of Modern Neural Networks (2017),
        arXiv:1706.04599, section 4.2.
    """

    def fit(self, logits: np.ndarray, y_true: np.ndarray) -> "TemperatureScaling":
        """Choose the temperature.

        Args:
            logits: What the softmax takes, `(rows, classes)`; the logarithms of
                probabilities will do.
            y_true: Integer labels, `(rows,)`.

        Returns:
            The object itself.

        Raises:
            ValueError: If the arrays do not fit, or the logits are not finite, or
                have nothing to do with the labels, so that no temperature is best.
        """
        z = _logits(logits)
        labels, _ = _checked(y_true, _softmax(z))
        right = z[np.arange(len(z)), labels]

        def slope(scale):
            """Of the likelihood in 1 / temperature, where it is convex."""
            return float(((_softmax(scale * z) * z).sum(1) - right).mean())

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
        return self

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        """The calibrated probabilities, `(rows, classes)`.

        Args:
            logits: As in `fit`.

        Raises:
            ValueError: If `fit` was not called.
        """
        if not hasattr(self, "temperature_"):
            raise ValueError("`fit` must come first. Received: temperature_=None")
        return _softmax(_logits(logits) / self.temperature_)


def rejection_curve(
    y_true: np.ndarray, probabilities: np.ndarray, uncertainty: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of what is left when the least certain rows are put aside.

    Args:
        y_true: Integer labels, `(rows,)`.
        probabilities: `(rows, classes)`, each row sums to 1.
        uncertainty: A number for each row, larger where less certain, such as an
            `MCPrediction`'s `predictive_entropy`; by default 1 less the largest
            probability.

    Returns:
        The rejected fractions `0, 1/n, ..., (n - 1)/n`, and the accuracy of the rest at
        each. Of rows that are equally uncertain the last are rejected first.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> rejected, accuracy = kt.uncertainty.rejection_curve(np.array([0, 1]), p)
        >>> rejected.tolist(), accuracy.tolist()
        ([0.0, 0.5], [0.5, 1.0])

    Reference:
        M. Nadeem et al., Accuracy-Rejection Curves (2010), section 2.
    """
    labels, p = _checked(y_true, probabilities)
    doubt = 1 - p.max(1) if uncertainty is None else np.asarray(uncertainty, float)
    if doubt.shape != labels.shape or not np.isfinite(doubt).all():
        reject("uncertainty", doubt.shape, f"{len(labels)} finite numbers")
    right = (p.argmax(1) == labels)[np.argsort(doubt, kind="stable")]
    rows = len(labels)
    accuracy = np.cumsum(right) / np.arange(1, rows + 1)
    return np.arange(rows) / rows, accuracy[::-1]


def ood_auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """How well uncertainty tells foreign inputs from familiar ones.

    Args:
        inside: The uncertainty of inputs like the training data, `(rows,)`.
        outside: The uncertainty of inputs that are not, `(other_rows,)`.

    Returns:
        The area under the receiver operating characteristic: the probability that an
        outside input is less certain than an inside one, ties counted half. 1 is
        perfect, 0.5 is chance.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> kt.uncertainty.ood_auroc(np.array([0.1, 0.2]), np.array([0.2, 0.9]))
        0.875

    Reference:
        D. Hendrycks and K. Gimpel, A Baseline for Detecting Misclassified and
        Out-of-Distribution Examples (2017), arXiv:1610.02136, section 2.
    """
    scores = []
    for name, values in (("inside", inside), ("outside", outside)):
        array = np.asarray(values, float)
        if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
            reject(name, array.shape, "a vector of finite numbers")
        scores.append(np.sort(array))
    low, high = scores
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.sum() / 2 / (len(low) * len(high)))


def _binned(y_true, probabilities, num_bins) -> tuple[np.ndarray, ...]:
    """The bin, the confidence and whether it is right, of each row."""
    labels, p = _checked(y_true, probabilities)
    check_integer("num_bins", num_bins, minimum=1)
    confidence = p.max(1)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return bins, confidence, p.argmax(1) == labels


def _logits(logits) -> np.ndarray:
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or not np.isfinite(z).all():
        reject("logits", z.shape, "finite numbers of shape (rows, classes)")
    return z - z.max(1, keepdims=True)


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _checked(y_true, probabilities) -> tuple[np.ndarray, np.ndarray]:
    labels, p = np.asarray(y_true), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not len(p) or not np.allclose(p.sum(1), 1, atol=1e-3):
        reject("probabilities", p.shape, "(rows, classes) with rows that sum to 1")
    if labels.shape != (len(p),) or not np.issubdtype(labels.dtype, np.integer):
        reject("y_true", labels.shape, f"{len(p)} integer labels")
    if labels.min() < 0 or labels.max() >= p.shape[1]:
        reject("y_true", int(labels.max()), f"in [0, {p.shape[1]})")
    return labels, p
