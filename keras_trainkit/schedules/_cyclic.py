"""Cyclical learning rates."""

from typing import Any

from keras import ops

from keras_trainkit._checks import (
    check_choice,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._types import Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


@_base.register
class Cyclic(LearningRateSchedule):
    """Triangles between two rates, again and again.

    From `base_lr` up to a peak in `step_size_up` steps and down in `step_size_down`.
    The peak is `max_lr` in each cycle (`"triangular"`), or its height over `base_lr`
    halves from cycle to cycle (`"triangular2"`), or shrinks by `gamma ** t`
    (`"exp_range"`). The values are those of PyTorch's `CyclicLR`.

    Args:
        base_lr: The lower rate.
        max_lr: The upper rate, at least `base_lr`.
        step_size_up: Steps of the rise.
        step_size_down: Steps of the fall; `step_size_up` by default.
        mode: `"triangular"`, `"triangular2"` or `"exp_range"`.
        gamma: Factor per step for `"exp_range"`, in `(0, 1]`.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Cyclic(1.0, 5.0, 4, mode="triangular2")
        >>> [float(schedule(step)) for step in (0, 2, 4, 6, 8, 12)]
        [1.0, 3.0, 5.0, 3.0, 1.0, 3.0]

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186.
    """

    def __init__(
        self,
        base_lr: float,
        max_lr: float,
        step_size_up: int,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
    ):
        self.base_lr = check_positive("base_lr", base_lr, allow_zero=True)
        self.max_lr = check_positive("max_lr", max_lr)
        if self.max_lr < self.base_lr:
            reject("max_lr", max_lr, f">= base_lr={self.base_lr:g}")
        self.step_size_up = check_integer("step_size_up", step_size_up, minimum=1)
        self.step_size_down = (
            self.step_size_up
            if step_size_down is None
            else check_integer("step_size_down", step_size_down, minimum=1)
        )
        modes = ("triangular", "triangular2", "exp_range")
        self.mode = check_choice("mode", mode, modes)
        self.gamma = check_positive("gamma", gamma)
        if self.gamma > 1:
            reject("gamma", gamma, "a number in (0, 1]")

    def __call__(self, step: Any) -> Tensor:
        step = _base.as_step(step)
        length = self.step_size_up + self.step_size_down
        cycle = ops.floor_divide(step, length)
        place = step - cycle * length
        rise = ops.cast(place, "float32") / self.step_size_up
        fall = ops.cast(length - place, "float32") / self.step_size_down
        height = (self.max_lr - self.base_lr) * ops.minimum(rise, fall)
        if self.mode == "triangular2":
            height = height * ops.power(0.5, ops.cast(cycle, "float32"))
        elif self.mode == "exp_range":
            height = height * ops.power(self.gamma, ops.cast(step, "float32"))
        return self.base_lr + height

    def get_config(self) -> dict:
        return {
            "base_lr": self.base_lr,
            "max_lr": self.max_lr,
            "step_size_up": self.step_size_up,
            "step_size_down": self.step_size_down,
            "mode": self.mode,
            "gamma": self.gamma,
        }
