"""Count the floating-point operations of a model."""

import math
from collections.abc import Callable, Sequence

import keras
from keras import layers

from keras_trainkit._checks import check_built
from keras_trainkit._keras import projections
from keras_trainkit._model.graph import Call, Edge, read
from keras_trainkit._model.kernels import kernels
from keras_trainkit._model.kinds import TRANSPOSED, channels_first, einsum_labels

ShapeOf = Callable[[keras.Variable], Sequence[int]]


def flops(model: keras.Model) -> int:
    """Count the floating-point operations of a forward pass for one row.

    Each multiplication by a weight counts as two operations, a product and a sum. So
    does each multiplication in attention's scores and weighted values. Activations,
    normalization and the like are not counted. Unknown sizes count as 1.

    Args:
        model: A Functional or built Sequential model.

    Returns:
        The number of operations.

    Raises:
        ValueError: If the model is neither Functional nor a built Sequential one.

    Examples:
        >>> import keras_trainkit as kt
        >>> kt.flops(kt.models.build_mlp((784,), 10, hidden_units=(300, 100)))
        532400
    """
    check_built(model)
    return count_flops(model, lambda variable: variable.shape)


def count_flops(model: keras.Model, shape_of: ShapeOf) -> int:
    """Count as in `flops`, with kernel shapes given by `shape_of`."""
    return sum(_products(call, shape_of) for call in read(model).calls) * 2


def _products(call: Call, shape_of: ShapeOf) -> int:
    layer = call.layer
    if not isinstance(layer, layers.Layer) or isinstance(layer, layers.Embedding):
        return 0
    if isinstance(layer, layers.MultiHeadAttention | layers.GroupQueryAttention):
        return _attention(call, shape_of)
    found = [math.prod(shape_of(kernel.variable)) for kernel in kernels(layer)]
    if not found:
        return 0
    (taken,), (output,) = call.inputs[:1], call.outputs[:1]
    if isinstance(layer, layers.RNN | layers.Bidirectional):
        return sum(found) * (taken.shape[1] or 1)
    if isinstance(layer, TRANSPOSED):
        return sum(found) * _positions(taken, layer)
    if isinstance(layer, layers.EinsumDense):
        return sum(found) * _einsum_positions(layer, taken)
    return sum(found) * _positions(output, layer)


def _positions(edge: Edge, layer) -> int:
    sizes = edge.shape[2:] if channels_first(layer) else edge.shape[1:-1]
    return math.prod(size or 1 for size in sizes)


def _einsum_positions(layer, edge: Edge) -> int:
    taken, kernel, _ = einsum_labels(layer)
    # The equation names the last axes; the first axis is the batch.
    names = taken.rjust(len(edge.shape), ".")[1:]
    sizes = zip(names, edge.shape[1:], strict=True)
    return math.prod(size or 1 for name, size in sizes if name not in kernel)


def _attention(call: Call, shape_of: ShapeOf) -> int:
    layer = call.layer
    query, value = call.inputs[0], call.inputs[min(1, len(call.inputs) - 1)]
    rows = math.prod(size or 1 for size in query.shape[1:-1])
    columns = math.prod(size or 1 for size in value.shape[1:-1])
    total = 0
    parts = projections(layer)
    for name, dense in parts.items():
        positions = columns if name in ("key", "value") else rows
        total += math.prod(shape_of(dense.kernel)) * positions
    heads = shape_of(parts["query"].kernel)[1]
    for name in ("query", "value"):
        total += rows * columns * heads * shape_of(parts[name].kernel)[2]
    return total
