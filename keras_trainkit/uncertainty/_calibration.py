"""Calibration errors and proper scores of probabilities; plain NumPy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_trainkit._checks import check_choice, check_integer
from keras_trainkit.uncertainty._outcomes import outcomes


def nll(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """Mean negative log likelihood of the true classes, in nats.

    Args:
        y_true: Labels `(rows,)` or `(rows, 1)`, integers or whole floats, or one-hot
            `(rows, classes)`; for segmentation `(rows, height, width)` and so on.
        probabilities: `(rows, classes)`, each row sums to 1, or sigmoid outputs
            `(rows,)` or `(rows, 1)`; more axes may lie between.
        from_logits: Whether `probabilities` are logits.
        multi_label: Whether the last axis has independent labels with sigmoid outputs.

    Returns:
        The mean of `-log p(true class)`, lower is better; probabilities below the
        smallest float32 count as that.

    Raises:
        ValueError: If rows are no probabilities, or the labels do not match them.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> round(kt.uncertainty.nll(np.array([0, 1]), np.full((2, 2), 0.5)), 4)
        0.6931
        >>> round(kt.uncertainty.nll(np.array([1, 0]), np.array([0.9, 0.2])), 4)
        0.1643
    """
    labels, p, _ = outcomes(
        y_true, probabilities, from_logits=from_logits, multi_label=multi_label
    )
    right = p[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def brier_score(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """Brier score: mean squared distance of the probabilities from one-hot labels.

    Args:
        y_true: As in `nll`.
        probabilities: As in `nll`.
        from_logits: Whether `probabilities` are logits.
        multi_label: Whether the last axis has independent labels with sigmoid outputs.

    Returns:
        A number in `[0, 2]`, lower is better. For sigmoid outputs the mean of
        `(p - y)^2`, in `[0, 1]`, as in scikit-learn.

    Raises:
        ValueError: As `nll` does.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> kt.uncertainty.brier_score(np.array([0]), np.array([[0.5, 0.5]]))
        0.5
        >>> kt.uncertainty.brier_score(np.array([0]), np.array([0.5]))
        0.25

    Reference:
        G. Brier, Verification of Forecasts Expressed in Terms of Probability (1950).
    """
    labels, p, binary = outcomes(
        y_true, probabilities, from_logits=from_logits, multi_label=multi_label
    )
    truth = np.eye(p.shape[1])[labels]
    return float(((p - truth) ** 2).sum(1).mean() / (2 if binary else 1))


def expected_calibration_error(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    num_bins: int = 15,
    *,
    norm: str = "l1",
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """Expected calibration error: gap of confidence and accuracy over equal bins.

    The rows are sorted into `num_bins` bins `(k/n, (k+1)/n]` by the largest
    probability, and the gaps are weighted by the rows in a bin. For sigmoid outputs the
    confidence is the probability of class 1, and the accuracy how often it is the
    class, as in torchmetrics.

    Args:
        y_true: As in `nll`.
        probabilities: As in `nll`.
        num_bins: Number of bins.
        norm: `"l1"`: the mean gap, the expected calibration error; `"l2"`: the root of
            the mean squared gap; `"max"`: the largest gap, the maximum calibration
            error.
        from_logits: Whether `probabilities` are logits.
        multi_label: Whether the last axis has independent labels with sigmoid outputs.

    Returns:
        A number in `[0, 1]`, lower is better.

    Raises:
        ValueError: As `nll` does, or if `norm` is none of the three.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.75, 0.25]] * 4)
        >>> kt.uncertainty.expected_calibration_error(np.array([0, 0, 0, 1]), p)
        0.0
        >>> kt.uncertainty.expected_calibration_error(np.array([0, 0, 1, 1]), p)
        0.25

    Reference:
        C. Guo et al., On Calibration of Modern Neural Networks (2017),
        arXiv:1706.04599, equations 3 and 5; the norms: A. Kumar, P. Liang and T. Ma,
        Verified Uncertainty Calibration (2019), arXiv:1909.10155, definition 2.1.
    """
    check_choice("norm", norm, ("l1", "l2", "max"))
    claimed, true = outcomes(
        y_true, probabilities, from_logits=from_logits, multi_label=multi_label
    ).confidence()
    return _error(claimed, true, num_bins, norm)


def classwise_calibration_error(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    num_bins: int = 15,
    *,
    from_logits: bool = False,
) -> float:
    """Expected calibration error of each class's probability, and their mean.

    The expected calibration error considers only the likeliest class; this one also
    notices a rare class whose small probabilities are too small.

    Args:
        y_true: As in `nll`.
        probabilities: `(rows, ..., classes)`, each row sums to 1.
        num_bins: Number of bins.
        from_logits: Whether `probabilities` are logits.

    Returns:
        A number in `[0, 1]`, lower is better.

    Raises:
        ValueError: As `nll` does.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.75, 0.25]] * 4)
        >>> kt.uncertainty.classwise_calibration_error(np.array([0, 0, 1, 1]), p)
        0.25

    Reference:
        M. Kull et al., Beyond Temperature Scaling (2019), arXiv:1910.12656, equation 6.
    """
    labels, p, _ = outcomes(y_true, probabilities, from_logits=from_logits)
    errors = [_error(p[:, k], labels == k, num_bins, "l1") for k in range(p.shape[1])]
    return float(np.mean(errors))


def adaptive_calibration_error(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    num_bins: int = 15,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """Mean gap between confidence and accuracy over bins with equal numbers of rows.

    Like `expected_calibration_error`, but the rows are sorted by confidence and split
    into `num_bins` parts whose sizes differ by at most one row, so no bin is empty and
    none has most of the rows.

    Args:
        y_true: As in `nll`.
        probabilities: As in `nll`.
        num_bins: Number of bins.
        from_logits: Whether `probabilities` are logits.
        multi_label: Whether the last axis has independent labels with sigmoid outputs.

    Returns:
        A number in `[0, 1]`, lower is better.

    Raises:
        ValueError: As `nll` does.

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
    check_integer("num_bins", num_bins, minimum=1)
    claimed, true = outcomes(
        y_true, probabilities, from_logits=from_logits, multi_label=multi_label
    ).confidence()
    surplus = (true - claimed)[np.argsort(claimed, kind="stable")]
    parts = np.array_split(surplus, min(num_bins, len(surplus)))
    return float(sum(abs(part.sum()) for part in parts) / len(surplus))


@dataclass(frozen=True)
class ReliabilityCurve:
    """A reliability curve: accuracy and confidence in each bin.

    Attributes:
        confidence: Mean confidence in each bin, `(bins,)`; NaN where empty.
        accuracy: Fraction of right rows in each bin, `(bins,)`; NaN where empty.
        count: Number of rows in each bin, `(bins,)`.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.random.default_rng(0).dirichlet([1, 1, 1], size=200)
        >>> curve = kt.uncertainty.reliability_curve(p.argmax(-1), p)
        >>> int(curve.count.sum())
        200
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability_curve(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    num_bins: int = 15,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
) -> ReliabilityCurve:
    """Compute the accuracy of the predictions at each level of confidence.

    The bins are those of `expected_calibration_error`, which is the mean of
    `|accuracy - confidence|` weighted by `count`.

    Args:
        y_true: As in `nll`.
        probabilities: As in `nll`.
        num_bins: Number of bins.
        from_logits: Whether `probabilities` are logits.
        multi_label: Whether the last axis has independent labels with sigmoid outputs.

    Returns:
        A `ReliabilityCurve`, for `kt.plots.reliability`.

    Raises:
        ValueError: As `nll` does.

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
    claimed, true = outcomes(
        y_true, probabilities, from_logits=from_logits, multi_label=multi_label
    ).confidence()
    bins = _bins(claimed, num_bins)
    count = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, values, minlength=num_bins) for values in (claimed, true))
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (total / count for total in sums)
    return ReliabilityCurve(confidence, accuracy, count)


def _bins(claimed: np.ndarray, num_bins: Any) -> np.ndarray:
    check_integer("num_bins", num_bins, minimum=1)
    return np.clip(np.ceil(claimed * num_bins).astype(int) - 1, 0, num_bins - 1)


def _error(claimed: np.ndarray, true: np.ndarray, num_bins: int, norm: str) -> float:
    bins = _bins(claimed, num_bins)
    count = np.bincount(bins, minlength=num_bins)
    gaps = np.abs(np.bincount(bins, true - claimed, minlength=num_bins))
    filled = count > 0
    gaps, share = gaps[filled] / count[filled], count[filled] / len(bins)
    if norm == "max":
        return float(gaps.max())
    if norm == "l2":
        return float(np.sqrt((share * gaps**2).sum()))
    return float((share * gaps).sum())
