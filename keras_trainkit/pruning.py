"""Pruning: set the smallest weights to zero, and count what that saved."""

import gzip
from dataclasses import dataclass

import keras
import numpy as np

from keras_trainkit._checks import check_in_range

_KERNELS = frozenset(
    {"kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings"}
)


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros in one weight.

    Attributes:
        path: The weight's path in the model.
        parameters: Number of entries.
        nonzeros: Number of entries that are not zero.
    """

    path: str
    parameters: int
    nonzeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of the entries that are zero."""
        return 1 - self.nonzeros / self.parameters


@dataclass(frozen=True, repr=False)
class SparsityReport:
    """Zeros in a whole model; unstructured zeros save bytes, not time.

    Attributes:
        layers: One entry for each kernel.
        parameters: Number of all weights, biases and statistics included.
        nonzeros: Number of them that are not zero.
        raw_bytes: Size of all weights.
        gzip_bytes: Size of all weights after gzip.
    """

    layers: tuple[LayerSparsity, ...]
    parameters: int
    nonzeros: int
    raw_bytes: int
    gzip_bytes: int

    def summary(self) -> str:
        """A table, one line for each kernel."""
        width = max([len(layer.path) for layer in self.layers] + [5])
        lines = [f"{'kernel':<{width}}  parameters  non-zero  sparsity"]
        lines += [
            f"{layer.path:<{width}}  {layer.parameters:>10,}  {layer.nonzeros:>8,}"
            f"  {layer.sparsity:>8.1%}"
            for layer in self.layers
        ]
        lines.append(
            f"{'total':<{width}}  {self.parameters:>10,}  {self.nonzeros:>8,}"
            f"  {1 - self.nonzeros / self.parameters:>8.1%}"
        )
        lines.append(f"{self.raw_bytes:,} bytes, {self.gzip_bytes:,} after gzip")
        return "\n".join(lines)

    __repr__ = summary


def prune_once(model: keras.Model, sparsity: float) -> keras.Model:
    """Copy a model with the smallest weights of each kernel set to zero.

    Args:
        model: A Sequential or Functional model; it is not changed.
        sparsity: Fraction of the entries of each kernel to set to zero, in `[0, 1)`.
            Of equal magnitudes, those that come first go first.

    Returns:
        A copy; each kernel has exactly `round(sparsity * size)` zeros more than none.

    Example:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> pruned = kt.pruning.prune_once(model, 0.75)
        >>> kt.pruning.sparsity_report(pruned).layers[0].nonzeros
        8

    Reference:
        S. Han et al., Learning both Weights and Connections for Efficient Neural
        Networks (2015), arXiv:1506.02626.
    """
    check_in_range("sparsity", sparsity, 0, 1, closed="left")
    pruned = keras.models.clone_model(model, recursive=True)
    pruned.set_weights(model.get_weights())
    for weight in _kernels(pruned):
        values = keras.ops.convert_to_numpy(weight).copy()
        order = np.argsort(np.abs(values), axis=None, kind="stable")
        values.flat[order[: round(sparsity * values.size)]] = 0
        weight.assign(values)
    return pruned


def sparsity_report(model: keras.Model) -> SparsityReport:
    """Count the zeros of a model's weights.

    Args:
        model: A built model.

    Returns:
        A `SparsityReport`.
    """
    arrays = [np.ascontiguousarray(w) for w in model.get_weights()]
    raw = b"".join(array.tobytes() for array in arrays)
    return SparsityReport(
        layers=tuple(
            LayerSparsity(
                weight.path,
                int(np.prod(weight.shape)),
                int(np.count_nonzero(keras.ops.convert_to_numpy(weight))),
            )
            for weight in _kernels(model)
        ),
        parameters=sum(array.size for array in arrays),
        nonzeros=sum(int(np.count_nonzero(array)) for array in arrays),
        raw_bytes=len(raw),
        gzip_bytes=len(gzip.compress(raw, mtime=0)),
    )


def _kernels(model: keras.Model) -> list:
    return [weight for weight in model.trainable_weights if weight.name in _KERNELS]
