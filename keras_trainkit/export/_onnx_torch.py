"""From PyTorch to ONNX."""

from pathlib import Path
from typing import Any

import keras

from keras_trainkit.export._inference import Inference


def convert_torch(model: keras.Model, specs: Any, target: Path) -> None:
    """Write a file by the first of PyTorch's two exporters that can.

    Keras takes the one by TorchScript for open sizes, which is fast but does not have
    all operations, `LayerNormalization` not among them.
    """
    try:
        Inference(model).export(
            str(target), format="onnx", verbose=False, input_signature=[specs]
        )
    except Exception:
        # It can fail in any way.
        _convert_program(model, specs, target)


def _convert_program(model, specs, target):
    """By `torch.export`, with the sizes that are None left open."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *arrays):
            x = keras.tree.pack_sequence_as(specs, arrays)
            return tuple(keras.tree.flatten(self.model(x, training=False)))

    flat = keras.tree.flatten(specs)
    # Sizes of 0 and 1 would be taken for fixed.
    examples = [
        keras.ops.ones([size or 3 for size in spec.shape], spec.dtype) for spec in flat
    ]
    open_sizes = [
        {i: torch.export.Dim.DYNAMIC for i, s in enumerate(spec.shape) if s is None}
        for spec in flat
    ]
    with torch.no_grad():
        program = torch.onnx.export(
            Module().eval(),
            tuple(examples),
            dynamo=True,
            dynamic_shapes=(tuple(open_sizes),),
            input_names=[spec.name for spec in flat],
            verbose=False,
        )
    program.optimize()
    program.save(str(target))
