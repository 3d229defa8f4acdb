"""Read a learning rate from a range test."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_trainkit._checks import check_integer, check_numbers, reject
from keras_trainkit._table import Report, Table

# Decades of the learning rate over which the smoothing's weights fall to 1 / e.
_SMOOTHING = 0.1
# A loss this many times the first ones ends the test.
_DIVERGED = 4.0
# The fraction of its descent that the loss has made at the suggested rate. The
# smoothing, the bound below and this were chosen on the tasks that
# benchmarks/bench_lr_finder.py keeps for it, where up to 0.85 more was better; above
# 0.78 a noisy curve misleads it.
_DESCENT = 0.78
# The descent in standard errors: below the first it counts as noise (one test in twenty
# of pure noise passes it), below the second the verdict is "noisy".
_EVIDENCE = (5.0, 10.0)
# A descent by a smaller fraction of the loss does not count.
_SMALLEST = 0.02

NO_DESCENT = "no descent: model does not learn at any rate"
NOISY = "noisy"
STILL_FALLING = "still falling at max_lr: raise it"
DIVERGES = "diverges at min_lr: lower it"


@dataclass(frozen=True, repr=False)
class LRFinderResult(Report):
    """The result of a learning-rate range test.

    Attributes:
        lrs: The learning rate of each step, increasing.
        losses: The loss of each step, on its own batch.
        smoothed: The losses, smoothed: the mean of two exponential moving averages with
            bias correction, one from the left and one from the right, so that the curve
            does not lag. Their weights fall by 1 / e in 0.1 decades of the rate.
        suggestions: Rates by name, read from the smoothed losses; empty if there is no
            descent. `"descent"`: where the loss has made 78% of its descent, but at
            most half the rate of the lowest loss; `"steepest"`: where the loss falls
            fastest per decade; `"valley"`: the middle of the longest run of falling
            losses; `"slide"`: the right end of the descent, before the slope of the
            loss changes; `"minimum"`: a tenth of the rate of the lowest loss;
            `"one_cycle"`, for the peak of a cycle: half a decade below the rate at
            which the loss has risen again by a tenth of the descent. A rule that ends
            at the edge of the range is left out.
        suggestion: The rate to use, `"descent"`; None if there is no descent.
        verdict: `"clear"`, `"noisy"`, or what is wrong with the test and what to do.
        first: The first test, if `kt.find_lr` repeated one that was not clear; else
            None.
        confirmed: With `kt.find_lr(..., confirm=k)`, a dict from each rate to the loss
            at the end of the longest training at that rate; infinite if it diverged.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> lrs = np.logspace(-6, 0, 60)
        >>> found = kt.lr_finder.analyse(lrs, 2 / (1 + lrs / 1e-3) + 50 * lrs)
        >>> found.verdict, 1e-4 < found.suggestion < 1e-1
        ('clear', True)
    """

    lrs: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestions: dict[str, float] = field(default_factory=dict)
    suggestion: float | None = None
    verdict: str = "clear"
    first: "LRFinderResult | None" = None
    confirmed: dict[float, float] = field(default_factory=dict)

    @property
    def one_cycle(self) -> float | None:
        """The rate to use as the peak of one cycle; None if there is no descent."""
        return self.suggestions.get("one_cycle")

    def summary(self) -> str:
        """The suggestion and the verdict in one line."""
        rate = "none" if self.suggestion is None else f"{self.suggestion:.3g}"
        first = "" if self.first is None else f", a first test: {self.first.verdict!r}"
        if self.confirmed:
            rate += f", the best of {len(self.confirmed)} that were tried"
        return (
            f"LRFinderResult(suggestion {rate}, verdict {self.verdict!r}, "
            f"{len(self.lrs)} steps from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}"
            f"{first})"
        )

    def _table(self) -> Table:
        rates = sorted(self.suggestions.items(), key=lambda item: item[1])
        return Table(["rule", "rate"], [[name, f"{rate:.3g}"] for name, rate in rates])

    def _notes(self) -> list[str]:
        return [self.summary()]


def analyse(lrs: Any, losses: Any, *, skip_start: int = 0) -> LRFinderResult:
    """Suggest a learning rate from the losses of a range test.

    The curve ends where the loss is four times as high as the first losses, or where
    two losses in a row are not finite. A single loss that is not finite is ignored.

    Args:
        lrs: Increasing learning rates.
        losses: The loss at each.
        skip_start: Number of steps to ignore at the beginning, for curves whose first
            losses are far above the others.

    Returns:
        An `LRFinderResult` with the given arrays.

    Raises:
        ValueError: If the arrays do not match, or have fewer than 10 points.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> lrs = np.logspace(-6, 0, 60)
        >>> losses = 2 - np.tanh(np.log10(lrs) + 3)  # steepest at 1e-3
        >>> result = kt.lr_finder.analyse(lrs, losses)
        >>> round(result.suggestions["steepest"], 3), result.verdict
        (0.001, 'clear')

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186, section 3.3.
    """
    lrs, losses = check_numbers("lrs", lrs), check_numbers("losses", losses)
    # Written so that NaN fails the check too.
    if (
        lrs.ndim != 1
        or len(lrs) < 10
        or not (np.all(np.diff(lrs) > 0) and lrs[0] > 0 and np.isfinite(lrs[-1]))
    ):
        reject("lrs", lrs, "at least 10 positive learning rates in increasing order")
    if losses.shape != lrs.shape:
        reject("losses", losses.shape, f"of the shape of lrs, {lrs.shape}")
    check_integer("skip_start", skip_start, minimum=0)
    if len(lrs) - skip_start < 10:
        reject("skip_start", skip_start, f"at most {len(lrs) - 10}, to leave 10 steps")
    if skip_start:
        return _behind(analyse(lrs[skip_start:], losses[skip_start:]), lrs, losses)
    given, losses = losses, _without_gaps(losses)
    usable = _usable(losses)
    if usable < 10:
        return LRFinderResult(lrs, given, losses, verdict=DIVERGES)
    smoothed, error = _smooth(lrs[:usable], losses[:usable])
    lowest = int(np.argmin(smoothed))
    begin = float(np.median(smoothed[: max(3, lowest // 4)]))
    descent = begin - smoothed[lowest]
    curve = np.concatenate([smoothed, losses[usable:]])
    if descent < max(_EVIDENCE[0] * error, _SMALLEST * abs(begin)):
        exploded = usable < len(losses) and lowest < usable / 4
        verdict = DIVERGES if exploded else NO_DESCENT
        return LRFinderResult(lrs, given, curve, verdict=verdict)

    suggestions = {
        "descent": min(
            _first_below(lrs, smoothed, begin - _DESCENT * descent), lrs[lowest] / 2
        ),
        "steepest": steepest(lrs[: lowest + 1], smoothed[: lowest + 1]),
        "valley": valley(lrs[:usable], smoothed),
        "slide": slide(lrs[:usable], smoothed),
        "minimum": lrs[lowest] / 10,
        "one_cycle": lrs[_edge(smoothed, lowest, descent)] / math.sqrt(10),
    }
    verdict = "clear"
    if usable == len(lrs) and _falls_at_the_end(lrs, smoothed, lowest):
        verdict = STILL_FALLING
    elif descent < _EVIDENCE[1] * error:
        verdict = NOISY
    return LRFinderResult(
        lrs,
        given,
        curve,
        {
            name: float(rate)
            for name, rate in suggestions.items()
            # A rule that ends at the edge of the range has found nothing.
            if lrs[0] < rate < lrs[-1] or name == "descent"
        },
        float(suggestions["descent"]),
        verdict,
    )


def _behind(found: LRFinderResult, lrs, losses) -> LRFinderResult:
    """Return the result with the steps that were skipped at the beginning."""
    skipped = losses[: len(losses) - len(found.losses)]
    return replace(
        found,
        lrs=lrs,
        losses=losses,
        smoothed=np.concatenate([np.full(len(skipped), np.nan), found.smoothed]),
    )


def _without_gaps(losses: np.ndarray) -> np.ndarray:
    """Replace a single loss that is not finite by the mean of its neighbours.

    One batch may overflow; if two in a row do, the test has diverged.
    """
    bad = ~np.isfinite(losses)
    single = bad[1:-1] & ~bad[:-2] & ~bad[2:]
    filled = losses.copy()
    filled[1:-1][single] = (losses[:-2][single] + losses[2:][single]) / 2
    return filled


def steepest(lrs: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate at which the losses fall fastest per decade."""
    if len(lrs) < 2:
        return float(lrs[0])
    return float(lrs[int(np.argmin(np.gradient(losses, np.log(lrs))))])


def valley(lrs: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate in the middle of the losses' longest falling subsequence."""
    length = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        higher = losses[:i] > losses[i]
        if higher.any():
            length[i] = length[:i][higher].max() + 1
    end = int(np.argmax(length))
    return float(lrs[end - (int(length[end]) - 1) // 2])


def slide(lrs: np.ndarray, losses: np.ndarray, width=15, tolerance=0.005) -> float:
    """Return the rate where the slope stops changing, from the highest rate down.

    Args:
        lrs: The learning rates.
        losses: Their losses.
        width: Number of steps between the two slopes that are compared.
        tolerance: Largest difference between the slopes.
    """
    slope = np.gradient(losses)
    width = min(width, len(losses) - 1)
    left = len(losses) - 1 - width
    while left > 0 and abs(slope[left + width] - slope[left]) > tolerance:
        left -= 1
    return float(lrs[left])


def _first_below(lrs: np.ndarray, losses: np.ndarray, level: float) -> float:
    """Return the rate at which the losses first fall to a level."""
    end = max(int(np.argmax(losses <= level)), 1)
    part = slice(end - 1, end + 1)
    # In ascending order, which `np.interp` requires.
    return float(np.exp(np.interp(level, losses[part][::-1], np.log(lrs[part])[::-1])))


def _edge(smoothed: np.ndarray, lowest: int, descent: float) -> int:
    """Return the last point after the lowest one before the losses rise."""
    risen = smoothed[lowest:] > smoothed[lowest] + descent / 10
    return lowest + int(np.argmax(risen)) - 1 if risen.any() else len(smoothed) - 1


def exploded(losses: list[float], factor: float) -> bool:
    """Whether further steps of a test would add nothing.

    Args:
        losses: The losses so far.
        factor: The largest ratio of the last losses to the first ones.
    """
    if not any(math.isfinite(loss) for loss in losses[-2:]):
        return len(losses) > 1
    return len(losses) > 10 and losses[-1] > factor * float(np.median(losses[:5]))


def _usable(losses: np.ndarray) -> int:
    """Return the number of points before the loss explodes."""
    start = np.median(losses[:5])
    if not np.isfinite(start):
        return 0
    bad = ~np.isfinite(losses) | (losses > _DIVERGED * max(start, 1e-12))
    return int(np.argmax(bad)) if bad.any() else len(losses)


def _smooth(lrs: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the smoothed losses and their standard error."""
    step = np.log10(lrs[-1] / lrs[0]) / (len(lrs) - 1)
    beta = math.exp(-step / _SMOOTHING)
    smoothed = (_average(losses, beta) + _average(losses[::-1], beta)[::-1]) / 2
    # The noise from one step to the next on the way down; after the lowest point the
    # losses scatter far more.
    lowest = max(int(np.argmin(smoothed)), 9)
    jumps = np.abs(np.diff(losses[: lowest + 1]))
    noise = max(1.4826 * float(np.median(jumps)) / math.sqrt(2), 1e-12)
    # The weights are 1 - beta in the middle, and half of it times beta^n at distance n.
    squares = (1 - beta) ** 2 * (1 + beta**2 / (2 * (1 - beta**2)))
    return smoothed, noise * math.sqrt(squares)


def _average(losses: np.ndarray, beta: float) -> np.ndarray:
    """Return the exponential moving average, divided by the sum of its weights."""
    averages, average = np.empty(len(losses)), 0.0
    for step, loss in enumerate(losses):
        average = beta * average + (1 - beta) * loss
        averages[step] = average / (1 - beta ** (step + 1))
    return averages


def _falls_at_the_end(lrs, smoothed, lowest: int) -> bool:
    """Whether the lowest loss is the last one and the slope there is still steep."""
    slope = np.gradient(smoothed, np.log(lrs))
    return lowest >= len(lrs) - 2 and slope[-2:].mean() < slope.min() / 4
