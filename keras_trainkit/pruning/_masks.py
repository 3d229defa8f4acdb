"""Masks of the entries of a kernel to keep: by magnitude, in blocks, or N of every M.

Of equal magnitudes, the first entries are pruned first. Everything here can run in a
compiled step, where the sparsity is a tensor.
"""

import math
import re
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import reject
from keras_trainkit._model.kernels import Kernel
from keras_trainkit._types import Tensor


@dataclass(frozen=True)
class NofM:
    """At most `n` nonzero entries in every `m` consecutive ones.

    The entries are counted along the last axis that a unit sums over; in a depthwise
    kernel, along its channels. If `m` does not divide the axis, the last group is
    shorter and keeps `n` too.
    """

    n: int
    m: int

    def __str__(self):
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks:
    """Blocks of a kernel, as a matrix of inputs by units, that are pruned as a whole.

    Attributes:
        height: Entries along the inputs, all axes but the last.
        width: Entries along the last axis.
        pooling: What ranks a block: `"avg"`, the mean of its magnitudes, or `"max"`.
    """

    height: int = 1
    width: int = 1
    pooling: str = "avg"

    def __str__(self):
        return f"{self.height}x{self.width}"

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the number of blocks of a kernel along the inputs and the units."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        return -(-rows // self.height), -(-columns // self.width)


Pattern = NofM | Blocks


def parse_pattern(pattern: str | None, pooling: str = "avg") -> Pattern:
    """Parse a pattern such as `"2:4"` or `"4x1"`; None is no pattern.

    Args:
        pattern: The pattern.
        pooling: What ranks a block, `"avg"` or `"max"`.

    Raises:
        ValueError: If it is none of these.
    """
    text = "1x1" if pattern is None else pattern if isinstance(pattern, str) else ""
    match = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    first, kind, second = match.groups() if match else ("0", "x", "0")
    a, b = int(first), int(second)
    if kind == ":" and 0 < a < b:
        return NofM(a, b)
    if kind == "x" and a > 0 and b > 0:
        return Blocks(a, b, pooling)
    return reject(
        "pattern", pattern, 'None, "N:M" with 0 < N < M, or a block "HEIGHTxWIDTH"'
    )


def masks(
    kernels: list[Kernel],
    values: list[Tensor],
    sparsities: list[Tensor],
    pattern: Pattern,
    together: bool,
) -> list[Tensor]:
    """Return the entries of each kernel to keep, as booleans.

    Args:
        kernels: The kernels.
        values: Their values.
        sparsities: For each kernel, the fraction of blocks to prune; unused for `N:M`.
        pattern: What is pruned as a whole.
        together: Whether the blocks of all kernels are ranked in one list, with the
            first sparsity.
    """
    if isinstance(pattern, NofM):
        return [
            _n_of_m(value, kernel.row, pattern)
            for kernel, value in zip(kernels, values, strict=True)
        ]
    scores = [
        ops.reshape(_block_scores(ops.abs(value), pattern), (-1,)) for value in values
    ]
    if together:
        sizes = [int(score.shape[0]) for score in scores]
        every = _largest(
            ops.concatenate([ops.cast(score, "float32") for score in scores]),
            sparsities[0],
        )
        splits = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        kept = ops.split(every, splits) if splits else [every]
    else:
        kept = [_largest(*pair) for pair in zip(scores, sparsities, strict=True)]
    return [
        _expand(mask, pattern, tuple(value.shape))
        for mask, value in zip(kept, values, strict=True)
    ]


def num_pruned(size: int, sparsity: float) -> int:
    """Return how many of `size` blocks a sparsity prunes; one is always kept."""
    return size - int(_num_kept(size, sparsity))


def least_zeros(
    kernels: list[Kernel], sparsities: list[float], pattern: Pattern, together: bool
) -> list[int]:
    """Return the least number of zeros in each kernel after masks of these sparsities.

    With `together`, return one number for all kernels.
    """
    shapes = [tuple(kernel.variable.shape) for kernel in kernels]
    if isinstance(pattern, NofM):
        zeros = []
        for kernel, shape in zip(kernels, shapes, strict=True):
            length = shape[kernel.row]
            groups, rest = divmod(length, pattern.m)
            pruned = groups * (pattern.m - pattern.n) + max(rest - pattern.n, 0)
            zeros.append(pruned * math.prod(shape) // length)
        return zeros
    # The blocks at the edges are smaller; without any, the count is exact.
    blocks = [math.prod(pattern.grid(shape)) for shape in shapes]
    if together:
        return [num_pruned(sum(blocks), sparsities[0])]
    return [num_pruned(*pair) for pair in zip(blocks, sparsities, strict=True)]


def keeps_to(array: np.ndarray, kernel: Kernel, pattern: Pattern) -> bool:
    """Whether the zeros of a kernel's value follow a pattern."""
    alive = (array != 0).astype("float32")
    if isinstance(pattern, NofM):
        # Zeros rank last, so a mask that keeps all others drops none of them.
        kept = _n_of_m(ops.convert_to_tensor(alive), kernel.row, pattern)
        return not np.any(alive[~ops.convert_to_numpy(kept)])
    means = ops.convert_to_numpy(_block_means(ops.convert_to_tensor(alive), pattern))
    return bool(np.isin(means, (0, 1)).all())


def _num_kept(size: int, sparsity) -> Tensor:
    # In float32 and with ties to even, as in TF-MOT.
    share = 1.0 - ops.cast(sparsity, "float32")
    return ops.cast(ops.maximum(ops.round(size * share), 1.0), "int32")


def _largest(scores: Tensor, sparsity: Tensor) -> Tensor:
    """Mark the largest entries of a vector; of equal ones, the last."""
    size = int(scores.shape[0])
    pruned = size - _num_kept(size, sparsity)
    threshold = _smallest(scores, pruned)
    equal = scores == threshold
    # How many entries equal to the threshold must be pruned too.
    going = pruned - ops.sum(ops.cast(scores < threshold, "int32"))
    later = ops.cumsum(ops.cast(equal, "int32")) > going
    return ops.logical_or(scores > threshold, ops.logical_and(equal, later))


def _smallest(scores: Tensor, rank: Tensor) -> Tensor:
    """Return the entry of a non-negative vector that is greater than `rank` others.

    The bits of non-negative floats, read as integers, have the same order: the bits of
    the entry are found from the highest down by counting, in a tenth of the time of a
    sort.
    """
    if keras.backend.standardize_dtype(scores.dtype) == "float64":
        return ops.take(ops.sort(scores), rank)
    # Adding zero turns -0.0 into 0.0, so that equal zeros have equal bits.
    bits = ops.view(ops.cast(scores, "float32") + 0.0, "int32")
    one = ops.cast(1, "int32")

    def with_bit(i, found):
        candidate = found + ops.left_shift(one, ops.cast(30 - i, "int32"))
        below = ops.sum(ops.cast(bits < candidate, "int32"))
        return ops.where(below <= rank, candidate, found)

    found = ops.fori_loop(0, 31, with_bit, ops.cast(0, "int32"))
    return ops.cast(ops.view(found, "float32"), scores.dtype)


def _n_of_m(value: Tensor, axis: int, pattern: NofM) -> Tensor:
    n, m = pattern.n, pattern.m
    scores = ops.moveaxis(ops.abs(value), axis, -1)
    shape = tuple(scores.shape)
    short = -shape[-1] % m
    # The padding is smaller than any magnitude, so it is pruned first.
    padding = [(0, 0)] * (len(shape) - 1) + [(0, short)]
    padded = ops.pad(scores, padding, constant_values=-1.0)
    groups = ops.reshape(padded, (*shape[:-1], (shape[-1] + short) // m, m))
    left, right = ops.expand_dims(groups, -1), ops.expand_dims(groups, -2)
    earlier = ops.reshape(ops.tril(ops.ones((m, m), "int32"), -1), (m, m)) > 0
    before = ops.logical_or(right < left, ops.logical_and(right == left, earlier))
    kept = ops.sum(ops.cast(before, "int32"), -1) >= m - n
    kept = ops.reshape(kept, tuple(padded.shape))[..., : shape[-1]]
    return ops.moveaxis(kept, -1, axis)


def _block_scores(magnitudes: Tensor, blocks: Blocks) -> Tensor:
    if blocks.height == blocks.width == 1:
        return magnitudes
    if blocks.pooling == "max":
        # The zeros that pad a block are no larger than any magnitude.
        return ops.max(_in_blocks(magnitudes, blocks), axis=(1, 3))
    return _block_means(magnitudes, blocks)


def _block_means(scores: Tensor, blocks: Blocks) -> Tensor:
    sizes = _in_blocks(ops.ones_like(scores), blocks)
    sums = ops.sum(_in_blocks(scores, blocks), axis=(1, 3))
    return sums / ops.sum(sizes, axis=(1, 3))


def _in_blocks(x: Tensor, blocks: Blocks) -> Tensor:
    """Reshape a kernel to (rows, height, columns, width) of blocks, zero-padded."""
    shape = tuple(x.shape)
    rows, columns = blocks.grid(shape)
    matrix = ops.reshape(x, (-1, shape[-1]))
    height, width = matrix.shape
    spare = (rows * blocks.height - height, columns * blocks.width - width)
    matrix = ops.pad(matrix, [(0, spare[0]), (0, spare[1])])
    return ops.reshape(matrix, (rows, blocks.height, columns, blocks.width))


def _expand(mask: Tensor, blocks: Blocks, shape: tuple[int, ...]) -> Tensor:
    if blocks.height == blocks.width == 1:
        return ops.reshape(mask, shape)
    mask = ops.reshape(mask, blocks.grid(shape))
    mask = ops.repeat(ops.repeat(mask, blocks.height, axis=0), blocks.width, axis=1)
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return ops.reshape(mask[:rows, :columns], shape)
