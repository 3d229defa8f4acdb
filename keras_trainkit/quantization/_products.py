"""Compute layers on many positions as the one matrix product LiteRT has in int8."""

import math
from collections.abc import Callable
from typing import Any

from keras import layers, ops

from keras_trainkit._model.kinds import einsum_labels
from keras_trainkit._types import Tensor


def product_axes(layer: Any) -> int | None:
    """Return how many trailing input axes a Dense or EinsumDense sums over.

    None if it is not a product of one matrix with each position.
    """
    if isinstance(layer, layers.Dense):
        return 1
    taken, kernel, output = einsum_labels(layer)
    summed = "".join(label for label in kernel if label not in output)
    units = kernel[len(summed) :]
    positions = taken[: len(taken) - len(summed)]
    is_product = (
        0 < len(summed)
        and (taken, kernel, output)
        == (positions + summed, summed + units, positions + units)
        and not set(positions) & set(units)
    )
    return len(summed) if is_product else None


def is_on_positions(layer: Any, rank: int) -> bool:
    """Whether a layer is a matrix product for each of many positions.

    Args:
        layer: The layer.
        rank: The rank of its input.
    """
    kind = type(layer)
    return kind is layers.EinsumDense or (kind is layers.Dense and rank > 2)


def as_product(layer: Any, x: Tensor, kernel: Any, finish: Callable) -> Tensor:
    """Compute a Dense or EinsumDense layer as one product, and reshape the result.

    Args:
        layer: The layer.
        x: Its input.
        kernel: Its kernel.
        finish: Applied to the product, of shape `(positions, units)`.
    """
    summed = product_axes(layer) or 1
    units = kernel.shape[summed:]
    size = math.prod(kernel.shape[:summed])
    flat = ops.matmul(ops.reshape(x, (-1, size)), ops.reshape(kernel, (size, -1)))
    if layer.bias is not None:
        flat = flat + ops.reshape(ops.broadcast_to(layer.bias, units), (-1,))
    positions = tuple(x.shape)[: len(x.shape) - summed]
    if positions.count(None) > 1:
        positions = ops.shape(x)[: len(positions)]
    shape = [-1 if size is None else size for size in (*positions, *units)]
    return ops.reshape(finish(flat), shape)
