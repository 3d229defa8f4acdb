"""Type aliases shared by the whole package."""

from typing import Any, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of the active Keras backend, or anything `keras.ops` converts to one."""

Shape: TypeAlias = tuple[int | None, ...]
"""A tensor shape; `None` marks an axis of unknown size."""

Schedule: TypeAlias = Any
"""A `keras.optimizers.schedules.LearningRateSchedule`; Keras ships no types."""
