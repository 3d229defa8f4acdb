"""Structured pruning: remove whole channels."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_choice,
    check_in_range,
    check_integer,
    reject,
)
from keras_trainkit._model.compare import check_copy, random_inputs
from keras_trainkit._model.flops import count_flops, flops
from keras_trainkit._model.graph import check_graph
from keras_trainkit._model.opening import open_up
from keras_trainkit._model.select import (
    Selector,
    chains,
    check_all_used,
    check_selectors,
    selected,
)
from keras_trainkit._stopwatch import latencies
from keras_trainkit._table import Report, Table
from keras_trainkit.pruning import _channel_ops, _channel_rules  # noqa: F401
from keras_trainkit.pruning._channel_cut import cut
from keras_trainkit.pruning._channel_groups import Channels, Numbers
from keras_trainkit.pruning._channel_trace import rule_of, trace
from keras_trainkit.pruning._importance import IMPORTANCES, Scores, score

_REPETITIONS = 10


@dataclass(frozen=True)
class Cost:
    """The size, compute and latency of a model.

    Attributes:
        parameters: Number of weights.
        flops: Floating-point operations of a forward pass of one row; a multiplication
            by a weight and its addition count as two.
        latency: Median seconds of a forward pass; None if not measured.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3, hidden_units=(32,))
        >>> result = kt.pruning.prune_channels(model, 0.5)
        >>> result.before.parameters, result.after.parameters
        (771, 387)
    """

    parameters: int
    flops: int
    latency: float | None = None


@dataclass(frozen=True, repr=False)
class ShrinkResult(Report):
    """The result of `prune_channels`: the smaller model, and what changed.

    Attributes:
        model: The smaller model, made of plain layers, not compiled.
        before: The cost of the original model.
        after: The cost of the smaller model.
        channels: By layer path, the indices of the original channels that the layer
            keeps (for attention, of the heads).
        kept: The layers that could not be cut, by path, and the reason.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3, hidden_units=(64, 32))
        >>> result = kt.pruning.prune_channels(model, 0.5)
        >>> result.before.parameters > 2 * result.after.parameters
        True
        >>> sorted(len(indices) for indices in result.channels.values())
        [3, 16, 32]
    """

    model: keras.Model
    before: Cost
    after: Cost
    channels: dict[str, np.ndarray]
    kept: dict[str, str]

    def _table(self) -> Table:
        rows: list[tuple[str, float, float, str]] = [
            ("parameters", self.before.parameters, self.after.parameters, "{:,}"),
            ("FLOPs", self.before.flops, self.after.flops, "{:,}"),
        ]
        if self.before.latency is not None and self.after.latency is not None:
            rows.append(
                ("ms", 1e3 * self.before.latency, 1e3 * self.after.latency, "{:.2f}")
            )
        cells = [
            [name, form.format(a), form.format(b), f"{b / a - 1:+.1%}"]
            for name, a, b, form in rows
        ]
        return Table(["", "before", "after", "change"], cells)

    def _notes(self) -> list[str]:
        return [f"kept {path}: {reason}" for path, reason in self.kept.items()]


def prune_channels(
    model: keras.Model,
    ratio: float | Mapping[Selector, float],
    *,
    importance: str | Callable[[keras.layers.Layer], Any] = "l1",
    target: str = "channels",
    scope: str = "layer",
    round_to: int = 1,
    min_keep: float = 0.1,
    exclude: Any = None,
    x: Any = None,
    y: Any = None,
    seed: int | None = None,
    latency_batch_size: int | None = None,
) -> ShrinkResult:
    """Copy a model without its least important units, filters and attention heads.

    Everything that depends on a channel is removed with it: the weights that read it in
    later layers, its bias, its normalization, the channels that an Add combines with
    it, its position in a Concatenate or after a Flatten. Layers made of layers, such as
    your own residual block, are opened up if their `call` can be traced (unless
    `exclude` or `ratio` contains a layer itself, or the importance is `"taylor"` or a
    function). What cannot be cut is left whole and listed. Train the result for a few
    epochs: it is smaller and faster everywhere, but has lost accuracy.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        ratio: How much to remove, a fraction in `[0, 1)` of `target`; or a dict with a
            fraction for each selector (a layer, a type, a function of a layer, or a
            regular expression that matches the whole of its name or path). The first
            selector that matches a layer applies. Layers without a match are not cut,
            unless their channels depend on those of another layer. If channels of
            several layers depend on each other, the smallest ratio applies.
        importance: How channels are ranked. `"l1"` or `"l2"`: the norm of a channel's
            weights, divided by the layer's mean. `"group_l2"`: the 2-norm of all
            weights removed with the channel, including those of later layers and
            normalization scales but not biases, divided by the group's mean.
            `"bn_gamma"`: the absolute scale of its BatchNorm, divided by the mean;
            channels without a BatchNorm are kept. `"taylor"`: the squared sum of weight
            times gradient for a batch `x`, `y`. `"random"`: random. Or a function that
            takes a layer and returns a number for each of its units (for attention,
            heads), or None. If the units of several layers depend on each other, their
            mean is used; units without a number are kept.
        target: `"channels"`, `"parameters"` or `"flops"`: the quantity to reduce by
            `ratio`. Parameters and FLOPs are reduced by at least that, unless
            `min_keep` prevents it.
        scope: `"layer"`: the same fraction in every layer; `"global"`: the least
            important channels of the whole model.
        round_to: The remaining channels are a multiple of this (8 suits most hardware).
        min_keep: Smallest fraction of the channels of a layer to keep, in `(0, 1]`; at
            least one is always kept.
        exclude: Layers whose own units are not cut, as in `MagnitudePruning`.
        x: For `"taylor"`: a batch of inputs; the model must be compiled.
        y: For `"taylor"`: the targets of `x`.
        seed: Random seed for `"random"`.
        latency_batch_size: Batch size of the random inputs on which both models are
            timed, in turns; None to skip timing.

    Returns:
        A `ShrinkResult`.

    Raises:
        ValueError: If an argument is wrong, nothing can be cut, or the target cannot be
            reached.
        RuntimeError: If no channel is removed, yet the copy differs from the model.

    Examples:
        >>> import keras
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3, hidden_units=(64, 32))
        >>> result = kt.pruning.prune_channels(model, 0.5)
        >>> [layer.units for layer in result.model.layers if hasattr(layer, "units")]
        [32, 16, 3]

        Rank units by all weights removed with them, with a ratio for each layer:

        >>> ratio = {"dense_1|head": 0.25, keras.layers.Dense: 0.5}
        >>> model = keras.Sequential(
        ...     [
        ...         keras.Input((20,)),
        ...         keras.layers.Dense(16, activation="relu", name="dense_1"),
        ...         keras.layers.Dense(8, activation="relu", name="dense_2"),
        ...         keras.layers.Dense(3, name="head"),
        ...     ]
        ... )
        >>> result = kt.pruning.prune_channels(model, ratio, importance="group_l2")
        >>> {name: len(left) for name, left in result.channels.items()}
        {'dense_1': 12, 'dense_2': 4, 'head': 3}

    Reference:
        H. Li et al., Pruning Filters for Efficient ConvNets (2016), arXiv:1608.08710,
        for `"l1"`; Z. Liu et al., Network Slimming (2017), arXiv:1708.06519, for
        `"bn_gamma"`; P. Molchanov et al., Importance Estimation for Neural Network
        Pruning (2019), arXiv:1906.10771, equation 8, for `"taylor"`; G. Fang et al.,
        DepGraph (2023), arXiv:2301.12900, for the dependencies between channels, and
        equation 4 for `"group_l2"`.
    """
    check_graph(model)
    ratios, share = _check_ratio(ratio, target, scope)
    if not callable(importance):
        check_choice("importance", importance, IMPORTANCES)
    check_choice("target", target, ("channels", "parameters", "flops"))
    check_choice("scope", scope, ("layer", "global"))
    check_integer("round_to", round_to, minimum=1)
    check_in_range("min_keep", min_keep, 0, 1, closed="right")
    excluded = check_selectors("exclude", exclude)
    if latency_batch_size is not None:
        check_integer("latency_batch_size", latency_batch_size, minimum=1)
    every = list(chains(model))
    check_all_used("exclude", every, excluded)
    check_all_used("ratio", every, list(ratios))
    closed: dict[str, str] = {}
    if isinstance(importance, str) and importance != "taylor":
        model, closed = _opened(model, [*excluded, *ratios])
        every = list(chains(model))
    around = {id(chain[-1]): chain for chain in every}
    channels = trace(model, closed)
    for layer, numbers in channels.outputs.items():
        if selected(around[id(layer)], excluded):
            channels.keep(numbers, "is excluded")

    def ratio_of(layer) -> float | None:
        fitting = (r for s, r in ratios.items() if selected(around[id(layer)], [s]))
        return next(fitting, None)

    scores = score(model, channels, importance, x, y, seed)
    groups = list(_groups(channels, scores, ratio_of))
    if not groups:
        kept = [f"{path!r} {reason}" for path, reason in _kept(channels).items()]
        why = "; ".join(kept[:8]) or "no layer has units of its own"
        reject("model", model.name, f"a model with channels that can be cut ({why})")

    def choose(share: float | None) -> set[int]:
        choice = _choose_each if scope == "layer" else _choose_all
        return choice(groups, share, round_to, min_keep)

    gone = (
        choose(share)
        if share is None or target == "channels"
        else _search(model, channels, choose, share, target)
    )
    smaller = cut(model, channels, gone)
    if not gone:
        check_copy(model, smaller, "The copy")
    times: list[float | None] = [None, None]
    if latency_batch_size is not None:
        pairs = _time(model, smaller, latency_batch_size)
        times = [float(np.median(seconds)) for seconds in pairs]
    return ShrinkResult(
        smaller,
        Cost(model.count_params(), flops(model), times[0]),
        Cost(smaller.count_params(), flops(smaller), times[1]),
        channels={
            channels.layers[layer]: np.flatnonzero(_left(channels, numbers, gone))
            for layer, numbers in channels.outputs.items()
        },
        kept=_kept(channels),
    )


def _opened(
    model: keras.Model, selectors: list[Selector]
) -> tuple[keras.Model, dict[str, str]]:
    """Open up composite layers; also return why others stay whole, by path."""
    if any(isinstance(selector, keras.layers.Layer) for selector in selectors):
        # Opening makes a copy, whose layers are not the ones the caller selected.
        return model, {}
    types = tuple(selector for selector in selectors if isinstance(selector, type))

    def is_opened(layer) -> bool:
        return rule_of(layer) is None and not isinstance(layer, types)

    return open_up(model, is_opened)


def _check_ratio(
    ratio: Any, target: str, scope: str
) -> tuple[dict[Any, float], float | None]:
    """Return the ratio of each selector, and the one for all layers or None."""
    if not isinstance(ratio, Mapping):
        return {}, check_in_range("ratio", ratio, 0, 1, closed="left")
    if not ratio or target != "channels" or scope != "layer":
        reject("ratio", ratio, 'one number with this `target` or `scope="global"`')
    check_selectors("ratio", list(ratio))
    each = {
        selector: check_in_range("ratio", value, 0, 1, closed="left")
        for selector, value in ratio.items()
    }
    return each, None


@dataclass(frozen=True)
class _Group:
    """Channels that belong to the same layers, the least important first.

    Attributes:
        roots: The channels.
        scores: The importance of each channel.
        ratio: The fraction to remove, if each layer has its own.
    """

    roots: Numbers
    scores: np.ndarray
    ratio: float = 0.0

    def left(self, share: float, round_to: int, min_keep: float) -> int:
        """Return how many channels to keep when a fraction `share` is to be removed."""
        return self.rounded(round(len(self.roots) * (1 - share)), round_to, min_keep)

    def rounded(self, left: int, round_to: int, min_keep: float) -> int:
        """Return the allowed number of channels to keep that is closest to `left`."""
        count = len(self.roots)
        least = max(1, int(np.ceil(count * min_keep)))
        multiple = max(round(left / round_to), 1) * round_to
        return min(max(multiple, least), count)


def _groups(channels: Channels, scores: Scores, ratio_of) -> Iterator[_Group]:
    for layers, every in channels.groups():
        roots = [root for root in every if root in scores]
        if roots:
            order = np.argsort([scores[root] for root in roots], kind="stable")
            ranked = np.array(roots)[order]
            ranking = np.array([scores[root] for root in ranked])
            given = [r for r in map(ratio_of, layers) if r is not None]
            yield _Group(ranked, ranking, min(given, default=0.0))


def _choose_each(groups, share: float | None, round_to, min_keep) -> set[int]:
    """Choose the channels to remove: the same share of each group, or its own ratio."""
    gone: set[int] = set()
    for group in groups:
        own = group.ratio if share is None else share
        left = group.left(own, round_to, min_keep)
        gone.update(group.roots[: len(group.roots) - left].tolist())
    return gone


def _choose_all(groups, share, round_to, min_keep) -> set[int]:
    total = sum(len(group.roots) for group in groups)
    # Each group offers as many as `min_keep` allows, the lowest scores first.
    offers = sorted(
        (group.scores[i], k)
        for k, group in enumerate(groups)
        for i in range(len(group.roots) - group.rounded(0, 1, min_keep))
    )
    taken = [0] * len(groups)
    for _, k in offers[: round(share * total)]:
        taken[k] += 1
    gone: set[int] = set()
    for group, number in zip(groups, taken, strict=True):
        left = group.rounded(len(group.roots) - number, round_to, min_keep)
        gone.update(group.roots[: len(group.roots) - left].tolist())
    return gone


def _search(model, channels, choose, ratio: float, target: str) -> set[int]:
    """Find the fewest channels whose removal reaches the target, by bisection."""

    def cost(gone: set[int]) -> int:
        def shape_of(variable):
            shape = list(variable.shape)
            found = channels.slices.get(id(variable))
            for axis, numbers in found.axes.items() if found else ():
                shape[axis] = int(_left(channels, numbers, gone).sum())
            return shape

        if target == "flops":
            return count_flops(model, shape_of)
        return sum(int(np.prod(shape_of(variable))) for variable in model.weights)

    bound = (1 - ratio) * cost(set())
    low, high = 0.0, 1.0
    least = cost(choose(high))
    if least > bound:
        most = 1 - least / cost(set())
        reject("ratio", ratio, f"at most {most:.3f}, more of the {target} cannot go")
    for _ in range(12):
        middle = (low + high) / 2
        if cost(choose(middle)) > bound:
            low = middle
        else:
            high = middle
    return choose(high)


def _left(channels: Channels, numbers: Numbers, gone: set[int]) -> np.ndarray:
    return np.array([root not in gone for root in channels.roots(numbers)], bool)


def _kept(channels: Channels) -> dict[str, str]:
    """Return the layers whose units must all be kept, by path, and the reason."""
    return {
        channels.layers[layer]: str(channels.reason(numbers))
        for layer, numbers in channels.outputs.items()
        if all(channels.is_kept(int(root)) for root in channels.roots(numbers))
    }


def _time(model, smaller, rows: int) -> list[np.ndarray]:
    x = random_inputs(model, rows)
    return latencies(
        [lambda: model.predict_on_batch(x), lambda: smaller.predict_on_batch(x)],
        _REPETITIONS,
    )
