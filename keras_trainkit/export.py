"""Export to the formats that are deployed."""

import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_trainkit._checks import check_choice, reject

_QUANTIZATIONS = (None, "float16", "dynamic", "int8")

# LiteRT's converter is TensorFlow's; another backend's weights go there by file.
_CONVERT = """
import sys, keras, numpy as np
from keras_trainkit.export import to_litert
source, target, quantization, data = sys.argv[1:]
to_litert(
    keras.saving.load_model(source, compile=False),
    target,
    quantization=quantization or None,
    representative_data=np.load(data) if data else None,
)
"""


def to_litert(
    model: keras.Model,
    path: str | os.PathLike,
    quantization: str | None = None,
    representative_data: np.ndarray | None = None,
) -> Path:
    """Write a model as a LiteRT (TensorFlow Lite) file.

    On the JAX and PyTorch backends the conversion runs in a process of its own with the
    TensorFlow backend, which must be installed.

    Args:
        model: A built Sequential or Functional model.
        path: The file to write, `*.tflite`. It appears only once it is whole.
        quantization: `None` for float32; `"float16"` for weights in half precision;
            `"dynamic"` for int8 weights and float activations; `"int8"` for int8
            weights and activations, with float inputs and outputs.
        representative_data: For `"int8"`: a few hundred inputs of shape
            `(rows, *input_shape)`, from which the ranges of the activations are read.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is wrong.
        RuntimeError: If the conversion failed; nothing is written.
    """
    path = Path(path)
    if path.suffix != ".tflite":
        reject("path", str(path), "a file name that ends in .tflite")
    check_choice("quantization", quantization, _QUANTIZATIONS)
    if quantization == "int8" and representative_data is None:
        reject("representative_data", None, 'an array of inputs for "int8"')
    with tempfile.TemporaryDirectory(
        prefix=".keras-trainkit-", dir=path.parent
    ) as folder:
        target = Path(folder, "model.tflite")
        if keras.backend.backend() == "tensorflow":
            options = _converter_options(quantization, representative_data)
            with _quiet():
                model.export(str(target), format="litert", verbose=False, **options)
        else:
            _convert_elsewhere(model, target, quantization, representative_data)
        os.replace(target, path)
    return path


def predict_litert(path: str | os.PathLike, x: np.ndarray) -> np.ndarray:
    """Run a LiteRT file with one input and one output.

    Args:
        path: The file.
        x: Inputs of shape `(rows, *input_shape)`.

    Returns:
        The outputs of all rows.
    """
    interpreter = load_litert(path, batch_size=len(x))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def load_litert(path: str | os.PathLike, batch_size: int = 1):
    """Load a LiteRT file, ready to run on batches of one size.

    Args:
        path: The file.
        batch_size: Rows of a batch.

    Returns:
        An `ai_edge_litert.interpreter.Interpreter` with its tensors allocated.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    details = interpreter.get_input_details()[0]
    shape = [batch_size, *details["shape"][1:]]
    interpreter.resize_tensor_input(details["index"], shape)
    interpreter.allocate_tensors()
    return interpreter


def _converter_options(quantization: str | None, data: np.ndarray | None) -> dict:
    import tensorflow as tf

    if quantization is None:
        return {}
    options: dict = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if quantization == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    elif quantization == "int8":
        assert data is not None
        options["target_spec"] = {
            "supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        }
        rows = np.asarray(data, "float32")
        options["representative_dataset"] = lambda: ([row[np.newaxis]] for row in rows)
    return options


@contextlib.contextmanager
def _quiet():
    """Hide what the converter's C++ code writes past Python's `sys.stderr`."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        with warnings.catch_warnings():
            # That inputs and outputs stay float is what `to_litert` promises.
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _convert_elsewhere(model, target: Path, quantization, data) -> None:
    source = target.with_suffix(".keras")
    model.save(source)
    data_path = target.with_suffix(".npy") if data is not None else ""
    if data is not None:
        np.save(data_path, np.asarray(data, "float32"))
    finished = subprocess.run(
        [sys.executable, "-c", _CONVERT, source, target, quantization or "", data_path],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(
            "The conversion to LiteRT, which runs on the TensorFlow backend, failed: "
            f"{(finished.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
