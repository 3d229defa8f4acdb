"""The `keras-trainkit compress` command."""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import keras_trainkit as kt
from keras_trainkit.cli._inputs import (
    check_weights,
    first_line,
    load_data,
    load_model,
)
from keras_trainkit.cli._output import CommandError

_NOT_REACHED = 3


def run_compress(
    model_path: Path,
    data_path: Path,
    validation_path: Path,
    out: Path,
    *,
    max_kb: float | None = None,
    max_drop: float | None = None,
    loss: str | None = None,
    c_array: bool = False,
    force: bool = False,
    **options: Any,
) -> int:
    """Write the smallest file within an accuracy drop, or the best within a size.

    Args:
        model_path: The compiled `.keras` file.
        data_path: The `.npz` file with the training data.
        validation_path: The `.npz` file for the final verdict.
        out: The `.tflite` file to write.
        max_kb: Maximum file size, in kB of 1,000 bytes.
        max_drop: Maximum drop in accuracy; defaults to 0.01 if there is no `max_kb`.
        loss: The loss to train with, if the file has none.
        c_array: Whether to give the file int8 inputs and outputs and write a C header
            next to it.
        force: Whether to overwrite an existing file.
        **options: Further options for `kt.compress`.

    Returns:
        0, or 3 if the target was missed. In that case the closest file is written.

    Raises:
        CommandError: If a file or an argument is missing or invalid. The message is
            one line.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise CommandError(
            'compress needs ai-edge-litert: pip install "ai-edge-litert"'
        )
    if out.suffix != ".tflite" or not out.parent.is_dir():
        raise CommandError(f"{out} must end in .tflite, in a folder that is there")
    if out.exists() and not force:
        raise CommandError(f"{out} is there already; --force replaces it")
    model = load_model(model_path, loss, compile=True)
    check_weights(model_path, model)
    x, y = load_data(data_path, model)
    validation = load_data(validation_path, model)
    if max_drop is None and max_kb is None:
        max_drop = 0.01
    with tempfile.TemporaryDirectory(
        prefix=".keras-trainkit-", dir=out.parent
    ) as scratch:
        path = Path(scratch, out.name)
        try:
            result = kt.compress(
                model,
                x,
                y,
                validation_data=validation,
                max_bytes=None if max_kb is None else int(1000 * max_kb),
                max_drop=max_drop,
                path=path,
                io_dtype="int8" if c_array else "float32",
                **options,
            )
            after, before = result.verdict
        except (ValueError, RuntimeError) as error:
            raise CommandError(first_line(error)) from None
        os.replace(path, out)
    print(f"\n{result.summary()}")
    if c_array:
        print(f"header: {kt.export.to_c_array(out, out.with_suffix('.h'))}")
    within = max_drop is None or before - after <= max_drop
    reached = result.reached and within
    counted = " after gzip" if options.get("size") == "gzip" else ""
    told = "reached" if reached else "not reached, the nearest is"
    size = f"{result.chosen.bytes / 1e3:,.1f} kB{counted}"
    print(
        f"{told}: {out}, {size}, {after:.2%} on the validation data "
        f"({before:.2%} before)"
    )
    return 0 if reached else _NOT_REACHED
