"""Where ranges go: which layers round their inputs, and which their outputs."""

from dataclasses import dataclass, field
from typing import Any

import keras
from keras import activations, layers

from keras_trainkit._model.graph import Call, Edge, Graph, read
from keras_trainkit._model.select import Selector, chains, check_all_used, selected
from keras_trainkit.quantization import _kinds
from keras_trainkit.quantization._layer import Quantized


@dataclass
class Plan:
    """What to do with each layer.

    Attributes:
        wrapped: The arguments of `Quantized` for each layer that gets one.
        kept: Why each of the others is computed in float, by path. An activation that
            is float inside a layer that is not has `activation` at the end of it.
    """

    wrapped: dict[Any, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def make_plan(
    model: keras.Model,
    include: tuple[Selector, ...] = (),
    exclude: tuple[Selector, ...] = (),
) -> Plan:
    """Plan the quantization of a model, without changing it."""
    around = {id(chain[-1]): chain for chain in chains(model)}
    check_all_used("include", list(around.values()), include)
    check_all_used("exclude", list(around.values()), exclude)
    graph = read(model)
    plan = Plan()
    stays = set()
    for call in graph.calls:
        if type(call.layer) in _kinds.SAME_GRID:
            continue
        chain = around.get(id(call.layer), (call.layer,))
        reason = _why_float(call, chain, include, exclude)
        if reason is None:
            plan.wrapped[call.layer] = {}
        else:
            # One use that cannot be rounded keeps all uses of a layer float.
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
    """Why the layers without ranges in a quantized model have none, by path."""
    kept: dict[str, str] = {}
    for call in read(model).calls:
        layer = call.layer
        if isinstance(layer, Quantized):
            _note_activation(kept, call.path, layer.layer)
        elif type(layer) not in _kinds.SAME_GRID:
            kept[call.path] = _why_float(call, (layer,), (), ()) or _LEFT_OUT
    return kept


def _note_activation(kept: dict[str, str], path: str, layer: Any) -> None:
    if reason := _kinds.why_float_activation(layer):
        kept[f"{path}/activation"] = reason


_LEFT_OUT = "it is not to be quantized, by `include` or `exclude`"


def _why_float(call: Call, chain: tuple, include: Any, exclude: Any) -> str | None:
    layer = call.layer
    if not isinstance(layer, layers.Layer):
        return f"a function of `keras.ops` ({type(layer).__name__}) has no ranges"
    if (include and not selected(chain, include)) or selected(chain, exclude):
        return _LEFT_OUT
    if any(isinstance(part, layers.TimeDistributed) for part in chain):
        return "LiteRT applies a TimeDistributed layer in float"
    arguments = call.node.arguments
    given = {k: v for k, v in arguments.kwargs.items() if v is not None}
    if len(arguments.args) != 1 or set(given) - {"training"}:
        return "it is called with more than its inputs"
    if isinstance(layer, layers.BatchNormalization):
        if call.training:
            return "it is called with training=True"
        rank = len(call.inputs[0].shape)
        if layer.axis % rank != rank - 1:
            return "its channels are not on the last axis"
    return _kinds.why_float(layer)


# The options of a layer that is not quantized, as far as what follows is concerned.
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
            # A function of values on a grid is on it only in these layers.
            if type(layer) in _kinds.SAME_GRID and id(inputs[0]) in rounded:
                rounded.add(id(call.outputs[0]))
            continue
        options = plan.wrapped[layer]
        own = [id(e) not in rounded | pending and not _is_whole(layer) for e in inputs]
        before = options.get("quantize_inputs", (False,) * len(own))
        options["quantize_inputs"] = tuple(
            a or b for a, b in zip(own, before, strict=True)
        )
        (rounded if options["quantize_output"] else pending).add(id(call.outputs[0]))


def _is_whole(layer: Any) -> bool:
    """Whether a layer takes whole numbers."""
    return isinstance(layer, layers.Embedding)


def _merges_into_next(call: Call | None, plan: Plan) -> bool:
    """Whether LiteRT computes a layer and the one behind it as one."""
    if call is None or call.layer not in plan.wrapped:
        return False
    (edge,) = call.outputs
    if edge.is_output or len(edge.consumers) != 1:
        return False
    (behind,) = edge.consumers
    if behind.layer not in plan.wrapped or not _ends_linear(call):
        return False
    if type(behind.layer) is layers.Concatenate:
        # All that it takes must have its range in LiteRT.
        return True
    if type(behind.layer) is layers.BatchNormalization:
        return _folds(call, behind, edge)
    return _kinds.activation_of(behind.layer) in _kinds.FUSED and (
        type(behind.layer) in _kinds.ACTIVATION
    )


def _ends_linear(call: Call) -> bool:
    """Whether a layer ends without an activation that needs a range of its own."""
    activation = _kinds.activation_of(call.layer)
    if activation in _kinds.FUSED:
        return True
    return activation in (None, activations.linear)


def _folds(call: Call, norm: Call, edge: Edge) -> bool:
    """Whether a BatchNormalization goes into the weights of the layer in front."""
    kind = type(call.layer)
    linear = _kinds.activation_of(call.layer) in (None, activations.linear)
    axis = norm.layer.axis % len(edge.shape)
    return (
        kind in _kinds.LINEAR
        and kind is not layers.Embedding
        and linear
        and axis == len(edge.shape) - 1
    )
