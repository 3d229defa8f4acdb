"""Time by the clock."""

import time
from collections.abc import Callable, Sequence

import numpy as np


def latencies(
    predictors: Sequence[Callable[[], object]], repetitions: int, warm_up: int = 2
) -> list[np.ndarray]:
    """Seconds of each call of some functions, taken in turn.

    In turn, since the speed of a machine drifts: what they are compared by then is the
    same stretch of time.
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
