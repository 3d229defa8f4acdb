"""Running LiteRT files, and looking into them."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainkit._checks import reject


class LiteRTRunner:
    """Runs a file on inputs of any number of rows.

    Args:
        path: The file.

    Raises:
        ImportError: If ai-edge-litert is not installed.
    """

    def __init__(self, path: str | os.PathLike):
        self.interpreter: Any = _interpreter_class()(model_path=str(path))
        inputs = self.interpreter.get_input_details()
        outputs = self.interpreter.get_output_details()
        self._inputs = {d["name"]: d for d in inputs}
        self._outputs = outputs
        if self.interpreter.get_signature_list():
            signature = self.interpreter.get_signature_runner()
            self._inputs = signature.get_input_details()
            named = signature.get_output_details()
            self._outputs = [named[name] for name in sorted(named, key=_natural)]
        self._sizes: dict[str, tuple] = {}

    def shapes(self) -> dict[str, tuple]:
        """The shape of each input, with 1 for sizes that are open."""
        return {name: tuple(d["shape"]) for name, d in self._inputs.items()}

    def resize(self, shapes: dict[str, tuple]) -> None:
        """Prepare for inputs of some shapes."""
        if shapes == self._sizes:
            return
        for name, shape in shapes.items():
            self.interpreter.resize_tensor_input(self._inputs[name]["index"], shape)
        with _named_error():
            self.interpreter.allocate_tensors()
        self._sizes = shapes

    def __call__(self, x: Any) -> list[np.ndarray]:
        """The outputs for an array, or for a dict of them by the inputs' names."""
        arrays = self._named(x)
        self.resize({name: a.shape for name, a in arrays.items()})
        for name, array in arrays.items():
            details = self._inputs[name]
            self.interpreter.set_tensor(details["index"], _to_file(array, details))
        with _named_error():
            self.interpreter.invoke()
        return [_from_file(self.interpreter, d) for d in self._outputs]

    def _named(self, x):
        if not isinstance(x, dict) and len(self._inputs) == 1:
            x = {next(iter(self._inputs)): x}
        if not isinstance(x, dict) or set(x) != set(self._inputs):
            received = sorted(x) if isinstance(x, dict) else type(x).__name__
            reject("x", received, f"a dict with {', '.join(sorted(self._inputs))}")
        arrays = {name: np.asarray(a) for name, a in x.items()}
        for name, array in arrays.items():
            if array.ndim != len(self._inputs[name]["shape"]):
                shape = tuple(self._inputs[name]["shape_signature"])
                reject("x", array.shape, f"of shape {shape} for {name}")
        return arrays


@contextlib.contextmanager
def _named_error():
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"LiteRT cannot run the file, which has an operation without a kernel of "
            f'this kind (quantization="int8" has the most): {error}'
        ) from None


def _interpreter_class():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise ImportError(
            'ai-edge-litert is not installed: pip install "keras-trainkit[export]"'
        ) from None
    return Interpreter


def _natural(name):
    """A key that sorts output_10 behind output_9."""
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]


def _to_file(array, details):
    scale, zero = details["quantization"]
    if scale and array.dtype.kind == "f":
        limits = np.iinfo(details["dtype"])
        array = np.clip(np.round(array / scale) + zero, limits.min, limits.max)
    return array.astype(details["dtype"])


def _from_file(interpreter, details):
    array = interpreter.get_tensor(details["index"])
    scale, zero = details["quantization"]
    if scale:
        return (array.astype("float32") - zero) * np.float32(scale)
    return array


def tensorflow_ops(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Operations of a file that need TensorFlow to run, each with a place.

    Reads the file by its schema: an interpreter would not take it.
    """
    _interpreter_class()
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes())
    found = []
    for graph in model.subgraphs:
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex].customCode
            if code is not None:
                place = graph.tensors[op.outputs[0]].name if len(op.outputs) else b""
                found.append((code.decode().removeprefix("Flex"), place.decode()))
    return found
