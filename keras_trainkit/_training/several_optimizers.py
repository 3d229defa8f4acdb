"""Models whose training step uses several optimizers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_choice, reject
from keras_trainkit._keras import batch_count, updated_variables
from keras_trainkit._training import fit_scope
from keras_trainkit._training.optimizer import (
    core_optimizer,
    optimizers_of,
    set_optimizer,
)


def optimizer_named(model: keras.Model, name: str) -> Any:
    """Return the optimizer with a name as in `optimizers_of`, or raise."""
    found = optimizers_of(model)
    check_choice("optimizer", name, found)
    return found[name]


@contextlib.contextmanager
def others_as_they_were(model: keras.Model, name: str) -> Iterator[None]:
    """Restore the state of all optimizers of a model except one."""
    others = [o for other, o in optimizers_of(model).items() if other != name]
    # An optimizer cannot be unbuilt, so a copy is built in its place.
    unbuilt = [(o, type(o).from_config(o.get_config())) for o in others if not o.built]
    kept = [
        (variable, np.array(keras.ops.convert_to_numpy(variable)))
        for optimizer in others
        if optimizer.built
        for variable in optimizer.variables
    ]
    for optimizer, copy in unbuilt:
        set_optimizer(model, optimizer, copy)
    try:
        yield
    finally:
        for optimizer, copy in unbuilt:
            set_optimizer(model, copy, optimizer)
        for variable, value in kept:
            variable.assign(value)


def optimizer_to_schedule(model: keras.Model, name: str) -> Any:
    """Return the optimizer with this name, without any loss scaling."""
    if name == "optimizer":
        return core_optimizer(model)
    optimizer = optimizer_named(model, name)
    if keras.backend.backend() == "jax":
        expected = "None on JAX, where a training step has the state of one optimizer"
        reject("optimizer", name, expected)
    return getattr(optimizer, "inner_optimizer", optimizer)


def watch_first_step(model: keras.Model, name: str, remedy: str) -> None:
    """Make the fit raise unless an optimizer takes exactly one step per batch.

    A custom `train_step` may use other optimizers, or use one several times. A callback
    that changes this optimizer, or relies on its step count, would then fail silently.

    Args:
        model: The model.
        name: The optimizer's name, as in `optimizers_of`.
        remedy: What to do instead, for the error message.
    """
    if getattr(model.train_step, "__func__", None) is not keras.Model.train_step:
        fit_scope.scope_of(model).first_calls.append(_FirstStep(model, name, remedy))


class _FirstStep:
    """Checks a first step: if it did not use the optimizer as expected, undo and raise.

    Wraps the compiled step for one call.
    """

    def __init__(self, model: keras.Model, name: str, remedy: str):
        self._model, self._name, self._remedy = model, name, remedy
        optimizers = optimizers_of(model).values()
        self._unbuilt = [optimizer for optimizer in optimizers if not optimizer.built]
        built = [v for o in optimizers if o.built for v in o.variables]
        self._kept = [
            (variable, np.array(keras.ops.convert_to_numpy(variable)))
            for variable in (*model.variables, *model.metrics_variables, *built)
        ]

    def __call__(self, step: Any, *args: Any) -> Any:
        on_jax = keras.backend.backend() == "jax"
        if on_jax:
            self._show(args[0])
        before, movements = self._count(), Movements(self._model)
        try:
            result = step(*args)
        except BaseException:
            self._put_back()
            raise
        if on_jax:
            self._show(result[1])
        names = movements.moved()
        # Loss scaling may skip a step, so fewer steps than expected are allowed.
        if self._name not in names or (
            self._count() - before > self._model.steps_per_execution
        ):
            self._put_back()
            expected = "one that makes one step with each batch; the training step uses"
            used = ", ".join(map(repr, names)) or "none that is known"
            reject("optimizer", self._name, f"{expected} {used}. {self._remedy}")
        return result

    def _show(self, state: Any) -> None:
        """Copy the optimizer's counts from the state that JAX keeps separately."""
        variables = self._model.optimizer.variables
        for variable, value in zip(variables, state[2], strict=True):
            if variable.shape == ():
                # A copy, because JAX donates the old buffers to the compiled step.
                variable.assign(np.array(value))

    def _count(self) -> int:
        return batch_count(optimizer_to_schedule(self._model, self._name))

    def _put_back(self) -> None:
        fit_scope.close(self._model)
        for variable, value in self._kept:
            variable.assign(value)
        for optimizer in self._unbuilt:
            _as_new(optimizer)


def _as_new(optimizer: keras.optimizers.Optimizer) -> None:
    """Reset an optimizer to the state it had when it was built."""
    if optimizer.built:
        new = type(optimizer).from_config(optimizer.get_config())
        new.build(updated_variables(optimizer))
        for variable, initial in zip(optimizer.variables, new.variables, strict=True):
            variable.assign(initial)


class Movements:
    """Detects which optimizers of a model take steps."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._begin = self._counts()

    def _counts(self) -> dict[str, list[float]]:
        """Return the scalar variables, such as step counts and loss scales."""
        return {
            name: [
                float(keras.ops.convert_to_numpy(v))
                for v in optimizer.variables
                if v.shape == ()
            ]
            for name, optimizer in optimizers_of(self._model).items()
        }

    def moved(self) -> list[str]:
        """Return the names of the optimizers that took steps since the beginning."""
        return [n for n, c in self._counts().items() if c != self._begin.get(n)]

    def check(self, chosen: str | None) -> None:
        """Raise unless the chosen optimizer took a step.

        Args:
            chosen: The name that the user gave. If it is None, `model.optimizer` must
                be the only one that took steps.
        """
        if len(self._begin) < 2 and chosen is None:
            return
        names = self.moved()
        if chosen is None and names == ["optimizer"]:
            return
        if chosen is None or chosen not in names:
            expected = "one of those that the training step uses: " + ", ".join(
                map(repr, names)
            )
            reject("optimizer", chosen, expected)
