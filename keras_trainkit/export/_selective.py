"""Quantize a file to int8, but keep the most sensitive layers in float."""

import contextlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._model.graph import Call, is_graph, read
from keras_trainkit._model.kernels import kernels
from keras_trainkit.export._files import converting
from keras_trainkit.export._litert_float import float_probabilities
from keras_trainkit.export._litert_run import LiteRTRunner, outputs_behind, scopes
from keras_trainkit.export._quantization_report import quantization_report

# The scopes of the layers that hold the masks of the samples, as `mc_graph` names them.
MASKS = r"(^|[/;])masks_\d+_"
# If the output loses this much more than the weights, some channels are too large.
_OUTLIERS_DB = 6.0
_CALIBRATED_AT_ONCE = 16


def quantize_selectively(
    model: keras.Model,
    file: Path,
    x: Any,
    arrays: dict[str, np.ndarray],
    labels: Any,
    max_drop: float,
    int8_inputs: bool,
) -> None:
    """Quantize a float file to int8, with as few float layers as accuracy allows.

    Layers become float in the order of `quantization_report`, the worst first, until
    the file is accurate enough. Then each layer that was not needed becomes int8 again.

    Args:
        model: The model.
        file: Its float32 file, which is replaced.
        x: The inputs, in the structure of the model's.
        arrays: The same by the names of the file's inputs.
        labels: Integer labels; None to use the classes that the float file predicts.
        max_drop: The largest loss of accuracy, a fraction of the rows.
        int8_inputs: Whether the file's inputs and outputs are int8 too.

    Raises:
        ValueError: If the model does not predict classes.
        ImportError: If ai-edge-quantizer is not installed.
        RuntimeError: If the quantization failed.
    """
    search = _Search(file, arrays, labels, int8_inputs)
    if search.drop([]) <= max_drop:
        return
    chosen: list[set[str]] = []
    order = sorted(quantization_report(model, x).layers, key=lambda cost: cost.snr)
    for cost in order:
        with_outliers = cost.weights_snr - cost.snr > _OUTLIERS_DB
        # The file's tensors have the names of layers, not their paths.
        name = cost.name.rpartition("/")[2]
        chosen.append(_with_readers(model, name) if with_outliers else {name})
        if search.drop(chosen) <= max_drop:
            break
    # The first is the most sensitive, and the last one was needed to reach the target.
    for names in chosen[1:-1]:
        rest = [other for other in chosen if other is not names]
        if search.drop(rest) <= max_drop:
            chosen = rest
    if search.drop(chosen) > max_drop:
        reject("max_drop", max_drop, "more: not even a file with all layers float is")


class _Search:
    """Write files in which some layers are float, and measure their accuracy."""

    def __init__(self, file: Path, arrays: dict, labels: Any, int8_inputs: bool):
        self._file, self._arrays = file, arrays
        self._content = file.read_bytes()
        self._scopes = scopes(self._content)
        self._int8_inputs = int8_inputs
        before = self._classes()
        self._labels = before if labels is None else np.asarray(labels)
        if self._labels.shape != before.shape:
            reject("labels", self._labels.shape, f"of shape {before.shape}")
        self._accuracy = np.mean(before == self._labels)
        self._ranges: Any = None

    def drop(self, groups: list[set[str]]) -> float:
        """Return the accuracy lost if the layers of some groups are float."""
        names = set().union(*groups)
        with converting("int8"):
            self._write([s for s in self._scopes if _is_of(s, names)])
        float_probabilities(self._file)
        return float(self._accuracy - np.mean(self._classes() == self._labels))

    def _write(self, left_out: Iterable[str]) -> None:
        from ai_edge_quantizer import qtyping, quantizer

        ops = qtyping.TFLOperationName
        made = quantizer.Quantizer(bytearray(self._content))
        made.add_static_config(".*", ops.ALL_SUPPORTED, 8, 8)
        if self._ranges is None:
            self._ranges = _ranges(made, self._file, self._arrays)
        if not self._int8_inputs:
            for end in (ops.INPUT, ops.OUTPUT):
                made.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
        for scope in left_out:
            made.update_quantization_recipe(
                rf"(^|[/;]){re.escape(scope)}/",
                ops.ALL_SUPPORTED,
                algorithm_key="no_quantize",
            )
        found = made.quantize(self._ranges, enable_progress_report=False)
        self._file.write_bytes(found.quantized_model)

    def _classes(self) -> np.ndarray:
        found = LiteRTRunner(self._file)(self._arrays)
        if len(found) != 1 or found[0].ndim != 2 or found[0].shape[1] < 2:
            shapes = [y.shape for y in found]
            reject("max_drop", shapes, "None for a model without one output of classes")
        return found[0].argmax(1)


def quantize_body(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Quantize the part of a file before its dropout masks to int8.

    Matrix products after the masks get int8 weights and float activations; the rest
    stays float. In int8 the samples of a row would hardly differ, and their entropies
    even less.

    Args:
        file: A float32 file with samples of Monte Carlo dropout, which is replaced.
        arrays: Representative inputs by the names of the file's.

    Raises:
        ImportError: If ai-edge-quantizer is not installed.
        RuntimeError: If the quantization failed.
    """
    content = file.read_bytes()
    with converting("int8"):
        file.write_bytes(_with_int8_body(content, file, arrays))


def _with_int8_body(content: bytes, file: Path, arrays: dict[str, np.ndarray]) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer

    ops = qtyping.TFLOperationName
    made = quantizer.Quantizer(bytearray(content))
    made.add_static_config(".*", ops.ALL_SUPPORTED, 8, 8)
    ranges = _ranges(made, file, arrays)
    for end in (ops.INPUT, ops.OUTPUT):
        made.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
    for name in outputs_behind(content, MASKS):
        exactly = f"(^|;){re.escape(name)}(;|$)"
        made.update_quantization_recipe(
            exactly, ops.ALL_SUPPORTED, algorithm_key="no_quantize"
        )
        made.add_dynamic_config(exactly, ops.FULLY_CONNECTED, 8)
    return made.quantize(ranges, enable_progress_report=False).quantized_model


def _ranges(made: Any, file: Path, arrays: dict[str, np.ndarray]) -> Any:
    """Return the smallest and largest value of each tensor, for a Quantizer.

    Each part of the data is calibrated separately. Over several inputs the Quantizer
    would use moving averages, which clip values that are rarely large.
    """
    runner = LiteRTRunner(file)
    size = runner.batch_size or _CALIBRATED_AT_ONCE
    key, rows = runner.signature, len(next(iter(arrays.values())))
    total: dict[str, dict[str, Any]] = {}
    for start in range(0, rows, size):
        part = slice(start, start + size)
        # It shows a progress bar.
        with contextlib.redirect_stderr(io.StringIO()):
            found = made.calibrate({key: [{n: a[part] for n, a in arrays.items()}]})
        for name, new in found.items():
            old = total.setdefault(name, dict(new))
            for end, function in (("min", np.minimum), ("max", np.maximum)):
                if end in new:
                    old[end] = function(old[end], new[end])
    return total


def _with_readers(model: keras.Model, name: str) -> set[str]:
    """Return the names of a layer, the layers that read its output, and those between.

    An output stays float only if nothing in int8 reads it.
    """
    found = {name}
    if not is_graph(model):
        return found
    waiting = [call for call in read(model).calls if _name(call) == name]
    while waiting:
        for edge in waiting.pop().outputs:
            for reader in edge.consumers:
                if _name(reader) not in found and not _has_kernels(reader):
                    waiting.append(reader)
                found.add(_name(reader))
    return found


def _name(call: Call) -> str:
    return str(getattr(call.layer, "name", ""))


def _has_kernels(call: Call) -> bool:
    is_layer = isinstance(call.layer, keras.layers.Layer)
    return is_layer and bool(list(kernels(call.layer)))


def _is_of(scope: str, names: set[str]) -> bool:
    """Whether a scope in the file belongs to one of the named layers.

    Keras traces each layer a second time for the file, so that the scope of `dense` is
    `dense_1`, and that of `dense_1` is `dense_1_1`.
    """
    return re.sub(r"_\d+$", "", scope) in names
