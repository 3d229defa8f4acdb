"""Schedules that decay by a formula."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit._checks import (
    check_flag,
    check_integer,
    check_items,
    check_positive,
    reject,
)
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


@_base.register
class Power(LearningRateSchedule):
    """Power scheduling: `initial / (1 + t / steps) ** power` at step `t`.

    With `power=1` the rate is `initial / 2` after `steps` steps, `initial / 3` after
    `2 * steps`, and falls more and more slowly.

    Args:
        initial: Rate at step 0.
        steps: Steps until the rate has fallen to `1 / 2 ** power` of `initial`.
        power: The exponent, more than 0.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Power(0.01, steps=10)
        >>> [round(float(schedule(step)), 7) for step in (0, 10, 20, 30)]
        [0.01, 0.005, 0.0033333, 0.0025]

    Reference:
        A. Géron, Hands-On Machine Learning, 2nd ed. (2019), chapter 11.
    """

    def __init__(self, initial: float, steps: float, power: float = 1.0):
        self.initial = check_positive("initial", initial)
        self.steps = check_positive("steps", steps)
        self.power = check_positive("power", power)

    def __call__(self, step: Any) -> Tensor:
        t = ops.cast(as_step(step), "float32")
        return self.initial / ops.power(1.0 + t / self.steps, self.power)

    def get_config(self) -> dict:
        return {"initial": self.initial, "steps": self.steps, "power": self.power}


@_base.register
class NaturalExponential(LearningRateSchedule):
    """Natural exponential decay: `initial * exp(-decay_rate * t / decay_steps)`.

    Args:
        initial: Rate at step 0.
        decay_steps: Steps in which the rate falls by the factor `exp(-decay_rate)`.
        decay_rate: Nepers per `decay_steps`, more than 0.
        staircase: Whether the rate falls once every `decay_steps` instead of at each
            step, with `floor(t / decay_steps)` in the exponent.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.NaturalExponential(1.0, 100, 0.5)
        >>> [round(float(schedule(step)), 6) for step in (0, 100, 200)]
        [1.0, 0.606531, 0.367879]

    Reference:
        `tf.compat.v1.train.natural_exp_decay`.
    """

    def __init__(
        self,
        initial: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
    ):
        self.initial = check_positive("initial", initial)
        self.decay_steps = check_positive("decay_steps", decay_steps)
        self.decay_rate = check_positive("decay_rate", decay_rate)
        self.staircase = check_flag("staircase", staircase)

    def __call__(self, step: Any) -> Tensor:
        decays = ops.cast(as_step(step), "float32") / self.decay_steps
        if self.staircase:
            decays = ops.floor(decays)
        return self.initial * ops.exp(-self.decay_rate * decays)

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "decay_steps": self.decay_steps,
            "decay_rate": self.decay_rate,
            "staircase": self.staircase,
        }


@_base.register
class Step(LearningRateSchedule):
    """Step decay: `initial * gamma ** floor(t / step_size)`.

    Args:
        initial: Rate at step 0.
        step_size: Steps between two reductions.
        gamma: Factor of each reduction, more than 0.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Step(1.0, step_size=10, gamma=0.5)
        >>> [float(schedule(step)) for step in (0, 9, 10, 20)]
        [1.0, 1.0, 0.5, 0.25]

    Reference:
        PyTorch's `StepLR`.
    """

    def __init__(self, initial: float, step_size: int, gamma: float = 0.1):
        self.initial = check_positive("initial", initial)
        self.step_size = check_integer("step_size", step_size, minimum=1)
        self.gamma = check_positive("gamma", gamma)

    def __call__(self, step: Any) -> Tensor:
        falls = ops.floor_divide(as_step(step), self.step_size)
        return self.initial * ops.power(self.gamma, ops.cast(falls, "float32"))

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "step_size": self.step_size,
            "gamma": self.gamma,
        }


@_base.register
class MultiStep(LearningRateSchedule):
    """Multi-step decay: the rate falls by a factor at each milestone.

    `initial * gamma ** n`, with `n` the number of milestones `<= t`.

    Args:
        initial: Rate at step 0.
        milestones: Steps at which the rate falls, in order; a repeated one counts
            twice.
        gamma: Factor of each reduction, more than 0.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.MultiStep(1.0, [10, 30], gamma=0.5)
        >>> [float(schedule(step)) for step in (9, 10, 29, 30)]
        [1.0, 0.5, 0.5, 0.25]

    Reference:
        PyTorch's `MultiStepLR`.
    """

    def __init__(self, initial: float, milestones: Sequence[int], gamma: float = 0.1):
        self.initial = check_positive("initial", initial)
        self.milestones = check_increasing("milestones", milestones, strictly=False)
        self.gamma = check_positive("gamma", gamma)

    def __call__(self, step: Any) -> Tensor:
        step = as_step(step)
        falls = sum(ops.cast(step >= m, "float32") for m in self.milestones)
        return self.initial * ops.power(self.gamma, falls)

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "milestones": self.milestones,
            "gamma": self.gamma,
        }


@_base.register
class Multiplicative(LearningRateSchedule):
    """Multiplicative decay: the rate is multiplied by a factor at each step.

    `initial * fn(1) * fn(2) * ... * fn(t)`. The products are computed in advance for
    `total_steps` steps; later steps have the last value.

    Args:
        initial: Rate at step 0.
        fn: Function from a step, an `int`, to the factor at that step, at least 0. A
            saved model contains the table of factors, not the function.
        total_steps: Number of steps of the training.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Multiplicative(
        ...     1.0, lambda t: 0.5 if t % 2 == 0 else 1.0, total_steps=10
        ... )
        >>> [float(schedule(step)) for step in (0, 1, 2, 3, 4)]
        [1.0, 1.0, 0.5, 0.5, 0.25]

    Reference:
        PyTorch's `MultiplicativeLR`.
    """

    def __init__(
        self,
        initial: float,
        fn: Callable[[int], float] | Sequence[float],
        total_steps: int,
    ):
        self.initial = check_positive("initial", initial)
        self.total_steps = check_integer("total_steps", total_steps, minimum=1)
        steps = range(1, self.total_steps)
        expected = f"a function, or {len(steps)} factors"
        factors = (
            [fn(t) for t in steps] if callable(fn) else check_items("fn", fn, expected)
        )
        if len(factors) != len(steps):
            reject("fn", len(factors), expected)
        self.factors = [check_positive("fn", f, allow_zero=True) for f in factors]
        self._rates = np.cumprod([self.initial, *self.factors]).astype("float32")

    def __call__(self, step: Any) -> Tensor:
        place = ops.minimum(as_step(step), self.total_steps - 1)
        return ops.take(self._rates, ops.cast(place, "int32"))

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "fn": self.factors,
            "total_steps": self.total_steps,
        }


@_base.register
class Linear(LearningRateSchedule):
    """A straight line from `initial` at step 0 to `final` at step `steps`.

    Args:
        initial: Rate at step 0.
        final: Rate from step `steps` on.
        steps: Length of the line.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Linear(1.0, 0.0, steps=4)
        >>> [float(schedule(step)) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]

    Reference:
        PyTorch's `LinearLR`.
    """

    def __init__(self, initial: float, final: float, steps: int):
        self.initial = check_positive("initial", initial, allow_zero=True)
        self.final = check_positive("final", final, allow_zero=True)
        self.steps = check_integer("steps", steps, minimum=1)

    def __call__(self, step: Any) -> Tensor:
        behind, ahead = _base.progress(as_step(step), 0, self.steps)
        return _base.linear(self.initial, self.final, behind, ahead)

    def get_config(self) -> dict:
        return {"initial": self.initial, "final": self.final, "steps": self.steps}


@_base.register
class Constant(LearningRateSchedule):
    """The same value at every step, to compose with other schedules.

    Args:
        value: The value, at least 0.

    Examples:
        >>> import keras_trainkit as kt
        >>> float(kt.schedules.Constant(0.25)(1000))
        0.25
    """

    def __init__(self, value: float):
        self.value = check_positive("value", value, allow_zero=True)

    def __call__(self, step: Any) -> Tensor:
        return ops.convert_to_tensor(self.value, "float32")

    def get_config(self) -> dict:
        return {"value": self.value}


def check_increasing(
    name: str, values: Sequence[int], strictly: bool = True
) -> list[int]:
    """Return `values` as a list; raise unless they are increasing steps >= 1."""
    items = check_items(name, values, "a list of steps")
    steps = [check_integer(name, value, minimum=1) for value in items]
    if not steps or sorted(set(steps) if strictly else steps) != steps:
        reject(name, values, "at least one step, in increasing order")
    return steps
