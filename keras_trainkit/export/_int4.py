"""Pack the 4-bit weights of a LiteRT file, which its converter stores as int8."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Operations for which LiteRT has kernels with int8 activations and int4 weights.
_OPERATIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_TOP_8, _TOP_4 = 127, 7


def pack_int4(path: str | os.PathLike) -> None:
    """Store the weights of a file as int4 where they have 4 bits.

    These are the int8 weights that lie on the 15 points of a 4-bit grid within the
    8-bit grid of each channel. All others are left unchanged.

    Args:
        path: The file.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes())
    for graph in model.subgraphs:
        for weights, biases in _kernels(model, graph, schema):
            _pack(model, weights, biases, schema)
    _drop_unused(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    Path(path).write_bytes(bytes(builder.Output()))


def _kernels(model: Any, graph: Any, schema: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the weights that only `_OPERATIONS` use, each with its biases."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    users: dict[int, list[tuple[bool, int]]] = {}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs = list(operator.inputs)
        for place, index in enumerate(inputs):
            fits = name in _OPERATIONS and place == 1
            bias = inputs[2] if fits and len(inputs) > 2 else -1
            users.setdefault(index, []).append((fits, bias))
    for index, uses in users.items():
        if all(fits for fits, _ in uses):
            biases = {bias for _, bias in uses if bias >= 0}
            yield graph.tensors[index], [graph.tensors[bias] for bias in biases]


def _pack(model: Any, weights: Any, biases: list[Any], schema: Any) -> None:
    data = model.buffers[weights.buffer].data
    if weights.type != schema.TensorType.INT8 or data is None:
        return
    stored = data.view("int8")
    values = np.round(stored * (_TOP_4 / _TOP_8)).astype("int8")
    if (np.round(values * (_TOP_8 / _TOP_4)).astype("int8") != stored).any():
        return
    values = np.append(values, np.zeros(values.size % 2, "int8"))
    low, high = values[0::2] & 15, (values[1::2] & 15) << 4
    _store(model, weights, (low | high).view("uint8"))
    weights.type = schema.TensorType.INT4
    for bias in biases:
        # A bias's scale is the input scale times the weight scale.
        whole = model.buffers[bias.buffer].data.view("int32")
        _store(model, bias, np.round(whole * (_TOP_4 / _TOP_8)).astype("int32"))
    for tensor in (weights, *biases):
        tensor.quantization.scale = tensor.quantization.scale * (_TOP_8 / _TOP_4)


def _store(model: Any, tensor: Any, values: np.ndarray) -> None:
    """Give a tensor a new buffer, since equal tensors may share one."""
    buffer = type(model.buffers[0])()
    buffer.data = values.view("uint8")
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)


def _drop_unused(model: Any) -> None:
    used = {t.buffer for graph in model.subgraphs for t in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
