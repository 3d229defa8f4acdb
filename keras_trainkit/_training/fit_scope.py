"""Make and undo changes that last one fit, and keep the compiled steps for them."""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._keras import sublayers
from keras_trainkit._keras.fitting import Fit, compile_config, own_train_step

_NAME = "_keras_trainkit_fit_scope"
_MAX_STEPS = 8


@dataclass
class _Change:
    """A change that a callback made.

    Args:
        owner: The callback.
        fit: The fit in which the callback made the change.
        what: What it changes, if only one callback may change it; for errors.
        key: What the compiled step depends on.
        undo: Undoes the change.
    """

    owner: keras.callbacks.Callback
    fit: Fit
    what: str | None
    key: Hashable
    undo: Callable[[], None]


class FitScope:
    """The changes that callbacks made to a model for the duration of a fit.

    All changes are undone, the last one first, when the first callback is told that
    training is over. If the fit raised an error, they are undone by whatever comes
    next: another fit, reading the learning rate, saving the model, or any function of
    this package.

    Compiled steps are kept for the next fit with the same changes. The step of a fit
    without changes is kept separately.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.changes: list[_Change] = []
        # What callbacks keep from one fit to the next, such as variables.
        self.memory: dict[Any, Any] = {}
        # Functions called around the first call of the step in this fit.
        self.first_calls: list[Callable[..., Any]] = []
        self._steps: dict[Hashable, tuple[Any, Any]] = {}
        self._plain: tuple[Any, Any] = (None, None)
        self._left: Any = None
        self._made: Any = None

    def begin(self, change: _Change) -> None:
        """Register a change that was made."""
        if not self.changes:
            if self._left is not None and self.model.train_function is not self._left:
                # The step was reset elsewhere, so something else has changed.
                self._steps.clear()
            self._plain = self.model.train_function, self._key()[0]
            self._made = self.model.train_function = None
            # Not `setattr`, because Keras and PyTorch override it.
            vars(self.model)["make_train_function"] = self._make
        self.changes.append(change)

    def close(self) -> None:
        """Undo all changes, the last one first."""
        if not self.changes:
            return
        changes, self.changes = self.changes, []
        self.first_calls = []
        vars(self.model).pop("make_train_function", None)
        for change in reversed(changes):
            change.undo()
        if self.model.train_function in (None, self._made):
            plain, key = self._plain
            self.model.train_function = plain if self._key()[0] == key else None
        self._left = self.model.train_function
        self._plain, self._made = (None, None), None

    def renew_step(self, owner: keras.callbacks.Callback, key: Hashable) -> None:
        """Switch to the step for a callback's new change in the middle of a fit."""
        for change in self.changes:
            if change.owner is owner:
                change.key = key
        self.model.train_function = None
        self.model.make_train_function()

    def _make(self, force: bool = False) -> Any:
        model = self.model
        if end_if_over(model):
            return model.make_train_function(force)
        key, kept = self._key()
        found = self._steps.pop(key, (None, None))[1]
        if force or found is None:
            model.train_function = None
            with own_train_step(model):
                type(model).make_train_function(model)
            found = model.train_function
        model.train_function = self._made = self._watched(found)
        self._steps[key] = kept, found
        while len(self._steps) > _MAX_STEPS:
            del self._steps[next(iter(self._steps))]
        return found

    def _watched(self, step: Any) -> Any:
        """Return the step, its first call wrapped in the functions that watch it."""
        if not self.first_calls:
            return step

        def first_call(*args: Any) -> Any:
            self.model.train_function = self._made = step
            watched = step
            for watch in self.first_calls:
                watched = functools.partial(watch, watched)
            self.first_calls = []
            return watched(*args)

        return first_call

    def _key(self) -> tuple[Hashable, Any]:
        """Return a key of all that the compiled step depends on.

        Also return the objects whose ids are in the key: while they are kept, no other
        object can have the same id.
        """
        model = self.model
        layers = sublayers(model)
        config = compile_config(model)
        names = ("steps_per_execution", "jit_compile", "run_eagerly")
        key = (
            tuple(change.key for change in self.changes),
            tuple(getattr(model, name, None) for name in names),
            tuple((id(layer), layer.trainable) for layer in layers),
            tuple(id(variable) for variable in model.trainable_variables),
            id(model.optimizer),
            id(config),
        )
        return key, (layers, config, model.optimizer)


def scope_of(model: keras.Model) -> FitScope:
    """Return the scope of a model, created if it has none."""
    scope = vars(model).get(_NAME)
    if scope is None or scope.model is not model:
        # A copied model may carry the scope of the original.
        scope = vars(model)[_NAME] = FitScope(model)
    return scope


def make_room(
    model: keras.Model,
    owner: keras.callbacks.Callback,
    what: str | None = None,
    rivals: tuple[type, ...] = (),
) -> None:
    """Undo what an earlier call left; raise if another callback changes the same thing.

    Args:
        model: The model.
        owner: The callback that is about to change something.
        what: What it changes, if no other callback may change it too.
        rivals: Callback classes of other packages that change the same thing.
    """
    end_if_over(model)
    scope = scope_of(model)
    if any(change.owner is owner for change in scope.changes):
        scope.close()
    others = [c.owner for c in scope.changes if what is not None and c.what == what]
    others += [c for c in Fit(owner).callbacks if isinstance(c, rivals)]
    if others:
        scope.close()
        names = [type(other).__name__ for other in (*others, owner)]
        reject("callbacks", names, f"with one that sets the {what} alone")


def enter(
    model: keras.Model,
    owner: keras.callbacks.Callback,
    undo: Callable[[], None],
    *,
    key: Hashable,
    what: str | None = None,
) -> FitScope:
    """Register a change that lasts for the fit in which `owner` made it."""
    scope = scope_of(model)
    scope.begin(_Change(owner, Fit(owner), what, key, undo))
    return scope


def check_trained(model: keras.Model, variables: list, verb: str) -> None:
    """Undo all changes and raise if the trainable variables changed during a fit.

    Args:
        model: The model.
        variables: The trainable variables at the beginning; empty if the model was not
            built then.
        verb: What the callback does, such as "prune".
    """
    now = model.trainable_variables
    if variables and [*map(id, now)] != [*map(id, variables)]:
        close(model)
        reject(
            "trainable_variables",
            [variable.path for variable in now],
            f"the same {len(variables)} throughout a fit that {verb}s (after "
            f"GradualUnfreezing, {verb} in a fit of its own)",
        )


def close(model: keras.Model) -> None:
    """Undo whatever callbacks changed for the duration of a fit."""
    scope = vars(model).get(_NAME)
    if scope is not None and scope.model is model:
        scope.close()


@contextlib.contextmanager
def own_steps(model: keras.Model) -> Iterator[None]:
    """Keep steps compiled inside separate from those of a surrounding fit.

    A measurement in the middle of a fit compiles steps with other optimizers. The scope
    of that fit must neither keep these steps nor continue with the last of them.
    """
    end_if_over(model)
    attributes = vars(model)
    around = attributes.get("make_train_function")
    step = getattr(model, "train_function", None)
    is_in_fit = _is_active(model)

    def make(force: bool = False) -> Any:
        with own_train_step(model):
            if around is None or is_in_fit:
                type(model).make_train_function(model, force)
            else:
                around(force)
        return model.train_function

    attributes["make_train_function"] = make
    try:
        yield
    finally:
        over = is_in_fit and not _is_active(model)
        if attributes.get("make_train_function") is make:
            del attributes["make_train_function"]
            if around is not None and not over:
                attributes["make_train_function"] = around
        if getattr(model, "train_function", None) is not step:
            # If the surrounding fit ended inside, its step must not be reused.
            model.train_function = None if over else step


def _is_active(model: keras.Model) -> bool:
    scope = getattr(model, "__dict__", {}).get(_NAME)
    return scope is not None and scope.model is model and bool(scope.changes)


def end_if_over(model: keras.Model) -> bool:
    """Undo the changes of a fit that raised; return whether there were any."""
    scope = getattr(model, "__dict__", {}).get(_NAME)
    if scope is None or not _is_active(model):
        return False
    if not all(change.fit.is_over() for change in scope.changes):
        return False
    scope.close()
    return True
