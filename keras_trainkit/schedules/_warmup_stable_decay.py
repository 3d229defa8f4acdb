"""Warm-up, a long constant part, and a decay at the end."""

from typing import Any

from keras import ops

from keras_trainkit._checks import (
    check_choice,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


def _one_minus_sqrt(start: float, end: float, behind: Tensor, ahead: Tensor) -> Tensor:
    """`end + (start - end) (1 - sqrt(behind))`."""
    return end + (start - end) * (1.0 - ops.sqrt(behind))


_DECAYS = {**_base.ANNEALS, "1-sqrt": _one_minus_sqrt}


@_base.register
class WarmupStableDecay(LearningRateSchedule):
    """Warmup-stable-decay: for trainings whose length is not fixed in advance.

    The rate rises linearly from 0 to `max_lr` in `warmup_steps`, stays there, and falls
    to `final_lr` in the last `decay_steps` of `total_steps`. Because the middle part is
    constant, one training run gives models of several lengths: load a checkpoint from
    the middle part and decay from there.

    Args:
        max_lr: The rate of the constant part.
        total_steps: Number of steps of the whole training.
        warmup_steps: Steps of the warm-up; 0 for none.
        decay_steps: Steps of the decay, which ends at step `total_steps - 1`.
        final_lr: The rate at the last step.
        decay: `"1-sqrt"`: `max_lr (1 - sqrt(p))` at the fraction `p` of the decay, the
            best in the comparison referenced below; `"linear"`; or `"cos"`.

    Raises:
        ValueError: If an argument is wrong, or if warm-up and decay together are longer
            than the whole.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.WarmupStableDecay(
        ...     1.0, 101, warmup_steps=10, decay_steps=20, decay="linear"
        ... )
        >>> [float(schedule(step)) for step in (0, 5, 10, 80, 90, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Reference:
        S. Hu et al., MiniCPM (2024), arXiv:2404.06395, equation 1; the decays:
        A. Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed
        Training Durations (2024), arXiv:2405.18392, equations 1 and 2.
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        warmup_steps: int,
        decay_steps: int,
        final_lr: float = 0.0,
        decay: str = "1-sqrt",
    ):
        self.max_lr = check_positive("max_lr", max_lr)
        self.total_steps = check_integer("total_steps", total_steps, minimum=2)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, minimum=0)
        self.decay_steps = check_integer("decay_steps", decay_steps, minimum=1)
        self.final_lr = check_positive("final_lr", final_lr, allow_zero=True)
        self.decay = check_choice("decay", decay, _DECAYS)
        if self.warmup_steps + self.decay_steps >= self.total_steps:
            most = f"< total_steps - warmup_steps = {total_steps - warmup_steps}"
            reject("decay_steps", decay_steps, most)
        if self.final_lr > self.max_lr:
            reject("final_lr", final_lr, f"<= max_lr={self.max_lr:g}")

    def __call__(self, step: Any) -> Tensor:
        step = as_step(step)
        last = self.total_steps - 1
        behind, ahead = _base.progress(step, last - self.decay_steps, last)
        rate = _DECAYS[self.decay](self.max_lr, self.final_lr, behind, ahead)
        if self.warmup_steps:
            risen, _ = _base.progress(step, 0, self.warmup_steps)
            rate = rate * risen
        return rate

    def get_config(self) -> dict:
        return {
            "max_lr": self.max_lr,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "final_lr": self.final_lr,
            "decay": self.decay,
        }
