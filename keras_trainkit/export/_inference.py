"""Prepare a model for export: inference mode, input specs, supported operations."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._keras import (
    arithmetic_sign_bit,
    computing_in,
    functional_part,
    patched,
    sublayers,
)
from keras_trainkit._model.graph import is_graph, read
from keras_trainkit.uncertainty import mc_graph


class Inference(keras.Model):
    """A model called with `training=False`.

    Keras's exporters leave `training` to each layer's default, which for the
    augmentation layers is True.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        # The inner model casts its inputs itself.
        super().__init__(name="inference", dtype="float32", autocast=False)
        self.model = model
        self.built = True

    def call(self, inputs):
        found = self.model(inputs, training=False)
        if isinstance(found, dict) and not any(map(_is_nested, found.values())):
            return found
        # A signature cannot have lists in dicts or dicts in lists.
        return found if not _is_nested(found) else keras.tree.flatten(found)


def sampled(model: keras.Model, samples: int, seed: int, task: str | None) -> Any:
    """Build the Monte Carlo dropout graph to export, after checking the arguments."""
    check_integer("mc_samples", samples, minimum=1)
    check_integer("mc_seed", seed, minimum=0)
    return mc_graph(model, samples, seed=seed, task=task)


def _is_nested(value):
    return isinstance(value, (list, tuple, dict))


def input_specs(model: keras.Model, names: list[str] | None = None) -> Any:
    """Return specs of a model's inputs, in their structure, with unique names.

    Args:
        model: A Functional model, a built Sequential one, or another that has been
            called on one structure of float inputs.
        names: Other names, since a file of a Sequential model does not keep its own.

    Raises:
        ValueError: If an input is of strings, or the inputs are not known.
    """
    functional = functional_part(model)
    if functional is not None:
        inputs = functional.input
    else:
        inputs = _called_inputs(model)
    flat = keras.tree.flatten(inputs)
    _check_numbers(model, flat)
    specs = [
        keras.InputSpec(shape=tensor.shape, dtype=tensor.dtype, name=name)
        for tensor, name in zip(flat, names or _unique_names(flat), strict=True)
    ]
    return keras.tree.pack_sequence_as(inputs, specs)


def _check_numbers(model, tensors):
    strings = [tensor.name for tensor in tensors if tensor.dtype == "string"]
    if strings:
        reject(
            "model",
            model.name,
            f"one whose inputs are numbers, unlike {', '.join(strings)}: apply "
            "TextVectorization or StringLookup to its data, outside the exported model",
        )


def _unique_names(tensors):
    """Return unique names in TensorFlow's spelling, so that the file keeps them."""
    names: list[str] = []
    for tensor in tensors:
        stem = name = re.sub(r"\W", "_", tensor.name)
        while name in names:
            name = f"{stem}_{len(names)}"
        names.append(name)
    return names


def _called_inputs(model):
    """Return symbolic inputs with the shapes that a subclassed model was called on."""
    config = model.get_build_config() or {}
    shape = config.get("input_shape")
    if not model.built or not shape:
        reject(
            "model",
            type(model).__name__,
            "a Functional or built Sequential model, or another that has been called "
            "with one argument",
        )
    if isinstance(shape, dict):
        return {name: _symbolic(size, name) for name, size in shape.items()}
    if isinstance(shape[0], (list, tuple)):
        return [_symbolic(size, f"input_{i}") for i, size in enumerate(shape)]
    return _symbolic(shape, "input")


def _symbolic(shape, name):
    return keras.KerasTensor((None, *shape[1:]), "float32", name=name)


def flat_inputs(specs: Any, x: Any, name: str) -> list[np.ndarray]:
    """Return the arrays for a model's inputs, in the order of its flat specs.

    Args:
        specs: From `input_specs`.
        x: An array, or arrays in the structure of the specs, or by their names.
        name: What `x` is called, for the error.

    Raises:
        ValueError: If they do not fit.
    """
    flat = keras.tree.flatten(specs)
    if isinstance(x, dict) and not isinstance(specs, dict):
        missing = [spec.name for spec in flat if spec.name not in x]
        if missing:
            reject(name, sorted(x), f"a dict with {', '.join(missing)}")
        x = [x[spec.name] for spec in flat]
    arrays = [keras.ops.convert_to_numpy(a) for a in _flatten_arrays(x, len(flat))]
    shapes = [spec.shape for spec in flat]
    if len(arrays) != len(flat) or not all(map(_fits, arrays, shapes)):
        expected = ", ".join(f"{spec.name} {spec.shape}" for spec in flat)
        reject(name, [a.shape for a in arrays], f"arrays of shape {expected}")
    if len({len(a) for a in arrays}) != 1 or not len(arrays[0]):
        reject(name, [a.shape for a in arrays], "arrays of as many rows, at least one")
    return [a.astype(spec.dtype) for a, spec in zip(arrays, flat, strict=True)]


def _flatten_arrays(x, number):
    # A list of rows is an array too.
    if number == 1 and isinstance(x, (list, tuple)) and len(x) != 1:
        return [np.asarray(x)]
    return [np.asarray(a) for a in keras.tree.flatten(x)]


def _fits(array, shape):
    return array.ndim == len(shape) and all(
        size in (None, given)
        for size, given in zip(shape[1:], array.shape[1:], strict=True)
    )


@contextlib.contextmanager
def plain_operations(model: keras.Model, dtypes: tuple[str, ...]) -> Iterator[None]:
    """Temporarily replace operations that the export formats do not support.

    Layers that compute in one of `dtypes` compute in float32 instead.
    """
    reduced = [layer for layer in sublayers(model) if layer.compute_dtype in dtypes]
    with computing_in("float32", reduced), arithmetic_sign_bit():
        yield


def check_steps(model: keras.Model) -> None:
    """Raise for recurrent layers that cannot be unrolled, and for int8 products."""
    quantized = [
        layer.name
        for layer in sublayers(model)
        if getattr(layer, "quantization_mode", None) is not None
    ]
    if quantized:
        reject(
            "model",
            model.name,
            f"one that Keras has not quantized, unlike {', '.join(quantized)}: LiteRT "
            "has no kernel for its products; export the float model with "
            'quantization="dynamic", which computes the same way',
        )
    if not is_graph(model):
        return
    for call in read(model).calls:
        layer = call.layer
        recurrent = isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))
        if recurrent and call.inputs[0].shape[1] is None:
            reject(
                "model",
                model.name,
                f"one whose recurrent layers have a fixed number of steps, unlike "
                f"{layer.name}: build it with keras.Input((steps, features)), and pad "
                "or mask shorter sequences",
            )


@contextlib.contextmanager
def unrolled(model: keras.Model) -> Iterator[None]:
    """Temporarily unroll recurrent layers instead of looping over their steps."""
    recurrent = [x for x in sublayers(model) if isinstance(x, keras.layers.RNN)]
    changes: list[tuple[Any, str, Any]] = [(x, "unroll", True) for x in recurrent]
    for layer in recurrent:
        if layer.go_backwards:
            changes.append((layer, "inner_loop", _backwards(layer.inner_loop)))
            changes.append((layer, "go_backwards", False))
    with patched(changes):
        yield


def _backwards(inner_loop):
    """Return a loop over the steps from the last to the first.

    Keras's own unrolled backward loop with `zero_output_for_mask` applies the mask of
    the last step to the output of the first.
    """

    def flipped(sequences, initial_state, mask, training=False):
        sequences, mask = keras.tree.map_structure(_flip_steps, (sequences, mask))
        return inner_loop(sequences, initial_state, mask, training)

    return flipped


def _flip_steps(x):
    return None if x is None else keras.ops.flip(x, axis=1)
