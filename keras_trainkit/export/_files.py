"""What the exports share: files that appear whole, and another process."""

import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_trainkit._checks import reject


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, suffix: str) -> Iterator[Path]:
    """A path to write to that becomes `path` only if all went well.

    Raises:
        ValueError: If the name does not end in `suffix`.
    """
    path = Path(path)
    if path.suffix != suffix:
        reject("path", str(path), f"a file name that ends in {suffix}")
    with tempfile.TemporaryDirectory(
        prefix=".keras-trainkit-", dir=path.parent
    ) as folder:
        target = Path(folder, f"model{suffix}")
        yield target
        os.replace(target, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what a converter's C++ code writes past Python's `sys.stderr`."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        with warnings.catch_warnings():
            # What they warn of is theirs to mend.
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def convert_elsewhere(
    model: keras.Model, target: Path, kind: str, code: str, *arguments: str | Path
) -> None:
    """Convert a model with the TensorFlow backend, in a process of its own.

    Args:
        model: The model.
        target: The file to write.
        kind: The format, for the error.
        code: What to run; `sys.argv` has the model's file, the target and the rest.
        *arguments: The rest.

    Raises:
        RuntimeError: If it failed.
    """
    source = target.with_suffix(".keras")
    model.save(source)
    finished = subprocess.run(
        [sys.executable, "-c", code, source, target, *arguments],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(
            f"The conversion to {kind}, which runs on the TensorFlow backend, failed: "
            f"{(finished.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
