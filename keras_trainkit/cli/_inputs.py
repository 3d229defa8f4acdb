"""Loading of models and data for the commands, with one-line errors."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._keras import functional_part
from keras_trainkit.cli._output import CommandError


def load_model(path: Path, loss: str | None = None, compile: bool = False) -> Any:
    """Load the model from a `.keras` file.

    Args:
        path: The file.
        loss: The loss to compile with, if the file has none or a different one.
        compile: Whether the model must be compiled.
    """
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise CommandError(f"{path} is not a .keras file")
    try:
        with warnings.catch_warnings():
            # Keras warns about an optimizer that has not taken a step and has no state.
            warnings.simplefilter("ignore")
            model = keras.saving.load_model(path, compile=compile)
    except Exception as error:
        # An untrusted file can fail in any way; safe mode stays on.
        raise CommandError(f"{path} cannot be loaded: {first_line(error)}") from None
    if not model.built:
        raise CommandError(
            f"{path} holds a model that is not built: call it on some data, then save"
        )
    if loss is not None:
        try:
            model.compile(model.optimizer or "adam", keras.losses.get(loss))
        except ValueError as error:
            raise CommandError(first_line(error)) from None
    if compile and not model.compiled:
        raise CommandError(
            f"{path} holds no loss and optimizer: give --loss, such as "
            "--loss sparse_categorical_crossentropy"
        )
    return model


def check_weights(path: Path, model: keras.Model) -> None:
    """Raise a CommandError if a model has non-finite weights."""
    for weight in model.weights:
        if not _is_finite(keras.ops.convert_to_numpy(weight)):
            raise CommandError(f"{path} holds NaN or infinity in {weight.path}")


def load_arrays(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    """Load the arrays of an `.npz` file, which must contain all of `names`.

    If it has `x_val`, it must have `y_val` too.
    """
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    try:
        # When NumPy gets a path, it does not close a corrupt file.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception:
        # A truncated file or one of another format can fail in any way.
        arrays = {}
    if "x_val" in arrays:
        names = names | {"y_val"}
    if missing := sorted(names - set(arrays)):
        raise CommandError(
            f"{path} is not an .npz file with arrays {' and '.join(missing)}"
        )
    return arrays


def load_data(path: Path, model: keras.Model) -> tuple[Any, Any]:
    """Load inputs and targets from an `.npz` file, structured as the model expects.

    The arrays are named `x` and `y`. If the model has several inputs or outputs, they
    are `x_NAME` and `y_NAME`, with the model's own names for them.
    """
    inputs = _specs(path, model)
    outputs = list(functional_part(model).output_names)
    x_names = _names("x", list(inputs))
    y_names = _names("y", outputs)
    arrays = load_arrays(path, {*x_names, *y_names})
    rows = len(arrays[x_names[0]]) if arrays[x_names[0]].ndim else 0
    for name, tensor in zip(x_names, inputs.values(), strict=True):
        _check(path, name, arrays[name], tensor, rows)
    for name in y_names:
        _check_numbers(path, name, arrays[name])
        if not arrays[name].ndim or len(arrays[name]) != rows:
            raise CommandError(
                f"{path} must have as many {name} as there are rows of x, {rows}; it "
                f"has {arrays[name].shape}"
            )
    kinds = [tensor.dtype for tensor in inputs.values()]
    flat = [arrays[n].astype(k) for n, k in zip(x_names, kinds, strict=True)]
    structure = functional_part(model).input
    alone = len(flat) == 1 and not isinstance(structure, dict)
    x = flat[0] if alone else keras.tree.pack_sequence_as(structure, flat)
    y = [arrays[name] for name in y_names]
    return x, y[0] if len(y) == 1 else y


def _specs(path: Path, model: keras.Model) -> dict[str, Any]:
    part = functional_part(model)
    if part is None:
        raise CommandError(
            f"a {type(model).__name__} cannot be used here: its inputs are not known "
            "from the file; only those of Functional and Sequential models are"
        )
    return {tensor.name: tensor for tensor in keras.tree.flatten(part.input)}


def _names(kind: str, parts: list[str]) -> list[str]:
    return [kind] if len(parts) == 1 else [f"{kind}_{part}" for part in parts]


def _check(path: Path, name: str, array: np.ndarray, tensor: Any, rows: int) -> None:
    expected = tuple(tensor.shape[1:])
    fits = len(expected) == array.ndim - 1 and all(
        a in (None, b) for a, b in zip(expected, array.shape[1:], strict=True)
    )
    if not fits or len(array) != rows or not rows:
        sizes = ", ".join(["rows", *map(str, expected)])
        raise CommandError(
            f"{path} must have {name} of shape ({sizes}); it has {array.shape}"
        )
    _check_numbers(path, name, array)


def _check_numbers(path: Path, name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf" or not _is_finite(array):
        raise CommandError(
            f"{path} must have finite real numbers in {name}; it has {array.dtype}"
            + (" with NaN or infinity" if array.dtype.kind == "f" else "")
        )


def _is_finite(array: np.ndarray) -> bool:
    # bfloat16 and float8 have the dtype kind "V" and work with NumPy's isfinite.
    # Integers and the keys of random generators need no check.
    return array.dtype.kind not in "fV" or bool(np.isfinite(array).all())


def first_line(error: Exception) -> str:
    """Return the first line of an error message, up to 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
