"""Choose which channels to cut, from the cost of cutting each layer separately."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from keras_trainkit.pruning import ShrinkResult, prune_channels

# The fractions of a group's channels that are tried.
_LEVELS = (0.25, 0.5, 0.75, 0.875, 0.9375)
# Of a layer, what is left at least.
_MIN_KEEP = 0.01
# Drops below it are noise: what saves more then goes first.
_SMALLEST_DROP = 1e-3

Ratios = dict[str, float]


@dataclass(frozen=True)
class Cut:
    """A group's cut to a level, beyond the level before it.

    Attributes:
        layer: The path of a layer of the group.
        ratio: The fraction of its channels that is gone.
        price: Loss of the metric per parameter, or FLOP, saved.
    """

    layer: str
    ratio: float
    price: float


def ordered_cuts(
    model: keras.Model,
    measure: Callable[[keras.Model], float],
    options: dict[str, Any],
    unit: str,
    progress: Callable[[], None],
) -> list[Cut]:
    """Return the cuts of all groups, cheapest first for what they save.

    Each group is cut separately to each level and the metric is measured, without
    training.

    Args:
        model: The model.
        measure: The metric of a model, larger is better.
        options: For `prune_channels`.
        unit: What a cut saves, "parameters" or "flops".
        progress: Called after each measurement.
    """
    before, whole = measure(model), cost(cut_to(model, {}, options), unit)
    cuts = []
    for layer in _groups(model, options):
        saved, lost = 0, 0.0
        steps: list[Cut] = []
        for ratio in _LEVELS:
            result = cut_to(model, {layer: ratio}, options)
            progress()
            now = whole - cost(result, unit)
            if now <= saved:
                continue
            drop = max(before - measure(result.model), lost)
            # Never cheaper than the level before, which has to come first.
            price = max(drop - lost, _SMALLEST_DROP) / (now - saved)
            price = max(price, steps[-1].price) if steps else price
            steps.append(Cut(layer, ratio, price))
            saved, lost = now, drop
        cuts += steps
    return sorted(cuts, key=lambda cut: cut.price)


def cost(result: ShrinkResult, unit: str) -> int:
    """What is left of the parameters or FLOPs."""
    return getattr(result.after, unit)


def ratios_after(cuts: list[Cut]) -> Ratios:
    """How much is gone of each group after some of the cuts."""
    ratios: Ratios = {}
    for cut in cuts:
        ratios[cut.layer] = max(cut.ratio, ratios.get(cut.layer, 0.0))
    return ratios


def cut_to(model: keras.Model, ratios: Ratios, options: dict[str, Any]) -> ShrinkResult:
    """Cut a fraction of the channels of each group, by the path of a layer."""
    patterns: dict[Any, float] = {re.escape(k): ratio for k, ratio in ratios.items()}
    ratio = patterns or 0.0
    return prune_channels(
        model, ratio, importance="group_l2", min_keep=_MIN_KEEP, **options
    )


def further(done: Ratios, ratios: Ratios) -> Ratios:
    """What to cut of what is left to come from `done` to `ratios`."""
    rest = {k: 1 - (1 - r) / (1 - done.get(k, 0.0)) for k, r in ratios.items()}
    return {k: r for k, r in rest.items() if r > 1e-9}


def _groups(model: keras.Model, options: dict[str, Any]) -> list[str]:
    """The path of one layer of each group of channels that go together."""
    full = cut_sizes(model, {}, options)
    found: list[str] = []
    taken: set[str] = set()
    for path in full:
        if path in taken:
            continue
        left = cut_sizes(model, {path: 0.5}, options)
        # A layer takes along those whose channels are added to its own.
        smaller = {p for p, size in left.items() if size < full[p]}
        taken |= smaller
        if path in smaller:
            found.append(path)
    return found


def cut_sizes(
    model: keras.Model, ratios: Ratios, options: dict[str, Any]
) -> dict[str, int]:
    """How many units each layer has after a cut, by path."""
    kept = cut_to(model, ratios, options).channels
    return {path: len(units) for path, units in kept.items()}
