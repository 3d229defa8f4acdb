"""How well probabilities agree with outcomes; plain NumPy."""

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

    Example:
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

    Example:
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

    Example:
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
    labels, p = _checked(y_true, probabilities)
    check_integer("num_bins", num_bins, minimum=1)
    confidence = p.max(1)
    right = p.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def _checked(y_true, probabilities) -> tuple[np.ndarray, np.ndarray]:
    labels, p = np.asarray(y_true), np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not len(p) or not np.allclose(p.sum(1), 1, atol=1e-3):
        reject("probabilities", p.shape, "(rows, classes) with rows that sum to 1")
    if labels.shape != (len(p),) or not np.issubdtype(labels.dtype, np.integer):
        reject("y_true", labels.shape, f"{len(p)} integer labels")
    if labels.min() < 0 or labels.max() >= p.shape[1]:
        reject("y_true", labels.max(), f"in [0, {p.shape[1]})")
    return labels, p
