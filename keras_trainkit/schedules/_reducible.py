"""A schedule that performance can lower."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import check_finite, check_items, reject
from keras_trainkit._types import Schedule, Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


@_base.register
class Reducible(LearningRateSchedule):
    """A schedule times a factor that is lowered from outside: `factor * schedule(t)`.

    What `kt.callbacks.PlateauSchedule` installs. The factor, and with it the state of
    the search for a plateau, is a variable of the optimizer, so that it is part of the
    compiled step and of every checkpoint.

    Args:
        schedule: The schedule.
        state: `(factor, best, wait, cooldown)`: the factor, the best value of the
            monitored quantity, the epochs since, and the epochs left to cool down.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.Constant(0.5)
        >>> float(kt.schedules.Reducible(schedule, (0.5, 1.0, 0, 0))(3))
        0.25
    """

    FRESH = (1.0, 3e38, 0.0, 0.0)
    """The state at first. Any value is better than the best: JSON has no infinity."""

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
        """The same state around another schedule."""
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
        return self.schedule(_base.as_step(step)) * factor

    def get_config(self) -> dict:
        return {"schedule": _base.serialize(self.schedule), "state": list(self.state)}
