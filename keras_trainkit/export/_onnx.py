"""Export to ONNX."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._model import graph as _graph
from keras_trainkit._model.compare import check_same, random_inputs
from keras_trainkit.export._files import convert_elsewhere, quiet, whole_file

_CONVERT = """
import sys, keras
from keras_trainkit.export import to_onnx
source, target = sys.argv[1:]
to_onnx(keras.saving.load_model(source, compile=False), target)
"""


def to_onnx(model: keras.Model, path: str | os.PathLike) -> Path:
    """Write a model as an ONNX file, with `keras.Model.export`.

    The file is loaded into onnxruntime and must give what the model gives for random
    inputs, else it does not appear. Needs the extra `export`. On the JAX backend the
    conversion runs in a process of its own with the TensorFlow backend, which must be
    installed.

    Args:
        model: A built Sequential or Functional model.
        path: The file to write, `*.onnx`. It appears only once it is whole.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is wrong.
        RuntimeError: If the conversion failed, or the file gives something else;
            nothing is written.
    """
    _graph.check_graph(model)
    x = random_inputs(model)
    with whole_file(path, ".onnx") as target:
        if keras.backend.backend() == "jax":
            convert_elsewhere(model, target, "ONNX", _CONVERT)
        else:
            # Keras wants a model that has been called.
            model(x, training=False)
            with quiet():
                model.export(str(target), format="onnx", verbose=False)
        check_same(model, onnx_runner(target), x, "The file")
    return Path(path)


def onnx_runner(path: str | os.PathLike) -> Callable[[Any], list[np.ndarray]]:
    """A function from inputs, in the structure of the model's, to a file's outputs."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(
            'onnxruntime is not installed: pip install "keras-trainkit[export]"'
        ) from None
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]

    def run(x):
        return session.run(None, dict(zip(names, keras.tree.flatten(x), strict=True)))

    return run
