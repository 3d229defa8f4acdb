"""Run and inspect LiteRT files."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainkit._checks import reject


class LiteRTRunner:
    """Run a file on inputs with any number of rows.

    Args:
        path: The file.
        delegate: Whether XNNPACK may run the file, which is faster. It is never used if
            `scales_channels_in_int8`, since it crashes the process on some such files.

    Raises:
        ImportError: If ai-edge-litert is not installed.
    """

    def __init__(self, path: str | os.PathLike, delegate: bool = True):
        delegate = delegate and not scales_channels_in_int8(path)
        options = {} if delegate else _without_delegate()
        self.interpreter: Any = _interpreter_class()(model_path=str(path), **options)
        inputs = self.interpreter.get_input_details()
        outputs = self.interpreter.get_output_details()
        self._inputs = {d["name"]: d for d in inputs}
        self._outputs = {d["name"]: d for d in outputs}
        if self.interpreter.get_signature_list():
            signature = self.interpreter.get_signature_runner()
            self._inputs = _in_order(signature.get_input_details(), inputs)
            self._outputs = _in_order(signature.get_output_details(), outputs)
        self._sizes: dict[str, tuple] = {}

    @property
    def signature(self) -> str:
        """The name of the file's signature."""
        return next(iter(self.interpreter.get_signature_list()))

    @property
    def output_names(self) -> list[str] | None:
        """The names of the outputs if the model returns a dict; otherwise None."""
        signed = bool(self.interpreter.get_signature_list())
        numbered = all(re.fullmatch(r"output_\d+", name) for name in self._outputs)
        several = len(self._outputs) > 1
        return list(self._outputs) if signed and several and not numbered else None

    @property
    def batch_size(self) -> int | None:
        """The fixed batch size of the file; None if it accepts any."""
        details = next(iter(self._inputs.values()))
        rows = int(details["shape_signature"][0])
        return rows if rows > 0 else None

    def shapes(self) -> dict[str, tuple]:
        """Return the shape of each input, with 1 for unknown sizes."""
        return {name: tuple(d["shape"]) for name, d in self._inputs.items()}

    def resize(self, shapes: dict[str, tuple]) -> None:
        """Prepare the interpreter for inputs of the given shapes."""
        if shapes == self._sizes:
            return
        for name, shape in shapes.items():
            self.interpreter.resize_tensor_input(self._inputs[name]["index"], shape)
        with _named_error():
            self.interpreter.allocate_tensors()
        self._sizes = shapes

    def __call__(self, x: Any) -> list[np.ndarray]:
        """Return the outputs for one array, or several in file order or by name."""
        once = self.prepare(x)
        with _named_error():
            return once()

    def prepare(self, x: Any) -> Callable[[], list[np.ndarray]]:
        """Return a function that runs the inputs; valid until other inputs are set."""
        arrays = self._named(x)
        self.resize({name: a.shape for name, a in arrays.items()})
        given = [
            (self._inputs[name]["index"], _to_file(array, self._inputs[name]))
            for name, array in arrays.items()
        ]
        wanted = list(self._outputs.values())
        run = self.interpreter

        def once() -> list[np.ndarray]:
            for index, array in given:
                run.set_tensor(index, array)
            run.invoke()
            return [_from_file(run, details) for details in wanted]

        return once

    def _named(self, x):
        names = list(self._inputs)
        if not isinstance(x, dict):
            x = x if isinstance(x, (list, tuple)) and len(x) == len(names) > 1 else [x]
            x = dict(zip(names, x, strict=False))
        if set(x) != set(names):
            expected = f"a dict with {', '.join(names)}, or a list in this order"
            reject("x", list(x), expected)
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


def scales_channels_in_int8(path: str | os.PathLike) -> bool:
    """Whether a file multiplies int8 images by a value for each channel.

    Squeeze-and-excitation does. LiteRT 2.3.0's XNNPACK crashes the process on some such
    files with a double free, and nothing in a file tells which ones.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(Path(path).read_bytes(), 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    multiply = [code.BuiltinCode() == schema.BuiltinOperator.MUL for code in codes]
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for op in map(graph.Operators, range(graph.OperatorsLength())):
            if multiply[op.OpcodeIndex()] and _scales_channels(model, graph, op):
                return True
    return False


def _scales_channels(model: Any, graph: Any, op: Any) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    factors = [graph.Tensors(op.Inputs(i)) for i in range(op.InputsLength())]
    computed = [f for f in factors if not model.Buffers(f.Buffer()).DataLength()]
    shapes = {tuple(f.ShapeAsNumpy()[1:]) for f in computed if f.ShapeLength() == 4}
    in_int8 = all(f.Type() == schema.TensorType.INT8 for f in factors)
    return in_int8 and len(computed) == 2 and len(shapes) == 2


def _without_delegate() -> dict[str, Any]:
    from ai_edge_litert.interpreter import OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return {"experimental_op_resolver_type": resolver}


def _interpreter_class():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise ImportError(
            'ai-edge-litert is not installed: pip install "keras-trainkit[export]"'
        ) from None
    return Interpreter


def _in_order(named, details):
    """Sort a signature's tensors in the file's order."""
    places = {d["index"]: i for i, d in enumerate(details)}
    return dict(sorted(named.items(), key=lambda item: places[item[1]["index"]]))


def set_order(path: str | os.PathLike, names: list[str]) -> None:
    """Reorder a file's inputs and numbered outputs to match the model.

    The converter sorts them by name, or in no documented order.

    Args:
        path: The file.
        names: The names of the inputs in the model's order.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(Path(path).read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    inputs = _tensors(signature.Inputs, signature.InputsLength())
    outputs = _tensors(signature.Outputs, signature.OutputsLength())
    # These are views: writing to them changes `content`.
    if set(inputs) == set(names):
        graph.InputsAsNumpy()[:] = [inputs[name] for name in names]
    graph.OutputsAsNumpy()[:] = [outputs[n] for n in sorted(outputs, key=_natural)]
    Path(path).write_bytes(content)


def _tensors(part, length):
    """Return the tensor index of each name in a signature."""
    found = [part(i) for i in range(length)]
    return {one.Name().decode(): one.TensorIndex() for one in found}


def _natural(name):
    """Return a key that sorts output_10 after output_9."""
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


def scopes(content: bytes) -> set[str]:
    """Return the scopes in a file's tensor names, which include layer names."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    names = [t.name.decode() for g in model.subgraphs for t in g.tensors]
    return {part for name in names for part in re.split("[/;]", name)[:-1]}


def outputs_behind(content: bytes, pattern: str) -> list[str]:
    """Return the names of all tensors computed from one whose name matches a pattern.

    Args:
        content: The file's bytes.
        pattern: A regular expression to search for in tensor names.
    """
    from ai_edge_litert import schema_py_generated as schema

    found: list[str] = []
    for graph in schema.ModelT.InitFromPackedBuf(content).subgraphs:
        names = [tensor.name.decode() for tensor in graph.tensors]
        behind = {i for i, name in enumerate(names) if re.search(pattern, name)}
        # Operators are listed in execution order.
        for op in graph.operators:
            if not behind.isdisjoint((*op.inputs, *op.outputs)):
                behind.update(op.outputs)
                found += [names[i] for i in op.outputs]
    return found


def tensorflow_ops(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Return a file's operations that need TensorFlow, each with a tensor name.

    This parses the file with its schema, since an interpreter would reject it.
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
