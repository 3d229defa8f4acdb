"""The batches of whatever `fit` takes."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject


def batches_of(
    x, y, sample_weight, batch_size, seed
) -> tuple[Iterator[tuple], int | None]:
    if y is not None or hasattr(x, "shape") or isinstance(x, dict):
        if y is None:
            reject("y", None, "given where x is an array")
        batch_size = check_integer("batch_size", batch_size or 32, minimum=1)
        data = (x, y) if sample_weight is None else (x, y, sample_weight)
        data = keras.tree.map_structure(as_array, data)
        sizes = {len(array) for array in keras.tree.flatten(data)}
        if len(sizes) > 1:
            reject("x", sorted(sizes), "of as many rows as `y` and `sample_weight`")
        (rows,) = sizes
        return _array_batches(data, rows, batch_size, seed), -(-rows // batch_size)
    for name, value in (("batch_size", batch_size), ("sample_weight", sample_weight)):
        if value is not None:
            reject(name, value, "None where x yields batches")
    if isinstance(x, str) or not isinstance(x, Iterable | keras.utils.PyDataset):
        reject("x", type(x), "an array or an iterable of batches")
    if isinstance(x, keras.utils.PyDataset):
        x = _PyDatasetBatches(x)
    try:
        length = len(x)
    except TypeError:
        # No length, or, as a `tf.data.Dataset` may say, an unknown or infinite one.
        length = None
    return (tuple(batch) for batch in _again(x)), length


def as_array(value: Any) -> Any:
    """A tensor of any library as an array; what has no array as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value) if hasattr(value, "__array__") else value


def _again(batches: Iterable) -> Iterator[Any]:
    """One pass after the other; one alone where the batches can be had only once."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty or iter(batches) is batches:
            return


class _PyDatasetBatches:
    """A `PyDataset` as a list of batches."""

    def __init__(self, data: keras.utils.PyDataset):
        self._data = data

    def __len__(self) -> int:
        return self._data.num_batches

    def __iter__(self) -> Iterator[Any]:
        yield from (self._data[index] for index in range(len(self)))
        self._data.on_epoch_end()


def _array_batches(data, rows, batch_size, seed) -> Iterator[tuple]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(rows)
        for start in range(0, rows, batch_size):
            chosen = order[start : start + batch_size]
            yield keras.tree.map_structure(lambda a, c=chosen: a[c], data)
