"""Plan which layers round their inputs and which round their outputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import activations, layers

from keras_trainkit._model.graph import Call, Edge, Graph, read
from keras_trainkit._model.select import chains
from keras_trainkit.quantization import _kinds
from keras_trainkit.quantization._layer import Quantized
from keras_trainkit.quantization._products import is_on_positions


@dataclass
class Plan:
    """How to quantize each layer.

    Attributes:
        wrapped: The arguments of `Quantized` for each layer to wrap.
        arguments: The arguments that each wrapped layer or function is called with.
        kept: Why each other layer is computed in float, by path. A float activation in
            a quantized layer has a path that ends in `activation`.
    """

    wrapped: dict[Any, dict[str, Any]] = field(default_factory=dict)
    arguments: dict[Any, tuple[tuple, dict]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def make_plan(model: keras.Model, wants: Callable[[Call], bool]) -> Plan:
    """Plan the quantization of a model, without changing it.

    Args:
        model: The model.
        wants: Whether a call is to be quantized, if it can be.
    """
    around = {id(chain[-1]): chain for chain in chains(model)}
    graph = read(model)
    plan = Plan()
    stays = set()
    for call in graph.calls:
        if _kinds.is_same_grid(call.layer):
            continue
        chain = around.get(id(call.layer), (call.layer,))
        reason = _why_float(call, chain, graph) if wants(call) else _LEFT_OUT
        if reason is None:
            given = call.node.arguments
            masked = given.kwargs.get("mask") is not None
            plan.wrapped[call.layer] = {"masked": True} if masked else {}
            plan.arguments[call.layer] = (given.args, given.kwargs)
        else:
            # If one use of a layer cannot be quantized, all its uses stay float.
            stays.add(call.layer)
            plan.kept[call.path] = reason
    for layer in stays & set(plan.wrapped):
        del plan.wrapped[layer]
    for call in graph.calls:
        if call.layer in plan.wrapped:
            _note_activation(plan.kept, call.path, call.layer)
    _place_ranges(graph, plan)
    return plan


def kept_in(model: keras.Model) -> dict[str, str]:
    """Return why layers of a quantized model are computed in float, by path."""
    kept: dict[str, str] = {}
    graph = read(model)
    for call in graph.calls:
        layer = call.layer
        if isinstance(layer, Quantized):
            _note_activation(kept, call.path, layer.layer)
        elif not _kinds.is_same_grid(layer):
            kept[call.path] = _why_float(call, (layer,), graph) or _LEFT_OUT
    return kept


def _note_activation(kept: dict[str, str], path: str, layer: Any) -> None:
    if reason := _kinds.why_float_activation(layer):
        kept[f"{path}/activation"] = reason


_LEFT_OUT = "it is not to be quantized, by `include` or `exclude`"


def _why_float(call: Call, chain: tuple, graph: Graph) -> str | None:
    layer = call.layer
    arguments = call.node.arguments
    if not isinstance(layer, layers.Layer):
        if len(graph.calls_of(layer)) > 1:
            return "the object for this function is called several times"
        is_softmax = _kinds.activation_of(layer) is activations.softmax
        if is_softmax and not _is_last(layer.axis, len(call.inputs[0].shape)):
            return _SOFTMAX
        return _kinds.why_float_operation(layer, (arguments.args, arguments.kwargs))
    if any(isinstance(part, layers.TimeDistributed) for part in chain):
        return "LiteRT applies a TimeDistributed layer in float"
    given = {k for k, v in arguments.kwargs.items() if v is not None}
    is_softmax = isinstance(layer, layers.Softmax)
    allowed = {"training", "mask"} if is_softmax else {"training"}
    # A reason from the layer's type is more useful than one from how it is called.
    reason = _kinds.why_float(layer)
    if reason is None and (len(arguments.args) != 1 or given - allowed):
        return "it is called with more than its inputs"
    rank = len(call.inputs[0].shape)
    if reason is None and is_softmax and not _is_last(layer.axis, rank):
        return _SOFTMAX
    if reason is None and isinstance(layer, layers.BatchNormalization):
        if call.training:
            return "it is called with training=True"
        if layer.axis % rank != rank - 1:
            return "its channels are not on the last axis"
    return reason


_SOFTMAX = "LiteRT's softmax is along the last axis"


def _is_last(axis: Any, rank: int) -> bool:
    return [a % rank for a in keras.tree.flatten(axis)] == [rank - 1]


# The options that later layers assume for a layer that is not quantized.
_ALONE = {"quantize_output": True}


def _place_ranges(graph: Graph, plan: Plan) -> None:
    """Decide for each layer whether inputs and outputs are rounded."""
    rounded: set[int] = set()
    pending: set[int] = set()
    for layer, options in plan.wrapped.items():
        merged = [_merges_into_next(call, plan) for call in graph.calls_of(layer)]
        options["quantize_output"] = not all(merged)
    for layer, options in plan.wrapped.items():
        if isinstance(layer, layers.BatchNormalization):
            before = [call.inputs[0].producer for call in graph.calls_of(layer)]
            options["alone"] = any(
                p is None or plan.wrapped.get(p.layer, _ALONE)["quantize_output"]
                for p in before
            )
    for call in graph.calls:
        layer, inputs = call.layer, call.inputs
        if layer not in plan.wrapped:
            # Only these layers keep their input's grid.
            if _kinds.is_same_grid(layer) and id(inputs[0]) in rounded:
                rounded.update(id(edge) for edge in call.outputs)
            continue
        options = plan.wrapped[layer]
        known = rounded | pending
        own = [id(e) not in known and not _is_whole(layer) for e in inputs]
        if options.get("masked"):
            # It has its own `masked_range` instead of an input range.
            own = [False]
        before = options.get("quantize_inputs", (False,) * len(own))
        options["quantize_inputs"] = tuple(
            a or b for a, b in zip(own, before, strict=True)
        )
        (rounded if options["quantize_output"] else pending).add(id(call.outputs[0]))


def _is_whole(layer: Any) -> bool:
    """Whether a layer's inputs are integers."""
    return isinstance(layer, layers.Embedding)


def _merges_into_next(call: Call | None, plan: Plan) -> bool:
    """Whether LiteRT merges a layer with the next one, so its output is not rounded."""
    if call is None or call.layer not in plan.wrapped:
        return False
    (edge,) = call.outputs
    if edge.is_output or len(edge.consumers) != 1:
        return False
    (behind,) = edge.consumers
    if behind.layer not in plan.wrapped or not _ends_linear(call):
        return False
    masked = plan.wrapped[behind.layer].get("masked")
    if masked or _kinds.takes_one_grid(behind.layer):
        return True
    if is_on_positions(call.layer, len(call.inputs[0].shape)):
        # LiteRT reshapes between the two layers.
        return False
    if type(behind.layer) is layers.BatchNormalization:
        return _folds(call, behind, edge)
    fused = _kinds.activation_of(behind.layer) in _kinds.FUSED
    return fused and _kinds.is_activation(behind.layer)


def _ends_linear(call: Call) -> bool:
    """Whether a layer ends without an activation that needs a range of its own."""
    activation = _kinds.activation_of(call.layer)
    if activation in _kinds.FUSED:
        return True
    return activation in (None, activations.linear)


def _folds(call: Call, norm: Call, edge: Edge) -> bool:
    """Whether a BatchNormalization folds into the weights of the layer before it."""
    kind = type(call.layer)
    linear = _kinds.activation_of(call.layer) in (None, activations.linear)
    axis = norm.layer.axis % len(edge.shape)
    return (
        kind in _kinds.LINEAR
        and kind is not layers.Embedding
        and linear
        and axis == len(edge.shape) - 1
    )
