"""Make a live optimizer follow schedules for the duration of a fit."""

import functools
import json
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import reject
from keras_trainkit._keras import (
    patched,
    set_saved_optimizer,
    step_counter,
    updated_variables,
)
from keras_trainkit._keras.fitting import (
    CurrentRate,
    compile_config,
    rate_variables,
    settle_variables,
    track_variable,
    untrack_variable,
    variable_scope,
)
from keras_trainkit._training import fit_scope
from keras_trainkit._training.optimizer import core_optimizer
from keras_trainkit._training.scheduled import Scheduled, schedulable
from keras_trainkit._types import Schedule, Tensor

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule

# Number of steps whose rates are computed at once on PyTorch.
_CHUNK = 256


class Following(CurrentRate):
    """A mixin added to a live optimizer's class while it follows schedules.

    No variable is recreated and no argument is lost, whatever the optimizer's class.
    Files written during the fit contain the user's own optimizer.
    """

    _follows: "Follows"

    @property
    def learning_rate(self):
        """Return the learning rate of the current step."""
        follows = self._follows
        if follows.now is not None:
            return follows.now
        if fit_scope.end_if_over(follows.model):
            return self.learning_rate
        return follows.rate(step_counter(self))

    @learning_rate.setter
    def learning_rate(self, value):
        follows = self._follows
        if fit_scope.end_if_over(follows.model):
            self.learning_rate = value
            return
        name = type(follows.owner).__name__
        reject("learning_rate", value, f"left alone while {name} schedules it")

    @property
    def variables(self):
        """Return the variables of the user's optimizer, then those of the schedules."""
        if fit_scope.end_if_over(self._follows.model):
            return self.variables
        return super().variables

    def apply(self, grads, trainable_variables=None):
        """Update all variables at the rate of this step."""
        follows = self._follows
        follows.now = follows.rate(step_counter(self))
        try:
            super().apply(grads, trainable_variables)
        finally:
            follows.now = None

    def get_config(self) -> dict:
        follows = self._follows
        if fit_scope.end_if_over(follows.model):
            return self.get_config()
        return dict(follows.config)

    def save_own_variables(self, store):
        """Save the state of the user's optimizer."""
        if fit_scope.end_if_over(self._follows.model):
            self.save_own_variables(store)
            return
        with patched([(self, "_variables", _saved(self))]):
            super().save_own_variables(store)

    def load_own_variables(self, store):
        """Load the state of the user's optimizer."""
        with patched([(self, "_variables", _saved(self))]):
            super().load_own_variables(store)


def _saved(optimizer: Any) -> list[Any]:
    follows = vars(optimizer).get("_follows")
    hidden = follows.hidden if follows else ()
    return [v for v in optimizer.variables if all(v is not h for h in hidden)]


@functools.cache
def _following(cls: type, mixin: type | None) -> type:
    bases = (Following, cls) if mixin is None else (Following, mixin, cls)
    name = getattr(mixin or cls, "_HYPERPARAMETER", None)
    attributes = {} if name is None else {name: _momentum(mixin or cls, name)}
    return type(cls.__name__, bases, attributes)


def _momentum(cls: type, name: str) -> property:
    """Return a property for the scheduled momentum; after the fit, the user's own."""
    inherited: property = getattr(cls, name)

    def get(self):
        if self._current is None and fit_scope.end_if_over(self._follows.model):
            return getattr(self, name)
        return inherited.__get__(self)

    return property(get, inherited.__set__)


class FitSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose start and factor are variables.

    Only these variables differ from one fit to the next, so the compiled step can be
    reused.
    """

    def __init__(
        self,
        schedule: Schedule,
        start: keras.Variable,
        state: keras.Variable | None = None,
    ):
        self.schedule = schedule
        self._start = start
        self._state = state
        on_torch = keras.backend.backend() == "torch"
        self._table = _Table(schedule) if on_torch else None

    def __call__(self, step: Any) -> Tensor:
        if self._table is not None:
            value = self._table(max(int(step) - int(self._start), 0))
        else:
            step = ops.convert_to_tensor(step)
            start = ops.cast(self._start, step.dtype)
            value = self.schedule(ops.maximum(step - start, 0))
        return value if self._state is None else value * self._state[0]

    def get_config(self) -> dict:
        raise NotImplementedError("a schedule for the length of a fit has no config")


class _Table:
    """Values of a schedule, computed for many steps at once where possible.

    Evaluating a schedule at every step takes a third of a small model's training time
    on PyTorch. The chunks begin at fixed steps, so a resumed fit sees exactly the same
    values.
    """

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self._usable = _is_elementwise(schedule)
        self._begin = -1
        self._values: Any = None

    def __call__(self, step: int) -> Tensor:
        if self._usable and step // _CHUNK != self._begin:
            self._fill(step // _CHUNK)
        if self._usable:
            return self._values[step % _CHUNK]
        return self._schedule(ops.convert_to_tensor(step, "int32"))

    def _fill(self, chunk: int) -> None:
        steps = ops.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK, dtype="int32")
        try:
            values = self._schedule(steps)
            self._usable = tuple(values.shape) == (_CHUNK,) and all(
                np.isclose(float(values[i]), float(self._schedule(steps[i])), 1e-5, 0)
                for i in (0, _CHUNK // 2, _CHUNK - 1)
            )
        except (RuntimeError, TypeError, ValueError):
            # The schedule handles only one step at a time.
            self._usable = False
            return
        self._begin, self._values = chunk, values


def _parts(schedule: Schedule) -> Iterator[Schedule]:
    """Yield a schedule and all schedules inside it."""
    yield schedule
    for value in keras.tree.flatten(list(vars(schedule).values())):
        if isinstance(value, LearningRateSchedule):
            yield from _parts(value)


def _is_known(schedule: Schedule) -> bool:
    """Whether a schedule is fully determined by its config."""
    return all(
        type(part).__module__.startswith(("keras_trainkit.", "keras."))
        and not hasattr(part, "fn")
        for part in _parts(schedule)
    )


_is_elementwise = _is_known


def schedule_key(schedule: Schedule | None) -> Hashable:
    """Return a key that differs for schedules with different values."""
    if schedule is None or not _is_known(schedule):
        return schedule
    return json.dumps(keras.optimizers.schedules.serialize(schedule), sort_keys=True)


class _StateInFiles(keras.layers.Layer):
    """State of the schedules, stored next to the optimizer's own state in files."""

    def __init__(self, follows: "Follows"):
        super().__init__(name="fit_state")
        self._named = follows.named
        self._follows = follows

    def save_own_variables(self, store):
        """Save each variable under its name."""
        for name, variable in self._named.items():
            store[name] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        """Load the variables that the file contains."""
        for name, variable in self._named.items():
            if name in store:
                variable.assign(np.array(store[name]))
                self._follows.was_loaded = True


class Follows:
    """The schedules that an optimizer follows in a fit.

    Args:
        model: The model.
        optimizer: The optimizer.
        owner: The callback.
        rate: Schedule of the learning rate.
        momentum: Schedule of the momentum, if the optimizer allows one.
        name: The optimizer's name, as in `optimizers_of`.
        state: The state of the plateau detection; its first entry is the factor that
            multiplies the learning rate.
        least_momentum: The momentum that SGD gets, and keeps, if it has none.
        leave: Called at the end, once the optimizer is restored.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        owner: keras.callbacks.Callback,
        rate: Schedule,
        momentum: Schedule | None = None,
        name: str = "optimizer",
        state: tuple[float, ...] | None = None,
        least_momentum: float | None = None,
        leave: Callable[[], None] | None = None,
    ):
        self.model, self.optimizer, self.owner = model, optimizer, owner
        self.cls = type(optimizer)
        self.now: Tensor | None = None
        self.was_loaded = False
        if least_momentum is not None:
            _give_momentum(model, optimizer, least_momentum)
        _build(model, optimizer)
        is_compiled = name == "optimizer"
        if is_compiled and isinstance(compile_config(model).get("optimizer"), str):
            # Given a string, a saved file would record only the optimizer's class.
            set_saved_optimizer(model, optimizer)
        self.config = optimizer.get_config()
        scope = fit_scope.scope_of(model)
        memory = scope.memory.setdefault(id(optimizer), {"optimizer": optimizer})
        self.named = {"start": self._variable(memory, "start", (), "int32")}
        if state is not None:
            variable = self._variable(memory, "plateau", (len(state),), "float32")
            variable.assign(np.array(state, "float32"))
            self.named["plateau"] = variable
        key = (
            id(optimizer),
            schedule_key(rate),
            schedule_key(momentum),
            state is None,
            tuple(_hyperparameters(optimizer)),
        )
        schedules = memory.setdefault("schedules", {})
        if key not in schedules:
            # The compiled step refers to these variables, so they are reused.
            schedules[key] = tuple(
                schedule
                and FitSchedule(schedule, self.named["start"], self.named.get(name))
                for schedule, name in ((rate, "plateau"), (momentum, ""))
            )
        self.rate, self.momentum = schedules[key]
        self.hidden = list(self.named.values())
        undo = self._change(leave)
        fit_scope.enter(model, owner, undo, key=key, what=rate_of(name))

    def _variable(self, memory, name, shape, dtype):
        if name not in memory:
            with variable_scope(self.model):
                memory[name] = self.optimizer.add_variable(
                    shape,
                    dtype=dtype,
                    aggregation="only_first_replica",
                    name=f"schedule_{name}",
                )
        track_variable(self.optimizer, memory[name])
        return memory[name]

    def _change(self, leave):
        optimizer, attributes = self.optimizer, vars(self.optimizer)
        cls, value = self.cls, attributes.get("_value")
        ours = schedulable(optimizer) if self.momentum is not None else None
        mixin = None if ours is None or ours is cls else _mixin(ours)
        config = compile_config(self.model)
        original = config.get("optimizer")
        stand_in = self._stand_in = _serialized(original, optimizer)
        if self.momentum is not None:
            attributes["_value"] = self.momentum
        attributes["_follows"] = self
        attributes["fit_state"] = _StateInFiles(self)
        if stand_in is not None:
            config["optimizer"] = stand_in
        object.__setattr__(optimizer, "__class__", _following(cls, mixin))  # type: ignore[arg-type]

        def undo():
            object.__setattr__(optimizer, "__class__", cls)
            for name in ("_follows", "fit_state", "_value", "_current"):
                attributes.pop(name, None)
            if value is not None:
                attributes["_value"] = value
            for variable in self.named.values():
                untrack_variable(optimizer, variable)
            if stand_in is not None and config.get("optimizer") is stand_in:
                config["optimizer"] = original
            if leave is not None:
                leave()
            settle_variables(optimizer)

        return undo

    def show(self, schedule: Schedule) -> None:
        """Save this learning rate in all files written from now on."""
        rate = keras.optimizers.schedules.serialize(schedule)
        self.config["learning_rate"] = rate
        inner = (self._stand_in or {}).get("config", {})
        inner = inner.get("inner_optimizer", {}).get("config", inner)
        inner["learning_rate"] = rate
        self.hidden = [*self.named.values(), *rate_variables(self.optimizer)]

    @property
    def state(self) -> tuple[float, ...]:
        """Return the state of the plateau detection."""
        return tuple(float(x) for x in ops.convert_to_numpy(self.named["plateau"]))

    @state.setter
    def state(self, state: tuple[float, ...]) -> None:
        self.named["plateau"].assign(np.array(state, "float32"))

    @property
    def start(self) -> int:
        """Return the number of batches seen at the schedules' step 0."""
        return int(ops.convert_to_numpy(self.named["start"]))

    @start.setter
    def start(self, value: int) -> None:
        self.named["start"].assign(value)


def rate_of(name: str) -> str:
    """Return the description, for errors, of this optimizer's learning rate."""
    return f"learning rate of {name!r}"


def _mixin(ours: type) -> type:
    return next(base for base in ours.__bases__ if issubclass(base, Scheduled))


def _hyperparameters(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the optimizer's numbers and options that the compiled step bakes in."""
    for name, value in vars(optimizer).items():
        if isinstance(value, int | float | str | None) and name != "built":
            yield name, value


def _serialized(saved: Any, optimizer: Any) -> Any:
    """Return the config to save for an optimizer whose class was replaced."""
    if optimizer not in (saved, getattr(saved, "inner_optimizer", None)):
        return None
    return keras.saving.serialize_keras_object(saved)


def _build(model: keras.Model, optimizer: Any) -> None:
    """Build the optimizer's slots, if that is already possible."""
    if optimizer.built or not model.built or not model.trainable_variables:
        return
    if optimizer is core_optimizer(model):
        with variable_scope(model):
            model.optimizer.build(model.trainable_variables)


def _give_momentum(model: keras.Model, optimizer: Any, momentum: float) -> None:
    """Add momentum to SGD that has none; its velocity is kept after the fit."""
    optimizer.momentum = momentum
    if optimizer.built:
        with variable_scope(model):
            optimizer.momentums = optimizer.add_optimizer_variables(
                updated_variables(optimizer), "momentum"
            )
