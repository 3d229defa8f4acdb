"""Measure a variant of a model after calibration."""

from typing import Any

import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit.uncertainty import ConformalClassifier, TemperatureScaling, nll


def probabilities(outputs: np.ndarray) -> np.ndarray | None:
    """Normalize outputs to probabilities `(rows, classes)`; None if they are not.

    Quantized probabilities sum to 1 only approximately.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or outputs.min() < 0:
        return None
    totals = outputs.sum(1, keepdims=True)
    return outputs / totals if np.abs(totals - 1).max() < 0.1 else None


def calibrated(
    name: str,
    held_out: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    coverage: float,
) -> dict[str, Any]:
    """Calibrate a variant on held-out rows and measure it on others.

    One half of the held-out rows determines the temperature, the other the threshold of
    the prediction sets. Their guarantee requires probabilities that were not fitted on
    the rows that determine the threshold.

    Args:
        name: The variant, for the error.
        held_out: Its outputs on the held-out rows, and the labels.
        test: The same for the rows that it is measured on.
        coverage: The target fraction of rows whose set contains the true class.
    """
    p, p_test = probabilities(held_out[0]), probabilities(test[0])
    if p is None or p_test is None:
        reject("calibration", name, "None unless all variants give probabilities")
    y, y_test = held_out[1], test[1]
    order = np.random.default_rng(0).permutation(len(y))
    first, second = order[::2], order[1::2]
    scaling = TemperatureScaling().fit(probabilities=p[first], y_true=y[first])
    conformal = ConformalClassifier("lac", alpha=1 - coverage)
    conformal.fit(scaling.predict_proba(probabilities=p[second]), y[second])
    scaled = scaling.predict_proba(probabilities=p_test)
    return {
        "temperature": scaling.temperature_,
        "calibrated_nll": nll(y_test, scaled),
        "coverage": conformal.coverage(scaled, y_test),
        "set_size": conformal.mean_size(scaled),
    }
