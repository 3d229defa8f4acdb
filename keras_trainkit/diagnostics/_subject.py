"""The subject of a check-up: a model, and its data as arrays."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_compiled,
    check_integer,
    reject,
)
from keras_trainkit._keras import sublayers
from keras_trainkit._training.as_fit import (
    batch_as_fit,
    has_own_fit,
    has_own_loss,
    has_own_step,
)
from keras_trainkit._training.batches import (
    as_array,
    batches_of,
    columns,
    is_arrays,
)
from keras_trainkit.diagnostics._loss import Judged, judged_outputs

# Number of rows to use if the data come in batches.
_MOST_BATCHES = 200
_MOST_ROWS = 20_000
_SAMPLE = 256


@dataclass
class Subject:
    """A model and its data.

    Attributes:
        model: The compiled model.
        x: Inputs, a structure of arrays.
        y: Targets, likewise; None if the model has none.
        weights: Sample weights, or None.
        validation: `(x, y)`, or None.
        batch_size: Rows per batch.
        seed: Seed of every choice of rows.
        outputs: What is known of each output; empty if nothing is.
    """

    model: keras.Model
    x: Any
    y: Any
    weights: Any
    validation: tuple | None
    batch_size: int
    seed: int
    outputs: list[Judged] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(keras.tree.flatten(self.x)[0])

    def sample(self, most: int = _SAMPLE) -> tuple:
        """Return `(x, y, weights)` of a random choice of rows."""
        rng = np.random.default_rng(self.seed)
        return self.take(np.sort(rng.permutation(self.rows)[:most]))

    def take(self, rows: np.ndarray) -> tuple:
        """Return `(x, y, weights)` of these rows."""
        return take((self.x, self.y, self.weights), rows)

    def look_at_outputs(self) -> None:
        """Determine each output, its targets and its loss."""
        x, _, _ = self.sample()
        predictions = self.model(x, training=False)
        self.outputs = judged_outputs(self.model, self.y, predictions)


def take(data: Any, rows: np.ndarray) -> Any:
    """Return some rows of a structure of arrays; None stays None."""
    return keras.tree.map_structure(lambda a: None if a is None else a[rows], data)


def subject_of(
    model, x, y, validation_data, sample_weight, batch_size, seed
) -> Subject:
    """Collect the arguments of `check_up`."""
    check_compiled(model)
    if is_arrays(x):
        if y is None and _needs_targets(model):
            reject("y", None, "given where x is an array and the loss compares with y")
        size = 32 if batch_size is None else batch_size
        check_integer("batch_size", size, minimum=1)
        x, y, weights = map(columns, (x, y, sample_weight))
        if has_own_fit(model):
            x, y, weights = _some_rows((x, y, weights), seed)
    else:
        for name, value in (("y", y), ("sample_weight", sample_weight)):
            if value is not None:
                reject(name, type(value), "None where x yields batches")
        (x, y, weights), size = _gathered(x)
    _check_rows((x, y, weights))
    validation = None if validation_data is None else _pair(validation_data)
    # From here on the data are as the training step sees them.
    x, y, weights = batch_as_fit(model, x, y, weights)
    if validation is not None:
        validation = batch_as_fit(model, *validation)[:2]
    return Subject(model, x, y, weights, validation, size, seed)


def _needs_targets(model: keras.Model) -> bool:
    """Whether `fit` would refuse arrays without targets."""
    if has_own_loss(model) or has_own_fit(model) or has_own_step(model):
        return False
    return getattr(model, "loss", None) is not None


def _some_rows(data: tuple, seed: int) -> tuple:
    """Return only the rows that are used, because preprocessing takes time."""
    _check_rows(data)
    rows = len(keras.tree.flatten(data[0])[0])
    order = np.random.default_rng(seed).permutation(rows)[:_MOST_ROWS]
    return take(data, np.sort(order))


def _pair(data: Any) -> tuple:
    if isinstance(data, tuple | list) and len(data) in (2, 3):
        x, y, *_ = data
        return columns(x), columns(y)
    (x, y, _), _ = _gathered(data)
    return x, y


def _gathered(x: Any) -> tuple[tuple, int]:
    """Return the first batches as one."""
    batches, _ = batches_of(x)
    found: list[tuple] = []
    rows = 0
    for batch in islice(batches, _MOST_BATCHES):
        arrays = keras.tree.map_structure(as_array, batch)
        found.append(arrays)
        rows += len(keras.tree.flatten(arrays)[0])
        if rows >= _MOST_ROWS:
            break
    if not found:
        reject("x", x, "an iterable with at least one batch")
    size = len(keras.tree.flatten(found[0])[0])
    inputs, targets, weights = (*_joined(found), None, None)[:3]
    return (inputs, targets, weights), size


def _joined(batches: list[tuple]) -> tuple:
    try:
        return keras.tree.map_structure(lambda *a: np.concatenate(a), *batches)
    except ValueError:
        # Batches of different sequence lengths: only those of the first shape.
        shapes = [[a.shape[1:] for a in keras.tree.flatten(b)] for b in batches]
        same = [b for b, s in zip(batches, shapes, strict=True) if s == shapes[0]]
        return keras.tree.map_structure(lambda *a: np.concatenate(a), *same)


def _check_rows(data: tuple) -> None:
    sizes = {len(a) for a in keras.tree.flatten(data) if a is not None}
    if len(sizes) > 1:
        reject("x", sorted(sizes), "of as many rows as `y` and `sample_weight`")


def has_batch_norm(model: keras.Model) -> bool:
    """Whether a model contains a BatchNorm."""
    return any(
        isinstance(layer, keras.layers.BatchNormalization) for layer in sublayers(model)
    )


def named_leaves(name: str, structure: Any) -> list[tuple[str, np.ndarray]]:
    """Yield each array of a structure with the expression that reaches it."""
    if structure is None:
        return []
    found = []
    for path, leaf in keras.tree.flatten_with_path(structure):
        found.append((name + "".join(f"[{key!r}]" for key in path), leaf))
    return [(where, leaf) for where, leaf in found if leaf is not None]


def is_numeric(array: Any) -> bool:
    """Whether an array contains numbers, not text."""
    return isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
