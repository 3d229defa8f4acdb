"""Compare the size, latency and accuracy of variants of a model."""

import gzip
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_in_range, check_integer, reject
from keras_trainkit._model.compare import distance
from keras_trainkit._stopwatch import latencies
from keras_trainkit._table import Report, Table
from keras_trainkit._training.batches import columns, num_rows, take
from keras_trainkit.export._calibrated import calibrated, probabilities
from keras_trainkit.export._variants import Opened, open_variant
from keras_trainkit.uncertainty import nll

_BATCHES = (1, 32)
_ROWS_AT_ONCE = 256
# With this much more sparsity than the first variant, users may expect a speed-up.
_SPARSE = 0.2


@dataclass(frozen=True)
class Latency:
    """The time of a forward pass in milliseconds.

    Attributes:
        batch_size: Rows in the batch.
        median: Median over the repetitions.
        p95: 95th percentile.

    Examples:
        >>> report = kt.export.deployment_report(variants, x, y)  # doctest: +SKIP
        >>> [time.median for time in report.variants[0].latencies]  # doctest: +SKIP
        [0.021, 0.187]
    """

    batch_size: int
    median: float
    p95: float


@dataclass(frozen=True)
class Variant:
    """The measurements of one variant of a model.

    Attributes:
        name: Its name.
        runtime: What ran it: `"Keras"`, `"LiteRT"` or `"ONNX Runtime"`.
        bytes: Size of its file; for a model, of its `.keras` file without the
            optimizer.
        gzip_bytes: The same after gzip.
        latencies: Its latency for each batch size.
        max_difference: Largest difference of its outputs from the first variant's,
            relative to the largest output.
        accuracy: Fraction of the rows whose class is right, averaged over several
            outputs; None without classes.
        nll: Mean negative log likelihood in nats; None without probabilities.
        parameters: Number of weights; None for a file.
        nonzeros: Number of weights that are not zero; None for a file.
        flops: Floating-point operations per row; None for a file.
        peak_bytes: Peak memory of loading the file and running the largest batch; None
            for a model, which shares its process, and if the system does not report it.
        note: A remark; empty if there is none.
        temperature: The temperature that calibrates it; None without calibration.
        calibrated_nll: Its mean negative log likelihood at that temperature, in nats.
        coverage: Fraction of the rows whose prediction set contains the true class.
        set_size: Mean number of classes in a set.

    Examples:
        >>> report = kt.export.deployment_report(variants, x, y)  # doctest: +SKIP
        >>> smallest = min(report.variants, key=lambda one: one.bytes)  # doctest: +SKIP
        >>> smallest.name, smallest.accuracy  # doctest: +SKIP
        ('int8', 0.903)
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
    """A comparison of variants of a model.

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
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def measures(self) -> dict[str, dict[str, float]]:
        """Return each variant's figures by name, as `kt.plots.variants` accepts."""
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
    x: Any,
    y: Any,
    *,
    repetitions: int = 50,
    calibration: tuple[Any, Any] | None = None,
    coverage: float = 0.9,
) -> DeploymentReport:
    """Measure variants of a model: size, time, accuracy, difference from the first.

    The variants are timed in turns, one pass each, so that all of them are measured
    over the same period on the same machine.

    Args:
        variants: By name: built models (timed with `predict_on_batch`), and paths of
            `.tflite`, `.onnx` and `.keras` files.
        x: Inputs of shape `(rows, *input_shape)`; for several inputs a list or dict of
            them, as for `predict`.
        y: Integer labels `(rows,)` for outputs that are probabilities; with other
            targets, accuracy and likelihood are not measured. For several outputs a
            list or dict of targets: accuracy and likelihood are averaged over the
            outputs with classes.
        repetitions: Passes per variant and batch size.
        calibration: Held-out inputs and labels `(x, y)`, different from those above, on
            which each variant is calibrated separately: half of the rows determine its
            temperature, the other half the threshold of its prediction sets
            (`ConformalClassifier("lac")`).
        coverage: The target fraction of rows whose prediction set contains the true
            class, in `(0, 1)`.

    Returns:
        A `DeploymentReport`.

    Raises:
        ValueError: If there are no variants, or one is not of these types or has
            outputs of other shapes than the first.
        FileNotFoundError: If a file does not exist.

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
    check_in_range("coverage", coverage, 0, 1, closed="neither")
    x, targets = columns(x), keras.tree.flatten(columns(y))
    rows = num_rows(x)
    if any(len(t) != rows for t in targets) or not rows:
        shapes = [np.shape(t) for t in targets]
        reject("y", shapes, f"as many targets as there are rows, {rows} > 0")
    held_out = None if calibration is None else _held_out(calibration, x, targets)
    opened = {n: open_variant(n, v, _BATCHES[-1]) for n, v in variants.items()}
    outputs = {name: _predict(one, x, rows) for name, one in opened.items()}
    _check_outputs(outputs)
    first = next(iter(outputs.values()))
    if len(first) != len(targets):
        expected = f"targets for each of the {len(first)} outputs, as a list or dict"
        reject("y", [np.shape(t) for t in targets], expected)
    times: dict[str, list[Latency]] = {name: [] for name in opened}
    for size in _BATCHES:
        batch = _batch(x, size)
        runners = [one.prepare(batch) for one in opened.values()]
        for name, seconds in zip(opened, latencies(runners, repetitions), strict=True):
            low, high = np.percentile(1e3 * seconds, (50, 95))
            times[name].append(Latency(size, float(low), float(high)))
    least = next(iter(opened.values())).sparsity
    return DeploymentReport(
        tuple(
            Variant(
                name=name,
                runtime=one.runtime,
                bytes=len(one.content),
                gzip_bytes=len(gzip.compress(one.content, mtime=0)),
                latencies=tuple(times[name]),
                max_difference=distance(first, outputs[name]),
                **_mean_quality(outputs[name], targets),
                **_calibrated(
                    name, one, held_out, (outputs[name][0], targets[0]), coverage
                ),
                **one.counts,
                peak_bytes=one.peak_bytes,
                note=_note(one, least),
            )
            for name, one in opened.items()
        ),
        _environment(repetitions, rows) | _calibration_note(held_out, coverage),
    )


def _predict(one: Opened, x: Any, rows: int) -> list[np.ndarray]:
    starts = range(0, rows, _ROWS_AT_ONCE)
    parts = [one.prepare(take(x, slice(i, i + _ROWS_AT_ONCE)))() for i in starts]
    return [np.concatenate(y).astype("float32") for y in zip(*parts, strict=True)]


def _batch(x: Any, size: int) -> Any:
    return keras.tree.map_structure(lambda a: np.resize(a, (size, *a.shape[1:])), x)


def _check_outputs(outputs: dict[str, list[np.ndarray]]) -> None:
    """Raise unless all variants have outputs of the same shapes."""
    (first, expected), *others = outputs.items()
    shapes = [y.shape for y in expected]
    for name, found in others:
        if [y.shape for y in found] != shapes:
            got = {name: [y.shape for y in found]}
            reject("variants", got, f"variants with the outputs of {first}, {shapes}")


def _mean_quality(outputs: list[np.ndarray], targets: list[Any]) -> dict[str, Any]:
    """Average accuracy and likelihood over the outputs that have classes."""
    found = [_quality(a, b) for a, b in zip(outputs, targets, strict=True)]
    return {
        name: float(np.mean(values))
        for name in ("accuracy", "nll")
        if (values := [one[name] for one in found if name in one])
    }


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


def _held_out(calibration: Any, x: Any, targets: list) -> tuple[Any, np.ndarray]:
    """Check and return the inputs and labels to calibrate the variants on."""
    if not isinstance(calibration, tuple | list) or len(calibration) != 2:
        reject("calibration", type(calibration).__name__, "a pair (x, y)")
    if len(targets) != 1:
        reject("calibration", calibration, "None for models with several outputs")
    inputs, labels = columns(calibration[0]), np.asarray(calibration[1])
    rows = num_rows(inputs, "calibration")
    shapes, expected = (
        [a.shape[1:] for a in keras.tree.flatten(data)] for data in (inputs, x)
    )
    if shapes != expected or rows < 2:
        reject(
            "calibration", shapes, f"2 rows or more with inputs of shapes {expected}"
        )
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        reject("calibration", labels.shape, f"integer labels of {rows} rows")
    return inputs, labels


def _calibrated(name, one, held_out, test, coverage) -> dict[str, Any]:
    if held_out is None:
        return {}
    inputs, labels = held_out
    found = _predict(one, inputs, len(labels))[0]
    return calibrated(name, (found, labels), test, coverage)


def _calibration_note(held_out, coverage) -> dict[str, str]:
    if held_out is None:
        return {}
    rows = len(held_out[1])
    return {"calibration": f"{rows} other rows, for sets that cover {coverage:.0%}"}


def _note(one: Opened, least: float) -> str:
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
