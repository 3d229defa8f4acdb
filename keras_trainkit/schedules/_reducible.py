"""A schedule that a callback can lower when progress stalls."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import check_finite, check_items, reject
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Schedule, Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


@_base.register
class Reducible(LearningRateSchedule):
    """A schedule times a factor that a callback lowers: `factor * schedule(t)`.

    `kt.callbacks.PlateauSchedule` installs it. The factor and the rest of the state of
    the search for a plateau are a variable of the optimizer, so they are part of the
    compiled step and of every checkpoint.

    Args:
        schedule: The schedule.
        state: `(factor, best, wait, cooldown)`: the factor, the best value of the
            monitored quantity, the epochs since then, and the epochs of cooldown left.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Constant(0.5)
        >>> float(kt.schedules.Reducible(schedule, (0.5, 1.0, 0, 0))(3))
        0.25
    """

    FRESH = (1.0, 3e38, 0.0, 0.0)
    """Return the initial state; its best is a huge number, as JSON has no infinity."""

    def __init__(self, schedule: Schedule, state: Sequence[float] = FRESH):
        self.schedule = _base.check_schedule("schedule", _base.deserialize(schedule))
        self._state = tuple(
            check_finite("state", value)
            for value in check_items("state", state, "four numbers")
        )
        if len(self._state) != len(self.FRESH):
            reject("state", state, "four numbers")
        self._variable: keras.Variable | None = None

    def bind(self, add_variable: Callable[..., keras.Variable]) -> None:
        """Keep the state in a variable of an optimizer from now on.

        Args:
            add_variable: The optimizer's method of this name.
        """
        self._variable = add_variable(
            shape=(4,), dtype="float32", initializer="zeros", name="plateau_state"
        )
        self._variable.assign(np.array(self._state, "float32"))

    @property
    def bound(self) -> bool:
        """Whether the state is a variable of an optimizer."""
        return self._variable is not None

    def around(self, schedule: Schedule) -> "Reducible":
        """Return the same state around another schedule."""
        other = Reducible(schedule, self.state)
        other._variable = self._variable
        return other

    @property
    def state(self) -> tuple[float, ...]:
        """`(factor, best, wait, cooldown)`."""
        if self._variable is None:
            return self._state
        return tuple(float(x) for x in ops.convert_to_numpy(self._variable))

    @state.setter
    def state(self, state: Sequence[float]) -> None:
        self._state = tuple(state)
        if self._variable is not None:
            self._variable.assign(np.array(state, "float32"))

    def __call__(self, step: Any) -> Tensor:
        factor = self._state[0] if self._variable is None else self._variable[0]
        return self.schedule(as_step(step)) * factor

    def get_config(self) -> dict:
        return {"schedule": _base.serialize(self.schedule), "state": list(self.state)}
