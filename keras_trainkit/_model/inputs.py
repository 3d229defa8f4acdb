"""Inputs of the kind that a model takes."""

import re
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._keras import functional_part, sublayers
from keras_trainkit._model.graph import Edge, read

# Tried in this order where a size is open: large enough for a stack of poolings, and
# small enough for a table of positions.
_OPEN_SIZES = (64, 32, 16, 8, 4, 2, 1)


def random_inputs(model: keras.Model, rows: int = 4) -> Any:
    """Inputs in the structure of the model's, which the model can take.

    Floats are normal; integers are valid for the embedding or lookup that reads them,
    else 0 or 1; masks are ones; strings are words. An open size is the largest of
    `_OPEN_SIZES` for which the model runs and its outputs are finite.

    Raises:
        ValueError: If the model takes none of them.
    """
    failure: Exception | None = None
    ran = None
    for size in _OPEN_SIZES if _is_open(model) else _OPEN_SIZES[:1]:
        x = _draw_all(model, rows, size)
        try:
            # JAX returns NaN for an index that is out of range.
            if _are_finite(model(x, training=False)):
                return x
        except Exception as error:
            failure = error
        else:
            ran = x if ran is None else ran
    if ran is None:
        reject(
            "model",
            model.name,
            "one that takes inputs drawn at random, for two models to be compared on "
            f"them, unless `x` is given (it raised {_described(failure)})",
        )
    return ran


def _described(failure: Exception | None) -> str:
    """An error without the colours and the arguments that Keras adds."""
    text = re.sub(r"\x1b\[\d+m", "", str(failure)).split("Arguments received by")[0]
    return f"{type(failure).__name__}: {' '.join(text.split())[:200]}"


def _is_open(model) -> bool:
    return any(None in tensor.shape[1:] for tensor in model.inputs)


def _are_finite(outputs: Any) -> bool:
    return all(
        bool(keras.ops.convert_to_numpy(keras.ops.all(keras.ops.isfinite(y))))
        for y in keras.tree.flatten(outputs)
        if "float" in keras.backend.standardize_dtype(y.dtype)
    )


def _draw_all(model: keras.Model, rows: int, open_size: int) -> Any:
    rng = np.random.default_rng(0)
    functional = functional_part(model)
    graph = [] if functional is None else read(model).entries
    edges = {id(tensor): edge for tensor, edge in graph}

    def draw(tensor):
        return draw_like(tensor, rows, rng, edges.get(id(tensor)), open_size)

    # A class with its own `call` has the inputs of its graph nevertheless.
    x = keras.tree.map_structure(draw, (functional or model).input)
    has_strings = any(tensor.dtype == "string" for tensor in model.inputs)
    if has_strings and keras.backend.backend() == "tensorflow":
        # Strings are tensors, and Keras refuses them beside arrays.
        return keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    return x


def draw_like(
    tensor: Any,
    rows: int = 4,
    rng: np.random.Generator | None = None,
    edge: Edge | None = None,
    open_size: int = 64,
) -> Any:
    """Values for a symbolic tensor.

    Args:
        tensor: The tensor.
        rows: The size of the batch, if it is unknown.
        rng: By default a generator with seed 0.
        edge: Its edge in the graph of the model.
        open_size: Used for unknown sizes.
    """
    rng = rng or np.random.default_rng(0)
    shape = [size or open_size for size in tensor.shape]
    if tensor.shape and tensor.shape[0] is None:
        shape[0] = rows
    if "mask" in tensor.name and tensor.dtype[0] in "biu":
        return np.ones(shape, tensor.dtype)
    if tensor.dtype == "string":
        return _strings(rng.choice(_words(edge), shape))
    if "int" in tensor.dtype or tensor.dtype == "bool":
        return rng.integers(0, _bound(edge), shape).astype(tensor.dtype)
    return rng.normal(size=shape).astype("float32")


def _strings(words: np.ndarray) -> Any:
    if keras.backend.backend() != "tensorflow":
        return words
    return keras.ops.convert_to_tensor(words.tolist(), dtype="string")


def _behind(edge: Edge | None) -> list[Any]:
    """The layers that consume an edge, including the layers inside them."""
    found: list[Any] = []
    for call in edge.consumers if edge else []:
        if isinstance(call.layer, keras.layers.Layer):
            found += sublayers(call.layer)
        else:
            for output in call.outputs:
                found += _behind(output)
    return found


def _bound(edge: Edge | None) -> int:
    sizes = [
        layer.input_dim
        for layer in _behind(edge)
        if isinstance(getattr(layer, "input_dim", None), int)
    ]
    return min(sizes, default=2)


def _words(edge: Edge | None) -> list[str]:
    for layer in _behind(edge):
        if hasattr(layer, "get_vocabulary"):
            return [str(word) for word in layer.get_vocabulary() if word] or ["a"]
    return ["a"]
