"""What each variant of a model costs and what it is worth, side by side."""

import gzip
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_in_range, check_integer, reject
from keras_trainkit._model.compare import distance
from keras_trainkit._model.flops import flops
from keras_trainkit._model.graph import is_graph, rebuild
from keras_trainkit._stopwatch import latencies
from keras_trainkit._table import Report, Table
from keras_trainkit.export._calibrated import calibrated, probabilities
from keras_trainkit.export._litert import load_litert
from keras_trainkit.export._memory import peak_memory
from keras_trainkit.export._onnx import onnx_runner
from keras_trainkit.pruning import sparsity_report
from keras_trainkit.uncertainty import nll

_BATCHES = (1, 32)
_ROWS_AT_ONCE = 256
# With so many zeros more than the first variant, somebody may hope for speed.
_SPARSE = 0.2

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a pass.

    Attributes:
        batch_size: Rows of the pass.
        median: Median over the repetitions.
        p95: 95th percentile.
    """

    batch_size: int
    median: float
    p95: float


@dataclass(frozen=True)
class Variant:
    """One variant of a model.

    Attributes:
        name: Its name.
        runtime: What ran it: `"Keras"`, `"LiteRT"` or `"ONNX Runtime"`.
        bytes: Size of its file, for a model that of its `.keras` file without the
            optimizer.
        gzip_bytes: The same after gzip.
        latencies: Its times.
        max_difference: Largest difference of its outputs from the first variant's,
            relative to the largest output.
        accuracy: Fraction of the rows whose class is right; None without classes.
        nll: Mean negative log likelihood in nats; None without probabilities.
        parameters: Number of weights; None for a file.
        nonzeros: Number of weights that are not zero; None for a file.
        flops: Floating-point operations of a row; None for a file.
        peak_bytes: Memory that loading it and a pass of the largest batch take at most;
            None for a model, which shares its process, and where the system does not
            tell.
        note: What to know about it.
        temperature: The temperature that calibrates it; None without calibration.
        calibrated_nll: Its mean negative log likelihood at that temperature, in nats.
        coverage: Fraction of the rows whose prediction set has the true class.
        set_size: Mean number of classes in a set.
    """

    name: str
    runtime: str
    bytes: int
    gzip_bytes: int
    latencies: tuple[Latency, ...]
    max_difference: float
    accuracy: float | None = None
    nll: float | None = None
    parameters: int | None = None
    nonzeros: int | None = None
    flops: int | None = None
    peak_bytes: int | None = None
    note: str = ""
    temperature: float | None = None
    calibrated_nll: float | None = None
    coverage: float | None = None
    set_size: float | None = None


@dataclass(frozen=True, repr=False)
class DeploymentReport(Report):
    """Variants of a model side by side.

    Attributes:
        variants: One entry for each, in the order given.
        environment: Machine, versions, threads, repetitions and rows.

    Examples:
        >>> import keras_trainkit as kt
        >>> report = kt.export.deployment_report(
        ...     {"float32": "model.tflite", "int8": "model_int8.tflite"}, x_test, y_test
        ... )  # doctest: +SKIP
        >>> print(report.summary())  # doctest: +SKIP
    """

    variants: tuple[Variant, ...]
    environment: dict[str, str]

    def _table(self) -> Table:
        head = ["variant", "runtime", "parameters", "non-zero", "MFLOPs", "kB", "gzip"]
        head += [f"ms, batch {size} (p95)" for size in _BATCHES]
        head += ["peak MB", "accuracy", "NLL", "max difference"]
        rows = [_cells(variant) for variant in self.variants]
        if all(variant.coverage is not None for variant in self.variants):
            head += ["calibrated NLL", "coverage", "set size"]
            for row, v in zip(rows, self.variants, strict=True):
                row += [f"{v.calibrated_nll:.4f}", f"{v.coverage:.2%}"]
                row.append(f"{v.set_size:.2f}")
        return Table(head, rows)

    def _notes(self) -> list[str]:
        notes = [f"{v.name}: {v.note}" for v in self.variants if v.note]
        return notes + [f"{name}: {value}" for name, value in self.environment.items()]

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self), indent=2)

    def measures(self) -> dict[str, dict[str, float]]:
        """For each variant its figures by name, as `kt.plots.variants` takes them."""
        found = {}
        for variant in self.variants:
            row = {"kB": variant.bytes / 1e3, "kB after gzip": variant.gzip_bytes / 1e3}
            for time in variant.latencies:
                row[f"ms, batch {time.batch_size}"] = time.median
            if all(v.accuracy is not None for v in self.variants):
                row["accuracy"] = variant.accuracy or 0.0
            found[variant.name] = row
        return found


def deployment_report(
    variants: Mapping[str, keras.Model | str | os.PathLike],
    x: np.ndarray,
    y: np.ndarray,
    *,
    repetitions: int = 50,
    calibration: tuple[Any, Any] | None = None,
    coverage: float = 0.9,
) -> DeploymentReport:
    """Measure variants of a model: size, time, accuracy, difference from the first.

    Times are taken by turns, a pass of each variant after the other: what they are
    compared by is the same stretch of time on the same machine.

    Args:
        variants: By name: built models with one input and one output (timed with
            `predict_on_batch`), and paths of `.tflite`, `.onnx` and `.keras` files.
        x: Inputs of shape `(rows, *input_shape)`.
        y: Integer labels `(rows,)` for outputs that are probabilities; other targets
            give no accuracy and no likelihood.
        repetitions: Passes of each variant and batch size.
        calibration: Held-out inputs and labels `(x, y)`, other than those above, on
            which each variant is calibrated by itself: half of the rows choose its
            temperature, half the threshold of its prediction sets
            (`ConformalClassifier("lac")`).
        coverage: The fraction of rows whose prediction set is to have the true class,
            in `(0, 1)`.

    Returns:
        A `DeploymentReport`.

    Raises:
        ValueError: If there are no variants, or one is not of these kinds.
        FileNotFoundError: If a file is not there.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> pruned = kt.pruning.prune_once(model, 0.9)
        >>> x, y = np.ones((64, 20), "float32"), np.zeros(64, int)
        >>> variants = {"base": model, "pruned": pruned}
        >>> report = kt.export.deployment_report(variants, x, y, repetitions=3)
        >>> report.variants[1].note
        'no speed-up expected: its zeros are multiplied like other weights'
    """
    if not variants:
        reject("variants", variants, "at least one model or file")
    check_integer("repetitions", repetitions, minimum=1)
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y) or not len(x):
        reject("y", y.shape, f"as many targets as there are rows, {len(x)} > 0")
    check_in_range("coverage", coverage, 0, 1, closed="neither")
    held_out = None if calibration is None else _held_out(calibration, x)
    opened = {name: _open(name, variant) for name, variant in variants.items()}
    outputs = {name: _predict(one.run, x) for name, one in opened.items()}
    times: dict[str, list[Latency]] = {name: [] for name in opened}
    for size in _BATCHES:
        batch = np.resize(x, (size, *x.shape[1:]))
        runners = [one.prepare(batch) for one in opened.values()]
        for name, seconds in zip(opened, latencies(runners, repetitions), strict=True):
            low, high = np.percentile(1e3 * seconds, (50, 95))
            times[name].append(Latency(size, float(low), float(high)))
    first = next(iter(outputs.values()))
    least = next(iter(opened.values())).sparsity
    return DeploymentReport(
        tuple(
            Variant(
                name=name,
                runtime=one.runtime,
                bytes=len(one.content),
                gzip_bytes=len(gzip.compress(one.content, mtime=0)),
                latencies=tuple(times[name]),
                max_difference=distance([first], [outputs[name]]),
                **_quality(outputs[name], y),
                **_calibrated(name, one.run, held_out, (outputs[name], y), coverage),
                **one.counts,
                peak_bytes=one.peak_bytes,
                note=_note(one, least),
            )
            for name, one in opened.items()
        ),
        _environment(repetitions, len(x)) | _calibration_note(held_out, coverage),
    )


@dataclass(frozen=True)
class _Opened:
    """A variant, ready to run."""

    runtime: str
    content: bytes
    run: Run
    prepare: Callable[[np.ndarray], Callable[[], Any]]
    counts: dict[str, Any]
    peak_bytes: int | None = None

    @property
    def sparsity(self) -> float:
        if not self.counts:
            return 0.0
        return 1 - self.counts["nonzeros"] / max(self.counts["parameters"], 1)


def _open(name: str, variant: Any) -> _Opened:
    if isinstance(variant, keras.Model):
        return _open_model(name, variant)
    if not isinstance(variant, str | os.PathLike):
        reject("variants", {name: variant}, "models and paths of files")
    path = Path(variant)
    content = path.read_bytes()
    if path.suffix == ".keras":
        return _open_model(name, keras.saving.load_model(path, compile=False))
    if path.suffix == ".tflite":
        file = load_litert(path)
        if len(file.get_input_details()) != 1 or len(file.get_output_details()) != 1:
            reject("variants", {name: str(path)}, "files with one input and one output")
        peak = peak_memory(path, _BATCHES[-1])
        return _Opened("LiteRT", content, *_litert(path), {}, peak)
    if path.suffix == ".onnx":
        session = onnx_runner(path)

        def first(x):
            return session(x)[0]

        peak = peak_memory(path, _BATCHES[-1])
        return _Opened(
            "ONNX Runtime", content, first, lambda x: lambda: first(x), {}, peak
        )
    return reject("variants", {name: str(path)}, "files .tflite, .onnx or .keras")


def _open_model(name: str, model: keras.Model) -> _Opened:
    if not model.built or len(model.inputs) != 1 or len(model.outputs) != 1:
        reject("variants", {name: model}, "built models with one input and one output")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        # What is deployed has no optimizer in it.
        (rebuild(model)[0] if is_graph(model) else model).save(path)
        content = path.read_bytes()
    report = sparsity_report(model)
    counts = {"parameters": report.parameters, "nonzeros": report.nonzeros}
    if is_graph(model):
        counts["flops"] = flops(model)

    def run(x):
        return keras.ops.convert_to_numpy(model.predict_on_batch(x))

    return _Opened("Keras", content, run, lambda x: lambda: run(x), counts)


def _litert(path: Path) -> tuple[Run, Callable]:
    interpreters: dict[int, Any] = {}

    def prepare(x):
        interpreter = interpreters.setdefault(len(x), load_litert(path, len(x)))
        (given,) = interpreter.get_input_details()
        (wanted,) = interpreter.get_output_details()

        def once():
            interpreter.set_tensor(given["index"], x.astype(given["dtype"]))
            interpreter.invoke()
            return interpreter.get_tensor(wanted["index"])

        return once

    return lambda x: prepare(x)(), prepare


def _predict(run: Run, x: np.ndarray) -> np.ndarray:
    parts = [run(x[i : i + _ROWS_AT_ONCE]) for i in range(0, len(x), _ROWS_AT_ONCE)]
    return np.concatenate(parts).astype("float32")


def _quality(outputs: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    if y.ndim != 1 or y.dtype.kind not in "iu" or outputs.ndim != 2:
        return {}
    if outputs.shape[1] < 2:
        return {}
    found = {"accuracy": float(np.mean(outputs.argmax(1) == y))}
    p = probabilities(outputs)
    if p is not None:
        found["nll"] = float(nll(y, p))
    return found


def _held_out(calibration: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and labels that the variants are calibrated on."""
    if not isinstance(calibration, tuple | list) or len(calibration) != 2:
        reject("calibration", type(calibration).__name__, "a pair (x, y)")
    inputs, labels = map(np.asarray, calibration)
    if inputs.shape[1:] != x.shape[1:] or len(inputs) < 2:
        reject("calibration", inputs.shape, f"inputs of shape (rows, *{x.shape[1:]})")
    if labels.shape != (len(inputs),) or labels.dtype.kind not in "iu":
        reject("calibration", labels.shape, f"integer labels of {len(inputs)} rows")
    return inputs, labels


def _calibrated(name, run, held_out, test, coverage) -> dict[str, Any]:
    if held_out is None:
        return {}
    inputs, labels = held_out
    return calibrated(name, (_predict(run, inputs), labels), test, coverage)


def _calibration_note(held_out, coverage) -> dict[str, str]:
    if held_out is None:
        return {}
    rows = len(held_out[1])
    return {"calibration": f"{rows} other rows, for sets that cover {coverage:.0%}"}


def _note(one: _Opened, least: float) -> str:
    if one.sparsity > least + _SPARSE:
        return "no speed-up expected: its zeros are multiplied like other weights"
    return ""


def _cells(variant: Variant) -> list[str]:
    def number(form: str, value: float | None) -> str:
        return "" if value is None else form.format(value)

    return [
        variant.name,
        variant.runtime,
        number("{:,}", variant.parameters),
        number("{:,}", variant.nonzeros),
        "" if variant.flops is None else f"{variant.flops / 1e6:,.2f}",
        f"{variant.bytes / 1e3:,.1f}",
        f"{variant.gzip_bytes / 1e3:,.1f}",
        *(f"{time.median:.3f} ({time.p95:.3f})" for time in variant.latencies),
        "" if variant.peak_bytes is None else f"{variant.peak_bytes / 1e6:.1f}",
        number("{:.2%}", variant.accuracy),
        number("{:.4f}", variant.nll),
        f"{variant.max_difference:.1e}",
    ]


def _environment(repetitions: int, rows: int) -> dict[str, str]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} logical processors",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "backend": f"Keras {keras.__version__} on {keras.backend.backend()}",
        "threads": "each runtime's default (LiteRT: 1)",
        "repetitions": f"{repetitions} passes of each variant, by turns",
        "rows": f"{rows} for accuracy and differences",
        "memory": f"of files, in a process of its own, batch {_BATCHES[-1]}",
    }
