"""What a compiled function depends on besides the values of a model's variables."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

# What a call, a fit or a summary changes and no inference reads.
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
    """All attributes of layers: two fingerprints are equal if nothing was exchanged.

    Configs do not do: a layer need not have one, and LoRA, an adapted state or the
    identity of a variable is in none. Numbers, strings and arrays count by value, all
    else (variables, functions, policies, tables, layers) by identity.
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
        # As text, since NaN is not equal to itself, and 1 is to True.
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
    """An object, equal to itself alone, and not kept alive where that is possible."""

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
