"""Argument checks, with uniform messages for all errors about a bad argument.

Each check returns the value, so that it can be used in an assignment; numbers are
converted to plain Python numbers. Errors say what was expected and end in
`Received: name=value`.
"""

import contextlib
import math
import operator
import os
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np


def reject(name: str, value: Any, expected: str) -> NoReturn:
    """Raise the `ValueError` that says what `name` must be and what it was."""
    raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")


def check_finite(name: str, value: Any, expected: str = "a finite number") -> float:
    """Return `value` as a float, or raise unless it is a finite real number."""
    try:
        # Python treats a bool as a number, but as a rate or a size it is a mistake.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        reject(name, value, expected)
    return number


def check_positive(name: str, value: Any, *, allow_zero: bool = False) -> float:
    """Return `value` as a float, or raise unless it is finite and > 0 (or >= 0)."""
    expected = f"a finite number {'>=' if allow_zero else '>'} 0"
    number = check_finite(name, value, expected)
    if number < 0 or (number == 0 and not allow_zero):
        reject(name, value, expected)
    return number


def check_in_range(
    name: str, value: Any, low: float, high: float, *, closed: str = "both"
) -> float:
    """Return `value` as a float, or raise unless it is between `low` and `high`.

    Args:
        name: The argument's name, for the error.
        value: The argument's value.
        low: Lower bound.
        high: Upper bound.
        closed: Which bounds belong to the range: `"both"`, `"left"`, `"right"` or
            `"neither"`.
    """
    left = "[" if closed in ("both", "left") else "("
    right = "]" if closed in ("both", "right") else ")"
    expected = f"a number in {left}{low:g}, {high:g}{right}"
    number = check_finite(name, value, expected)
    above = number >= low if left == "[" else number > low
    below = number <= high if right == "]" else number < high
    if not (above and below):
        reject(name, value, expected)
    return number


def check_integer(name: str, value: Any, *, minimum: int) -> int:
    """Return `value` as an int, or raise unless it is an integer >= `minimum`."""
    expected = f"an integer >= {minimum}"
    try:
        number = operator.index(value)
    except TypeError:
        reject(name, value, expected)
    if isinstance(value, bool) or number < minimum:
        reject(name, value, expected)
    if number.bit_length() > 63:
        reject(name, f"{number.bit_length()} bits", f"{expected} and < 2**63")
    return number


def check_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise unless it is True or False."""
    return bool(check_choice(name, value, (True, False)))


def check_path(name: str, value: Any) -> Path:
    """Return `value` as a path, or raise unless it is one."""
    if not isinstance(value, str | os.PathLike) or not str(value):
        reject(name, value, "a path")
    return Path(value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return `value`, or raise unless it is one of `choices`."""
    choices = tuple(choices)
    # `in` compares with `==`, and an array's result has no truth value.
    if not isinstance(value, Hashable) or value not in choices:
        reject(name, value, "one of " + ", ".join(repr(c) for c in choices))
    return value


def check_items(name: str, value: Any, expected: str) -> list[Any]:
    """Return the items of `value` as a list, or raise unless it is a collection."""
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        reject(name, value, expected)
    try:
        return list(value)
    except TypeError:
        # A zero-dimensional array has `__iter__` but cannot be iterated over.
        reject(name, value, expected)


def check_numbers(name: str, value: Any) -> np.ndarray:
    """Return `value` as a float64 array, or raise unless it contains numbers."""
    try:
        return np.asarray(value).astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        reject(name, value, "an array of numbers")


def check_built(model: Any) -> None:
    """Raise unless `model` is a built Keras model."""
    if not isinstance(model, keras.Model) or not model.built:
        reject_model(model, "a built Keras model")


def check_compiled(model: Any) -> None:
    """Raise unless `model` is a compiled Keras model."""
    if not isinstance(model, keras.Model) or not model.compiled:
        reject_model(model, "a compiled Keras model")


@contextlib.contextmanager
def refusing(name: str, value: Any, expected: str) -> Iterator[None]:
    """Turn an error raised inside a model into one that names the bad argument.

    An error that this package's own checks raised is passed on unchanged.
    """
    try:
        yield
    except Exception as error:
        ours = str(error).startswith("`") and "Received: " in str(error)
        if ours or isinstance(error, MemoryError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Keras names the layer in the first line and the reason in the next.
        reason = f"{type(error).__name__}: {' '.join(lines[:2])[:200]}"
        shapes = keras.tree.map_structure(np.shape, value)
        received = f"{type(value).__name__} of shape {shapes}"
        raise ValueError(
            f"`{name}` must be {expected} ({reason}). Received: {name}={received}"
        ) from error


def reject_model(model: Any, expected: str) -> NoReturn:
    """Raise the `ValueError` that says what a model must be.

    PyTorch's `DistributedDataParallel` wraps the model; the error then says so.
    """
    if isinstance(getattr(model, "module", None), keras.Model):
        expected += "; give the model inside the wrapper, `model.module`"
        reject("model", type(model).__name__, expected)
    reject("model", getattr(model, "name", model), expected)
