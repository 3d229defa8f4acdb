"""What flows through a model's layers."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model and of the models inside it, inputs and models left out."""
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
) -> dict[keras.layers.Layer, np.ndarray]:
    """What some layers put out in one pass, in the order in which they did.

    Args:
        model: The model.
        x: Inputs of the model.
        layers: The layers of interest.
        before_activation: Take what goes into a layer's `activation`, if it has one.
        training: As in a model's call.

    Returns:
        An array for each layer that was used. All the uses of a layer are one array.
    """
    seen: dict[keras.layers.Layer, list] = {}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            inner = before_activation and callable(getattr(layer, "activation", None))
            name = "activation" if inner else "call"
            stack.enter_context(_tapped(layer, name, seen, of_input=inner))
        model(x, training=training)
    return {
        layer: np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
        for layer, arrays in seen.items()
    }


@contextlib.contextmanager
def _tapped(layer, name: str, seen: dict, of_input: bool) -> Iterator[None]:
    function: Callable = getattr(layer, name)
    own = name in vars(layer)
    units = -1
    if getattr(layer, "data_format", None) == "channels_first":
        units = 1

    def tap(*args, **kwargs):
        result = function(*args, **kwargs)
        for tensor in keras.tree.flatten(args[0] if of_input else result):
            array = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))
            array = array.reshape(-1, 1) if array.ndim < 2 else array
            seen.setdefault(layer, []).append(np.moveaxis(array, units, -1))
        return result

    setattr(layer, name, tap)
    try:
        yield
    finally:
        if own:
            setattr(layer, name, function)
        else:
            delattr(layer, name)
