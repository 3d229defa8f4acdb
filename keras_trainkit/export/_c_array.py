"""LiteRT files as C, for microcontrollers without a file system."""

import math
import os
import re
from pathlib import Path

import numpy as np

from keras_trainkit.export._files import whole_file

_PER_LINE = 12


def to_c_array(path: str | os.PathLike, header: str | os.PathLike) -> Path:
    """Write a LiteRT file as an array in a C header.

    The array has the format of `xxd -i`, aligned to 16 bytes, as LiteRT for
    Microcontrollers requires: `unsigned char NAME[]` and `unsigned int NAME_len`, where
    NAME is that of the header. A comment gives a lower bound of the tensor arena: the
    largest number of bytes of inputs, outputs and activations that are needed at once.
    The interpreter needs some memory in addition.

    Args:
        path: The LiteRT file; for microcontrollers one that `to_litert` wrote with
            `io_dtype="int8"`.
        header: The file to write, `*.h`.

    Returns:
        The path of the header.

    Raises:
        ValueError: If the name of the header does not end in `.h`.

    Examples:
        >>> import keras_trainkit as kt
        >>> kt.export.to_c_array("model.tflite", "model.h")  # doctest: +SKIP
    """
    content = Path(path).read_bytes()
    name = re.sub(r"\W", "_", Path(header).stem)
    name = f"_{name}" if name[:1].isdigit() else name
    numbers = [f"0x{byte:02x}" for byte in content]
    lines = [
        "  " + ", ".join(numbers[i : i + _PER_LINE])
        for i in range(0, len(numbers), _PER_LINE)
    ]
    guard = f"{name.upper()}_H_"
    text = "\n".join(
        [
            f"// Tensor arena: at least {arena_size(content):,} bytes.",
            f"#ifndef {guard}",
            f"#define {guard}",
            "#ifdef __cplusplus",
            "#define KT_ALIGN alignas(16)",
            "#else",
            "#define KT_ALIGN _Alignas(16)",
            "#endif",
            f"KT_ALIGN unsigned char {name}[] = {{",
            ",\n".join(lines),
            "};",
            f"unsigned int {name}_len = {len(content)};",
            "#undef KT_ALIGN",
            f"#endif  // {guard}",
            "",
        ]
    )
    with whole_file(header, ".h") as target:
        target.write_text(text, encoding="ascii")
    return Path(header)


def arena_size(content: bytes) -> int:
    """Return the most bytes of tensors without constant data that are live at once."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    graph = model.subgraphs[0]
    sizes = {
        i: math.prod(map(int, tensor.shape)) * _item_size(tensor.type, schema)
        for i, tensor in enumerate(graph.tensors)
        if model.buffers[tensor.buffer].data is None and tensor.shape is not None
    }
    last = len(graph.operators)
    first_use = dict.fromkeys(map(int, graph.inputs), 0)
    last_use = dict.fromkeys(map(int, graph.outputs), last)
    for place, op in enumerate(graph.operators):
        for tensor in map(int, (*op.inputs, *op.outputs)):
            first_use.setdefault(tensor, place)
            last_use[tensor] = max(place, last_use.get(tensor, place))
    return max(
        (
            sum(
                size
                for i, size in sizes.items()
                if first_use.get(i, last + 1) <= place <= last_use.get(i, -1)
            )
            for place in range(last)
        ),
        default=0,
    )


def _item_size(kind: int, schema) -> int:
    names = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    return np.dtype(names[kind].lower()).itemsize
