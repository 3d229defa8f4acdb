"""The data that `fit` and `predict` accept: arrays, or an iterable of batches."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject


def is_arrays(x: Any) -> bool:
    """Whether `x` is arrays (also in lists, tuples or dicts), not batches."""
    if isinstance(x, list | tuple):
        # A list of batches `(x, y)` is not a list of inputs.
        return not any(
            isinstance(item, list | tuple) and any(map(_is_array, item)) for item in x
        )
    return _is_array(x) or isinstance(x, dict)


def columns(x: Any) -> Any:
    """Convert `x` to arrays, keeping its structure.

    A list of numbers or strings becomes one array.
    """
    if isinstance(x, dict):
        return {name: columns(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        if x and not any(_is_array(i) or isinstance(i, list | tuple | dict) for i in x):
            return np.asarray(x)
        return type(x)(map(columns, x)) if type(x) in (list, tuple) else x
    return as_array(x)


def num_rows(data: Any, name: str = "x", expected: str = "arrays of as many rows"):
    """Return the number of rows that all arrays in a structure share, or raise."""
    shapes = [np.shape(array) for array in keras.tree.flatten(data)]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        reject(name, shapes, expected)
    return shapes[0][0]


def take(data: Any, rows: Any) -> Any:
    """Select rows of all arrays in a structure."""
    return keras.tree.map_structure(lambda array: array[rows], data)


def training_arrays(x: Any, y: Any, sample_weight: Any) -> tuple[tuple, int]:
    """Return the arguments of `train_on_batch` as arrays, and the number of rows.

    A missing part is None; missing parts at the end are left out.
    """
    parts = [part if part is None else columns(part) for part in (x, y, sample_weight)]
    rows = num_rows([part for part in parts if part is not None])
    while parts[-1] is None:
        parts.pop()
    return tuple(parts), rows


def batch_of(arrays: tuple, rows: Any) -> tuple:
    """Select rows of what `training_arrays` returns."""
    return tuple(part if part is None else take(part, rows) for part in arrays)


def as_array(value: Any) -> Any:
    """Convert a tensor of any library to an array; return anything else unchanged."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value) if hasattr(value, "__array__") else value


def text_as_tensor(value: Any) -> Any:
    """Convert an array of strings to a tensor, as Keras's own `fit` does."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return keras.ops.convert_to_tensor(value)
    return value


def batches_of(x: Any) -> tuple[Iterable[tuple], int | None]:
    """Return the batches of a dataset as tuples, and their number, or None if unknown.

    The tuples are `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as in Keras.
    """
    if isinstance(x, str) or not isinstance(x, Iterable | keras.utils.PyDataset):
        reject("x", type(x), "arrays, a dataset, or batches to iterate over")
    if isinstance(x, keras.utils.PyDataset):
        x = _PyDatasetBatches(x)
    return _Tuples(x), length_of(x)


def length_of(x: Any) -> int | None:
    """Return the number of batches, or None if it is infinite or unknown."""
    try:
        return len(x)
    except TypeError:
        # A `tf.data.Dataset` of unknown or infinite length raises this too.
        return None


def again(batches: Iterable) -> Iterator[Any]:
    """Repeat the batches endlessly; an iterator, which cannot restart, only once."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty or iter(batches) is batches or isinstance(batches, Iterator):
            return


def shuffled_rows(rows: int, batch_size: Any, count: int, seed: int) -> np.ndarray:
    """Return the row indices of `count` batches, with a new random order each pass."""
    batch_size = min(check_integer("batch_size", batch_size, minimum=1), rows)
    rng = np.random.default_rng(seed)
    passes = -(-count * batch_size // rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(passes)])
    return order[: count * batch_size].reshape(count, batch_size)


def _is_array(x: Any) -> bool:
    # NumPy scalars (numbers and strings) have a shape too.
    return hasattr(x, "shape") and not isinstance(x, np.generic)


class _Tuples:
    """Batches as tuples; as in Keras, a list counts as one, anything else is `x`."""

    def __init__(self, batches: Iterable):
        self._batches = batches

    def __iter__(self) -> Iterator[tuple]:
        batches = iter(self._batches)
        if batches is self._batches:
            # An iterator can be consumed only once.
            self._batches = ()
        for batch in batches:
            yield tuple(batch) if isinstance(batch, list | tuple) else (batch,)


class _PyDatasetBatches:
    """The batches of a `PyDataset`, loaded one by one."""

    def __init__(self, data: keras.utils.PyDataset):
        self._data = data

    def __len__(self) -> int:
        if self._data.num_batches is None:
            raise TypeError("an infinite PyDataset has no length")
        return self._data.num_batches

    def __iter__(self) -> Iterator[Any]:
        number = self._data.num_batches
        self._data.on_epoch_begin()
        for index in itertools.count() if number is None else range(number):
            yield self._data[index]
        self._data.on_epoch_end()
