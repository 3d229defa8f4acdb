"""`keras-trainkit check`."""

import warnings
from pathlib import Path

import keras
import numpy as np

import keras_trainkit as kt
from keras_trainkit.cli._deploy import _first_line
from keras_trainkit.cli._output import CommandError


def run_check(
    model_path: Path,
    data_path: Path,
    *,
    loss: str | None = None,
    batch_size: int | None = None,
) -> int:
    """Print what is wrong with a training.

    Args:
        model_path: The `.keras` file.
        data_path: The `.npz` file with `x` and `y`, and with `x_val` and `y_val` if
            there is validation data.
        loss: A loss to compile with, where the file has none.
        batch_size: Rows of a batch.

    Returns:
        0, or 3 if something is wrong.

    Raises:
        CommandError: If something is missing or wrong; its message is one clear line.
    """
    model = _load(model_path)
    if loss is not None:
        try:
            model.compile(model.optimizer or "adam", keras.losses.get(loss))
        except ValueError as error:
            raise CommandError(_first_line(error)) from None
    if not model.compiled:
        raise CommandError(
            f"{model_path} holds no loss and optimizer: give --loss, such as "
            "--loss sparse_categorical_crossentropy"
        )
    data = _arrays(data_path)
    validation = (data["x_val"], data["y_val"]) if "x_val" in data else None
    try:
        found = kt.diagnostics.check_up(
            model, data["x"], data["y"], validation, batch_size=batch_size
        )
    except ValueError as error:
        raise CommandError(_first_line(error)) from None
    print(found.summary())
    return 0 if found.healthy else 3


def _load(path: Path) -> keras.Model:
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            # An optimizer that has not taken a step has nothing to load.
            warnings.simplefilter("ignore")
            return keras.saving.load_model(path)
    except Exception as error:
        # A file from elsewhere can fail in any way; safe mode stays on.
        raise CommandError(f"{path} cannot be loaded: {_first_line(error)}") from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, AttributeError, TypeError):
        arrays = {}
    missing = {"x", "y"} - set(arrays)
    if "x_val" in arrays:
        missing |= {"y_val"} - set(arrays)
    if missing:
        raise CommandError(
            f"{path} is not an .npz file with arrays {', '.join(sorted(missing))}"
        )
    return arrays
