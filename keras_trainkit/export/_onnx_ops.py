"""Convert TensorFlow operations that tf2onnx does not support to ONNX."""

import functools
from typing import Any

import numpy as np


@functools.cache
def register() -> None:
    """Register the conversions with tf2onnx."""
    from tf2onnx.handler import tf_op

    for name, convert in {
        "Erfc": _erfc,
        "Expm1": _expm1,
        "Bucketize": _bucketize,
    }.items():
        tf_op(name)(type(name, (), {"version_13": classmethod(_handler(convert))}))


def _handler(convert):
    def version_13(cls, graph, node, **kwargs):
        convert(_Writer(graph, node))

    return version_13


class _Writer:
    """Replace a TensorFlow node with ONNX nodes."""

    def __init__(self, graph: Any, node: Any):
        self.node, self._graph = node, graph
        self.input = node.input[0]
        self.dtype = graph.get_dtype(self.input)

    def constant(self, value: Any, like_input: bool = False) -> str:
        from tf2onnx import utils

        array = np.asarray(value)
        if like_input:
            array = array.astype(utils.map_onnx_to_numpy_type(self.dtype))
        name = utils.make_name(f"{self.node.name}_constant")
        return self._graph.make_const(name, array).output[0]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self._graph.make_node(op, list(inputs), attr=attributes).output[0]

    def finish(self, op: str, *inputs: str, **attributes: Any) -> None:
        node, graph = self.node, self._graph
        shapes, dtypes = node.output_shapes, node.output_dtypes
        graph.remove_node(node.name)
        graph.make_node(
            op,
            list(inputs),
            attr=attributes,
            outputs=node.output,
            name=node.name,
            shapes=shapes,
            dtypes=dtypes,
        )


def _erfc(write: _Writer) -> None:
    one = write.constant(1, like_input=True)
    write.finish("Sub", one, write.add("Erf", write.input))


def _expm1(write: _Writer) -> None:
    one = write.constant(1, like_input=True)
    write.finish("Sub", write.add("Exp", write.input), one)


def _bucketize(write: _Writer) -> None:
    from onnx import TensorProto

    boundaries = np.asarray(write.node.get_attr_value("boundaries"), "float32")
    last = write.constant(np.array([-1]))
    x = write.add("Cast", write.input, to=TensorProto.FLOAT)
    x = write.add("Unsqueeze", x, last)
    above = write.add("GreaterOrEqual", x, write.constant(boundaries))
    ones = write.add("Cast", above, to=TensorProto.INT32)
    write.finish("ReduceSum", ones, last, keepdims=0)
