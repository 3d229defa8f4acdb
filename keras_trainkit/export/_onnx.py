"""Export to ONNX."""

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._keras import sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit._model.compare import check_same, random_inputs
from keras_trainkit._model.quantized import (
    as_constants,
    check_trained,
    quantized_layers,
)
from keras_trainkit._training.batches import as_array
from keras_trainkit.export._files import (
    convert_elsewhere,
    converting,
    whole_file,
)
from keras_trainkit.export._inference import (
    Inference,
    input_specs,
    plain_operations,
    sampled,
)
from keras_trainkit.export._onnx_int8 import integer_weights
from keras_trainkit.export._onnx_torch import convert_torch
from keras_trainkit.export._remedies import describe

_CONVERT = """
from keras_trainkit.export._onnx import convert
convert(model, sys.argv[2])
"""
_OPSET = 18
# The largest error that int8 rounding may cause, relative to the largest output.
_ROUNDING = 0.05


def to_onnx(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    mc_samples: int | None = None,
    mc_seed: int = 0,
    mc_task: str | None = None,
) -> Path:
    """Write a model as an ONNX file.

    The file is loaded into onnxruntime and its outputs are compared with the model's on
    random inputs; if they differ, no file is written. Needs the extra `export`. On the
    JAX backend, jax2onnx converts the model if it is installed (extra `jax2onnx`) and
    supports the model. Otherwise the conversion runs in a separate process with the
    TensorFlow backend, which must then be installed.

    The file's inputs and outputs have the model's order, and its batch size is open.
    Layers that compute in bfloat16 compute in float32 in the file.

    A model from `kt.quantization.quantize_aware` becomes a file with int8 kernels and
    with `QuantizeLinear` and `DequantizeLinear` around its operations, which
    onnxruntime computes in int8. Its conversion uses TensorFlow on every backend.

    Args:
        model: A built Sequential or Functional model.
        path: The file to write, `*.onnx`. It appears only once it is complete and
            checked.
        mc_samples: As in `to_litert`: the number of samples of Monte Carlo dropout.
        mc_seed: As in `to_litert`.
        mc_task: As in `to_litert`.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is wrong, or the model has operations that ONNX does
            not have.
        RuntimeError: If the conversion failed, or the file's outputs differ from the
            model's; nothing is written.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> kt.export.to_onnx(model, "model.onnx")  # doctest: +SKIP
        PosixPath('model.onnx')
    """
    _graph.check_graph(model)
    if mc_samples is not None:
        model = sampled(model, mc_samples, mc_seed, mc_task)
    input_specs(model)  # Raises for strings.
    quantized = bool(quantized_layers(model))
    if quantized:
        check_trained(model)
    x = random_inputs(model)
    with whole_file(path, ".onnx") as target:
        ways = _ways(model, target)
        for way in ways:
            try:
                way()
                _check_ops(model, target)
                # A value halfway between two grid points may be rounded either way.
                at_least = _ROUNDING if quantized else 0.0
                check_same(model, onnx_runner(target), x, "The file", at_least)
                break
            except RuntimeError:
                if way is ways[-1]:
                    raise
    return Path(path)


def _ways(model: keras.Model, target: Path) -> list[Callable[[], None]]:
    """Return the conversions to try, in order."""
    ways: list[Callable[[], None]] = [functools.partial(convert, model, target)]
    elsewhere = functools.partial(convert_elsewhere, model, target, "ONNX", _CONVERT)
    backend = keras.backend.backend()
    if backend != "tensorflow" and quantized_layers(model):
        # Only tf2onnx supports fake quantization.
        return [elsewhere]
    if backend != "jax":
        return ways
    return [*(ways if importlib.util.find_spec("jax2onnx") else []), elsewhere]


def convert(model: keras.Model, target: str | os.PathLike) -> None:
    """Write a file with the backend's converter, without checking it."""
    specs = input_specs(model)
    backend = keras.backend.backend()
    strange = []
    trained = bool(quantized_layers(model))
    constants = as_constants(model) if trained else contextlib.nullcontext()
    with plain_operations(model, ("bfloat16",)), constants, converting("ONNX"):
        if backend == "tensorflow":
            strange = _convert_tensorflow(model, specs, Path(target))
        elif backend == "torch":
            convert_torch(model, specs, Path(target))
        else:
            Inference(model).export(
                str(target), format="onnx", verbose=False, input_signature=[specs]
            )
    if strange:
        reject("model", model.name, describe(model, "ONNX", strange))
    if trained:
        integer_weights(Path(target))


def _convert_tensorflow(
    model: keras.Model, specs: Any, target: Path
) -> list[tuple[str, str]]:
    """Convert with tf2onnx, and handle what Keras's own export does not.

    Returns:
        The operations that cannot be converted, each with its name in the graph.
    """
    import tensorflow as tf
    import tf2onnx

    from keras_trainkit.export import _onnx_ops

    _onnx_ops.register()
    signature = [
        tf.TensorSpec(spec.shape, spec.dtype, spec.name)
        for spec in keras.tree.flatten(specs)
    ]

    def run(*arrays):
        outputs = model(keras.tree.pack_sequence_as(specs, arrays), training=False)
        return keras.tree.flatten(outputs)

    function = tf.function(run, autograph=False)
    traced = function.get_concrete_function(*signature)
    try:
        proto, _ = tf2onnx.convert.from_function(function, signature, opset=_OPSET)
    except tf.errors.InvalidArgumentError as error:
        if "duplicate function" not in str(error):
            raise
        return _loops(model, traced.graph)
    _keep_constants(proto, traced)
    target.write_bytes(proto.SerializeToString())
    return []


def _loops(model: keras.Model, graph: Any) -> list[tuple[str, str]]:
    """Return the loops that do not belong to recurrent layers.

    TensorFlow does not freeze a loop with a custom gradient, such as the one in CTC.
    """
    layers = sublayers(model)
    known = {x.name for x in layers if isinstance(x, keras.layers.RNN)}
    loops = [(o.type, o.name) for o in graph.get_operations() if "While" in o.type]
    return [
        (op, place)
        for op, place in loops
        if not known & {re.sub(r"_\d+$", "", part) for part in place.split("/")}
    ]


def _keep_constants(proto: Any, traced: Any) -> None:
    """Store tensors that the model holds as constants instead of file inputs."""
    from onnx import numpy_helper

    held = {
        inner.name: outer
        for outer, inner in traced.graph.captures
        if outer.dtype.is_numpy_compatible
    }
    for given in [x for x in proto.graph.input if x.name in held]:
        proto.graph.input.remove(given)
        array = np.asarray(held[given.name])
        proto.graph.initializer.append(numpy_helper.from_array(array, given.name))


def _check_ops(model: keras.Model, path: Path) -> None:
    """Raise for operations outside ONNX, which converters may leave in the file."""
    import onnx

    proto = onnx.load(str(path))
    strange = [
        (node.op_type, node.name)
        for node in _nodes(proto.graph)
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type)
    ]
    if strange:
        reject("model", model.name, describe(model, "ONNX", strange))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def onnx_runner(path: str | os.PathLike) -> Callable[[Any], list[np.ndarray]]:
    """Return a function that runs a file on inputs in the model's structure.

    Raises:
        ImportError: If onnxruntime is not installed.
        RuntimeError: If onnxruntime cannot load the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(
            'onnxruntime is not installed: pip install "keras-trainkit[export]"'
        ) from None
    try:
        session = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        # Its errors have no other common base class.
        raise RuntimeError(f"onnxruntime cannot run the file: {error}") from None
    kinds = {given.name: _dtype(given.type) for given in session.get_inputs()}

    def run(x):
        if not isinstance(x, dict) or set(x) != set(kinds):
            x = dict(zip(kinds, keras.tree.flatten(x), strict=True))
        # onnxruntime does not convert dtypes.
        return session.run(
            None, {n: as_array(a).astype(kinds[n]) for n, a in x.items()}
        )

    return run


def _dtype(kind: str) -> str:
    """Return the NumPy name of a type such as `tensor(float)`."""
    name = kind[kind.index("(") + 1 : -1]
    return {"float": "float32", "double": "float64"}.get(name, name)
