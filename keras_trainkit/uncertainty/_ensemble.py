"""Combine the predictions of several models like samples of one."""

from typing import Any

import numpy as np

from keras_trainkit._checks import check_choice, reject
from keras_trainkit.uncertainty._prediction import MCPrediction, prediction_of, surprise


def ensemble_prediction(samples: Any, task: str = "auto") -> MCPrediction:
    """Combine the predictions of an ensemble as `mc_predict` combines its samples.

    Args:
        samples: `(models, rows, outputs)`, the predictions of each model: of a deep
            ensemble, of snapshots, of several seeds.
        task: `"classification"`: rows of probabilities; `"binary"`: sigmoid outputs;
            `"regression"`; or `"auto"`: classification if all rows are probabilities of
            more than one class, else regression.

    Returns:
        An `MCPrediction` with the samples kept.

    Raises:
        ValueError: If the array has another shape, or the task requires probabilities
            and the rows are not.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> one, other = np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])
        >>> both = kt.uncertainty.ensemble_prediction([one, other])
        >>> both.mean.tolist(), both.mutual_information.round(3).tolist()
        ([[0.7, 0.3]], [0.102])

    Reference:
        B. Lakshminarayanan, A. Pritzel and C. Blundell, Simple and Scalable Predictive
        Uncertainty Estimation using Deep Ensembles (2017), arXiv:1612.01474.
    """
    check_choice("task", task, ("auto", "classification", "binary", "regression"))
    p = np.asarray(samples)
    if p.ndim != 3 or not p.size or p.dtype.kind not in "fiu":
        reject("samples", p.shape, "of shape (models, rows, outputs), none of them 0")
    if task == "auto":
        task = "classification" if _are_probabilities(p) else "regression"
    if task == "classification" and not _are_probabilities(p):
        reject("samples", p.shape, "rows of probabilities for task='classification'")
    if task == "binary" and (p.min() < 0 or p.max() > 1):
        reject("samples", float(p.max()), "in [0, 1] for task='binary'")
    return prediction_of(task, _sums(p, task), True)


def _are_probabilities(p: np.ndarray) -> bool:
    if p.shape[-1] < 2 or p.min() < 0:
        return False
    return bool(np.abs(p.sum(-1) - 1).max() < 1e-2)


def _sums(p: np.ndarray, task: str) -> dict[str, np.ndarray]:
    """Return the sums over samples that `mc_predict` accumulates."""
    models, rows, outputs = p.shape
    mean = p.mean(0)
    sums = {
        "mean": mean,
        "squares": ((p - mean) ** 2).sum(0),
        "count": np.full(rows, models),
        "samples": np.swapaxes(p, 0, 1),
    }
    if task == "binary":
        sums["entropy"] = (surprise(p) + surprise(1 - p)).sum(0)
        sums["votes"] = (p > 0.5).sum(0)
    elif task == "classification":
        sums["entropy"] = surprise(p).sum((0, -1))
        sums["votes"] = np.eye(outputs)[p.argmax(-1)].sum(0)
    return sums
