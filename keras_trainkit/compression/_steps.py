"""The steps of a search, each a model and its file, kept in a folder."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._model.flops import flops
from keras_trainkit._training.batches import take
from keras_trainkit.compression._cuts import Ratios
from keras_trainkit.compression._measure import (
    Data,
    Metric,
    file_outputs,
    size_of,
)
from keras_trainkit.compression._outputs import predictions
from keras_trainkit.compression._result import Candidate
from keras_trainkit.export import optimize_for_inference, to_litert
from keras_trainkit.quantization import strip

# Rows from which the ranges of activations are read.
_REPRESENTATIVE = 200


@dataclass(frozen=True)
class Start:
    """What is known of a model before it is trained and measured.

    Attributes:
        ratios: The fraction of each group of channels that is gone.
        sparsity: The fraction of the entries of each kernel that become zero.
        plain: The model that `quantize_aware` was given; None without it.
    """

    ratios: Ratios = field(default_factory=dict)
    sparsity: float = 0.0
    plain: keras.Model | None = None


@dataclass(frozen=True)
class Step:
    """A candidate and what it was made from.

    Attributes:
        candidate: What was measured.
        model: The trained Keras model.
        start: What was known of it before.
        file: The LiteRT file.
    """

    candidate: Candidate
    model: keras.Model
    start: Start
    file: Path

    @property
    def ratios(self) -> Ratios:
        """The fraction of each group of channels that is gone."""
        return self.start.ratios

    @property
    def sparsity(self) -> float:
        """The fraction of the entries of each kernel that are zero."""
        return self.start.sparsity

    @property
    def source(self) -> keras.Model:
        """The model to go on from: what is trained for int8 cannot be cut."""
        return self.model if self.start.plain is None else self.start.plain


@dataclass
class Steps:
    """Makes steps, or reads those that an earlier search left in the folder.

    Attributes:
        data: What is measured on.
        metric: The metric of flat targets and outputs.
        latency: From a file to seconds; None where the time is not asked for.
        size: What counts as bytes, `"file"` or `"gzip"`.
        io_dtype: Of the files.
        folder: Where the steps are kept.
        keep: Whether the weights are kept too, for a search that goes on.
    """

    data: Data
    metric: Metric
    latency: Callable[[Path], float] | None
    size: str
    io_dtype: str
    folder: Path
    keep: bool
    made: list[Step] = field(default_factory=list)

    def original(self, model: keras.Model, settings: dict[str, Any]) -> Candidate:
        """The model as it was given; raises in the folder of another search."""
        file = self.folder / "float32.tflite"
        to_litert(optimize_for_inference(model), file)
        found = self._measure("float32", model, model, file)
        # A time is never the same twice, and a backend's sums need not be.
        known = {"bytes": found.bytes, "flops": found.flops, "metric": found.metric}
        settings = {**settings, "original": known}
        record = self.folder / "search.json"
        if record.exists() and json.loads(record.read_text("utf-8")) != settings:
            expected = "a folder of the same search: the same model, data and arguments"
            reject("checkpoint", str(self.folder), expected)
        write_file(record, json.dumps(settings))
        return found

    def take(
        self,
        name: str,
        build: Callable[[], keras.Model],
        train: Callable[[keras.Model], None] | None,
        start: Start,
    ) -> Step:
        """The next step, made or read.

        Args:
            name: Its name.
            build: Makes the model, as it is before its training.
            train: Trains it in place; None where it is as it should be.
            start: What is known of the model.
        """
        place = self.folder / f"step-{len(self.made)}"
        record, file = place.with_suffix(".json"), place.with_suffix(".tflite")
        weights = place.with_suffix(".weights.h5")
        model = build()
        if record.exists():
            # Weights rather than a model, whose layers may not be registered.
            if train is not None:
                model.load_weights(weights)
            candidate = Candidate(**json.loads(record.read_text("utf-8")))
        else:
            if train is not None:
                train(model)
                if self.keep:
                    model.save_weights(weights)
            aware = start.plain is not None
            self._export(model, file, aware)
            plain = strip(model) if aware else model
            candidate = self._measure(name, model, plain, file)
            # The last, so that a step that has one is whole.
            write_file(record, json.dumps(asdict(candidate)))
        self.made.append(Step(candidate, model, start, file))
        return self.made[-1]

    def _export(self, model: keras.Model, file: Path, aware: bool) -> None:
        rows = None
        if not aware:
            rows = take(self.data.train[0], slice(0, _REPRESENTATIVE))
            model = optimize_for_inference(model)
        to_litert(model, file, "int8", rows, io_dtype=self.io_dtype)

    def _measure(
        self, name: str, model: keras.Model, plain: keras.Model, file: Path
    ) -> Candidate:
        x, y = self.data.choice
        return Candidate(
            name=name,
            bytes=size_of(file, self.size),
            flops=flops(plain),
            latency=None if self.latency is None else float(self.latency(file)),
            metric=self.metric(y, file_outputs(model, file, x)),
            float_metric=self.metric(y, predictions(plain, x)),
        )

    def verdict(self, model: keras.Model, file: Path) -> tuple[float, float]:
        """The metric of a file and of a model on the validation data."""
        x, y = self.data.validation
        found = file_outputs(model, file, x), predictions(model, x)
        return self.metric(y, found[0]), self.metric(y, found[1])


def replace_file(file: Path, path: Path) -> None:
    """Put a copy in the place of a file, whole at every moment."""
    scratch = path.with_name(f".{path.name}")
    shutil.copyfile(file, scratch)
    os.replace(scratch, path)


def write_file(file: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    scratch = file.with_name(f".{file.name}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, file)
