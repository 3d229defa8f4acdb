"""The `keras-trainkit check` command."""

from pathlib import Path

import keras_trainkit as kt
from keras_trainkit.cli._inputs import first_line, load_arrays, load_model
from keras_trainkit.cli._output import CommandError


def run_check(
    model_path: Path,
    data_path: Path,
    *,
    loss: str | None = None,
    batch_size: int | None = None,
) -> int:
    """Print what is wrong with a training setup.

    Args:
        model_path: The `.keras` file.
        data_path: The `.npz` file with `x` and `y`, and optionally `x_val` and `y_val`
            as validation data.
        loss: The loss to compile with, if the file has none.
        batch_size: Rows per batch.

    Returns:
        0, or 3 if something is wrong with the setup.

    Raises:
        CommandError: If a file or an argument is missing or invalid. The message is
            one line.
    """
    model = load_model(model_path, loss, compile=True)
    data = load_arrays(data_path, {"x", "y"})
    validation = (data["x_val"], data["y_val"]) if "x_val" in data else None
    try:
        found = kt.diagnostics.check_up(
            model, data["x"], data["y"], validation, batch_size=batch_size
        )
    except ValueError as error:
        raise CommandError(first_line(error)) from None
    print(found.summary())
    return 0 if found.healthy else 3
