"""What is summed up over the samples of an output."""

from typing import Any

import numpy as np
from keras import ops

_TINY = float(np.finfo(np.float32).tiny)
Sums = dict[str, Any]


def read(kind: str, x: Any) -> Sums:
    """The `value` of each sample, and what else is to be summed up."""
    if kind == "regression":
        return {"value": x}
    if kind == "heteroscedastic":
        mean, log_variance = ops.split(x, 2, axis=-1)
        return {"value": mean, "variance": ops.exp(log_variance)}
    if kind == "binary":
        entropy = _surprise(x) + _surprise(1 - x)
        return {"value": x, "entropy": entropy, "votes": ops.cast(x > 0.5, "float32")}
    p = ops.softmax(x, axis=-1) if kind == "logits" else x
    votes = ops.one_hot(ops.argmax(p, axis=-1), p.shape[-1], dtype="float32")
    return {"value": p, "entropy": ops.sum(_surprise(p), axis=-1), "votes": votes}


def _surprise(p):
    return -p * ops.log(ops.maximum(p, _TINY))


def zeros(kind: str, shape: tuple[int, ...]) -> Sums:
    """The sums of no samples."""
    readings = read(kind, ops.zeros((1, *shape)))
    value = readings.pop("value")[0]
    sums = {name: ops.zeros(x.shape[1:]) for name, x in readings.items()}
    return {**sums, "mean": ops.zeros_like(value), "squares": ops.zeros_like(value)}


def add(sums: Sums, readings: Sums, counted: Any | None, before: Any) -> Sums:
    """Add a chunk, `(samples, rows, ...)`, to the sums of `before` samples.

    `counted` is 0 for samples that do not count, 1 for the others, or None.
    """
    value = readings["value"]
    number = float(value.shape[0]) if counted is None else ops.sum(counted)

    def total(x):
        if counted is not None:
            x = x * ops.reshape(counted, (-1, *[1] * (len(x.shape) - 1)))
        return ops.sum(x, axis=0)

    mean = total(value) / number
    chunk = {name: total(x) for name, x in readings.items() if name != "value"}
    chunk |= {"mean": mean, "squares": total(ops.square(value - mean))}
    return merged(sums, before, chunk, number)


def merged(sums: Sums, count: Any, more: Sums, number: Any) -> Sums:
    """The sums of `count` samples and those of `number` more, as one; also of arrays.

    Chan, Golub and LeVeque, Updating Formulae (1979), equation 2.1: stable however far
    the values are from zero.
    """
    new = {name: sums[name] + x for name, x in more.items()}
    gap = more["mean"] - sums["mean"]
    new["mean"] = sums["mean"] + gap * number / (count + number)
    new["squares"] = new["squares"] + gap * gap * count * number / (count + number)
    return new
