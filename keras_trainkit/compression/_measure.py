"""Measure a file: its size, its latency, and the metric of its outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._model.compare import accuracy
from keras_trainkit._stopwatch import latencies
from keras_trainkit._training.batches import columns, num_rows, take
from keras_trainkit.export import load_litert

# Of the training data, what the choice looks at.
_HELD_OUT, _MOST_HELD_OUT = 0.2, 5000
_ROWS = 256
_PASSES = 30

Metric = Callable[[Any, Any], float]


def metric_of(metric: Any) -> Metric:
    """A function of targets and outputs, larger is better."""
    if callable(metric):
        return lambda y, outputs: float(metric(y, outputs))
    if metric == "accuracy":
        return accuracy
    return reject("metric", metric, '"accuracy" or a function of targets and outputs')


def latency_of(path: Path, x: Any) -> float:
    """Median seconds of a pass of one row in LiteRT."""
    interpreter = load_litert(path, 1)
    (given,) = interpreter.get_input_details()
    row = np.asarray(take(x, slice(0, 1))).astype(given["dtype"])
    interpreter.set_tensor(given["index"], row)
    (seconds,) = latencies([interpreter.invoke], _PASSES)
    return float(np.median(seconds))


def in_batches(run: Callable[[Any], Any], x: Any) -> np.ndarray:
    """The outputs of all rows, some hundred at a time."""
    parts = [run(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Data:
    """What is trained on, what the choice looks at, and what the verdict is from."""

    train: tuple
    choice: tuple
    validation: tuple

    @classmethod
    def of(cls, x: Any, y: Any, validation_data: Any, seed: int) -> "Data":
        if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
            reject("validation_data", type(validation_data).__name__, "a pair (x, y)")
        pair = tuple(map(columns, (x, y)))
        rows = num_rows(pair)
        held_out = min(int(rows * _HELD_OUT), _MOST_HELD_OUT)
        if held_out < 10:
            reject("x", rows, "at least 50 rows")
        validation = tuple(map(columns, validation_data))
        num_rows(validation, "validation_data")
        order = np.random.default_rng(seed).permutation(rows)
        choice, train = take(pair, order[:held_out]), take(pair, order[held_out:])
        return cls(train, choice, validation)
