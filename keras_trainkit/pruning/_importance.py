"""The importance of channels."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._training.recording import gradients_of
from keras_trainkit.pruning._channel_groups import Channels, Slices

IMPORTANCES = ("l1", "l2", "group_l2", "bn_gamma", "taylor", "random")

Scores = dict[int, float]


def score(
    model: keras.Model,
    channels: Channels,
    importance: str | Callable[[Any], Any],
    x: Any,
    y: Any,
    seed: Any,
) -> Scores:
    """Return the importance of each channel that has its own weights.

    Args:
        model: The model.
        channels: Its channels.
        importance: One of `IMPORTANCES`, or a function of a layer.
        x: Inputs, for `"taylor"`.
        y: Targets, for `"taylor"`.
        seed: For `"random"`.
    """
    if not isinstance(importance, str):
        return _own(channels, importance)
    if importance == "group_l2":
        return _group_l2(channels)
    if importance == "taylor":
        return _taylor(model, channels, x, y)
    if importance == "random":
        if seed is not None:
            check_integer("seed", seed, minimum=0)
        rng = np.random.default_rng(seed)
        return {root: rng.uniform() for root in _sums(channels, _units(channels, "l1"))}
    if importance == "bn_gamma":
        found = [
            (slices, 0, np.abs(_array(slices.variable)))
            for slices in channels.slices.values()
            if slices.variable.name == "gamma"
        ]
        if not found:
            reject("importance", importance, "another one where there is no BatchNorm")
        return _means(channels, [(s, a, v / v.mean()) for s, a, v in found])
    found = _units(channels, importance)
    return _means(channels, [(s, a, v / max(v.mean(), 1e-30)) for s, a, v in found])


Found = list[tuple[Slices, int, np.ndarray]]


def _units(channels: Channels, norm: str) -> Found:
    """Return the norm of each unit's weights, for each kernel that has units."""
    found = []
    for slices in channels.slices.values():
        if slices.units is not None:
            value = np.abs(_array(slices.variable))
            norms = (
                _sum_but(value, slices.units)
                if norm == "l1"
                else np.sqrt(_sum_but(value**2, slices.units))
            )
            found.append((slices, slices.units, norms))
    return found


def _sums(channels: Channels, found: Found) -> Scores:
    sums: Scores = {}
    for slices, axis, values in found:
        roots = channels.roots(slices.axes[axis])
        for root, value in zip(roots, values, strict=True):
            sums[int(root)] = sums.get(int(root), 0.0) + float(value)
    return sums


def _means(channels: Channels, found: Found) -> Scores:
    ones = [(slices, axis, np.ones_like(values)) for slices, axis, values in found]
    counts = _sums(channels, ones)
    return {root: s / counts[root] for root, s in _sums(channels, found).items()}


def _group_l2(channels: Channels) -> Scores:
    """Return the norm of all weights removed with a channel, over its group's mean.

    Biases and shifts are left out: their size says nothing about the channel's scale.
    """
    squares: Found = [
        (slices, axis, _sum_but(_array(slices.variable) ** 2, axis))
        for slices in channels.slices.values()
        for axis in slices.axes
        if not slices.statistic and slices.variable.name not in ("bias", "beta")
    ]
    norms = {root: np.sqrt(total) for root, total in _sums(channels, squares).items()}
    scores: Scores = {}
    for _, roots in channels.groups():
        mean = max(float(np.mean([norms[root] for root in roots])), 1e-30)
        scores |= {root: norms[root] / mean for root in roots}
    return scores


def _own(channels: Channels, importance: Callable[[Any], Any]) -> Scores:
    """Return the user function's values, averaged over the layers of each channel."""
    found: dict[int, list[float]] = {}
    for layer, numbers in channels.outputs.items():
        values = importance(layer)
        if values is None:
            continue
        values = np.asarray(keras.ops.convert_to_numpy(values), "float64")
        if values.shape != numbers.shape or not np.isfinite(values).all():
            what = f"{len(numbers)} units of {channels.layers[layer]!r}"
            expected = f"a function that returns a finite number for each of the {what}"
            reject("importance", values, f"{expected}, or None")
        for root, value in zip(channels.roots(numbers), values, strict=True):
            found.setdefault(int(root), []).append(float(value))
    return {root: float(np.mean(values)) for root, values in found.items()}


def _sum_but(values: np.ndarray, axis: int) -> np.ndarray:
    """Sum over all axes but one."""
    return values.sum(tuple(other for other in range(values.ndim) if other != axis))


def _taylor(model: keras.Model, channels: Channels, x: Any, y: Any) -> Scores:
    if x is None or y is None:
        reject("x", x, 'a batch, with its targets `y`, for importance="taylor"')
    if not model.compiled:
        reject("model", model.name, 'compiled for importance="taylor"')
    gradients = gradients_of(model, x, y)
    found = []
    for slices in channels.slices.values():
        gradient = gradients.get(id(slices.variable))
        if slices.units is None or gradient is None:
            continue
        product = _array(slices.variable) * gradient
        found.append((slices, slices.units, _sum_but(product, slices.units) ** 2))
    return _sums(channels, found)


def _array(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")
