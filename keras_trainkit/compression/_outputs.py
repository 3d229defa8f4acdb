"""The inputs, outputs and losses of a model, one or several, in a fixed order."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._keras import functional_part
from keras_trainkit._training.batches import columns, num_rows, take

_ROWS = 256


def inputs_like(model: keras.Model, x: Any, name: str) -> Any:
    """Inputs in the structure that the model takes, as arrays.

    Args:
        model: The model.
        x: An array, a list, or a dict by the names of the inputs.
        name: What they are called, for the error.
    """
    expected = functional_part(model).input
    keys = list(expected) if isinstance(expected, dict) else list(_input_names(model))
    flat = _in_order(columns(x), keys, name, "inputs")
    if isinstance(expected, dict):
        return dict(zip(keys, flat, strict=True))
    return keras.tree.pack_sequence_as(expected, flat)


def targets_of(model: keras.Model, y: Any, name: str) -> list[np.ndarray]:
    """Targets in the order of the outputs, as arrays.

    Args:
        model: The model.
        y: An array, a list, or a dict by the names of the outputs.
        name: What they are called, for the error.
    """
    flat = _in_order(columns(y), output_names(model), name, "targets")
    if not all(isinstance(one, np.ndarray) and one.ndim for one in flat):
        expected = f"an array of targets for each of {', '.join(output_names(model))}"
        reject(name, [type(one).__name__ for one in flat], expected)
    return flat


def _in_order(value: Any, names: list[str], name: str, kind: str) -> list[Any]:
    """The arrays that belong to some names."""
    expected = f"{kind} for {', '.join(names)}, as a list or a dict"
    if isinstance(value, dict):
        if set(value) != set(names):
            reject(name, sorted(value), expected)
        return [value[key] for key in names]
    flat = list(value) if isinstance(value, list | tuple) else [value]
    if len(flat) != len(names):
        reject(name, [np.shape(one) for one in flat], expected)
    return flat


def _input_names(model: keras.Model) -> list[str]:
    return [tensor.name for tensor in keras.tree.flatten(functional_part(model).input)]


def output_names(model: keras.Model) -> list[str]:
    """The names of the outputs, in the order of `flat_outputs`."""
    part = functional_part(model)
    return list(part.output if isinstance(part.output, dict) else part.output_names)


def output_shapes(model: keras.Model) -> list[tuple]:
    """The shapes of the outputs, in the same order."""
    tensors = flat_outputs(model, functional_part(model).output)
    return [tuple(tensor.shape) for tensor in tensors]


def flat_outputs(model: keras.Model, outputs: Any) -> list[Any]:
    """What a model or its file returned, in the order of `output_names`."""
    if isinstance(outputs, dict):
        return [outputs[name] for name in output_names(model)]
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def outputs_like(model: keras.Model, flat: list[Any]) -> Any:
    """Outputs or targets in the structure that the model returns."""
    structure = functional_part(model).output
    if isinstance(structure, dict):
        return dict(zip(output_names(model), flat, strict=True))
    return keras.tree.pack_sequence_as(structure, flat)


def losses_of(model: keras.Model) -> list[Any]:
    """The loss of each output; None where there is none."""
    return _spread(model, model.loss)


def loss_weights_of(model: keras.Model) -> list[float]:
    """The weight of the loss of each output."""
    given = model.get_compile_config().get("loss_weights")
    return [1.0 if weight is None else weight for weight in _spread(model, given)]


def is_of_logits(loss: Any) -> bool:
    """Whether a loss takes its outputs for logits."""
    if not isinstance(loss, keras.losses.Loss):
        return False
    try:
        return bool(loss.get_config().get("from_logits", False))
    except Exception:
        # A loss of the user's own may have no config.
        return False


def _spread(model: keras.Model, values: Any) -> list[Any]:
    names = output_names(model)
    if isinstance(values, dict):
        return [values.get(name) for name in names]
    return list(values) if isinstance(values, list | tuple) else [values] * len(names)


def in_batches(run: Callable[[Any], list[Any]], x: Any) -> list[np.ndarray]:
    """The flat outputs of all rows, some hundred at a time."""
    starts = range(0, num_rows(x), _ROWS)
    parts = [run(take(x, slice(i, i + _ROWS))) for i in starts]
    return [
        np.concatenate([np.asarray(one) for one in each])
        for each in zip(*parts, strict=True)
    ]


def predictions(model: keras.Model, x: Any) -> list[np.ndarray]:
    """The flat outputs of a model at inference."""

    def run(part: Any) -> list[Any]:
        # `predict` would compile each of the many models, for a few passes.
        outputs = flat_outputs(model, model(part, training=False))
        return [keras.ops.convert_to_numpy(output) for output in outputs]

    return in_batches(run, x)
