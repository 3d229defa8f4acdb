"""Schedules that are composed of other schedules."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit._checks import (
    check_in_range,
    check_integer,
    check_items,
    reject,
)
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Schedule, Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule
from keras_trainkit.schedules._decay import check_increasing


@_base.register
class Lambda(LearningRateSchedule):
    """A schedule from any function of the step.

    Args:
        fn: Callable that takes the step, an integer scalar tensor, and returns the
            rate. It is compiled with the training step, so it must use `keras.ops`. To
            be saved with a model it must be registered with
            `keras.saving.register_keras_serializable`.

    Examples:
        >>> from keras import ops
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Lambda(lambda t: 0.5 * ops.cast(t, "float32"))
        >>> float(schedule(3))
        1.5
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        if not callable(fn):
            reject("fn", fn, "a callable")
        self.fn = fn

    def __call__(self, step: Any) -> Tensor:
        return ops.cast(self.fn(as_step(step)), "float32")

    def get_config(self) -> dict:
        return {"fn": keras.saving.serialize_keras_object(self.fn)}

    @classmethod
    def from_config(cls, config: dict) -> "Lambda":
        fn = config["fn"]
        if not callable(fn):
            fn = keras.saving.deserialize_keras_object(fn)
        return cls(fn)


@_base.register
class Delay(LearningRateSchedule):
    """A schedule that begins at a step other than 0.

    `schedule(t - steps)`; before it begins, its first value.

    Args:
        schedule: The schedule.
        steps: Step at which it begins; negative if it began before step 0.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Delay(kt.schedules.Linear(1.0, 0.0, 4), 10)
        >>> [float(schedule(step)) for step in (0, 10, 12, 14)]
        [1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, schedule: Schedule, steps: int):
        self.schedule = _base.check_schedule("schedule", _base.deserialize(schedule))
        self.steps = check_integer("steps", steps, minimum=-(2**31))

    def __call__(self, step: Any) -> Tensor:
        return self.schedule(ops.maximum(as_step(step) - self.steps, 0))

    def get_config(self) -> dict:
        return {"schedule": _base.serialize(self.schedule), "steps": self.steps}


@_base.register
class Warmup(LearningRateSchedule):
    """A linear warm-up before any schedule.

    `schedule(0) * (f + (1 - f) * t / w)` while `t < w`, then `schedule(t - w)`, with
    `w = warmup_steps` and `f = start_factor`.

    Args:
        schedule: The schedule that follows the warm-up.
        warmup_steps: Length of the warm-up.
        start_factor: Fraction of the schedule's first rate at step 0, in `[0, 1]`.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Warmup(kt.schedules.Linear(1.0, 0.0, 10), 4)
        >>> [float(schedule(step)) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 0.5]

    Reference:
        P. Goyal et al., Accurate, Large Minibatch SGD (2017), arXiv:1706.02677,
        section 2.2.
    """

    def __init__(
        self,
        schedule: Schedule,
        warmup_steps: int,
        start_factor: float = 0.0,
    ):
        self.schedule = _base.check_schedule("schedule", _base.deserialize(schedule))
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, minimum=1)
        self.start_factor = check_in_range("start_factor", start_factor, 0, 1)

    def __call__(self, step: Any) -> Tensor:
        step = as_step(step)
        behind, ahead = _base.progress(step, 0, self.warmup_steps)
        rate = self.schedule(ops.maximum(step - self.warmup_steps, 0))
        return rate * _base.linear(self.start_factor, 1.0, behind, ahead)

    def get_config(self) -> dict:
        return {
            "schedule": _base.serialize(self.schedule),
            "warmup_steps": self.warmup_steps,
            "start_factor": self.start_factor,
        }


class _Several(LearningRateSchedule):
    """Base class of schedules composed of several."""

    def __init__(self, schedules: Sequence[Schedule]):
        self.schedules = [
            _base.check_schedule("schedules", _base.deserialize(schedule))
            for schedule in check_items("schedules", schedules, "a list of schedules")
        ]
        if not self.schedules:
            reject("schedules", schedules, "at least one schedule")

    def get_config(self) -> dict:
        return {"schedules": [_base.serialize(schedule) for schedule in self.schedules]}


@_base.register
class Sequential(_Several):
    """One schedule after another, each counting its own steps from 0.

    Args:
        schedules: The schedules, in order.
        boundaries: Steps at which the second, the third, … begins, increasing.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Sequential(
        ...     [kt.schedules.Constant(2.0), kt.schedules.Linear(1.0, 0.0, 4)], [10]
        ... )
        >>> [float(schedule(step)) for step in (9, 10, 12)]
        [2.0, 1.0, 0.5]

    Reference:
        PyTorch's `SequentialLR`.
    """

    def __init__(self, schedules: Sequence[Schedule], boundaries: Sequence[int]):
        super().__init__(schedules)
        items = check_items("boundaries", boundaries, "a list of steps")
        self.boundaries = check_increasing("boundaries", items) if items else []
        if len(self.boundaries) != len(self.schedules) - 1:
            expected = f"one fewer than the {len(self.schedules)} schedules"
            reject("boundaries", boundaries, expected)

    def __call__(self, step: Any) -> Tensor:
        step = as_step(step)
        rate = self.schedules[0](step)
        for schedule, begin in zip(self.schedules[1:], self.boundaries, strict=True):
            later = schedule(ops.maximum(step - begin, 0))
            rate = ops.where(step >= begin, later, rate)
        return rate

    def get_config(self) -> dict:
        return {**super().get_config(), "boundaries": self.boundaries}


@_base.register
class Chained(_Several):
    """The product of schedules.

    Args:
        schedules: The schedules; those that act as factors should start at 1.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Chained(
        ...     [kt.schedules.Linear(1.0, 0.0, 4), kt.schedules.Step(1.0, 2, 0.5)]
        ... )
        >>> [float(schedule(step)) for step in (0, 1, 2, 3)]
        [1.0, 0.75, 0.25, 0.125]

    Reference:
        PyTorch's `ChainedScheduler`.
    """

    def __call__(self, step: Any) -> Tensor:
        step = as_step(step)
        rate = self.schedules[0](step)
        for schedule in self.schedules[1:]:
            rate = rate * schedule(step)
        return rate
