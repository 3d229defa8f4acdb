"""Export to LiteRT."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_choice, reject
from keras_trainkit._model.compare import check_same, outputs, random_inputs
from keras_trainkit._model.graph import is_graph
from keras_trainkit.export._files import convert_elsewhere, quiet, whole_file

# The root mean square of the error that each may make, relative to that of the outputs:
# beyond, the file is not the model. Single outputs may be off by more, and what that
# costs in accuracy is for `deployment_report` to say.
_ROUNDING = {"float16": 0.05, "dynamic": 0.5, "int8": 0.5, "int16x8": 0.5}
_QUANTIZATIONS = (None, *_ROUNDING)
_CALIBRATED = ("int8", "int16x8")

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
    TensorFlow backend, which must be installed. The file is run and compared with the
    model, for which the extra `export` must be installed.

    Args:
        model: A built Sequential or Functional model.
        path: The file to write, `*.tflite`. It appears only once it is whole and right.
        quantization: `None` for float32; `"float16"` for weights in half precision;
            `"dynamic"` for int8 weights and float activations; `"int8"` for int8
            weights and activations, with float inputs and outputs; `"int16x8"` for
            int8 weights and int16 activations. Weights have a scale for each channel.
        representative_data: For the last two: a few hundred inputs of shape
            `(rows, *input_shape)`, from which the ranges of the activations are read.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is wrong.
        ImportError: If ai-edge-litert is not installed.
        RuntimeError: If the conversion failed, or the file gives something else than
            the model; nothing is written.
    """
    check_choice("quantization", quantization, _QUANTIZATIONS)
    data = representative_data
    if quantization in _CALIBRATED and data is None:
        reject("representative_data", None, f'an array of inputs for "{quantization}"')
    with whole_file(path, ".tflite") as target:
        if keras.backend.backend() == "tensorflow":
            options = _converter_options(quantization, data)
            with quiet():
                model.export(str(target), format="litert", verbose=False, **options)
        else:
            data_path = target.with_suffix(".npy") if data is not None else ""
            if data is not None:
                np.save(data_path, np.asarray(data, "float32"))
            convert_elsewhere(
                model, target, "LiteRT", _CONVERT, quantization or "", data_path
            )
        _check(model, target, quantization, data)
    return Path(path)


def _check(model: keras.Model, path: Path, quantization: str | None, data: Any) -> None:
    """Raise unless the file gives what the model gives, for data or random inputs."""
    if not is_graph(model) or len(model.inputs) != 1 or len(model.outputs) != 1:
        return
    x = random_inputs(model)
    if data is not None:
        x = np.asarray(data[: model.inputs[0].shape[0] or 32], "float32")
    if quantization is None:
        check_same(model, lambda x: predict_litert(path, x), x, "The file", 1e-4)
        return
    (before,), (after,) = (
        outputs(model, x),
        outputs(lambda x: predict_litert(path, x), x),
    )
    error = np.sqrt(np.mean((after - before) ** 2) / max(np.mean(before**2), 1e-30))
    random = (outputs(model, x)[0] != before).any()
    if not random and not error <= _ROUNDING[quantization]:
        raise RuntimeError(
            f"The file's outputs differ by {error:.1e} of the model's in the mean, "
            f"more than {quantization} explains"
        )


def predict_litert(path: str | os.PathLike, x: np.ndarray) -> np.ndarray:
    """Run a LiteRT file with one input and one output.

    Args:
        path: The file.
        x: Inputs of shape `(rows, *input_shape)`.

    Returns:
        The outputs of all rows.
    """
    interpreter = _interpreter(path, lambda shape: x.shape)
    given = interpreter.get_input_details()[0]
    interpreter.set_tensor(given["index"], np.asarray(x).astype(given["dtype"]))
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
    return _interpreter(path, lambda shape: [batch_size, *shape[1:]])


def _interpreter(path: str | os.PathLike, make_shape: Callable[[Any], Any]) -> Any:
    """An interpreter for inputs of a shape made of the file's."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise ImportError(
            'ai-edge-litert is not installed: pip install "keras-trainkit[export]"'
        ) from None
    interpreter = Interpreter(model_path=str(path))
    details = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(details["index"], make_shape(details["shape"]))
    interpreter.allocate_tensors()
    return interpreter


def _converter_options(quantization: str | None, data: np.ndarray | None) -> dict:
    import tensorflow as tf

    if quantization is None:
        return {}
    options: dict = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if quantization == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    elif quantization in _CALIBRATED:
        assert data is not None
        kinds = tf.lite.OpsSet
        op = (
            kinds.TFLITE_BUILTINS_INT8
            if quantization == "int8"
            else kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        )
        options["target_spec"] = {"supported_ops": [op]}
        rows = np.asarray(data, "float32")
        options["representative_dataset"] = lambda: ([row[np.newaxis]] for row in rows)
    return options
