"""What a `fit` does with a model, its optimizer and its callbacks."""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras

from keras_trainkit._keras import patched


def compile_config(model: keras.Model) -> dict[str, Any]:
    """What a model was compiled with, as saved in its file.

    Each `compile` makes a new dict. Tried on Keras 3.13 and 3.15.
    """
    saved = getattr(model, "_compile_config", None)
    return {} if saved is None else saved.config


def variable_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """The scope in which to create variables that a model's training step uses.

    Under `tf.distribute`, a variable created outside the strategy's scope is shared by
    all replicas, and is updated once by each. Tried on Keras 3.13 and 3.15.
    """
    strategy = getattr(model, "_distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def track_variable(optimizer: keras.optimizers.Optimizer, variable: Any) -> None:
    """Add a variable to the end of the optimizer's variables.

    Tried on Keras 3.13 and 3.15.
    """
    if all(variable is not other for other in optimizer._variables):
        optimizer._tracker.unlock()
        optimizer._track_variable(variable)


def rate_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The variable that holds an optimizer's learning rate, if it is a number.

    `optimizer.learning_rate` may be overridden. Tried on Keras 3.13 and 3.15.
    """
    rate = optimizer._learning_rate
    return [rate] if isinstance(rate, keras.Variable) else []


class CurrentRate(keras.optimizers.Optimizer):
    """A mixin for optimizers that override `learning_rate`.

    On PyTorch, weight decay reads the rate through a private method, which would give
    the rate of the class below. Tried on Keras 3.13 and 3.15.
    """

    def _get_current_learning_rate(self):
        return self.learning_rate


def untrack_variable(optimizer: keras.optimizers.Optimizer, variable: Any) -> None:
    """Remove a variable from the optimizer's. Tried on Keras 3.13 and 3.15."""
    if any(variable is other for other in optimizer._variables):
        optimizer._untrack_variable(variable)


def settle_variables(optimizer: keras.optimizers.Optimizer) -> None:
    """Let a model be exported although variables of its optimizer were removed.

    TensorFlow's list of them remembers a removal and then refuses to be saved; Keras
    itself removes one when a rate becomes a schedule. Tried on Keras 3.13 and 3.15.
    """
    variables = optimizer._variables
    if getattr(variables, "_non_append_mutation", False):
        variables._non_append_mutation = False
        variables._update_snapshot()


class Fit:
    """The call of `fit` in which a callback is being set up.

    A callback is told neither about the other callbacks of a fit nor that the fit
    raised. Its `CallbackList` knows the others and lives as long as the call. Tried on
    Keras 3.13 and 3.15.
    """

    def __init__(self, callback: keras.callbacks.Callback):
        self._list: Any = None
        self._in_fit = False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            callbacks = frame.f_locals.get("self")
            if isinstance(callbacks, keras.callbacks.CallbackList):
                self._list = weakref.ref(callbacks)
            elif self._list is not None:
                self._in_fit = frame.f_code.co_name == "fit"
                break
            frame = frame.f_back

    @property
    def callbacks(self) -> list[keras.callbacks.Callback]:
        """All callbacks of the fit, as far as they are known."""
        callbacks = self._list and self._list()
        return list(callbacks.callbacks) if callbacks else []

    def append(self, callback: keras.callbacks.Callback) -> None:
        """Add a callback behind all others, for what is left of the call."""
        callbacks = self._list and self._list()
        if callbacks:
            callbacks.callbacks.append(callback)

    def is_over(self) -> bool:
        """Whether the call has returned or raised, in any thread."""
        if self._list is None:
            return False
        # Not named `callbacks`, the name searched for below.
        own = self._list()
        if own is None or not self._in_fit:
            # A loop written by hand may keep its list anywhere.
            return own is None
        return not any(
            frame.f_locals.get(name) is own
            for frame in _all_frames()
            for name in ("callbacks", "self")
        )


def begin_at_epoch(model: keras.Model, epoch: int) -> None:
    """Let the `fit` that is beginning go on with an epoch, from `on_train_begin`.

    What `BackupAndRestore` does. Tried on Keras 3.15.
    """
    model._initial_epoch = epoch


def fit_arguments(model: keras.Model) -> dict[str, Any] | None:
    """What the `fit` in which a callback of `model` is being set up was called with.

    A callback is not told on which data it will be. `validation_split` has taken its
    part already. None where there is no such `fit`. Tried on Keras 3.15.
    """
    names = ("x", "y", "sample_weight", "class_weight", "batch_size", "initial_epoch")
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals
        if frame.f_code.co_name == "fit" and found.get("self") is model:
            if "epoch_iterator" in found:
                return {name: found[name] for name in (*names, "callbacks", "verbose")}
        frame = frame.f_back
    return None


def _all_frames() -> Iterator[Any]:
    """Every frame of every thread; a callback may run in another thread."""
    for top in list(sys._current_frames().values()):
        frame: FrameType | None = top
        while frame is not None:
            yield frame
            frame = frame.f_back


@contextlib.contextmanager
def only_step(model: keras.Model, step: Callable[[Any], None]) -> Iterator[None]:
    """Lets a `fit` do nothing with a batch but pass it to `step`, eagerly.

    What a `fit` that preprocesses passes to the training step is not public. Nothing is
    built or trained. Tried on Keras 3.15.
    """

    def train_step(*state_and_data):
        # The JAX trainer passes the state through the step.
        *state, data = state_and_data
        step(data)
        # TensorFlow's loop wants a value.
        logs = {"loss": keras.ops.zeros(())}
        return (logs, *state) if state else logs

    def nothing(*args, **kwargs):
        pass

    kept = {
        name: getattr(model, name)
        for name in ("run_eagerly", "train_function", "steps_per_execution")
    }
    changes = [
        (model, "train_step", train_step),
        (model, "_symbolic_build", nothing),
        # The metrics are not built.
        (model, "get_metrics_result", dict),
    ]
    try:
        with patched(changes):
            model.run_eagerly, model.train_function = True, None
            model.steps_per_execution = 1
            yield
    finally:
        for name, value in kept.items():
            setattr(model, name, value)


@contextlib.contextmanager
def own_train_step(model: keras.Model) -> Iterator[None]:
    """Makes sure that a training function created inside is traced anew.

    JAX treats two `jit`s of the same method as one function while both are alive, and
    would reuse the trace of the first. Tried on Keras 3.13 and 3.15.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    step = model.train_step

    def train_step(*args):
        return step(*args)

    with patched([(model, "train_step", train_step)]):
        yield
