"""Trace the channels of a model from layer to layer with a rule for each layer type.

A rule receives the channels, a call and the layouts of its inputs. It returns the
layout of the output (a list for several outputs), or None if it cannot handle the call.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import keras
from keras import layers

from keras_trainkit._model.graph import Call, Edge, read
from keras_trainkit.pruning._channel_groups import Channels, Lay

Rule = Callable[..., "Lay | list[Lay] | None"]
_RULES: dict[type, Rule] = {}
# For operations, and for layers without a public name in Keras.
_NAMED: dict[str, Rule] = {}
_PRIVATE = ("LayerScale", "StochasticDepth")


_R = TypeVar("_R", bound=Rule)


def rule(*kinds: type | str) -> Callable[[_R], _R]:
    """Register a rule for layers by their class, or for operations by their name."""

    def register(function: _R) -> _R:
        for kind in kinds:
            table: dict = _NAMED if isinstance(kind, str) else _RULES
            table[kind] = function
        return function

    return register


def described(layer: Any) -> str:
    """Describe a layer for an error message or a reason."""
    return f"{type(layer).__name__} {layer.name!r}"


def trace(model: keras.Model, closed: dict[str, str] | None = None) -> Channels:
    """Find the channels of a Functional or built Sequential model.

    Args:
        model: The model.
        closed: Why each composite layer that was not opened up stays whole, by path.
    """
    channels, graph = Channels(), read(model)
    lays: dict[int, Lay] = {}

    def lay(edge: Edge) -> Lay:
        # An edge without a layout is an input of the model or of a nested model.
        return lays.setdefault(id(edge), ("is an input",) * len(edge.shape))

    for call in graph.calls:
        taken = [lay(edge) for edge in call.inputs]
        channels.layers.setdefault(call.layer, call.path)
        why = (closed or {}).get(call.path)
        outs = follow(channels, call, taken, f" ({why})" if why else "")
        for edge, out in zip(call.outputs, outs, strict=True):
            lays[id(edge)] = out
    for x, edge in graph.entries:
        # A model that is used twice must have the same input channels each time.
        before = channels.entries.setdefault(id(x), lay(edge))
        met = tuple(map(channels.meet, before, lay(edge)))
        channels.entries[id(x)] = met
    for call in graph.calls:
        for edge in call.outputs:
            if edge.is_output:
                channels.only(lay(edge), [], "is an output")
        if rule_of(call.layer) is None:
            _keep_weights(channels, call.layer)
    return channels


def _keep_weights(channels: Channels, layer: Any) -> None:
    """Keep channels whose weights are shared with a layer that is left whole."""
    for weight in getattr(layer, "weights", []):
        found = channels.slices.get(id(weight))
        for numbers in found.axes.values() if found else ():
            why = f"is read by {described(layer)}, which is left whole"
            channels.keep(numbers, why)


def follow(
    channels: Channels, call: Call, taken: list[Lay], why: str = ""
) -> list[Lay]:
    """Return the layouts of a call's outputs."""
    found = rule_of(call.layer)
    out = found(channels, call, *taken) if found else None
    if out is not None:
        outs = out if isinstance(out, list) else [out]
        if len(outs) == len(call.outputs):
            return outs
    what = described(call.layer)
    for lay in taken:
        channels.only(lay, [], f"feeds {what}, which is left whole{why}")
    return [(f"comes from {what}",) * len(edge.shape) for edge in call.outputs]


def rule_of(layer: Any) -> Rule | None:
    """Return the rule for a layer or an operation; None if there is none.

    A user's class has no rule, whatever its base class.
    """
    kind = type(layer)
    if kind.__module__.split(".")[0] not in ("keras", "keras_trainkit"):
        return None
    if getattr(layer, "lora_enabled", False) or getattr(
        layer, "quantization_mode", None
    ):
        return None
    if isinstance(layer, layers.Layer):
        for base in kind.__mro__:
            if base in _RULES:
                return _RULES[base]
        if kind.__name__ not in _PRIVATE:
            return None
    return _NAMED.get(kind.__name__)
