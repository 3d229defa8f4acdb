"""The 1cycle policy: one rise, one fall."""

from typing import Any

from keras import ops

from keras_trainkit._checks import (
    check_choice,
    check_flag,
    check_in_range,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


class _Cycle(LearningRateSchedule):
    """Base class: phases from one value to the next; then the last value holds."""

    def __init__(self, total_steps, pct_start, anneal, three_phase):
        self.total_steps = check_integer("total_steps", total_steps, minimum=2)
        self.pct_start = check_in_range("pct_start", pct_start, 0, 1, closed="neither")
        self.anneal = check_choice("anneal", anneal, _base.ANNEALS)
        self.three_phase = check_flag("three_phase", three_phase)
        # As in PyTorch, the peak may lie between two steps; in a cycle of a few steps
        # the first is the peak.
        peak = max(self.pct_start * self.total_steps - 1, 0.0)
        bounds = [0.0, peak, self.total_steps - 1.0]
        if self.three_phase:
            bounds.insert(2, 2 * peak)
            if 2 * peak >= bounds[3]:
                reject("pct_start", pct_start, "less than 0.5 with three_phase")
        self._bounds = bounds

    def _values(self) -> list[float]:
        """The value at each bound."""
        raise NotImplementedError

    def __call__(self, step: Any) -> Tensor:
        step = as_step(step)
        anneal = _base.ANNEALS[self.anneal]
        values, bounds = self._values(), self._bounds
        result = ops.convert_to_tensor(values[-1], "float32")
        for i in reversed(range(len(values) - 1)):
            if bounds[i + 1] > bounds[i]:
                behind, ahead = _base.progress(step, bounds[i], bounds[i + 1])
                phase = anneal(values[i], values[i + 1], behind, ahead)
                result = ops.where(ahead > 0, phase, result)
        return result

    def get_config(self) -> dict:
        return {
            "total_steps": self.total_steps,
            "pct_start": self.pct_start,
            "anneal": self.anneal,
            "three_phase": self.three_phase,
        }


@_base.register
class OneCycle(_Cycle):
    """Learning rate of the 1cycle policy.

    With `p = pct_start`, `T = total_steps` and the peak at step `pT - 1`, the rate
    rises from `max_lr / div_factor` to `max_lr` and falls to
    `max_lr / (div_factor * final_div_factor)` at step `T - 1`, where it stays. With
    `three_phase` it falls symmetrically to its first value by step `2pT - 2`, and then
    to its last. Each phase follows half a cosine or a straight line. The values match
    PyTorch's `OneCycleLR`.

    Args:
        max_lr: The highest rate.
        total_steps: Length of the cycle in steps (batches), at least 2.
        pct_start: Fraction of the steps in which the rate rises, in `(0, 1)`; below
            0.5 with `three_phase`.
        div_factor: Ratio of the peak to the first rate, at least 1.
        final_div_factor: Ratio of the first rate to the last, more than 0.
        anneal: `"cos"` or `"linear"`.
        three_phase: Whether the fall has two phases.

    Returns:
        The rate at a step, a float32 scalar.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.OneCycle(
        ...     25.0, 10, div_factor=25, final_div_factor=2, anneal="linear"
        ... )
        >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 3, 9, 99)]
        [1.0, 13.0, 25.0, 21.5, 0.5, 0.5]

    Reference:
        L. Smith and N. Topin, Super-Convergence (2018), arXiv:1708.07120; L. Smith, A
        disciplined approach to neural network hyper-parameters (2018),
        arXiv:1803.09820, section 4.1.
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        anneal: str = "cos",
        three_phase: bool = False,
    ):
        self.max_lr = check_positive("max_lr", max_lr)
        self.div_factor = check_positive("div_factor", div_factor)
        if self.div_factor < 1:
            reject("div_factor", div_factor, "a number >= 1")
        self.final_div_factor = check_positive("final_div_factor", final_div_factor)
        super().__init__(total_steps, pct_start, anneal, three_phase)

    def _values(self) -> list[float]:
        first = self.max_lr / self.div_factor
        last = first / self.final_div_factor
        middle = [first] if self.three_phase else []
        return [first, self.max_lr, *middle, last]

    def get_config(self) -> dict:
        return {
            "max_lr": self.max_lr,
            "div_factor": self.div_factor,
            "final_div_factor": self.final_div_factor,
            **super().get_config(),
        }


@_base.register
class OneCycleMomentum(_Cycle):
    """Momentum of the 1cycle policy: it falls while the rate rises, and vice versa.

    It goes from `max_momentum` to `base_momentum` at the peak of the rate and back, in
    the phases of `OneCycle`; with `three_phase` it is constant in the last phase. For
    the `momentum` or `beta_1` of the optimizers in `kt.optimizers`.

    Args:
        total_steps: Length of the cycle in steps (batches), at least 2.
        max_momentum: Momentum at the beginning and at the end.
        base_momentum: Momentum at the peak of the rate.
        pct_start: Fraction of the steps in which the rate rises, in `(0, 1)`; below
            0.5 with `three_phase`.
        anneal: `"cos"` or `"linear"`.
        three_phase: Whether the rate's fall has two phases.

    Returns:
        The momentum at a step, a float32 scalar.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.OneCycleMomentum(10, anneal="linear")
        >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 9)]
        [0.95, 0.9, 0.85, 0.95]

    Reference:
        L. Smith, A disciplined approach to neural network hyper-parameters (2018),
        arXiv:1803.09820, section 4.3.
    """

    def __init__(
        self,
        total_steps: int,
        max_momentum: float = 0.95,
        base_momentum: float = 0.85,
        pct_start: float = 0.3,
        anneal: str = "cos",
        three_phase: bool = False,
    ):
        self.max_momentum = check_in_range(
            "max_momentum", max_momentum, 0, 1, closed="right"
        )
        self.base_momentum = check_in_range("base_momentum", base_momentum, 0, 1)
        if self.base_momentum > self.max_momentum:
            reject(
                "base_momentum", base_momentum, f"<= max_momentum={self.max_momentum:g}"
            )
        super().__init__(total_steps, pct_start, anneal, three_phase)

    def _values(self) -> list[float]:
        high, low = self.max_momentum, self.base_momentum
        return [high, low, high, *([high] if self.three_phase else [])]

    def get_config(self) -> dict:
        return {
            "max_momentum": self.max_momentum,
            "base_momentum": self.base_momentum,
            **super().get_config(),
        }
