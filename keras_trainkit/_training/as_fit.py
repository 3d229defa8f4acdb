"""Prepare batches and run training steps the way a model's own `fit` does."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._keras import patched
from keras_trainkit._keras.fitting import only_step
from keras_trainkit._training.batches import as_array, columns, text_as_tensor

Batch = tuple[Any, Any, Any]


def has_own_fit(model: keras.Model) -> bool:
    """Whether a model overrides Keras's `fit`, for example to preprocess its data."""
    return getattr(model.fit, "__func__", None) is not keras.Model.fit


@contextlib.contextmanager
def prepared(model: keras.Model) -> Iterator[None]:
    """Make `model.fit` Keras's own inside, for data that need no more preprocessing.

    Such data were returned by `batch_as_fit` or come from a running `fit`.
    """
    with patched([(model, "fit", keras.Model.fit.__get__(model))]):
        yield


def has_own_step(model: keras.Model) -> bool:
    """Whether a model overrides Keras's `train_step`."""
    own = type(model).train_step is not keras.Model.train_step
    return own or "train_step" in vars(model)


def has_own_loss(model: keras.Model) -> bool:
    """Whether a model overrides Keras's `compute_loss`."""
    return type(model).compute_loss is not keras.Model.compute_loss


def batch_as_fit(
    model: keras.Model, x: Any, y: Any = None, weights: Any = None
) -> Batch:
    """Return the `(x, y, sample_weight)` that `fit` passes to the training step.

    Args:
        model: A model, compiled if it overrides `fit`. Keras's own `fit` leaves the
            data unchanged.
        x: Inputs, as arrays with equal numbers of rows.
        y: Targets.
        weights: Sample weights.
    """
    if not has_own_fit(model) or not model.compiled:
        return x, y, weights
    x, y, weights = (
        part if part is None else columns(part) for part in (x, y, weights)
    )
    seen: list[Batch] = []

    def keep(data):
        seen.append(keras.utils.unpack_x_y_sample_weight(data))

    with only_step(model, keep):
        _fit(type(model).fit, model, x, y, weights)
    return keras.tree.map_structure(as_array, _joined(seen))


def step_as_fit(model: keras.Model, x: Any, y: Any = None, weights: Any = None) -> None:
    """Run one training step on what `batch_as_fit` returned."""
    x, y, weights = keras.tree.map_structure(text_as_tensor, (x, y, weights))
    if not has_own_step(model) and not has_own_loss(model):
        keras.Model.train_on_batch(model, x, y, weights)
        return
    # `train_on_batch` passes three items, but a custom step may unpack `x, y = data`.
    # On PyTorch it also passes arrays to `compute_loss`, not tensors.
    _fit(keras.Model.fit, model, x, y, weights)


def _fit(fit, model, x, y, weights) -> None:
    """Call `fit` for one step without changing the model's history."""
    rows = len(keras.tree.flatten(x)[0])
    options = {"batch_size": rows, "epochs": 1, "shuffle": False, "verbose": 0}
    with _once(model):
        fit(model, x, y, sample_weight=weights, **options)


@contextlib.contextmanager
def _once(model: keras.Model) -> Iterator[None]:
    names = ("history", "stop_training")
    kept = {name: getattr(model, name, None) for name in names}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(model, name, value)


def _joined(batches: list[Batch]) -> Batch:
    def join(*parts):
        if parts[0] is None or len(parts) == 1:
            return parts[0]
        return np.concatenate([as_array(part) for part in parts])

    return keras.tree.map_structure(join, *batches)
