"""Evaluate uncertainty: rejecting rows, and detecting out-of-distribution inputs."""

from typing import Any

import numpy as np

from keras_trainkit._checks import check_numbers, reject
from keras_trainkit.uncertainty._outcomes import outcomes


def rejection_curve(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    uncertainty: np.ndarray | None = None,
    *,
    from_logits: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the accuracy of the remaining rows when the least certain are rejected.

    Args:
        y_true: As in `nll`.
        probabilities: As in `nll`.
        uncertainty: A number for each row, larger where less certain, such as an
            `MCPrediction`'s `predictive_entropy`; by default 1 minus the largest
            probability.
        from_logits: Whether `probabilities` are logits.

    Returns:
        The rejected fractions `0, 1/n, ..., (n - 1)/n`, and the accuracy of the rest at
        each. Equally uncertain rows are rejected in random order; the accuracy is the
        expected one.

    Raises:
        ValueError: As `nll` does, or if `uncertainty` is not a finite number for each
            row.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> rejected, accuracy = kt.uncertainty.rejection_curve(np.array([0, 1]), p)
        >>> rejected.tolist(), accuracy.tolist()
        ([0.0, 0.5], [0.5, 1.0])

    Reference:
        M. Nadeem et al., Accuracy-Rejection Curves (2010), section 2.
    """
    found = outcomes(y_true, probabilities, from_logits=from_logits)
    right = found.right()
    given = 1 - found.p.max(1) if uncertainty is None else uncertainty
    doubt = np.ravel(check_numbers("uncertainty", given))
    if doubt.shape != right.shape or not np.isfinite(doubt).all():
        reject("uncertainty", doubt.shape, f"{len(right)} finite numbers")
    _, tie, size = np.unique(doubt, return_inverse=True, return_counts=True)
    # Tied rows each count as their mean: the expectation over a random order.
    expected = (np.bincount(tie, right) / size)[tie]
    kept = expected[np.argsort(doubt, kind="stable")]
    rows = len(right)
    accuracy = np.cumsum(kept) / np.arange(1, rows + 1)
    return np.arange(rows) / rows, accuracy[::-1]


def aurc(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    uncertainty: np.ndarray | None = None,
    *,
    from_logits: bool = False,
) -> float:
    """Area under the risk-coverage curve: the mean error over all rejection rates.

    Args:
        y_true: As in `nll`.
        probabilities: As in `nll`.
        uncertainty: As in `rejection_curve`.
        from_logits: Whether `probabilities` are logits.

    Returns:
        A number in `[0, 1]`, lower is better. It does not depend on the order of rows
        that are equally uncertain.

    Raises:
        ValueError: As `rejection_curve` does.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> kt.uncertainty.aurc(np.array([0, 1]), p)
        0.25

    Reference:
        Y. Geifman, G. Uziel and R. El-Yaniv, Bias-Reduced Uncertainty Estimation for
        Deep Neural Classifiers (2019), arXiv:1805.08206, section 2.
    """
    _, accuracy = rejection_curve(
        y_true, probabilities, uncertainty, from_logits=from_logits
    )
    return float(1 - accuracy.mean())


def ood_auroc(inside: Any, outside: Any) -> float:
    """Measure how well uncertainty separates out-of-distribution from familiar inputs.

    Args:
        inside: The uncertainty of inputs like the training data, `(rows,)`.
        outside: The uncertainty of out-of-distribution inputs, `(other_rows,)`.

    Returns:
        The area under the receiver operating characteristic: the probability that an
        outside input is less certain than an inside one, with ties counted half. 1 is
        perfect, 0.5 is chance.

    Raises:
        ValueError: If one is not a vector of finite numbers.

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
        array = check_numbers(name, values)
        if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
            reject(name, array.shape, "a vector of finite numbers")
        scores.append(np.sort(array))
    low, high = scores
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.sum() / 2 / (len(low) * len(high)))
