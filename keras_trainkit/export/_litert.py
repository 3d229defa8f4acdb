"""Export to LiteRT."""

import contextlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_positive, reject
from keras_trainkit._model.compare import check_same, outputs, random_inputs
from keras_trainkit._model.graph import is_graph
from keras_trainkit._model.quantized import (
    as_constants,
    check_trained,
    quantized_layers,
)
from keras_trainkit.export._files import convert_elsewhere, converting, whole_file
from keras_trainkit.export._inference import (
    Inference,
    check_steps,
    flat_inputs,
    input_specs,
    plain_operations,
    sampled,
    unrolled,
)
from keras_trainkit.export._int4 import pack_int4
from keras_trainkit.export._litert_float import float_probabilities
from keras_trainkit.export._litert_run import LiteRTRunner, set_order, tensorflow_ops
from keras_trainkit.export._remedies import describe
from keras_trainkit.export._selective import quantize_body, quantize_selectively

# The largest root-mean-square error of each format, relative to that of the outputs; a
# larger one means that the file is not the model. Single outputs may differ by more;
# `deployment_report` shows what that costs in accuracy.
_ROUNDING = {"float16": 0.05, "dynamic": 0.5, "int8": 0.5, "int16x8": 0.5}
_QUANTIZATIONS = (None, *_ROUNDING)
_CALIBRATED = ("int8", "int16x8")

# LiteRT's converter is TensorFlow's; another backend's weights go there by file.
_CONVERT = """
import numpy as np
from keras_trainkit.export._litert import convert
target, options, data = sys.argv[2:]
arrays = None
if data:
    with np.load(data) as saved:
        arrays = [saved[f"arr_{i}"] for i in range(len(saved.files))]
convert(model, target, arrays, **json.loads(options))
"""


def to_litert(
    model: keras.Model,
    path: str | os.PathLike,
    quantization: str | None = None,
    representative_data: Any = None,
    *,
    io_dtype: str = "float32",
    mc_samples: int | None = None,
    mc_seed: int = 0,
    mc_task: str | None = None,
    max_drop: float | None = None,
    labels: Any = None,
) -> Path:
    """Write a model as a LiteRT (TensorFlow Lite) file.

    On the JAX and PyTorch backends the conversion runs in a separate process with the
    TensorFlow backend, which must be installed. The file is run and all its outputs are
    compared with the model's, which needs the extra `export`.

    The file runs without TensorFlow's operations: recurrent layers are unrolled, and
    float16 and bfloat16 computations are done in float32. Inputs have the model's input
    names; inputs and outputs have the model's order.

    With `mc_samples`, a file has the outputs `mean`, `mutual_information` and
    `predictive_entropy`, in this order. For regression it has `mean` and `std`, after
    `aleatoric_std` if the head is heteroscedastic. The outputs equal those of
    `kt.uncertainty.mc_predict(model, x, mc_samples, noise="shared", seed=mc_seed)`:
    the masks are constants in the file, the same for every row. Layers that no dropout
    affects run once per row. With `"int8"` these layers are int8, matrix products after
    the masks have int8 weights and float activations, and the rest is float; this needs
    ai-edge-quantizer (extra `export`).

    Args:
        model: A built Sequential or Functional model, or another that has been called.
        path: The file to write, `*.tflite`. It appears only once it is complete and
            checked.
        quantization: `None` for float32; `"float16"` for weights in half precision;
            `"dynamic"` for int8 weights and float activations; `"int8"` for int8
            weights and activations; `"int16x8"` for int8 weights and int16 activations.
            Weights have a scale for each channel. An operation for which LiteRT has no
            such kernel stays float.
        representative_data: For `"int8"` and `"int16x8"`: a few hundred inputs of shape
            `(rows, *input_shape)`, which determine the ranges of the activations; for
            several inputs a list or dict of them, as for `predict`. For `"int8"`, a
            trained model from `kt.quantization.quantize_aware` needs none.
        io_dtype: `"int8"`, for `quantization="int8"`, makes the file's float inputs and
            outputs int8 too, for microcontrollers. Every operation must then have an
            int8 kernel.
        mc_samples: Number of samples of Monte Carlo dropout; the file outputs their
            statistics instead of the model's output.
        mc_seed: Integer seed of the dropout masks.
        mc_task: The kind of output, as `task` in `mc_predict`.
        max_drop: For `quantization="int8"` and a model with one output of classes: the
            accuracy that the file may lose, such as 0.005, measured on
            `representative_data`. If int8 loses more, as few layers as possible stay
            float, in the order of `quantization_report`. Needs ai-edge-quantizer (extra
            `export`).
        labels: For `max_drop`: the integer labels of `representative_data`. Without
            them, accuracy is measured as agreement with the model's predicted class.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is wrong, or the model has operations that LiteRT
            does not have.
        ImportError: If ai-edge-litert is not installed.
        RuntimeError: If the conversion failed, or the file's outputs differ from the
            model's; nothing is written.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> kt.export.to_litert(model, "model.tflite")  # doctest: +SKIP
        PosixPath('model.tflite')
        >>> kt.export.to_litert(
        ...     model, "model_int8.tflite", quantization="int8",
        ...     representative_data=x_train[:200],
        ... )  # doctest: +SKIP
        PosixPath('model_int8.tflite')
    """
    check_choice("quantization", quantization, _QUANTIZATIONS)
    check_choice("io_dtype", io_dtype, ("float32", "int8"))
    if io_dtype == "int8" and quantization != "int8":
        reject("io_dtype", io_dtype, '"float32" unless quantization="int8"')
    if mc_samples is not None:
        _check_sampled(model, quantization, representative_data, io_dtype, max_drop)
        model = sampled(model, mc_samples, mc_seed, mc_task)
    _check_drop(model, quantization, representative_data, max_drop, labels)
    specs = input_specs(model)
    arrays = None
    if representative_data is not None:
        arrays = flat_inputs(specs, representative_data, "representative_data")
    elif quantization == "int8" and quantized_layers(model):
        check_trained(model)
    elif quantization in _CALIBRATED:
        reject("representative_data", None, f'an array of inputs for "{quantization}"')
    check_steps(model)
    # These are quantized from the float file, since the converter cannot skip layers.
    body_only = quantization == "int8" and mc_samples is not None
    later = max_drop is not None or body_only
    with whole_file(path, ".tflite") as target:
        options: dict[str, Any] = {
            "quantization": None if later else quantization,
            "io_dtype": "float32" if later else io_dtype,
            "names": [spec.name for spec in keras.tree.flatten(specs)],
        }
        if keras.backend.backend() == "tensorflow":
            convert(model, target, arrays, **options)
        else:
            data_path: str | Path = ""
            if arrays is not None:
                data_path = target.with_suffix(".npz")
                np.savez(data_path, *arrays)
            convert_elsewhere(
                model, target, "LiteRT", _CONVERT, json.dumps(options), data_path
            )
        if strange := tensorflow_ops(target):
            reject("model", model.name, describe(model, "LiteRT", strange))
        named = dict(zip(options["names"], arrays or [], strict=arrays is not None))
        if body_only:
            quantize_body(target, named)
        elif max_drop is not None and arrays is not None:
            x = keras.tree.pack_sequence_as(specs, arrays)
            quantize_selectively(
                model, target, x, named, labels, max_drop, io_dtype == "int8"
            )
        elif quantization == "int8":
            float_probabilities(target)
        set_order(target, options["names"])
        _check(model, specs, target, quantization, arrays)
    return Path(path)


def _check_sampled(
    model: keras.Model, quantization: Any, data: Any, io_dtype: str, max_drop: Any
) -> None:
    """Raise if `mc_samples` does not fit the other arguments."""
    if quantization == "int16x8":
        expected = 'None, "float16", "dynamic" or "int8" with mc_samples'
        reject("quantization", quantization, expected)
    if io_dtype != "float32":
        reject("io_dtype", io_dtype, '"float32" with mc_samples, for they are float')
    if max_drop is not None:
        reject("max_drop", max_drop, "None with mc_samples")
    if quantization != "int8":
        return
    if quantized_layers(model):
        expected = 'None for a model that is trained for int8, or no "mc_samples"'
        reject("quantization", quantization, expected)
    _check_quantizer()


def _check_drop(
    model: keras.Model, quantization: Any, data: Any, max_drop: Any, labels: Any
) -> None:
    """Raise if `max_drop` or `labels` do not fit the other arguments."""
    if max_drop is None:
        if labels is not None:
            reject("labels", np.shape(labels), "None without `max_drop`")
        return
    check_positive("max_drop", max_drop, allow_zero=True)
    if quantization != "int8" or data is None:
        expected = 'None unless quantization="int8" with representative_data'
        reject("max_drop", max_drop, expected)
    if quantized_layers(model):
        reject("max_drop", max_drop, "None for a model that is trained for int8")
    _check_quantizer()


def _check_quantizer() -> None:
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        raise ImportError(
            'ai-edge-quantizer is not installed: pip install "keras-trainkit[export]"'
        )


def convert(
    model: keras.Model,
    target: str | os.PathLike,
    data: list[np.ndarray] | None,
    quantization: str | None,
    io_dtype: str,
    names: list[str],
) -> None:
    """Write a file with TensorFlow's converter, without checking it."""
    specs = input_specs(model, names)
    options = _converter_options(names, quantization, data, io_dtype)
    reduced = ("float16", "bfloat16")
    trained = quantized_layers(model) if data is None else []
    constants = as_constants(model) if trained else contextlib.nullcontext()
    rewritten = plain_operations(model, reduced), unrolled(model), constants
    with rewritten[0], rewritten[1], rewritten[2], converting("LiteRT"):
        Inference(model).export(
            str(target),
            format="litert",
            verbose=False,
            input_signature=[specs],
            **options,
        )
    if trained and any(layer.weight_bits == 4 for layer in trained):
        pack_int4(target)


def _converter_options(
    names: list[str], quantization: str | None, data: list | None, io_dtype: str
) -> dict:
    import tensorflow as tf

    kinds = tf.lite.OpsSet
    # TensorFlow's operations are allowed so that the error can name those LiteRT lacks.
    allowed = [kinds.TFLITE_BUILTINS, kinds.SELECT_TF_OPS]
    target_spec: dict = {"supported_ops": allowed}
    options: dict = {"target_spec": target_spec}
    if quantization is not None:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        target_spec["supported_types"] = [tf.float16]
    elif quantization == "int8":
        strict = io_dtype == "int8"
        first = kinds.TFLITE_BUILTINS_INT8
        # With the int8 set TensorFlow requires data, which trained ranges do not need.
        if data is not None:
            target_spec["supported_ops"] = [first] if strict else [first, *allowed]
        if strict:
            options |= {"inference_input_type": tf.int8}
            options |= {"inference_output_type": tf.int8}
    elif quantization == "int16x8":
        first = kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        target_spec["supported_ops"] = [first, *allowed]
    if quantization in _CALIBRATED and data is not None:
        options["representative_dataset"] = lambda: (
            {name: a[i : i + 1] for name, a in zip(names, data, strict=True)}
            for i in range(len(data[0]))
        )
    return options


def _check(
    model: keras.Model, specs: Any, path: Path, quantization: str | None, data: Any
) -> None:
    """Raise unless the file's outputs match the model's, on data or random inputs."""
    flat = keras.tree.flatten(specs)
    if data is not None:
        rows = flat[0].shape[0] or 32
        x = keras.tree.pack_sequence_as(specs, [a[:rows] for a in data])
    elif is_graph(model):
        x = random_inputs(model)
    else:
        x = random_inputs(_stand_in(specs))
    run = LiteRTRunner(path, delegate=quantization not in _CALIBRATED)
    names = [spec.name for spec in flat]

    def of_file(x):
        return run(dict(zip(names, keras.tree.flatten(x), strict=True)))

    if quantization is None:
        check_same(model, of_file, x, "The file", 1e-4)
        return
    before, after = outputs(model, x), outputs(of_file, x)
    again = outputs(model, x)
    for a, b, c in zip(before, after, again, strict=True):
        error = np.sqrt(np.mean((b - a) ** 2) / max(np.mean(a**2), 1e-30))
        random = (c != a).any()
        if not random and not error <= _ROUNDING[quantization]:
            raise RuntimeError(
                f"The file's outputs differ by {error:.1e} of the model's in the mean, "
                f"more than {quantization} explains"
            )


def _stand_in(specs):
    """Return a model with the given input specs, to draw random inputs for."""
    inputs = keras.tree.map_structure(
        lambda s: keras.Input(batch_shape=s.shape, dtype=s.dtype, name=s.name), specs
    )
    return keras.Model(inputs, keras.tree.flatten(inputs))


def predict_litert(path: str | os.PathLike, x: Any) -> Any:
    """Run a LiteRT file.

    Args:
        path: The file.
        x: Inputs of shape `(rows, *input_shape)`; for several inputs a list in the
            model's order, or a dict by input name.

    Returns:
        The outputs of all rows: for several outputs a list in the model's order, or a
        dict if the model returns one. Inputs and outputs that are int8 in the file
        are float here.

    Raises:
        ValueError: If the inputs do not fit.

    Examples:
        >>> import keras_trainkit as kt
        >>> outputs = kt.export.predict_litert("model.tflite", x_test)  # doctest: +SKIP
    """
    run = LiteRTRunner(path)
    found = run(x)
    if run.output_names is not None:
        return dict(zip(run.output_names, found, strict=True))
    return found[0] if len(found) == 1 else found


def load_litert(path: str | os.PathLike, batch_size: int = 1):
    """Load a LiteRT file, ready to run on batches of one size.

    Args:
        path: The file.
        batch_size: Rows per batch.

    Returns:
        An `ai_edge_litert.interpreter.Interpreter` with its tensors allocated.

    Examples:
        >>> import keras_trainkit as kt
        >>> interpreter = kt.export.load_litert("model.tflite")  # doctest: +SKIP
        >>> interpreter.get_input_details()[0]["shape"]  # doctest: +SKIP
        array([ 1, 20], dtype=int32)
    """
    runner = LiteRTRunner(path)
    runner.resize(
        {name: (batch_size, *shape[1:]) for name, shape in runner.shapes().items()}
    )
    return runner.interpreter
