"""Store kernels that were trained on an int8 grid as int8 in an ONNX file."""

from pathlib import Path
from typing import Any

import numpy as np

# The axis of a kernel that has a scale for each entry.
_AXES = {"Conv": 0, "MatMul": -1, "ConvTranspose": 1}
# The largest signed 8-bit and 4-bit integers.
_TOPS = (127, 7)
_ROUNDING = 1e-4


def integer_weights(path: Path) -> int:
    """Store kernels that lie on a symmetric grid as int8 with `DequantizeLinear`.

    The converter writes `QuantizeLinear` and `DequantizeLinear` for activations. With
    them in front of kernels and biases too, onnxruntime computes in int8.

    Args:
        path: The file, which is changed.

    Returns:
        The number of kernels.
    """
    import onnx

    proto = onnx.load(str(path))
    graph = _Graph(proto.graph)
    found = sum(_quantize(graph, node) for node in list(proto.graph.node))
    graph.remove_unused()
    onnx.save(proto, str(path))
    return found


class _Graph:
    """A graph whose constants are looked up by name."""

    def __init__(self, graph: Any):
        from onnx import numpy_helper

        self.graph = graph
        self._arrays = {x.name: x for x in graph.initializer}
        self._read = numpy_helper.to_array
        self.producers = {o: node for node in graph.node for o in node.output}

    def constant(self, name: str) -> np.ndarray | None:
        held = self._arrays.get(name)
        return None if held is None else self._read(held)

    def dequantized(self, integers: np.ndarray, scale: np.ndarray, axis: int) -> str:
        """Add integers and a node that dequantizes them; return its output's name."""
        from onnx import helper, numpy_helper

        name = f"kernel_{len(self.graph.initializer)}"
        parts = {
            f"{name}_integers": integers,
            f"{name}_scale": scale.astype("float32"),
            f"{name}_zero": np.zeros(scale.shape, integers.dtype),
        }
        for part, array in parts.items():
            self.graph.initializer.append(numpy_helper.from_array(array, part))
        node = helper.make_node("DequantizeLinear", list(parts), [name], axis=axis)
        self.graph.node.insert(0, node)
        return name

    def scale_of_input(self, name: str) -> np.ndarray | None:
        """Return the scale of a dequantized tensor; None for any other tensor."""
        node = self.producers.get(name)
        # These operations keep the grid.
        while node is not None and node.op_type in ("Reshape", "Transpose", "MaxPool"):
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return self.constant(node.input[1])

    def remove_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        used |= {output.name for output in self.graph.output}
        for held in [x for x in self.graph.initializer if x.name not in used]:
            self.graph.initializer.remove(held)


def _quantize(graph: _Graph, node: Any) -> bool:
    kernel = graph.constant(node.input[1]) if node.op_type in _AXES else None
    if kernel is None or kernel.dtype != np.float32:
        return False
    axis = _AXES[node.op_type] % kernel.ndim
    scale = _scale(kernel, axis)
    if scale is None:
        return False
    shape = [-1 if i == axis else 1 for i in range(kernel.ndim)]
    integers = np.round(kernel / scale.reshape(shape)).astype("int8")
    taken = graph.scale_of_input(node.input[0])
    bias = graph.constant(node.input[2]) if len(node.input) > 2 else None
    node.input[1] = graph.dequantized(integers, scale, axis)
    if bias is not None and taken is not None:
        step = scale * float(taken)
        exact = np.round(bias / step).clip(-(2**31), 2**31 - 1)
        node.input[2] = graph.dequantized(exact.astype("int32"), step, 0)
    return True


def _scale(kernel: np.ndarray, axis: int) -> np.ndarray | None:
    """Return the grid step of each entry along an axis; None if not on a grid."""
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    most = np.abs(kernel).max(axis=others)
    for top in _TOPS:
        scale = np.where(most > 0, most, 1) / top
        shape = [-1 if i == axis else 1 for i in range(kernel.ndim)]
        steps = kernel / scale.reshape(shape)
        if np.abs(steps - np.round(steps)).max() < top * _ROUNDING:
            return scale
    return None
