"""Measure wall-clock time."""

import time
from collections.abc import Callable, Sequence

import numpy as np


def latencies(
    predictors: Sequence[Callable[[], object]], repetitions: int, warm_up: int = 2
) -> list[np.ndarray]:
    """Return the seconds that each call of each function took.

    The functions are called in turn, because the speed of a machine drifts: this way
    they are all compared over the same period.
    """
    for predict in predictors:
        for _ in range(warm_up):
            predict()
    taken = np.empty((len(predictors), repetitions))
    for i in range(repetitions):
        for k, predict in enumerate(predictors):
            start = time.perf_counter()
            predict()
            taken[k, i] = time.perf_counter() - start
    return list(taken)
