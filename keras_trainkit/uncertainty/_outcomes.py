"""Bring targets and outputs of every kind that Keras uses into one form."""

from typing import Any, NamedTuple

import numpy as np

from keras_trainkit._checks import (
    check_flag,
    check_numbers,
    reject,
)

# How far the sum of a row of probabilities may be from 1, because of float16.
_TOLERANCE = 1e-2


class Outcomes(NamedTuple):
    """Predictions and true classes, row by row.

    Attributes:
        labels: The true class of each row, `(rows,)` integers.
        p: Probabilities, `(rows, classes)`; `(rows, 2)` for sigmoid outputs.
        binary: Whether they were sigmoid outputs, one number for each row.
    """

    labels: np.ndarray
    p: np.ndarray
    binary: bool

    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the confidence of each row and whether it was right, `(rows,)` each.

        The largest probability and whether that class is right; for sigmoid outputs the
        probability of class 1 and whether that is the class.
        """
        if self.binary:
            return self.p[:, 1], self.labels == 1
        return self.p.max(1), self.p.argmax(1) == self.labels

    def right(self) -> np.ndarray:
        """Whether the likeliest class of each row is the true one, `(rows,)`."""
        return self.p.argmax(1) == self.labels


def outcomes(
    y_true: Any,
    probabilities: Any,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
) -> Outcomes:
    """Bring targets and outputs into one form.

    Args:
        y_true: Labels `(rows,)` or `(rows, 1)`, integers or whole floats, or one-hot
            `(rows, classes)`; also with more axes between, as in segmentation.
        probabilities: `(rows, ..., classes)`, or sigmoid outputs `(rows, ...)` or
            `(rows, ..., 1)`.
        from_logits: Whether they are logits.
        multi_label: Whether the last axis has independent labels with sigmoid outputs,
            any number of which may be true. Each then counts as a separate row.
    """
    p, binary = probabilities_of(
        probabilities, from_logits=from_logits, multi_label=multi_label
    )
    labels = labels_of(y_true, np.asarray(probabilities).shape, p.shape, multi_label)
    return Outcomes(labels, p, binary)


def probabilities_of(
    outputs: Any,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    name: str = "probabilities",
) -> tuple[np.ndarray, bool]:
    """Return outputs as float64 `(rows, classes)`, and whether they are sigmoid's."""
    check_flag("from_logits", from_logits)
    check_flag("multi_label", multi_label)
    given = check_numbers(name, outputs)
    if not given.ndim or not given.size:
        reject(name, given.shape, "at least one row")
    binary = multi_label or given.ndim == 1 or given.shape[-1] == 1
    if not np.isfinite(given).all():
        reject(name, "an array with NaN or infinity", "finite")
    if binary:
        p = sigmoid(given) if from_logits else given
        _check_range(name, p, 1)
        p = p.reshape(-1)
        return np.stack([1 - p, p], axis=1), True
    rows = given.reshape(-1, given.shape[-1])
    if from_logits:
        return softmax(rows), False
    _check_range(name, rows, 1 + _TOLERANCE)
    totals = rows.sum(1)
    worst = np.abs(totals - 1).argmax()
    if abs(totals[worst] - 1) > _TOLERANCE:
        expected = "rows that sum to 1 (for independent labels set `multi_label=True`)"
        reject(name, rows[worst].round(4).tolist(), expected)
    return rows, False


def labels_of(
    y_true: Any, shape: tuple[int, ...], flat: tuple[int, ...], multi_label: bool
) -> np.ndarray:
    """Return targets as integers, `(rows,)`, for outputs of a shape.

    Args:
        y_true: The targets.
        shape: The original shape of the outputs.
        flat: `(rows, classes)`.
        multi_label: Whether the last axis has independent labels.
    """
    y = check_numbers("y_true", y_true)
    rows, classes = flat
    sparse = shape if multi_label or len(shape) == 1 else shape[:-1]
    if len(shape) > 1 and shape[-1] == 1 and not multi_label:
        shape = (*shape[:-1], 2)
    if y.shape == shape and not multi_label and len(shape) > 1:
        return _from_one_hot(y.reshape(rows, classes))
    if y.shape not in (sparse, (*sparse, 1)):
        reject("y_true", y.shape, f"labels of shape {sparse} or one-hot of {shape}")
    y = y.reshape(-1)
    if not np.array_equal(y, np.round(y)):
        reject("y_true", y_true, "integer labels (whole numbers) or one-hot")
    if y.min() < 0 or y.max() >= classes:
        out = y[(y < 0) | (y >= classes)][0]
        reject("y_true", int(out), f"labels in [0, {classes})")
    return y.astype(int)


def _from_one_hot(y: np.ndarray) -> np.ndarray:
    if not (np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()):
        reject("y_true", "other rows", "one-hot, with a single 1 in each row")
    return y.argmax(1)


def _check_range(name: str, p: np.ndarray, most: float) -> None:
    outside = p[(p < 0) | (p > most)]
    if outside.size:
        expected = "in [0, 1] (for logits set `from_logits=True`)"
        reject(name, float(outside[0]), expected)


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)), without overflow."""
    return np.exp(-np.logaddexp(0, -z))


def softmax(z: np.ndarray) -> np.ndarray:
    """The softmax over the last axis."""
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)
