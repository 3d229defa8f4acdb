"""The data that `fit` and `predict` accept: arrays, or an iterable of batches."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject


def is_arrays(x: Any) -> bool:
    """Whether `x` is arrays, in lists, tuples or dicts, and does not yield batches."""
    if isinstance(x, list | tuple):
        # A list of batches `(x, y)` is not a list of inputs.
        return not any(
            isinstance(item, list | tuple) and any(map(_is_array, item)) for item in x
        )
    return _is_array(x) or isinstance(x, dict)


def columns(x: Any) -> Any:
    """The arrays of `x` in its structure; a list of numbers or strings is one too."""
    if isinstance(x, dict):
        return {name: columns(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        if x and not any(_is_array(i) or isinstance(i, list | tuple | dict) for i in x):
            return np.asarray(x)
        return type(x)(map(columns, x)) if type(x) in (list, tuple) else x
    return as_array(x)


def num_rows(data: Any, name: str = "x", expected: str = "arrays of as many rows"):
    """The number of rows of all arrays in a structure."""
    shapes = [np.shape(array) for array in keras.tree.flatten(data)]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        reject(name, shapes, expected)
    return shapes[0][0]


def take(data: Any, rows: Any) -> Any:
    """Some rows of all arrays in a structure."""
    return keras.tree.map_structure(lambda array: array[rows], data)


def training_arrays(x: Any, y: Any, sample_weight: Any) -> tuple[tuple, int]:
    """Arrays as `train_on_batch` takes them, None for what is missing, and the rows."""
    parts = [part if part is None else columns(part) for part in (x, y, sample_weight)]
    rows = num_rows([part for part in parts if part is not None])
    while parts[-1] is None:
        parts.pop()
    return tuple(parts), rows


def batch_of(arrays: tuple, rows: Any) -> tuple:
    """Some rows of what `training_arrays` returns."""
    return tuple(part if part is None else take(part, rows) for part in arrays)


def as_array(value: Any) -> Any:
    """A tensor of any library as an array; what has no array as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value) if hasattr(value, "__array__") else value


def text_as_tensor(value: Any) -> Any:
    """An array of strings as Keras's own `fit` takes it."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return keras.ops.convert_to_tensor(value)
    return value


def batches_of(x: Any) -> tuple[Iterable[tuple], int | None]:
    """What yields batches as an iterable of tuples, and their number, where known.

    The tuples are `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as Keras reads them.
    """
    if isinstance(x, str) or not isinstance(x, Iterable | keras.utils.PyDataset):
        reject("x", type(x), "arrays, a dataset, or batches to iterate over")
    if isinstance(x, keras.utils.PyDataset):
        x = _PyDatasetBatches(x)
    return _Tuples(x), length_of(x)


def length_of(x: Any) -> int | None:
    """The number of batches; None where there is no end, or it is not known."""
    try:
        return len(x)
    except TypeError:
        # As a `tf.data.Dataset` says too.
        return None


def again(batches: Iterable) -> Iterator[Any]:
    """One pass after the other; one alone where the batches can be had only once."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty or iter(batches) is batches or isinstance(batches, Iterator):
            return


def shuffled_rows(rows: int, batch_size: Any, count: int, seed: int) -> np.ndarray:
    """The rows of `count` batches: one random order of them all after the other."""
    batch_size = min(check_integer("batch_size", batch_size, minimum=1), rows)
    rng = np.random.default_rng(seed)
    passes = -(-count * batch_size // rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(passes)])
    return order[: count * batch_size].reshape(count, batch_size)


def _is_array(x: Any) -> bool:
    # NumPy's numbers and strings have a shape too.
    return hasattr(x, "shape") and not isinstance(x, np.generic)


class _Tuples:
    """Batches as tuples: as in Keras, a list is one too, and all else is inputs."""

    def __init__(self, batches: Iterable):
        self._batches = batches

    def __iter__(self) -> Iterator[tuple]:
        batches = iter(self._batches)
        if batches is self._batches:
            # Can be had once.
            self._batches = ()
        for batch in batches:
            yield tuple(batch) if isinstance(batch, list | tuple) else (batch,)


class _PyDatasetBatches:
    """A `PyDataset` as a list of batches."""

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
