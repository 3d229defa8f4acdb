"""Inputs of the kind that a model takes."""

from typing import Any

import keras
import numpy as np

from keras_trainkit._keras import functional_part, sublayers
from keras_trainkit._model.graph import Edge, read


def random_inputs(model: keras.Model, rows: int = 4) -> Any:
    """Inputs in the structure of a Functional or built Sequential model's.

    Floats are normal; integers are valid for the embedding or lookup that reads them,
    else 0 or 1; masks are ones; strings are words. Unknown sizes are 64, large enough
    for a stack of poolings, or the most that a position embedding allows.
    """
    rng = np.random.default_rng(0)
    edges = {id(tensor): edge for tensor, edge in read(model).entries}
    # The number of positions of position embeddings.
    lengths = [getattr(layer, "sequence_length", None) for layer in sublayers(model)]
    size = min([64, *(n for n in lengths if isinstance(n, int))])

    def draw(tensor):
        return draw_like(tensor, rows, rng, edges[id(tensor)], size)

    return keras.tree.map_structure(draw, functional_part(model).input)


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
