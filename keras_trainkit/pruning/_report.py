"""Count the zeros of a model."""

import gzip
from dataclasses import dataclass, field

import keras
import numpy as np

from keras_trainkit._checks import check_built
from keras_trainkit._model.kernels import Kernel, own_kernels, without_kernels
from keras_trainkit._model.select import chains, kernels_in, path_of
from keras_trainkit._table import Report, Table
from keras_trainkit.pruning._masks import Pattern, keeps_to, parse_pattern


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros in one weight.

    Attributes:
        path: The weight's path in the model.
        parameters: Number of entries.
        nonzeros: Number of entries that are not zero.
        gzip_bytes: Its size after gzip.
        pattern: Whether it follows the requested pattern; None if there is none.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.pruning.prune_once(kt.models.build_mlp((20,), 3), 0.5)
        >>> kt.pruning.sparsity_report(model).layers[0].sparsity
        0.5
    """

    path: str
    parameters: int
    nonzeros: int
    gzip_bytes: int = 0
    pattern: bool | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of the entries that are zero."""
        return 1 - self.nonzeros / self.parameters if self.parameters else 0.0


@dataclass(frozen=True, repr=False)
class SparsityReport(Report):
    """Zeros in a whole model; unstructured zeros save bytes, not time.

    Attributes:
        layers: One entry for each kernel.
        parameters: Number of all weights, biases and statistics included.
        nonzeros: Number of them that are not zero.
        raw_bytes: Size of all weights.
        gzip_bytes: Size of all weights after gzip.
        skipped: The layers whose kernel is not listed, by path, and why.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> pruned = kt.pruning.prune_once(model, 0.5)
        >>> report = kt.pruning.sparsity_report(pruned)
        >>> [round(layer.sparsity, 2) for layer in report.layers]
        [0.5, 0.5]
    """

    layers: tuple[LayerSparsity, ...]
    parameters: int
    nonzeros: int
    raw_bytes: int
    gzip_bytes: int
    skipped: dict[str, str] = field(default_factory=dict)

    def _table(self) -> Table:
        asked = any(layer.pattern is not None for layer in self.layers)
        head = ["kernel", "parameters", "non-zero", "sparsity", "gzip bytes"]
        rows = [_cells(layer.path, layer) for layer in self.layers]
        if asked:
            head.append("pattern")
            for row, layer in zip(rows, self.layers, strict=True):
                row.append("yes" if layer.pattern else "no")
        total = LayerSparsity("", self.parameters, self.nonzeros, self.gzip_bytes)
        return Table(head, [*rows, [*_cells("total", total), *[""] * asked]])

    def _notes(self) -> list[str]:
        skipped = [f"{path}: not listed, {why}" for path, why in self.skipped.items()]
        return [f"{self.raw_bytes:,} bytes, {self.gzip_bytes:,} after gzip", *skipped]


def sparsity_report(model: keras.Model, pattern: str | None = None) -> SparsityReport:
    """Count the zeros of a model's weights.

    Args:
        model: A built model.
        pattern: An `"N:M"` or a block such as `"4x1"`, as in `MagnitudePruning`: the
            report then says for each kernel whether it follows the pattern. It follows
            a block pattern if each block is all zero or has no zero.

    Returns:
        A `SparsityReport`.

    Raises:
        ValueError: If the pattern is invalid.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.set_weights([np.array([[1, 0]] * 4), np.zeros(2)])
        >>> report = kt.pruning.sparsity_report(model)
        >>> report.parameters, report.nonzeros
        (10, 4)
    """
    check_built(model)
    parsed = parse_pattern(pattern)
    raw = b"".join(array.tobytes() for array in map(_array, model.weights))
    return SparsityReport(
        layers=tuple(
            _layer(kernel, None if pattern is None else parsed)
            for _, kernel in kernels_in(model)
        ),
        parameters=model.count_params(),
        nonzeros=sum(int(np.count_nonzero(_array(w))) for w in model.weights),
        raw_bytes=len(raw),
        gzip_bytes=_gzip_bytes(raw),
        skipped={
            path_of(chain): reason
            for chain in chains(model)
            if (reason := without_kernels(chain[-1]))
            and not any(True for _ in own_kernels(chain[-1]))
        },
    )


def _layer(kernel: Kernel, pattern: Pattern | None) -> LayerSparsity:
    array = _array(kernel.variable)
    return LayerSparsity(
        kernel.variable.path,
        array.size,
        int(np.count_nonzero(array)),
        _gzip_bytes(array.tobytes()),
        None if pattern is None else keeps_to(array, kernel, pattern),
    )


def _cells(name: str, zeros: LayerSparsity) -> list[str]:
    counts = [f"{zeros.parameters:,}", f"{zeros.nonzeros:,}"]
    return [name, *counts, f"{zeros.sparsity:.1%}", f"{zeros.gzip_bytes:,}"]


def _array(variable) -> np.ndarray:
    return np.ascontiguousarray(keras.ops.convert_to_numpy(variable))


def _gzip_bytes(raw: bytes) -> int:
    return len(gzip.compress(raw, mtime=0))
