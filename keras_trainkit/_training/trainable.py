"""Select the layers of a model that are trained."""

import contextlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras.layers import Layer

from keras_trainkit._checks import check_in_range, reject
from keras_trainkit._keras import lora_base, sublayers
from keras_trainkit._model.select import (
    Selector,
    check_all_used,
    check_selectors,
    selected,
)

Chain: TypeAlias = tuple[Layer, ...]
"""A layer, preceded by the models that contain it, outermost first."""

Start: TypeAlias = Selector | int | float
"""The first of a range of layers: a selector, a position or a fraction."""


def weighted_layers(model: keras.Model) -> list[Chain]:
    """Return the layers of a model that have weights, in order, as chains.

    Nested models are expanded; every other layer counts as one.
    """
    found: dict[int, Chain] = {}

    def walk(part: Layer, around: Chain) -> None:
        for layer in part.layers:
            if isinstance(layer, keras.Model) and layer.layers:
                walk(layer, (*around, layer))
            elif layer.weights:
                found.setdefault(id(layer), (*around, layer))

    if not isinstance(model, keras.Model):
        reject("model", model, "a model")
    walk(model, ())
    if not found:
        reject("model", model.name, "a built model with weights")
    return list(found.values())


def place(name: str, start: Start, chains: Sequence[Chain]) -> int:
    """Return the index of the layer that `start` refers to.

    Args:
        name: The argument's name, for errors.
        start: An integer index, counted from the end if negative; a float, as a
            fraction of the layers; or a selector, for the first layer it matches.
        chains: The layers.
    """
    total = len(chains)
    if isinstance(start, float):
        return round(check_in_range(name, start, 0, 1) * total)
    if isinstance(start, int | np.integer) and not isinstance(start, bool):
        number = operator.index(start)
        if not -total <= number <= total:
            reject(name, start, f"an integer from {-total} to {total}")
        return number + total if number < 0 else number
    selectors = check_selectors(name, start)
    if not selectors:
        reject(name, start, "an integer, a fraction, or what selects layers")
    check_all_used(name, chains, selectors)
    return next(n for n, chain in enumerate(chains) if selected(chain, selectors))


def meant(
    chains: Sequence[Chain],
    layers: Any,
    start: Start | None = None,
    names: tuple[str, str] = ("layers", "start"),
) -> list[Chain]:
    """Return the layers that selectors match, or all layers from `start` on, or all."""
    if layers is not None and start is not None:
        reject(names[1], start, f"None where `{names[0]}` is given")
    if start is not None:
        return list(chains[place(names[1], start, chains) :])
    if layers is None:
        return list(chains)
    selectors = check_selectors(names[0], layers)
    check_all_used(names[0], chains, selectors)
    return [chain for chain in chains if selected(chain, selectors)]


@contextlib.contextmanager
def training_alone(model: keras.Model, where: Any) -> Iterator[None]:
    """Freeze all layers except those that selectors match; None changes nothing.

    What was frozen before stays frozen.
    """
    if where is None:
        yield
        return
    chains = weighted_layers(model)
    kept = {id(chain[-1]) for chain in meant(chains, where, names=("where", "start"))}
    flags = trainable_flags(model)
    try:
        others = [chain for chain in chains if id(chain[-1]) not in kept]
        set_trainable(model, others, False)
        if not model.trainable_variables:
            expected = "such that it matches layers that train (kt.transfer.unfreeze)"
            reject("where", where, expected)
        yield
    finally:
        restore_flags(flags)


def set_trainable(model: keras.Model, chains: Iterable[Chain], value: bool) -> None:
    """Set `trainable` of some layers of a model without changing any others."""
    flags = trainable_flags(model)
    for *around, layer in chains:
        for part in (*sublayers(layer), *(around if value else ())):
            flags[part] = value
    flags[model] = model.trainable or value
    restore_flags(flags)


def without_parts_of(chains: Sequence[Chain], others: Iterable[Chain]) -> list[Chain]:
    """Return the layers that share no part with others, such as a tied embedding."""
    theirs = {id(part) for *_, layer in others for part in sublayers(layer)}
    return [chain for chain in chains if id(chain[-1]) not in theirs]


def trainable_flags(model: keras.Model) -> dict[Layer, bool]:
    """Return `trainable` of a model and of all layers inside it."""
    return {layer: layer.trainable for layer in sublayers(model)}


def restore_flags(flags: dict[Layer, bool]) -> None:
    """Set `trainable` of each layer, outer layers first.

    In this order, because Keras passes the value on to inner layers. The base weight
    of a layer with LoRA is frozen again, because Keras unfreezes it with the layer.
    """
    for layer, value in flags.items():
        if layer.trainable != value:
            layer.trainable = value
    for layer in flags:
        base = lora_base(layer)
        if base is not None and base.trainable:
            base.trainable = False
