"""Record inputs, outputs and gradients of a model's layers."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import refusing
from keras_trainkit._keras import call_name, patched
from keras_trainkit._model.kinds import channels_first
from keras_trainkit._training.as_fit import step_as_fit
from keras_trainkit._training.batches import text_as_tensor
from keras_trainkit._training.state import as_it_was


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """Return all layers of a model, nested models expanded, without input layers."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += leaves(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            found.append(layer)
    # A layer that is used twice counts once.
    return list({id(layer): layer for layer in found}.values())


def outputs(
    model: keras.Model,
    x,
    layers: list[keras.layers.Layer],
    *,
    before_activation: bool = False,
    training: bool = False,
    name: str = "x",
) -> list[tuple[keras.layers.Layer, np.ndarray]]:
    """Record the outputs of layers in one forward pass, in the order of their calls.

    Args:
        model: The model.
        x: Inputs of the model.
        layers: The layers of interest.
        before_activation: Record the input of a layer's `activation`, if it has one.
        training: As in a model's call.
        name: The name of the caller's argument for the inputs, for errors.

    Returns:
        Each layer that was called, with an array that has a column for each unit. All
        calls of a layer share one array. If their numbers of units differ, as for a
        tied embedding, there is one array for each number.
    """
    seen: dict[tuple, list] = {}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            inner = before_activation and callable(getattr(layer, "activation", None))

            def keep(taken, given, layer=layer, inner=inner):
                for tensor in keras.tree.flatten(taken if inner else given):
                    rows = _rows(tensor, layer)
                    if rows is not None:
                        seen.setdefault((layer, rows.shape[1]), []).append(rows)

            function = "activation" if inner else call_name(layer)
            stack.enter_context(_tapped(layer, function, keep))
        with refusing(name, x, "inputs that the model takes"):
            model(keras.tree.map_structure(text_as_tensor, x), training=training)
    return [(layer, np.concatenate(arrays)) for (layer, _), arrays in seen.items()]


def inputs(model: keras.Model, x, layer: keras.layers.Layer) -> Any:
    """Return a layer's inputs in a forward pass; several calls are concatenated."""
    seen: list = []
    with _tapped(layer, call_name(layer), lambda taken, _: seen.append(taken)):
        model(x, training=False)
    return keras.ops.concatenate(seen)


@contextlib.contextmanager
def recorded_gradients(model: keras.Model) -> Iterator[Callable[..., list[np.ndarray]]]:
    """Yield a function that computes the gradients of a compiled model's loss.

    The function takes the same batch as `step_as_fit` and returns an array for each
    trainable variable. BatchNorm and random layers run in training mode. The model is
    restored afterwards.
    """
    with as_it_was(model):
        optimizer = _Gradients()
        optimizer.build(model.trainable_variables)
        model.optimizer, model.train_function = optimizer, None

        def gradients(*batch: Any) -> list[np.ndarray]:
            step_as_fit(model, *batch)
            return [np.array(ops.convert_to_numpy(g)) for g in optimizer.gradients]

        yield gradients


def gradients_of(model: keras.Model, *batch: Any) -> dict[int, np.ndarray]:
    """Return the gradients of a compiled model's loss, keyed by variable id.

    The batch is the same as for `step_as_fit`. The model is restored afterwards.
    """
    ids = [id(variable) for variable in model.trainable_variables]
    with recorded_gradients(model) as gradients:
        return dict(zip(ids, gradients(*batch), strict=True))


class _Gradients(keras.optimizers.Optimizer):
    """An optimizer that records the gradients and updates no weights."""

    def __init__(self):
        super().__init__(learning_rate=1.0, name="gradients")

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.gradients = self.add_optimizer_variables(variables, "gradient")

    def update_step(self, gradient, variable, learning_rate):
        slot = self.gradients[self._get_variable_index(variable)]
        self.assign(
            slot, keras.ops.cast(keras.ops.convert_to_tensor(gradient), slot.dtype)
        )


def _tapped(layer, name: str, keep: Callable) -> contextlib.AbstractContextManager:
    """Call `keep` with the first argument and the result of each call of a method."""
    function: Callable = getattr(layer, name)

    def tap(*args, **kwargs):
        result = function(*args, **kwargs)
        keep(args[0] if args else next(iter(kwargs.values()), None), result)
        return result

    return patched([(layer, name, tap)])


def _rows(tensor, layer) -> np.ndarray | None:
    """Return a tensor as a matrix with a column per unit; None if it has no numbers."""
    # A `RaggedTensor` stores its values in one flat tensor.
    tensor = getattr(tensor, "flat_values", tensor)
    if tensor is None or keras.backend.standardize_dtype(tensor.dtype) == "string":
        return None
    array = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))
    array = array.reshape(-1, 1) if array.ndim < 2 else array
    if channels_first(layer):
        array = np.moveaxis(array, 1, -1)
    return array.reshape(-1, array.shape[-1]) if array.size else None
