"""Helpers of the exports: files written atomically, and a converter process."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_trainkit._checks import reject


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, suffix: str) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `path` only on success.

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
    """Hide what a converter's C++ code writes past Python's streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with open(os.devnull, "wb") as sink:
        for descriptor in saved:
            os.dup2(sink.fileno(), descriptor)
    try:
        with warnings.catch_warnings():
            # Converters' own warnings are not for the user.
            warnings.simplefilter("ignore")
            yield
    finally:
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)


@contextlib.contextmanager
def converting(kind: str) -> Iterator[None]:
    """Turn a converter's errors into one of ours, and hide its output.

    Raises:
        RuntimeError: If it failed.
    """
    try:
        with quiet():
            yield
    except ImportError:
        raise
    except Exception as error:
        # A converter may raise anything.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # TensorFlow puts a traceback before its message.
        traced = lines[:1] == ["in user code:"]
        text = " ".join(lines[-2:] if traced else lines[:3]) or type(error).__name__
        raise RuntimeError(f"The conversion to {kind} failed: {text}") from error


# The error is passed to the parent in a file, since converters write to stderr too.
_CHILD = """
import json, sys
try:
{body}
except Exception as error:
    with open(sys.argv[2] + ".json", "w") as file:
        json.dump([isinstance(error, ValueError), str(error)], file)
    raise
"""


def convert_elsewhere(
    model: keras.Model, target: Path, kind: str, code: str, *arguments: str | Path
) -> None:
    """Convert a model with the TensorFlow backend, in a separate process.

    Args:
        model: The model.
        target: The file to write.
        kind: The format, for the error.
        code: What to run, with the loaded `model`; `sys.argv` has the model's file, the
            target and the rest.
        *arguments: The rest.

    Raises:
        ValueError: If the model cannot be loaded there, or the conversion rejects it.
        RuntimeError: If it failed.
    """
    source = target.with_suffix(".keras")
    with _known_there(model, kind):
        model.save(source)
    load = "from keras_trainkit.export._files import load_there\n"
    load += "model = load_there(sys.argv[1])\n"
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            _CHILD.format(body=textwrap.indent(load + code, "    ")),
            source,
            target,
            *arguments,
        ],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            # The child must be able to import the user's classes.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
    )
    if finished.returncode == 0:
        return
    failure = Path(f"{target}.json")
    if not failure.exists():
        lines = finished.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(
            f"The conversion to {kind}, which runs on the TensorFlow backend, failed: "
            f"{lines[-1]}"
        )
    is_value, text = json.loads(failure.read_text())
    raise (ValueError if is_value else RuntimeError)(text)


@contextlib.contextmanager
def _known_there(model: keras.Model, kind: str) -> Iterator[None]:
    """Turn any error while saving a model into a `ValueError`."""
    try:
        yield
    except Exception as error:
        # A user's `get_config` may raise anything.
        text = next((s.strip() for s in str(error).splitlines() if s.strip()), "")
        reject("model", model.name, f"one that {_LOADABLE.format(kind)} ({text})")


def load_there(path: str) -> keras.Model:
    """Load the model that the parent process saved.

    Raises:
        ValueError: If it cannot be loaded.
    """
    with _known_there(keras.Model(name=Path(path).stem), "the format"):
        return keras.saving.load_model(path, compile=False)


_LOADABLE = (
    "a process with the TensorFlow backend can load from a .keras file, which "
    "converts to {}: register its own classes and functions with "
    "keras.saving.register_keras_serializable in a module that can be imported, give "
    "them get_config, and use layers in the place of Lambdas; or export with "
    "KERAS_BACKEND=tensorflow"
)
