"""The results of a compression: the candidates and the choice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_trainkit._table import Report, Table


@dataclass(frozen=True)
class Candidate:
    """One file that was made and measured.

    Attributes:
        name: How it was made.
        bytes: Size of the LiteRT file, after gzip where `size="gzip"` was asked for.
        flops: Floating-point operations of a row; None where they cannot be counted.
        latency: Median seconds of a pass of one row, or what the user's own function
            says; None where it was not asked for.
        metric: The metric on the part of the training data that the choice looks at.
        float_metric: The metric of the Keras model that the file was made from, there.

    Examples:
        >>> smallest = min(result.front, key=lambda one: one.bytes)  # doctest: +SKIP
        >>> smallest.name, smallest.bytes, smallest.metric  # doctest: +SKIP
        ('int8, step 4', 24_816, 0.902)
    """

    name: str
    bytes: int
    flops: int | None
    latency: float | None
    metric: float
    float_metric: float


@dataclass(frozen=True, repr=False)
class CompressResult(Report):
    """A compressed model and all that was tried on the way.

    Attributes:
        path: The LiteRT file; None where no `path` was given.
        model: The smaller Keras model that the file was made from, trained.
        front: Every candidate, in the order in which they were made.
        chosen: The one that `path` and `model` are.
        original: The model as it was given, as a float32 LiteRT file.
        reached: Whether all that was asked for was met, by what the choice looks at.
        verdict: The metric of the file on the validation data, which were not used to
            choose, and that of the original model.
        goal: What was asked for, in words.
        missed: What of it was not met, in words; empty if all was.
        note: What kept the search from going on, where something did.

    Examples:
        >>> import keras_trainkit as kt
        >>> result = kt.compress(
        ...     model, x_train, y_train, validation_data=(x_val, y_val),
        ...     max_bytes=100_000, path="model.tflite",
        ... )  # doctest: +SKIP
        >>> print(result.summary())  # doctest: +SKIP
        >>> result.reached, result.path  # doctest: +SKIP
        (True, PosixPath('model.tflite'))
    """

    path: Path | None
    model: keras.Model
    front: tuple[Candidate, ...]
    chosen: Candidate
    original: Candidate
    reached: bool
    verdict: tuple[float, float]
    goal: str
    missed: str
    note: str = ""

    @property
    def report(self) -> str:
        """The table and the verdict as Markdown."""
        return self.to_markdown()

    def _table(self) -> Table:
        head = ["candidate", "kB", "MFLOPs", "ms", "metric", "in float", ""]
        return Table(head, [self._cells(one) for one in (self.original, *self.front)])

    def _cells(self, one: Candidate) -> list[str]:
        def number(form: str, value: Any, unit: float = 1.0) -> str:
            return "" if value is None else form.format(value / unit)

        return [
            one.name,
            f"{one.bytes / 1e3:,.1f}",
            number("{:,.2f}", one.flops, 1e6),
            number("{:.3f}", one.latency, 1e-3),
            f"{one.metric:.4f}",
            f"{one.float_metric:.4f}",
            "chosen" if one is self.chosen else "",
        ]

    def _notes(self) -> list[str]:
        after, before = self.verdict
        told = "reached"
        if not self.reached:
            nearest = f"{self.chosen.name}, where {self.missed}"
            told = f"not reached: the nearest is {nearest}"
        return [
            f"{self.goal}: {told}",
            f"on the validation data, which were not used to choose: {after:.4f}, "
            f"the original {before:.4f}",
            f"{self.original.bytes / self.chosen.bytes:.1f} times smaller than the "
            "original as a float32 file",
            *([self.note] if self.note else []),
        ]
