"""Helpers of every schedule: exact steps, and schedules inside schedules."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_trainkit._checks import reject
from keras_trainkit._types import Schedule, Tensor

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


def register(cls):
    """Make a schedule loadable from a `.keras` file."""
    return keras.saving.register_keras_serializable(package="keras_trainkit")(cls)


def steps_since(step: Tensor, start: float) -> Tensor:
    """Return `step - start` as a float; exact if the difference is small."""
    whole = math.floor(start)
    return ops.cast(step - whole, "float32") - (start - whole)


def progress(step: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Return the fractions done and left between `start` and `end`, in [0, 1]."""
    length = end - start
    behind = ops.clip(steps_since(step, start) / length, 0.0, 1.0)
    ahead = ops.clip(-steps_since(step, end) / length, 0.0, 1.0)
    return behind, ahead


def check_schedule(name: str, schedule: Any) -> Schedule:
    """Return `schedule`; raise if it is not a schedule."""
    if not isinstance(schedule, LearningRateSchedule):
        reject(name, schedule, "a LearningRateSchedule")
    return schedule


def serialize(schedule: Schedule) -> dict:
    """Serialize a schedule as part of another's config."""
    return keras.optimizers.schedules.serialize(schedule)


def deserialize(config: Any) -> Schedule:
    """Return the schedule of a config; a schedule is returned unchanged."""
    # `check_schedule` raises on anything else.
    if not isinstance(config, dict) or "class_name" not in config:
        return config
    return keras.saving.deserialize_keras_object(config)


Anneal = Callable[[float, float, Tensor, Tensor], Tensor]


def linear(start: float, end: float, behind: Tensor, ahead: Tensor) -> Tensor:
    """A line from `start` to `end`; `behind` and `ahead` come from `progress`."""
    low, share = (start, behind) if start < end else (end, ahead)
    return low + abs(end - start) * share


def cosine(start: float, end: float, behind: Tensor, ahead: Tensor) -> Tensor:
    """Half a cosine from `start` to `end`.

    `(1 - cos(pi p)) / 2 = sin(pi p / 2)**2`, counted from the lower end, keeps the
    digits of a rate near an end that is orders of magnitude below the other.
    """
    low, share = (start, behind) if start < end else (end, ahead)
    return low + abs(end - start) * ops.square(ops.sin(math.pi / 2 * share))


ANNEALS: dict[str, Anneal] = {"cos": cosine, "linear": linear}
