"""Open models and files so that they can be run and compared."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._model.flops import flops
from keras_trainkit._model.graph import is_graph, rebuild
from keras_trainkit.export._litert_run import LiteRTRunner
from keras_trainkit.export._memory import peak_memory
from keras_trainkit.export._onnx import onnx_runner
from keras_trainkit.pruning import sparsity_report

Pass = Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Opened:
    """A variant, ready to run.

    Attributes:
        runtime: What runs it.
        content: The bytes of its file.
        prepare: Takes inputs and returns a function that computes the outputs.
        counts: Parameters, non-zeros and FLOPs of a model; empty for a file.
        peak_bytes: Peak memory of a file.
    """

    runtime: str
    content: bytes
    prepare: Callable[[Any], Pass]
    counts: dict[str, Any]
    peak_bytes: int | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of zeros; 0 for a file."""
        if not self.counts:
            return 0.0
        return 1 - self.counts["nonzeros"] / max(self.counts["parameters"], 1)


def open_variant(name: str, variant: Any, rows: int) -> Opened:
    """Open a model or a file.

    Args:
        name: What it is called, for errors.
        variant: The model, or a path.
        rows: Batch size of the pass whose memory is measured.

    Raises:
        ValueError: If it is neither.
        FileNotFoundError: If a file does not exist.
    """
    if isinstance(variant, keras.Model):
        return _open_model(name, variant)
    if not isinstance(variant, str | os.PathLike):
        reject("variants", {name: variant}, "models and paths of files")
    path = Path(variant)
    content = path.read_bytes()
    if path.suffix == ".keras":
        return _open_model(name, keras.saving.load_model(path, compile=False))
    if path.suffix == ".tflite":
        return Opened("LiteRT", content, _litert(path), {}, peak_memory(path, rows))
    if path.suffix == ".onnx":
        return Opened("ONNX Runtime", content, _onnx(path), {}, peak_memory(path, rows))
    return reject("variants", {name: str(path)}, "files .tflite, .onnx or .keras")


def _open_model(name: str, model: keras.Model) -> Opened:
    if not model.built:
        reject("variants", {name: model}, "built models")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        # A deployed model has no optimizer, so copy the model without it.
        (rebuild(model)[0] if is_graph(model) else model).save(path)
        content = path.read_bytes()
    report = sparsity_report(model)
    counts = {"parameters": report.parameters, "nonzeros": report.nonzeros}
    if is_graph(model):
        counts["flops"] = flops(model)

    def prepare(x: Any) -> Pass:
        def once() -> list[np.ndarray]:
            found = keras.tree.flatten(model.predict_on_batch(x))
            return [keras.ops.convert_to_numpy(y) for y in found]

        return once

    return Opened("Keras", content, prepare, counts)


def _litert(path: Path) -> Callable[[Any], Pass]:
    runners: dict[int, LiteRTRunner] = {}

    def prepare(x: Any) -> Pass:
        # Keep a runner per batch size, since resizing prepares the file again.
        rows = len(keras.tree.flatten(x)[0])
        if rows not in runners:
            runners[rows] = LiteRTRunner(path)
        return runners[rows].prepare(x)

    return prepare


def _onnx(path: Path) -> Callable[[Any], Pass]:
    run = onnx_runner(path)
    return lambda x: lambda: run(x)
