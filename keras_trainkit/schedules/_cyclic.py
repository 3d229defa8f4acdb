"""Cyclical learning rates."""

from typing import Any

from keras import ops

from keras_trainkit._checks import (
    check_choice,
    check_in_range,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


@_base.register
class Cyclic(LearningRateSchedule):
    """Cyclical learning rate: a triangle wave between two rates.

    The rate rises from `base_lr` to a peak in `step_size_up` steps and falls back in
    `step_size_down`. The peak is `max_lr` in each cycle (`"triangular"`), or its height
    above `base_lr` halves from cycle to cycle (`"triangular2"`), or shrinks by
    `gamma ** t` (`"exp_range"`). The values match PyTorch's `CyclicLR`.

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
        step = as_step(step)
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


@_base.register
class CyclicMomentum(Cyclic):
    """The momentum to use with `Cyclic`: lowest where the rate is highest.

    For the `momentum` or `beta_1` of `kt.optimizers`. The values match PyTorch's
    `CyclicLR` with `cycle_momentum=True`.

    Args:
        base_momentum: The momentum at the peak of the rate.
        max_momentum: The momentum at the lowest rate, at least `base_momentum`.
        step_size_up: As in `Cyclic`.
        step_size_down: As in `Cyclic`.
        mode: As in `Cyclic`.
        gamma: As in `Cyclic`.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.CyclicMomentum(0.75, 1.0, 4)
        >>> [float(schedule(step)) for step in (0, 2, 4, 6, 8)]
        [1.0, 0.875, 0.75, 0.875, 1.0]

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186.
    """

    def __init__(
        self,
        base_momentum: float,
        max_momentum: float,
        step_size_up: int,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
    ):
        self.base_momentum = check_in_range("base_momentum", base_momentum, 0, 1)
        self.max_momentum = check_in_range("max_momentum", max_momentum, 0, 1)
        if self.max_momentum < self.base_momentum:
            expected = f">= base_momentum={self.base_momentum:g}"
            reject("max_momentum", max_momentum, expected)
        # The cycle of the amount subtracted from the upper momentum.
        depth = self.max_momentum - self.base_momentum
        super().__init__(
            0.0, max(depth, 1e-12), step_size_up, step_size_down, mode, gamma
        )

    def __call__(self, step: Any) -> Tensor:
        return self.max_momentum - super().__call__(step)

    def get_config(self) -> dict:
        config = super().get_config()
        del config["base_lr"], config["max_lr"]
        return {
            "base_momentum": self.base_momentum,
            "max_momentum": self.max_momentum,
            **config,
        }
