"""Compute the final probabilities of an int8 file in float."""

from pathlib import Path
from typing import Any


def float_probabilities(path: Path) -> None:
    """Change an int8 file to compute its final softmax or sigmoid in float.

    In int8 a probability is a multiple of 1/256, and one below 1/512 is 0, which costs
    the likelihood far more than the rest of the quantization. The converter ends such a
    file in `softmax, dequantize`; the reverse order takes no more operations. A file
    with int8 outputs is left unchanged.

    Args:
        path: The file, which is changed.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    kinds = schema.BuiltinOperator
    wanted = (kinds.SOFTMAX, kinds.LOGISTIC)
    exchanged = False
    for graph in model.subgraphs:
        makers = {out: op for op in graph.operators for out in op.outputs}
        for last in graph.operators:
            if _kind(model, last) != kinds.DEQUANTIZE:
                continue
            if last.outputs[0] not in graph.outputs:
                continue
            before = makers.get(last.inputs[0])
            if before is None or _kind(model, before) not in wanted:
                continue
            readers = [op for op in graph.operators if last.inputs[0] in op.inputs]
            if len(readers) == 1 and last.inputs[0] not in graph.outputs:
                _exchange(graph, before, last, schema)
                exchanged = True
    if exchanged:
        path.write_bytes(_packed(model))


def _kind(model: Any, operator: Any) -> int:
    return model.operatorCodes[operator.opcodeIndex].builtinCode


def _exchange(graph: Any, activation: Any, dequantize: Any, schema: Any) -> None:
    """Swap the order of `activation, dequantize` to `dequantize, activation`."""
    logits, between, probabilities = (
        activation.inputs[0],
        activation.outputs[0],
        dequantize.outputs[0],
    )
    tensor = graph.tensors[between]
    tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    tensor.shape = graph.tensors[logits].shape
    tensor.shapeSignature = graph.tensors[logits].shapeSignature
    dequantize.inputs, dequantize.outputs = [logits], [between]
    activation.inputs, activation.outputs = [between], [probabilities]
    # Swap them in the list too, since its order is the order of execution.
    first, second = (graph.operators.index(op) for op in (activation, dequantize))
    graph.operators[first], graph.operators[second] = dequantize, activation


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
