"""Model surgery: who feeds whom in a model, and the model without some of its layers.

All of the package's rewriting of models (folding, Monte Carlo copies, heads, cutting
channels) is a walk over a `Graph` and one `rebuild`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
from keras.layers import Layer

from keras_trainkit._checks import reject
from keras_trainkit._keras import (
    arguments,
    functional_part,
    has_own_call,
    is_made_from_graph,
    nodes,
    run_node,
    run_through,
)
from keras_trainkit._keras.copying import copy_attributes
from keras_trainkit._model.configs import mend_config
from keras_trainkit._model.copy import live_copy


@dataclass(eq=False)
class Edge:
    """A tensor between layers.

    Attributes:
        shape: Its shape, with the batch axis; None where a size is unknown.
        producer: The call whose output it is; None for an input of the model.
        consumers: The calls whose input it is.
        is_output: Whether it is an output of the model.
    """

    shape: tuple
    producer: "Call | None" = None
    consumers: list["Call"] = field(default_factory=list)
    is_output: bool = False


@dataclass(eq=False)
class Call:
    """One use of a layer (or of a function of `keras.ops`).

    Attributes:
        layer: The layer.
        path: The names of the models around it and its own, with slashes.
        inputs: Its inputs.
        outputs: Its outputs.
        training: The `training` that it is called with, if any.
        node: Keras's record of the call.
    """

    layer: Any
    path: str
    inputs: list[Edge]
    outputs: list[Edge]
    training: bool | None = None
    node: Any = None

    def run(self, tensors: list[Any]) -> list[Any]:
        """The layer's outputs for these input tensors."""
        return keras.tree.flatten(run_node(self.node, tensors))


@dataclass(eq=False)
class Graph:
    """The calls of a model in the order of a forward pass, nested models expanded.

    A layer that is shared, or that is inside a shared model, has several calls.

    Attributes:
        calls: The calls.
        inputs: The inputs of the model.
        outputs: Its outputs.
        entries: The symbolic inputs of the model and of the models inside it, each
            with the edge that enters there.
    """

    calls: list[Call]
    inputs: list[Edge] = field(default_factory=list)
    outputs: list[Edge] = field(default_factory=list)
    entries: list[tuple[Any, Edge]] = field(default_factory=list)

    def calls_of(self, layer: Layer) -> list[Call]:
        """The uses of a layer."""
        return [call for call in self.calls if call.layer is layer]

    def remove(self, layer: Layer) -> None:
        """Remove a layer: what consumed its output now consumes its input."""
        for call in self.calls_of(layer):
            # A mask may accompany the input.
            before, (after,) = call.inputs[0], call.outputs
            for edge in call.inputs:
                edge.consumers.remove(call)
            before.consumers += after.consumers
            before.is_output |= after.is_output
            for consumer in after.consumers:
                consumer.inputs = [
                    before if edge is after else edge for edge in consumer.inputs
                ]
            self.calls.remove(call)


def is_graph(model: Any) -> bool:
    """Whether a model is a built Sequential or a Functional one.

    False if its class overrides `call`, which may do anything.
    """
    return isinstance(model, keras.Model) and functional_part(model) is not None


def check_graph(model: Any) -> None:
    """Raise unless a model is a built Sequential or a Functional one."""
    if has_own_call(model):
        kind = type(model).__name__
        reject("model", kind, f"computed by its graph, and {kind} has its own `call`")
    if not is_graph(model):
        reject(
            "model", type(model).__name__, "a Functional or a built Sequential model"
        )


def read(model: keras.Model) -> Graph:
    """The graph of a Functional or built Sequential model."""
    graph = Graph([])
    graph.inputs, graph.outputs = _expand_alone(graph, model, "")
    return graph


def inner_model(layer: Any) -> keras.Model | None:
    """The model that a `TimeDistributed` applies to each step, if it is a graph."""
    if isinstance(layer, keras.layers.TimeDistributed) and is_graph(layer.layer):
        return layer.layer
    return None


def _expand_alone(graph: Graph, model: keras.Model, path: str) -> tuple[list, list]:
    """Add a model's calls, with new edges for its inputs and outputs."""
    inputs = [Edge(tuple(x.shape)) for x in functional_part(model).inputs]
    outputs = _expand(graph, model, inputs, path)
    for edge in outputs:
        edge.is_output = True
    return inputs, outputs


def _expand(graph, model, inputs: list[Edge], path: str) -> list[Edge]:
    functional = functional_part(model)
    # By identity: symbolic tensors compare by value.
    edges = {id(x): e for x, e in zip(functional.inputs, inputs, strict=True)}
    graph.entries += zip(functional.inputs, inputs, strict=True)
    for node in nodes(model):
        if node.is_input:
            continue
        layer = node.operation
        taken = [edges[id(x)] for x in node.input_tensors]
        own_path = f"{path}{layer.name}"
        entering = _entering(layer, node) if is_graph(layer) else None
        if entering is not None:
            inside = [edges[id(x)] for x in entering]
            outputs = _expand(graph, layer, inside, f"{own_path}/")
        else:
            if inner := inner_model(layer):
                _expand_alone(graph, inner, f"{own_path}/")
            training = node.arguments.kwargs.get("training")
            call = Call(layer, own_path, taken, [], training, node)
            outputs = [Edge(tuple(x.shape), call) for x in node.outputs]
            call.outputs = outputs
            for edge in taken:
                edge.consumers.append(call)
            graph.calls.append(call)
        edges.update({id(x): e for x, e in zip(node.outputs, outputs, strict=True)})
    return [edges[id(x)] for x in functional.outputs]


def _entering(model, node) -> list[Any] | None:
    """What a model inside is called with, a tensor for each of its inputs.

    None if there is more or less, such as a mask or an input that is optional.
    """
    tensors = _given(model, *arguments(node, node.input_tensors))
    same = {id(x) for x in tensors} == {id(x) for x in node.input_tensors}
    return (
        tensors if same and len(tensors) == len(functional_part(model).inputs) else None
    )


def _given(model, args: tuple, kwargs: dict) -> list[Any]:
    """The inputs of a model among the arguments of its call."""
    given = args[0] if args else kwargs.get("inputs")
    functional = functional_part(model)
    if isinstance(given, dict) and not isinstance(functional.input, dict):
        given = [given.get(x.name) for x in functional.inputs]
    return keras.tree.flatten(given)


def _entangled(model) -> set[int]:
    """The ids of the models inside a model that share a layer with what is around.

    Keras's files lose that a layer is shared across models: the weights of such a layer
    are saved once, and then missing where the layer is made for the second time.
    """
    homes: dict[int, set[int]] = {}
    inside: dict[int, set[int]] = {}
    names: dict[str, int] = {}

    def walk(whole) -> set[int]:
        found: set[int] = set()
        for node in nodes(whole):
            layer = node.operation
            if node.is_input:
                continue
            found.add(id(layer))
            homes.setdefault(id(layer), set()).add(id(whole))
            if is_graph(layer) and _entering(layer, node) is not None:
                inside[id(layer)] = walk(layer)
                found |= inside[id(layer)]
            elif names.setdefault(layer.name, id(layer)) != id(layer):
                # A Functional model requires unique names.
                names[""] = 0
        return found

    walk(model)
    shared = {one for one, where in homes.items() if len(where) > 1}
    return set() if "" in names else {m for m, has in inside.items() if has & shared}


# What a replacement says of a layer that is to go.
REMOVED = object()


def rebuild(
    model: keras.Model,
    replacement: Callable[[Layer], Any] = lambda layer: None,
    input_shape: Callable[[Any], tuple] = lambda x: x.shape,
    plain: bool = False,
) -> tuple[keras.Model, dict[Layer, Layer]]:
    """Copy a model with some layers exchanged or taken out.

    Weights, names, dtype policies, regularizers, constraints and `trainable` are those
    of the original, shared layers stay shared; the copy is not compiled.

    Args:
        model: A Functional or built Sequential model, with nested ones if need be.
        replacement: Called once with each layer, and with each operation of `keras.ops`
            between layers; returns a new one, whose weights are the caller's to set,
            `REMOVED` for one with a single input that is to be passed on, or None to
            copy it.
        input_shape: Called with each symbolic input of the model and of those inside
            it; returns the shape, with the batch axis, that it is to have.
        plain: Whether more is to be put on the copy: its class and config are then
            those of a plain model, even if no layer is exchanged.

    Returns:
        The copy, and the new layer for each old one that is not removed.
    """
    check_graph(model)
    exchanged: dict[Any, Any] = {}
    for layer in _shown(model):
        new = replacement(layer)
        if new is not None:
            exchanged[layer] = new
    surgery = _Surgery(exchanged, input_shape, model if plain else None)
    new_model = surgery.copy(model)
    pairs = {old: surgery.made(old) for old in surgery.met}
    return new_model, {old: new for old, new in pairs.items() if new is not REMOVED}


def copy_model(model: keras.Model) -> keras.Model:
    """Copy a model of any kind, with its class and all that it has, not compiled."""
    return _Surgery({}, lambda x: x.shape).copy(model)


def _shown(model) -> Iterator[Any]:
    """The layers and operations of a model, those of models inside it instead of them.

    Each comes once.
    """
    seen: set[int] = set()

    def walk(model):
        for node in nodes(model):
            layer = node.operation
            if node.is_input or id(layer) in seen:
                continue
            seen.add(id(layer))
            inner = layer if is_graph(layer) else inner_model(layer)
            if inner is None or inner is not layer:
                yield layer
            if inner is not None and (inner is layer or id(inner) not in seen):
                seen.add(id(inner))
                yield from walk(inner)

    yield from walk(model)


class _Surgery:
    """One copy of a model, in which what was shared is shared."""

    def __init__(self, exchanged: dict[Any, Any], input_shape, made_plain=None):
        self.exchanged = exchanged
        self.made_plain = made_plain
        self.input_shape = input_shape
        self.memo: dict[int, Any] = {
            id(old): new for old, new in exchanged.items() if new is not REMOVED
        }
        self.met: dict[Any, None] = {}

    def made(self, old):
        """What there is in the copy for a layer or an operation."""
        return self.exchanged.get(old) or self.memo[id(old)]

    def copy(self, old):
        """Copy a layer, model or operation, or get what it was exchanged for."""
        self.met[old] = None
        if old in self.exchanged:
            return self.exchanged[old]
        inner = inner_model(old)
        if inner is not None and id(old) not in self.memo and self._is_changed(inner):
            # Its build shapes are those of the old one.
            new = keras.layers.TimeDistributed(
                self.copy(inner), name=old.name, dtype=old.dtype_policy
            )
            self.memo[id(old)] = new
        return live_copy(old, self.memo, self._copy_graph)

    def _copy_graph(self, model, memo):
        changed = self._is_changed(model)
        plain = self._plain(model, _entangled(model) if changed else set())
        if changed and not is_made_from_graph(model):
            for call in read(plain).calls:
                mend_config(call.layer, call.node)
            memo[id(model)] = plain
            return plain
        return copy_attributes(model, memo, plain)

    def _is_changed(self, model) -> bool:
        if model is self.made_plain:
            return True
        shapes = functional_part(model).inputs
        return any(tuple(self.input_shape(x)) != tuple(x.shape) for x in shapes) or any(
            self.exchanged.get(layer, layer) is not layer for layer in _shown(model)
        )

    def _plain(self, model, opened: set[int]) -> keras.Model:
        """The graph of a model, with the calls of some models inside it as its own."""

        def operation(old):
            if id(old) in opened:
                return lambda *args, **kwargs: run_through(
                    functional_part(old), _given(old, args, kwargs), operation, _call
                )
            return self.copy(old)

        functional = functional_part(model)
        if isinstance(model, keras.Sequential):
            (x,) = functional.inputs
            layers = [self.copy(layer) for layer in model.layers]
            kept = [layer for layer in layers if layer is not REMOVED]
            return keras.Sequential([self._input(x), *kept], name=model.name)
        inputs = keras.tree.map_structure(self._input, model.input)
        outputs = run_through(model, inputs, operation, _call)
        return keras.Model(inputs, outputs, name=model.name)

    def _input(self, x):
        shape = self.input_shape(x)
        return keras.Input(batch_shape=shape, dtype=x.dtype, name=x.name)


def _call(layer, *args, **kwargs):
    if layer is REMOVED:
        return args[0] if args else next(iter(kwargs.values()))
    return layer(*args, **kwargs)
