"""Detect changes of a model, other than of its variables' values, since compilation."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

# Attributes that a call, a fit or a summary changes and no inference reads.
_IGNORED = {
    "_called",
    "_inbound_nodes",
    "_outbound_nodes",
    "_losses",
    "_loss_ids",
    "_trainable",
    "_in_train_mode",
    # PyTorch's mode of a module, which Keras sets and does not read.
    "training",
}
# Deeper containers count as one object.
_DEPTH = 4


def fingerprint(layers: Iterable[keras.layers.Layer]) -> list[Any]:
    """Collect all attributes of layers: fingerprints are equal if nothing was replaced.

    Configs are not enough: a layer need not have one, and LoRA, an adapted state and
    the identity of a variable are not in it. Numbers, strings and arrays are compared
    by value, all else (variables, functions, policies, tables, layers) by identity.
    """
    tokens: list[Any] = []
    for layer in layers:
        tokens.append(_Identity(layer))
        for name, value in vars(layer).items():
            if name not in _IGNORED:
                tokens.append(name)
                tokens += _tokens(value, _DEPTH)
    return tokens


def _tokens(value: Any, depth: int) -> Iterator[Any]:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        # As text, because NaN is not equal to itself, and 1 is equal to True.
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield value.shape, str(value.dtype), hash(value.tobytes())
    elif isinstance(value, dict | list | tuple) and depth:
        items = value.items() if isinstance(value, dict) else value
        yield len(value)
        for item in items:
            yield from _tokens(item, depth - 1)
    else:
        yield _Identity(value)


class _Identity:
    """An object compared by identity, and not kept alive if that is possible."""

    def __init__(self, value: Any):
        try:
            self._get: Any = weakref.ref(value)
        except TypeError:
            self._get = lambda: value

    def __eq__(self, other: object) -> bool:
        mine = self._get()
        return (
            isinstance(other, _Identity) and mine is not None and mine is other._get()
        )

    __hash__ = None  # type: ignore[assignment]
