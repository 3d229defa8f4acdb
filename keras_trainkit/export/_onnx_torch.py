"""Convert a model on the PyTorch backend to ONNX."""

from pathlib import Path
from typing import Any

import keras

from keras_trainkit.export._inference import Inference


def convert_torch(model: keras.Model, specs: Any, target: Path) -> None:
    """Write a file with the first of PyTorch's two exporters that succeeds.

    For open sizes, Keras uses the TorchScript exporter, which is fast but does not
    support all operations; `LayerNormalization` is one that it lacks.
    """
    try:
        Inference(model).export(
            str(target), format="onnx", verbose=False, input_signature=[specs]
        )
    except Exception:
        # The exporter may raise anything.
        _convert_program(model, specs, target)


def _convert_program(model, specs, target):
    """Convert with `torch.export`; sizes that are None stay open."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *arrays):
            x = keras.tree.pack_sequence_as(specs, arrays)
            return tuple(keras.tree.flatten(self.model(x, training=False)))

    flat = keras.tree.flatten(specs)
    # `torch.export` would treat sizes of 0 and 1 as fixed.
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
