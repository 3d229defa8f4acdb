"""Type aliases shared by the whole package."""

from typing import Any, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of the active Keras backend, or anything `keras.ops` converts to one."""

Shape: TypeAlias = tuple[int | None, ...]
"""A tensor shape; `None` stands for an axis whose size is not known."""

Schedule: TypeAlias = Any
"""A `keras.optimizers.schedules.LearningRateSchedule`; Keras ships no types."""
