"""Measure a file: its size, its latency, and the metric of its outputs."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._model.compare import accuracy
from keras_trainkit._stopwatch import latencies
from keras_trainkit._training.batches import num_rows, take
from keras_trainkit.compression._outputs import (
    flat_outputs,
    in_batches,
    inputs_like,
    is_of_logits,
    losses_of,
    output_names,
    output_shapes,
    outputs_like,
    targets_of,
)
from keras_trainkit.export import load_litert, predict_litert

# Of the training data, what the choice looks at.
_HELD_OUT, _MOST_HELD_OUT = 0.2, 5000
_PASSES = 30

# Takes flat lists of targets and outputs.
Metric = Callable[[list[np.ndarray], list[np.ndarray]], float]


def metric_of(metric: Any, model: keras.Model, y: list[np.ndarray]) -> Metric:
    """A function of targets and outputs, larger is better.

    Args:
        metric: As for `compress`.
        model: The model whose outputs they are.
        y: Targets, to see whether they are labels.
    """
    if callable(metric):
        return lambda y, outputs: float(
            metric(outputs_like(model, y), outputs_like(model, outputs))
        )
    if metric != "accuracy":
        reject("metric", metric, '"accuracy" or a function of targets and outputs')
    shapes = output_shapes(model)
    for name, targets, shape in zip(output_names(model), y, shapes, strict=True):
        _check_labels(name, targets, shape)
    middles = [0.0 if is_of_logits(loss) else 0.5 for loss in losses_of(model)]
    return lambda y, outputs: float(np.mean(list(map(_accuracy, y, outputs, middles))))


def _check_labels(name: str, y: np.ndarray, shape: tuple) -> None:
    """Raise where targets are no labels, and nothing is right or wrong."""
    whole = y.dtype.kind in "biu" or (y.dtype.kind == "f" and (y == np.round(y)).all())
    rows_fit = y.ndim == len(shape) or y.ndim == len(shape) - 1
    if not whole or not rows_fit:
        reject(
            "metric",
            "accuracy",
            "a function of targets and outputs where an output has no labels: "
            f"{name} of shape {shape} has targets of {y.dtype}, shape {y.shape}",
        )


def _accuracy(y: np.ndarray, outputs: np.ndarray, middle: float) -> float:
    """The fraction of right classes, or of right decisions for several labels."""
    if outputs.shape[1:] == y.shape[1:] and outputs.shape[-1] > 1 and outputs.ndim > 1:
        if not (y.sum(-1) == 1).all():
            return float(np.mean((outputs > middle) == (y > 0.5)))
        return accuracy(y, outputs)
    one = outputs.ndim == 1 or outputs.shape[-1] == 1
    return accuracy(y, outputs > middle if one else outputs)


def file_outputs(model: keras.Model, file: Path, x: Any) -> list[np.ndarray]:
    """The outputs of a model's file, in the order of the model's."""

    def run(part: Any) -> list[Any]:
        return flat_outputs(model, predict_litert(file, _alone(part)))

    return in_batches(run, x)


def _alone(x: Any) -> Any:
    """Inputs as a file takes them: the array itself where there is one."""
    flat = keras.tree.flatten(x)
    return flat[0] if len(flat) == 1 else flat


def size_of(file: Path, size: str) -> int:
    """Bytes of a file, as it is or after gzip."""
    if size == "gzip":
        return len(gzip.compress(file.read_bytes(), mtime=0))
    return file.stat().st_size


def latency_of(path: Path, x: Any) -> float:
    """Median seconds of a pass of one row in LiteRT."""
    interpreter = load_litert(path, 1)
    details = interpreter.get_input_details()
    # The file has its inputs in the order of the model's.
    for given, row in zip(details, keras.tree.flatten(x), strict=True):
        interpreter.set_tensor(given["index"], row[:1].astype(given["dtype"]))
    (seconds,) = latencies([interpreter.invoke], _PASSES)
    return float(np.median(seconds))


@dataclass(frozen=True)
class Data:
    """What is trained on, what the choice looks at, and what the verdict is from.

    Each is inputs, in the structure of the model's, and a flat list of targets.
    """

    train: tuple[Any, list[np.ndarray]]
    choice: tuple[Any, list[np.ndarray]]
    validation: tuple[Any, list[np.ndarray]]

    @classmethod
    def of(
        cls, model: keras.Model, x: Any, y: Any, validation_data: Any, seed: int
    ) -> "Data":
        if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
            reject("validation_data", type(validation_data).__name__, "a pair (x, y)")
        pair = inputs_like(model, x, "x"), targets_of(model, y, "y")
        rows = num_rows(pair)
        held_out = min(int(rows * _HELD_OUT), _MOST_HELD_OUT)
        if held_out < 10:
            reject("x", rows, "at least 50 rows")
        verdict = (
            inputs_like(model, validation_data[0], "validation_data"),
            targets_of(model, validation_data[1], "validation_data"),
        )
        num_rows(verdict, "validation_data")
        order = np.random.default_rng(seed).permutation(rows)
        choice, train = take(pair, order[:held_out]), take(pair, order[held_out:])
        return cls(train, choice, verdict)
