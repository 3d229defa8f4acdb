"""Check whether two models compute the same outputs."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import refusing, reject
from keras_trainkit._keras import sublayers, torch_rng_state
from keras_trainkit._model.inputs import random_inputs as random_inputs

# The largest error, relative to the largest output, attributed to rounding.
_TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-2, "bfloat16": 2e-1}


def drawn_inputs(model: keras.Model, rows: int = 4) -> Any:
    """Return random inputs for a comparison, or None if the model accepts none."""
    if not getattr(model, "inputs", None):
        return None
    try:
        return random_inputs(model, rows)
    except ValueError:
        return None


def check_copy(
    model: keras.Model, copy: Any, what: str, part: Callable | None = None
) -> float:
    """Compare a model and a copy as in `check_same`, on two rows of random inputs.

    Returns NaN, without a comparison, if the model accepts no random inputs or its
    outputs for them are not finite. Seeds and statistics are restored afterwards.

    Args:
        model: A model.
        copy: What should compute the same outputs: a model, or a function of inputs.
        what: What the copy is, for the error message.
        part: A function of inputs that returns the expected outputs; by default the
            model.

    Raises:
        RuntimeError: If they differ by more than rounding explains.
    """
    with _state_kept(model), _state_kept(copy):
        x = drawn_inputs(model, rows=2)
        if x is None:
            return math.nan
        before = outputs(part or model, x)
        if not all(np.isfinite(array).all() for array in before):
            return math.nan
        return check_same(model, copy, x, what, part=part)


@contextlib.contextmanager
def _state_kept(model: Any) -> Iterator[None]:
    """Restore what a call may change: seeds, and the statistics of some layers."""
    variables = getattr(model, "non_trainable_variables", [])
    numeric = [v for v in variables if v.dtype != "string"]
    values = [np.array(keras.ops.convert_to_numpy(v)) for v in numeric]
    drawn = torch_rng_state()
    try:
        yield
    finally:
        torch_rng_state(drawn)
        for variable, value in zip(numeric, values, strict=True):
            variable.assign(value)


def check_same(
    model: keras.Model,
    copy: Any,
    x: Any,
    what: str,
    at_least: float = 0.0,
    part: Callable | None = None,
) -> float:
    """Return the largest output difference for `x`, relative to the largest output.

    Returns NaN if the model is random at inference and so cannot be compared.

    Args:
        model: A model.
        copy: What should compute the same outputs: a model, or a function of inputs.
        x: The inputs.
        what: What the copy is, for the error message.
        at_least: A difference that is always allowed, whatever the model's precision.
        part: As in `check_copy`.

    Raises:
        ValueError: If `x` has no rows, so that nothing would be compared.
        RuntimeError: If the difference is larger than rounding explains.
    """
    shapes = [np.shape(part) for part in keras.tree.flatten(x)]
    if not shapes or not all(shape and shape[0] for shape in shapes):
        reject("x", shapes or x, "inputs of the model with at least one row")
    original = part or model
    with refusing("x", x, "inputs that the model takes"):
        before = outputs(original, x)
    error = distance(before, outputs(copy, x))
    tolerance = max(tolerance_of(model), at_least)
    if error > tolerance:
        if distance(before, outputs(original, x)) > 0:
            return math.nan
        # A deep network amplifies rounding errors; measure how much.
        rounded = keras.tree.map_structure(_rounded, x)
        noise = distance(before, outputs(original, rounded))
        tolerance = min(max(tolerance, 30 * noise), 100 * tolerance)
    if not error <= tolerance:
        if not all(np.isfinite(part).all() for part in before):
            reject("x", shapes, "inputs for which the outputs of the model are finite")
        raise RuntimeError(
            f"{what}'s outputs differ by {error:.1e} of the largest, more than "
            f"rounding explains ({tolerance:.0e}); the model was not changed"
        )
    return error


def outputs(model: Any, x: Any) -> list[np.ndarray]:
    """Return the outputs of a model or function at inference, as float32."""
    is_model = isinstance(model, keras.Model)
    found = keras.tree.flatten(model(x, training=False) if is_model else model(x))
    return [keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in found]


def distance(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """Return the largest difference, relative to the same output's largest value."""
    return max(
        float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-12))
        for a, b in zip(before, after, strict=True)
    )


def tolerance_of(model: keras.layers.Layer) -> float:
    """Return the relative error that rounding may cause in a model or layer."""
    dtypes = {layer.compute_dtype for layer in sublayers(model)}
    return max(_TOLERANCE.get(name, 0) for name in {*dtypes, keras.config.floatx()})


def _rounded(x):
    """Change each number in its last bit."""
    x = x if hasattr(x, "dtype") else np.asarray(x)
    if "float" not in str(x.dtype):
        return x
    x = np.asarray(x)
    signs = np.random.default_rng(1).choice([-1, 1], x.shape)
    return (x * (1 + signs * np.finfo(x.dtype).eps)).astype(x.dtype)


def accuracy(y: Any, outputs: Any) -> float:
    """Return the fraction of correct class predictions.

    Args:
        y: Integer labels, or one-hot labels with the shape of the outputs.
        outputs: Class scores, `(..., classes)`; or, for a single output, the
            probability of the second of two classes.
    """
    y, outputs = np.asarray(y), np.asarray(outputs)
    if outputs.ndim > 1 and outputs.shape[-1] > 1:
        guess = outputs.argmax(-1)
        labels = y.argmax(-1) if y.shape == outputs.shape else y.reshape(guess.shape)
    else:
        guess = (outputs > 0.5).reshape(-1)
        labels = y.reshape(-1)
    return float(np.mean(guess == labels))
