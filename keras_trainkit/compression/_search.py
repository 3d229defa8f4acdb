"""The search for a smaller model: one step after the other, each a file."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._model.flops import flops
from keras_trainkit._model.graph import rebuild
from keras_trainkit._training.batches import take
from keras_trainkit.compression._cuts import (
    Cut,
    Ratios,
    cut_to,
    further,
    ordered_cuts,
    ratios_after,
)
from keras_trainkit.compression._measure import Data, Metric, in_batches, latency_of
from keras_trainkit.compression._result import Candidate, CompressResult
from keras_trainkit.compression._train import Training, train
from keras_trainkit.export import optimize_for_inference, predict_litert, to_litert

# Rows on which the cut of a single group is tried, and from which ranges are read.
_TRIED_ON, _REPRESENTATIVE = 500, 200
# The parameters that are left after a step, over those before it; and the end.
_STEP, _SMALLEST = 0.65, 0.01
_REFINEMENTS = 2


class _TimeIsUp(Exception):
    """Ends a search."""


@dataclass(frozen=True)
class Step:
    """A candidate, the model that it was made from, and what is cut in that.

    Attributes:
        candidate: What was measured.
        model: The trained Keras model.
        ratios: The fraction of each group that is gone.
        file: The LiteRT file.
    """

    candidate: Candidate
    model: keras.Model
    ratios: Ratios
    file: Path


@dataclass
class Search:
    """What a search knows; `run` is the search.

    Every step is kept in a folder under its name. A search that begins with such a
    folder takes the same way, and reads the steps that are there.
    """

    model: keras.Model
    data: Data
    metric: Metric
    budget: dict[str, float]
    max_drop: float
    path: Path | None
    training: Training
    options: dict[str, Any]
    latency: Callable[[Path], float] | None
    deadline: float | None
    bar: Any
    keep_models: bool = False
    folder: Path = Path()
    steps: list[Step] = field(default_factory=list)

    def run(self, folder: Path) -> CompressResult:
        """Search, and keep the steps in a folder."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # The distiller freezes it.
        self.teacher, _ = rebuild(self.model)
        whole = to_litert(optimize_for_inference(self.model), folder / "float32.tflite")
        self.original = self._measure("float32", self.model, whole)
        try:
            self._search()
        except _TimeIsUp:
            pass
        except KeyboardInterrupt:
            # Without a single candidate there is nothing to give.
            if not self.steps:
                raise
        return self._result()

    def _search(self) -> None:
        last = self._step("int8", lambda: self.model, {})
        if self.budget and self._within(last):
            return
        cuts = self._ordered_cuts()
        share = 1.0
        while share * _STEP > _SMALLEST:
            share *= _STEP
            step = self._cut(last, cuts, share)
            if step is None:
                return
            if self.budget and self._within(step):
                # Once it is small enough, it is worth more training.
                self._train_on(step)
                return
            if not self.budget and not self._within(step):
                step = self._train_on(step)
                if not self._within(step):
                    self._refine(last, cuts, share)
                    return
            last = step

    def _refine(self, good: Step, cuts: list[Cut], failed: float) -> None:
        """Look between the last size that was good and the first that was not."""
        low, high = failed, failed / _STEP
        for _ in range(_REFINEMENTS):
            share = (low * high) ** 0.5
            step = self._cut(good, cuts, share)
            if step is not None and self._within(step):
                good, high = step, share
            else:
                low = share

    def _cut(self, start: Step, cuts: list[Cut], share: float) -> Step | None:
        """A step with a share of the original's parameters; None if none is smaller."""
        most = share * self.model.count_params()
        ratios = self._ratios_for(most, cuts)
        rest = further(start.ratios, ratios)
        if not rest:
            return None

        def make() -> keras.Model:
            smaller = cut_to(start.model, rest, self.options).model
            train(smaller, self.teacher, self.model, self.data.train, self.training)
            return smaller

        return self._step(f"{share:.1%} of the weights", make, ratios)

    def _train_on(self, step: Step) -> Step:
        """The same model after a cycle twice as long."""

        def make() -> keras.Model:
            copy, _ = rebuild(step.model)
            longer = self.training.longer(2)
            train(copy, self.teacher, self.model, self.data.train, longer)
            return copy

        return self._step(f"{step.candidate.name}, trained on", make, step.ratios)

    def _ratios_for(self, most: float, cuts: list[Cut]) -> Ratios:
        """The fewest cuts, cheapest first, that leave at most so many parameters."""
        low, high = 0, len(cuts)
        while low < high:
            middle = (low + high) // 2
            ratios = ratios_after(cuts[: middle + 1])
            left = cut_to(self.model, ratios, self.options).after.parameters
            low, high = (low, middle) if left <= most else (middle + 1, high)
        return ratios_after(cuts[: low + 1])

    def _ordered_cuts(self) -> list[Cut]:
        file = self.folder / "cuts.json"
        if file.exists():
            return [Cut(**cut) for cut in json.loads(file.read_text("utf-8"))]
        x, y = take(self.data.choice, slice(0, _TRIED_ON))

        def measure(model: keras.Model) -> float:
            outputs = in_batches(lambda x: model.predict_on_batch(x), x)
            return self.metric(y, outputs)

        cuts = ordered_cuts(self.model, measure, self.options, self._check_time)
        _write(file, json.dumps([asdict(cut) for cut in cuts]))
        return cuts

    def _step(self, name: str, make: Callable[[], keras.Model], ratios: Ratios) -> Step:
        self._check_time()
        place = self.folder / f"step-{len(self.steps)}"
        record = place.with_suffix(".json")
        file = place.with_suffix(".tflite")
        if record.exists():
            known = json.loads(record.read_text("utf-8"))
            if known["name"] != name:
                expected = f"a folder of the same search, with {name!r} as this step"
                reject("checkpoint", str(self.folder), expected)
            model = self.model
            if ratios:
                model = keras.saving.load_model(place.with_suffix(".keras"))
            step = Step(Candidate(**known), model, ratios, file)
        else:
            model = make()
            data = take(self.data.train[0], slice(0, _REPRESENTATIVE))
            to_litert(optimize_for_inference(model), file, "int8", data)
            step = Step(self._measure(name, model, file), model, ratios, file)
            if ratios and self.keep_models:
                model.save(place.with_suffix(".keras"))
            _write(record, json.dumps(asdict(step.candidate)))
        self.steps.append(step)
        if self.bar is not None:
            one = step.candidate
            values = [("kB", one.bytes / 1e3), ("metric", one.metric)]
            self.bar.update(len(self.steps), values)
        if self.path is not None and self._best() is step:
            scratch = self.path.with_name(f".{self.path.name}")
            shutil.copyfile(file, scratch)
            os.replace(scratch, self.path)
        return step

    def _measure(self, name: str, model: keras.Model, file: Path) -> Candidate:
        x, y = self.data.choice
        seconds = None
        if self.latency is not None:
            seconds = float(self.latency(file))
        elif "latency" in self.budget:
            seconds = latency_of(file, x)
        return Candidate(
            name=name,
            bytes=file.stat().st_size,
            flops=flops(model),
            latency=seconds,
            metric=self.metric(y, self._outputs(file, x)),
        )

    def _outputs(self, file: Path, x: Any) -> Any:
        return in_batches(lambda part: predict_litert(file, part), x)

    def _within(self, step: Step) -> bool:
        one = step.candidate
        if not self.budget:
            return one.metric >= self.original.metric - self.max_drop
        return all(getattr(one, name) <= most for name, most in self.budget.items())

    def _best(self) -> Step:
        """The step to give: by size within the drop, or by the metric in the budget."""
        good = [step for step in self.steps if self._within(step)]
        if not self.budget:
            key = (lambda s: -s.candidate.bytes) if good else self._metric_of
            return max(good or self.steps, key=key)
        return (
            max(good, key=self._metric_of)
            if good
            else min(self.steps, key=self._excess)
        )

    @staticmethod
    def _metric_of(step: Step) -> float:
        return step.candidate.metric

    def _excess(self, step: Step) -> float:
        """How many times a budget is exceeded."""
        pairs = self.budget.items()
        return max(getattr(step.candidate, name) / most for name, most in pairs)

    def _check_time(self) -> None:
        # The first file is always made.
        if (
            self.deadline is not None
            and self.steps
            and time.monotonic() > self.deadline
        ):
            raise _TimeIsUp

    def _result(self) -> CompressResult:
        best = self._best()
        x, y = self.data.validation
        before = in_batches(lambda part: self.model.predict_on_batch(part), x)
        verdict = self.metric(y, self._outputs(best.file, x)), self.metric(y, before)
        limits = [f"{name} <= {most:g}" for name, most in self.budget.items()]
        return CompressResult(
            path=self.path,
            model=best.model if best.ratios else rebuild(self.model)[0],
            front=tuple(step.candidate for step in self.steps),
            chosen=best.candidate,
            original=self.original,
            reached=self._within(best),
            verdict=verdict,
            goal=" and ".join(limits) or f"at most {self.max_drop:g} lost",
        )


def _write(file: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    scratch = file.with_name(f".{file.name}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, file)
