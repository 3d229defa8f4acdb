"""The search for a smaller model: one step after the other, each a file."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras

from keras_trainkit._model.graph import rebuild
from keras_trainkit._training.batches import take
from keras_trainkit.compression._cuts import (
    Cut,
    Ratios,
    cost,
    cut_to,
    further,
    ordered_cuts,
    ratios_after,
)
from keras_trainkit.compression._goal import Goal
from keras_trainkit.compression._outputs import predictions
from keras_trainkit.compression._result import CompressResult
from keras_trainkit.compression._steps import (
    Start,
    Step,
    Steps,
    replace_file,
    write_file,
)
from keras_trainkit.compression._train import Teacher, Training
from keras_trainkit.quantization import quantize_aware, strip

# Rows on which the cut of a single group is tried.
_TRIED_ON = 500
# What is left after a step, over what was there before it; and the end.
_STEP, _SMALLEST = 0.65, 0.01
_REFINEMENTS = 2
# A budget is aimed at with some room, since its share of a file is an estimate.
_ROOM = 0.97
# int8 loses too much where it costs this share of `max_drop`, or of a point.
_LOST_TO_INT8, _POINT = 0.2, 0.01
# How many times longer the cycles are that the last step is trained on for.
_CYCLES = (2, 4)
# How much lower the peak of quantization-aware training is.
_GENTLER = 5
# The zeros that are tried where the target counts gzip.
_SPARSITIES = (0.5, 0.75, 0.875)

# Halvings of the last cut, so that a step is no smaller than was asked for.
_HALVINGS = 4
_WORDS = {"parameters": "weights", "flops": "FLOPs"}


class _TimeIsUp(Exception):
    """Ends a search."""


@dataclass
class Search:
    """What a search knows; `run` is the search.

    Every step is kept in a folder. A search that begins with such a folder takes the
    same way, since what it decides by is in the records of the steps.
    """

    model: keras.Model
    steps: Steps
    budget: dict[str, float]
    max_drop: float | None
    path: Path | None
    training: Training
    options: dict[str, Any]
    deadline: float | None
    bar: Any
    settings: dict[str, Any]
    note: str = ""

    def run(self) -> CompressResult:
        """Search, and keep the steps in their folder."""
        self.steps.folder.mkdir(parents=True, exist_ok=True)
        self.original = self.steps.original(self.model, self.settings)
        self.goal = Goal(self.budget, self.max_drop, self.original.metric)
        # FLOPs and time fall with FLOPs, a file with its weights.
        self.unit = "flops" if self.budget and "bytes" not in self.budget else ""
        self.unit = self.unit or "parameters"
        try:
            self._search()
        except _TimeIsUp:
            pass
        except KeyboardInterrupt:
            # Without a single candidate there is nothing to give.
            if not self.steps.made:
                raise
        return self._result()

    def _search(self) -> None:
        last = self._step("int8", lambda: self.model, None, Start())
        if self.budget and self.goal.is_met(last.candidate):
            return
        self.teacher = Teacher(self.model, *self.steps.data.train)
        if self.steps.size == "gzip":
            last = self._with_zeros(last)
        if not self._can_be_cut():
            self._improve(last, _CYCLES)
        elif self.budget:
            self._to_budget(last)
        else:
            self._to_drop(last)

    def _can_be_cut(self) -> bool:
        try:
            self.whole = self._left({})
        except ValueError as error:
            # An int8 file is something too, and the report says why it is all.
            self.note = f"no channels were cut: {error}"
            return False
        return True

    def _to_budget(self, last: Step) -> None:
        """Cut until the budget is met, then look after the metric."""
        known = [(1.0, self.goal.excess(last.candidate))]
        self.cuts = [] if self._fits(last) else self._ordered_cuts()
        while not self._fits(last):
            share = _next_share(known)
            step = self._cut(last, share) if share > _SMALLEST else None
            if step is None:
                return
            known.append((share, self.goal.excess(step.candidate)))
            last = step
        self._improve(last, _CYCLES)

    def _to_drop(self, last: Step) -> None:
        """Cut until too much of the metric is lost, and look closer there."""
        self.cuts, share = self._ordered_cuts(), _STEP
        while share > _SMALLEST:
            step = self._cut(last, share)
            if step is None:
                return
            if self._is_low(step):
                step = self._improve(step)
                if self._is_low(step):
                    self._refine(last, share)
                    return
            last, share = step, share * _STEP

    def _refine(self, good: Step, failed: float) -> None:
        """Look between the last size that was good and the first that was not."""
        low, high = failed, failed / _STEP
        for _ in range(_REFINEMENTS):
            share = (low * high) ** 0.5
            step = self._cut(good, share)
            if step is not None and self._is_low(step):
                step = self._improve(step)
            if step is not None and not self._is_low(step):
                good, high = step, share
            else:
                low = share

    def _improve(self, step: Step, cycles: tuple[int, ...] = (2,)) -> Step:
        """More training for a step that is small enough; the best of what comes of it.

        Where the loss is bounded, it is trained on until that is met or helps no more.
        """
        best = step
        for times in cycles:
            longer = self._train_on(best, times)
            gained = longer.candidate.metric > best.candidate.metric
            best = longer if gained else best
            if not gained or not self._is_low(best):
                break
        one = best.candidate
        if one.float_metric - one.metric > _LOST_TO_INT8 * self._tolerance:
            aware = self._quantize_aware(best)
            if aware is not None and aware.candidate.metric > one.metric:
                return aware
        return best

    def _with_zeros(self, last: Step) -> Step:
        """More and more zeros, as long as they cost no more than may be lost."""
        for sparsity in _SPARSITIES:
            step = self._step(
                f"{sparsity:.1%} zeros",
                lambda model=last.model: rebuild(model)[0],  # type: ignore[misc]
                partial(self.teacher.train, how=self.training, sparsity=sparsity),
                Start(last.ratios, sparsity),
            )
            if step.candidate.metric < self.original.metric - self._tolerance:
                return last
            last = step
            if self.budget and self._fits(step):
                break
        return last

    def _cut(self, start: Step, share: float) -> Step | None:
        """A step with a share of the original's cost; None if none is smaller."""
        ratios = self._ratios_for(share * self.whole)
        rest = further(start.ratios, ratios)
        if not rest:
            return None
        train = partial(self.teacher.train, how=self.training, sparsity=start.sparsity)
        return self._step(
            f"{share:.1%} of the {_WORDS[self.unit]}",
            lambda: cut_to(start.source, rest, self.options).model,
            train,
            Start(ratios, start.sparsity),
        )

    def _train_on(self, step: Step, times: int) -> Step:
        """The same model after a longer cycle."""
        how = self.training.longer(times)
        train = partial(self.teacher.train, how=how, sparsity=step.sparsity)
        name = f"{step.candidate.name}, trained on"
        start = Start(step.ratios, step.sparsity)
        return self._step(name, lambda: rebuild(step.source)[0], train, start)

    def _quantize_aware(self, step: Step) -> Step | None:
        """The same model, trained with the rounding of int8; None if it cannot be."""
        try:
            quantize_aware(step.source)
        except ValueError:
            return None
        how = self.training.gentler(_GENTLER)
        train = partial(self.teacher.train, how=how, sparsity=step.sparsity)
        return self._step(
            f"{step.candidate.name}, quantization-aware",
            lambda: quantize_aware(step.source),
            train,
            Start(step.ratios, step.sparsity, step.source),
        )

    def _ratios_for(self, most: float) -> Ratios:
        """The fewest cuts, cheapest first, that leave at most so much."""
        low, high = 0, len(self.cuts)
        while low < high:
            middle = (low + high) // 2
            fits = self._left(ratios_after(self.cuts[: middle + 1])) <= most
            low, high = (low, middle) if fits else (middle + 1, high)
        ratios = ratios_after(self.cuts[: low + 1])
        if low == len(self.cuts):
            return ratios
        # Of the last one only as much as it takes.
        last = self.cuts[low].layer
        least = ratios_after(self.cuts[:low]).get(last, 0.0)
        for _ in range(_HALVINGS):
            ratio = (least + ratios[last]) / 2
            if self._left({**ratios, last: ratio}) <= most:
                ratios[last] = ratio
            else:
                least = ratio
        return ratios

    def _left(self, ratios: Ratios) -> int:
        return cost(cut_to(self.model, ratios, self.options), self.unit)

    def _ordered_cuts(self) -> list[Cut]:
        file = self.steps.folder / "cuts.json"
        if file.exists():
            return [Cut(**cut) for cut in json.loads(file.read_text("utf-8"))]
        x, y = take(self.steps.data.choice, slice(0, _TRIED_ON))

        def measure(model: keras.Model) -> float:
            return self.steps.metric(y, predictions(model, x))

        cuts = ordered_cuts(
            self.model, measure, self.options, self.unit, self._check_time
        )
        write_file(file, json.dumps([asdict(cut) for cut in cuts]))
        return cuts

    def _step(
        self,
        name: str,
        build: Callable[[], keras.Model],
        train: Callable[[keras.Model], None] | None,
        start: Start,
    ) -> Step:
        self._check_time()
        step = self.steps.take(name, build, train, start)
        if self.bar is not None:
            one = step.candidate
            values = [("kB", one.bytes / 1e3), ("metric", one.metric)]
            self.bar.update(len(self.steps.made), values)
        if self.path is not None and self._best() is step:
            replace_file(step.file, self.path)
        return step

    def _fits(self, step: Step) -> bool:
        return self.goal.excess(step.candidate) <= 1

    def _is_low(self, step: Step) -> bool:
        return self.goal.too_low(step.candidate) > 0

    @property
    def _tolerance(self) -> float:
        return _POINT if self.max_drop is None else self.max_drop

    def _best(self) -> Step:
        """The step to give."""
        best = self.goal.best([step.candidate for step in self.steps.made])
        return next(step for step in self.steps.made if step.candidate is best)

    def _check_time(self) -> None:
        # The first file is always made.
        if (
            self.deadline is not None
            and self.steps.made
            and time.monotonic() > self.deadline
        ):
            raise _TimeIsUp

    def _result(self) -> CompressResult:
        best = self._best()
        model = rebuild(self.model)[0] if best.model is self.model else best.model
        if best.start.plain is not None:
            # A plain model, which any export takes; the rounding is in the file.
            model = strip(model)
        missed = self.goal.missed(best.candidate)
        return CompressResult(
            path=self.path,
            model=model,
            front=tuple(step.candidate for step in self.steps.made),
            chosen=best.candidate,
            original=self.original,
            reached=not missed,
            verdict=self.steps.verdict(self.model, best.file),
            goal=str(self.goal),
            missed=missed,
            note=self.note,
        )


def _next_share(known: list[tuple[float, float]]) -> float:
    """The share to cut to next: a step, or less where that reaches the budget.

    Args:
        known: For shares, how many times the budget was taken.
    """
    share, excess = known[-1]
    before, more = known[-2] if len(known) > 1 else (0.0, 0.0)
    slope = (excess - more) / (share - before)
    aim = share - (excess - _ROOM) / slope if slope > 0 else 0.0
    return min(max(aim, share * _STEP), share * _ROOM)
