"""Measure the error that quantizing each layer causes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._checks import reject
from keras_trainkit._keras import patched
from keras_trainkit._keras import sublayers as _sublayers
from keras_trainkit._model.compare import distance, outputs
from keras_trainkit._model.kernels import Kernel, kernels
from keras_trainkit._model.select import paths
from keras_trainkit._table import Report, Table
from keras_trainkit._training.batches import columns, num_rows
from keras_trainkit.export._report import _quality

# Layers that loop over inner layers are quantized as a whole.
_LOOPS = (layers.RNN, layers.Bidirectional, layers.TimeDistributed)
_ROWS_AT_ONCE = 256
_MOST_DB = 150.0


@dataclass(frozen=True)
class LayerCost:
    """The effect of quantizing one layer.

    Attributes:
        name: The layer's path in the model.
        weights_snr: Signal-to-noise ratio of its output in dB, averaged over channels,
            if only its weights are int8.
        snr: The same if its output is int8 too.
        max_difference: Largest difference of the model's outputs, relative to the
            largest output.
        accuracy: Fraction of the rows whose class is right; None without classes.
        nll: Mean negative log likelihood in nats; None without probabilities.

    Examples:
        >>> report = kt.export.quantization_report(
        ...     model, x_val, y_val
        ... )  # doctest: +SKIP
        >>> worst = report.layers[0]  # doctest: +SKIP
    """

    name: str
    weights_snr: float
    snr: float
    max_difference: float
    accuracy: float | None = None
    nll: float | None = None


@dataclass(frozen=True, repr=False)
class QuantizationReport(Report):
    """The effect of quantizing each layer separately to int8.

    Attributes:
        layers: One entry for each layer that has kernels, in the model's order.
        accuracy: Accuracy of the float model; None without classes.
        nll: Mean negative log likelihood of the float model; None without
            probabilities.

    Examples:
        >>> import keras_trainkit as kt
        >>> report = kt.export.quantization_report(
        ...     model, x_val, y_val
        ... )  # doctest: +SKIP
        >>> print(report.summary())  # doctest: +SKIP
    """

    layers: tuple[LayerCost, ...]
    accuracy: float | None = None
    nll: float | None = None

    @property
    def worst(self) -> LayerCost:
        """The layer with the lowest signal-to-noise ratio."""
        return min(self.layers, key=lambda cost: cost.snr)

    def _table(self) -> Table:
        head = ["layer", "weights int8, dB", "and output int8, dB"]
        head += ["max difference", "accuracy", "NLL"]
        first = ["(float)", "", "", "", *_measures(self)]
        return Table(head, [first, *map(_cells, self.layers)])


def quantization_report(
    model: keras.Model, x: Any, y: Any = None
) -> QuantizationReport:
    """Measure the loss from quantizing each layer to int8, one layer at a time.

    Weights get a scale for each output channel, symmetric about 0; the output of a
    layer gets one scale and one zero point, from its range over `x`. This is what
    `to_litert(..., "int8")` does. A low `weights_snr` comes from outliers among the
    weights of a channel. A high `weights_snr` with a low `snr` comes from a few
    channels that are much larger than the others.

    The arithmetic is simulated in float on any backend; nothing is converted. The
    model's weights are replaced temporarily and restored afterwards. A recurrent layer
    is quantized as a whole.

    Args:
        model: A built model that runs eagerly on arrays.
        x: A few hundred inputs as for `predict`: an array of shape
            `(rows, *input_shape)`, or a list or dict of them.
        y: Integer labels `(rows,)`, for a model with one output; without them,
            accuracy and likelihood are not measured.

    Returns:
        A `QuantizationReport`.

    Raises:
        ValueError: If an argument is wrong, or no layer has float kernels.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> x = np.random.default_rng(0).normal(size=(64, 20)).astype("float32")
        >>> report = kt.export.quantization_report(model, x, np.zeros(64, int))
        >>> len(report.layers), report.worst.snr > 20
        (3, True)
    """
    if not isinstance(model, keras.Model) or not model.built:
        reject("model", model, "a built keras.Model")
    x = columns(x)
    rows = num_rows(x)
    if y is not None and len(y) != rows:
        reject("y", np.shape(y), f"as many targets as there are rows, {rows}")
    targets = np.zeros((rows, 1)) if y is None else np.asarray(y)
    parts = [part for part in _parts(model) if _float_kernels(part)]
    if not parts:
        reject("model", model.name, "a model with layers that have float kernels")
    places, ranges = paths(model), [_Range(part) for part in parts]
    with patched([(watch.layer, "call", watch) for watch in ranges]):
        before = _predict(model, x, rows)
    costs = []
    for watch in ranges:
        trial = _Trial(watch)
        with patched([(watch.layer, "call", trial)]):
            after = _predict(model, x, rows)
        costs.append(
            LayerCost(
                places[watch.layer],
                trial.snr("weights"),
                trial.snr("all"),
                distance(before, after),
                **_quality_of(after, targets),
            )
        )
    return QuantizationReport(tuple(costs), **_quality_of(before, targets))


def _parts(layer: layers.Layer) -> Iterator[layers.Layer]:
    """Yield the layers to quantize: the innermost, except inside `_LOOPS`."""
    inside = [] if isinstance(layer, _LOOPS) else _sublayers(layer, recursive=False)
    if not inside:
        yield layer
    seen: set[int] = set()
    for part in inside:
        for found in _parts(part):
            if id(found) not in seen:
                seen.add(id(found))
                yield found


def _float_kernels(layer: layers.Layer) -> list[Kernel]:
    return [k for k in kernels(layer) if "float" in k.variable.dtype]


def _predict(model, x, rows) -> list[np.ndarray]:
    starts = range(0, rows, _ROWS_AT_ONCE)
    batches = [
        keras.tree.map_structure(lambda a, i=i: a[i : i + _ROWS_AT_ONCE], x)
        for i in starts
    ]
    found = [outputs(model, batch) for batch in batches]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _quality_of(found: list[np.ndarray], y: np.ndarray) -> dict[str, Any]:
    return _quality(found[0], y) if len(found) == 1 else {}


class _Range:
    """Run a layer and record the range of its output."""

    def __init__(self, layer: layers.Layer):
        self.layer, self.run = layer, layer.call
        # The range includes 0, which int8 must represent exactly.
        self.low, self.high = 0.0, 0.0

    def __call__(self, *args, **kwargs):
        found = self.run(*args, **kwargs)
        output = _numbers(keras.tree.flatten(found)[0])
        self.low = min(self.low, float(output.min(initial=0)))
        self.high = max(self.high, float(output.max(initial=0)))
        return found

    def rounded(self, x: np.ndarray) -> np.ndarray:
        scale = (self.high - self.low) / 255 or 1.0
        zero = np.round(-self.low / scale)
        return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


class _Trial:
    """Run a layer as int8 and accumulate signal and noise for each channel."""

    def __init__(self, watch: _Range):
        self._watch = watch
        self._pairs = [
            (k.variable, keras.ops.convert_to_numpy(k.variable), _rounded_kernel(k))
            for k in _float_kernels(watch.layer)
        ]
        self._sums: dict[str, Any] = {"signal": 0.0, "weights": 0.0, "all": 0.0}

    def __call__(self, *args, **kwargs):
        run = self._watch.run
        exact = _numbers(keras.tree.flatten(run(*args, **kwargs))[0])
        try:
            for variable, _, rounded in self._pairs:
                variable.assign(rounded)
            found = run(*args, **kwargs)
        finally:
            for variable, before, _ in self._pairs:
                variable.assign(before)
        first, *others = keras.tree.flatten(found)
        near = _numbers(first)
        after = self._watch.rounded(near)
        for name, array in (
            ("signal", exact),
            ("weights", near - exact),
            ("all", after - exact),
        ):
            squares = np.square(array).reshape(-1, array.shape[-1])
            self._sums[name] = self._sums[name] + squares.sum(0)
        dtype = keras.backend.standardize_dtype(first.dtype)
        flat = [keras.ops.convert_to_tensor(after, dtype), *others]
        return keras.tree.pack_sequence_as(found, flat)

    def snr(self, noise: str) -> float:
        """Return the signal-to-noise ratio, averaged over channels, in dB."""
        signal = self._sums["signal"]
        used = signal > 0
        if not used.any():
            return _MOST_DB
        least = signal[used] * 10 ** (-_MOST_DB / 10)
        ratio = signal[used] / np.maximum(self._sums[noise][used], least)
        return float(np.mean(10 * np.log10(ratio)))


def _rounded_kernel(kernel: Kernel) -> np.ndarray:
    weights = keras.ops.convert_to_numpy(kernel.variable).astype("float64")
    most = np.abs(weights).max(axis=kernel.inputs, keepdims=True)
    scale = np.where(most > 0, most / 127, 1)
    return np.round(weights / scale) * scale


def _numbers(x: Any) -> np.ndarray:
    x = keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
    return x.astype("float64")


def _measures(cost: LayerCost | QuantizationReport) -> list[str]:
    accuracy = "" if cost.accuracy is None else f"{cost.accuracy:.2%}"
    return [accuracy, "" if cost.nll is None else f"{cost.nll:.4f}"]


def _cells(cost: LayerCost) -> list[str]:
    ratios = [f"{cost.weights_snr:.1f}", f"{cost.snr:.1f}"]
    return [cost.name, *ratios, f"{cost.max_difference:.1e}", *_measures(cost)]
