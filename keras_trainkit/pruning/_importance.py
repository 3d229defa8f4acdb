"""How much a channel matters."""

from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._training.recording import gradients_of
from keras_trainkit.pruning._channel_groups import Channels, Slices

IMPORTANCES = ("l1", "l2", "bn_gamma", "taylor", "random")

Scores = dict[int, float]


def score(
    model: keras.Model, channels: Channels, importance: str, x: Any, y: Any, seed: Any
) -> Scores:
    """A number for each channel that has weights of its own.

    Args:
        model: The model.
        channels: Its channels.
        importance: One of `IMPORTANCES`.
        x: Inputs, for `"taylor"`.
        y: Targets, for `"taylor"`.
        seed: For `"random"`.
    """
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
    """For each kernel with units of its own, the norm of each unit's weights."""
    found = []
    for slices in channels.slices.values():
        if slices.units is not None:
            value = np.abs(_array(slices.variable))
            others = tuple(a for a in range(value.ndim) if a != slices.units)
            norms = (
                value.sum(others) if norm == "l1" else np.sqrt((value**2).sum(others))
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
        others = tuple(a for a in range(product.ndim) if a != slices.units)
        found.append((slices, slices.units, product.sum(others) ** 2))
    return _sums(channels, found)


def _array(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")
