"""Confirm a suggested rate by short trainings at rates around it."""

from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np

from keras_trainkit.lr_finder._analyse import LRFinderResult
from keras_trainkit.lr_finder._range_test import RangeTest

# The rates range from the suggestion divided by this to the suggestion times this.
_AROUND = 3.0


def confirmed(
    found: LRFinderResult,
    run: Callable[[RangeTest], None],
    k: int,
    num_steps: int,
    optimizer: str | None,
    monitor: str,
) -> LRFinderResult:
    """Compare `k` rates by successive halving and suggest the best.

    Args:
        found: A range test with a suggestion.
        run: Runs the steps of a test, from the same state each time.
        k: Number of rates.
        num_steps: Twice the number of steps of the first trainings.
        optimizer: As in `kt.find_lr`.
        monitor: As in `kt.find_lr`.

    Reference:
        K. Jamieson and A. Talwalkar, Non-stochastic Best Arm Identification and
        Hyperparameter Optimization (2015), arXiv:1502.07943, figure 3.
    """
    rates = float(found.suggestion or 0) * _AROUND ** np.linspace(-1, 1, k)
    left, steps = [float(rate) for rate in rates], max(20, num_steps // 2)
    losses: dict[float, float] = {}
    while len(left) > 1:
        for rate in left:
            test = _OneRate(rate, steps, optimizer, monitor)
            run(test)
            losses[rate] = test.loss()
        left = sorted(left, key=losses.__getitem__)[: (len(left) + 1) // 2]
        steps *= 2
    return replace(found, suggestion=left[0], confirmed=losses)


class _OneRate(RangeTest):
    """A short training at one rate."""

    def __init__(self, rate, steps, optimizer, monitor):
        super().__init__(rate, 2 * rate, steps, "exponential", optimizer, monitor)
        self._rate = lambda step: keras.ops.full_like(
            keras.ops.cast(step, "float32"), rate
        )
        self.lrs = np.full(steps, rate)
        self.phase = f"training at {rate:.3g}, {steps} steps"

    def loss(self) -> float:
        """Return the mean loss over the last quarter; infinite if it diverged."""
        losses = self.losses()
        mean = float(np.mean(losses[-(len(self.lrs) // 4) :]))
        return mean if len(losses) == len(self.lrs) and np.isfinite(mean) else np.inf
