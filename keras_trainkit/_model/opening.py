"""Replaces layers that are made of layers by Functional models of their parts."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_trainkit._keras import arguments, nodes, run_node, sublayers
from keras_trainkit._model.compare import distance, outputs, tolerance_of
from keras_trainkit._model.graph import Call, copy_model, read, rebuild
from keras_trainkit._model.inputs import draw_like

_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_SCORES = "return_attention_scores"


class Closed(Exception):
    """A layer cannot be opened up; the message says why."""


def open_up(
    model: keras.Model,
    wanted: Callable[[Layer], bool],
    *,
    for_training: bool = False,
    in_place: bool = False,
) -> tuple[keras.Model, dict[str, str]]:
    """Copy a model with Functional models in place of layers that are made of layers.

    The `call` of such a layer is traced on symbolic tensors, as Keras traces a model's,
    and the calls it makes become a model with the layer's name, which is compared with
    the layer. The copy does not need the classes of the layers that were opened up.

    Args:
        model: A Functional or built Sequential model.
        wanted: Whether a layer is to be opened up.
        for_training: Whether the copy is to be trained: a layer stays whole if its
            `call` does something else in training, or adds a loss.
        in_place: Whether the model is the caller's own copy already.

    Returns:
        The copy, or the model itself if there is nothing to open up; and the path of
        each layer that stays whole, with the reason.
    """
    closed: dict[str, str] = {}
    if not any(_is_made_of_layers(call.layer, wanted) for call in read(model).calls):
        return model, closed
    if not in_place:
        model = copy_model(model)
    tried: set[int] = set()
    while opened := _open_all(model, wanted, for_training, tried, closed):
        model = _exchanged(model, opened)
    return model, closed


def _exchanged(model: keras.Model, opened: dict[Any, Any]) -> keras.Model:
    # Layers that are not opened up already belong to the copy.
    return rebuild(model, lambda layer: opened.get(layer, layer))[0]


def _open_all(
    model, wanted, for_training: bool, tried: set[int], closed: dict[str, str]
) -> dict[Any, Any]:
    opened: dict[Any, Any] = {}
    graph = read(model)
    for call in graph.calls:
        layer = call.layer
        if id(layer) in tried or not _is_made_of_layers(layer, wanted):
            continue
        tried.add(id(layer))
        try:
            opened[layer] = _opened(graph.calls_of(layer), for_training)
        except Closed as reason:
            closed[call.path] = str(reason)
    return opened


def _is_made_of_layers(layer: Any, wanted) -> bool:
    return (
        isinstance(layer, Layer)
        and not isinstance(layer, keras.Model | keras.layers.Wrapper | keras.layers.RNN)
        and bool(sublayers(layer, recursive=False))
        and wanted(layer)
    )


def _opened(calls: list[Call], for_training: bool) -> Callable:
    """What to call in place of a layer."""
    layer, node = calls[0].layer, calls[0].node
    places = _places(node)
    if any(_places(call.node) != places for call in calls):
        raise Closed("it is called in different ways")
    variables = {id(variable) for variable in layer.variables}
    try:
        inner = _traced(layer, node)
        x = [draw_like(tensor) for tensor in node.input_tensors]
        # Explicitly: a layer inside whose default is True would take the others along,
        # whose statistics would move.
        before = outputs(lambda x: run_node(node, x, training=False), x)
        error = distance(before, outputs(inner, x if len(x) > 1 else x[0]))
        if for_training and not _same_in_training(layer, node):
            raise Closed(f"{layer.name} does something of its own in training")
    except Closed:
        raise
    except Exception as failure:
        kind = type(failure).__name__
        raise Closed(f"the `call` of {layer.name} cannot be traced ({kind})") from None
    if {id(variable) for variable in inner.variables} != variables:
        raise Closed(f"{layer.name} has weights of its own, or does not use all it has")
    if not error <= tolerance_of(layer):
        raise Closed(f"what can be traced of {layer.name} computes something else")
    if places == [0] and not node.arguments.kwargs.keys() - {"training"}:
        return inner

    def call(*args, **kwargs):
        flat = keras.tree.flatten((args, kwargs))
        tensors = [flat[place] for place in places]
        # What the layer does with masks is in the trace; the model would pass them on.
        return inner(
            tensors if len(tensors) > 1 else tensors[0], mask=[None] * len(tensors)
        )

    return call


def _same_in_training(layer: Layer, node) -> bool:
    """Whether `training` changes no more than what is inside a layer does with it."""
    count = len(layer.losses)
    graphs = [_wiring(_traced(layer, node, training=t)) for t in (False, True)]
    return graphs[0] == graphs[1] and len(layer.losses) == count


def _wiring(model: keras.Model) -> list[tuple]:
    """What is called in a model, and with which results of what."""
    numbers: dict[int, int] = {}
    found = []
    for node in nodes(model):
        operation = node.operation
        # Functions of `keras.ops` are new objects in each trace.
        own = id(operation) if isinstance(operation, Layer) else type(operation)
        if node.is_input:
            own = keras.layers.InputLayer
        found.append((own, tuple(numbers[id(x)] for x in node.input_tensors)))
        for tensor in node.outputs:
            numbers[id(tensor)] = len(numbers)
    return found


def _places(node) -> list[int]:
    """Which of the flattened arguments of a call are tensors of the graph."""
    flat = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    return [i for i, part in enumerate(flat) if isinstance(part, keras.KerasTensor)]


def _traced(layer: Layer, node, **options: Any) -> keras.Model:
    names: dict[str, int] = {}
    for part in sublayers(layer, recursive=False):
        count = names[part.name] = names.get(part.name, 0) + 1
        if count > 1:
            # A Functional model requires unique names.
            part.name = f"{part.name}_{count}"
    inputs = [
        keras.Input(batch_shape=x.shape, dtype=_dtype(layer, x))
        for x in node.input_tensors
    ]
    args, kwargs = arguments(node, inputs)
    kwargs |= options
    attends = isinstance(layer, _ATTENTION) and not kwargs.get(_SCORES)
    if attends:
        kwargs |= _attention_options(args, kwargs)
    taken = inspect.signature(layer.call).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        kwargs = {name: value for name, value in kwargs.items() if name in taken}
    found = layer.call(*args, **kwargs)
    if attends:
        found = found[0]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], found, name=layer.name)


def _attention_options(args: tuple, kwargs: dict) -> dict[str, Any]:
    """Options with which an attention layer calls its parts one by one.

    Otherwise all of the attention is one function of `keras.ops`.
    """
    if not kwargs.get("use_causal_mask"):
        return {_SCORES: True}
    # Keras would make the mask from sizes that are not known in a trace.
    query, value = (x.shape[1] for x in keras.tree.flatten((args, kwargs))[:2])
    causal = np.tril(np.ones((1, query, value), "bool"))
    given = kwargs.get("attention_mask")
    mask = causal if given is None else ops.logical_and(given, causal)
    return {_SCORES: True, "use_causal_mask": False, "attention_mask": mask}


def _dtype(layer: Layer, tensor) -> str:
    """The dtype that a layer casts a tensor to before `call`."""
    cast = layer.autocast and "float" in tensor.dtype
    return layer.compute_dtype if cast else tensor.dtype
