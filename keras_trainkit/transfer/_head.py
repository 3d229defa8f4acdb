"""A new head for a trained model."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers
from keras.layers import Layer

from keras_trainkit._checks import (
    check_flag,
    check_integer,
    reject,
)
from keras_trainkit._model import graph as _graph
from keras_trainkit._model.compare import check_copy
from keras_trainkit._model.head import last_dense
from keras_trainkit._training.recording import inputs

_POOLING = {
    3: layers.GlobalAveragePooling1D,
    4: layers.GlobalAveragePooling2D,
    5: layers.GlobalAveragePooling3D,
}


def replace_head(
    model: keras.Model,
    units: int | Layer | Sequence[Layer],
    activation: Any = None,
    *,
    share_weights: bool = False,
    name: str = "head",
) -> keras.Model:
    """Return a model with a new head on the same body.

    If the model ends in a `Dense` layer, that is the head: the new one replaces it, and
    activations, softmax and dropout after it are removed. A model that ends in anything
    else is a body without a head: the new one is added on top, after a global average
    pooling if there are axes besides batch and channels.

    Args:
        model: A Functional or built Sequential model with one output; models inside it
            are opened up. Its weights and compile arguments are not changed.
        units: Number of outputs; or the new head itself, a layer or a list of layers,
            which are used unchanged.
        activation: Activation of the new head; with None, that of the old one (or of
            the layer after it), or linear if there was none.
        share_weights: False: the new model is a copy, and training it does not change
            `model`. True: both have the same layers, so training one changes the other,
            and `trainable` applies to both.
        name: The name of the new `Dense` layer.

    Returns:
        The new model, not compiled. It is of the same kind (but Functional if the body
        uses the old activation at the end too), and frozen layers stay frozen.

    Raises:
        ValueError: If an argument is wrong, or a softmax over a single unit, which is 1
            whatever its input, would result.
        RuntimeError: If the body differs from the model's on a small random batch.
            Models that accept no random inputs are not
            compared.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((8,), num_classes=10)
        >>> new = kt.transfer.replace_head(model, 3)
        >>> new.output_shape, new.layers[-1].activation.__name__
        ((None, 3), 'softmax')
        >>> binary = kt.transfer.replace_head(model, 1, "sigmoid")
    """
    check_flag("share_weights", share_weights)
    _graph.check_graph(model)
    graph = _graph.read(model)
    if len(graph.outputs) != 1:
        reject("model", f"{len(graph.outputs)} outputs", "a model with one output")
    old, behind = last_dense(graph)
    head = _new_head(units, activation, old, behind, name)
    whole = model
    first = old
    if any(len(graph.calls_of(layer)) > 1 for layer in behind):
        # The body needs them too: it is cut off in front of the head instead.
        model, first, behind = _body(model, graph.calls_of(old)[0]), None, []

    def replacement(layer: Any) -> Any:
        if layer in behind:
            return _graph.REMOVED
        if layer is first:
            return head[0]
        return layer if share_weights else None

    body, _ = _graph.rebuild(model, replacement, plain=True)
    rest = head if first is None else head[1:]
    if old is None:
        rank = len(body.outputs[0].shape)
        if rank in _POOLING:
            rest = [_POOLING[rank](), *rest]
        elif rank != 2:
            reject("model", body.output_shape, "a model whose output has 2 to 5 axes")
        check_copy(whole, body, "The body of the new model")
    new = _with(body, rest)
    if old is not None:
        check_copy(
            whole,
            lambda x: inputs(new, x, head[0]),
            "The body of the new model",
            lambda x: inputs(whole, x, old),
        )
    return new


def _with(body: keras.Model, rest: list[Layer]) -> keras.Model:
    """A model with more layers on top."""
    if not rest:
        return body
    if isinstance(body, keras.Sequential):
        for layer in rest:
            body.add(layer)
        return body
    (x,) = body.outputs
    for layer in rest:
        x = layer(x)
    return keras.Model(body.input, x, name=body.name)


def _body(model: keras.Model, head: _graph.Call) -> keras.Model:
    """What a model has in front of its head, made of the same layers."""
    if "/" in head.path:
        reject("model", head.path, "a model whose last activation is not shared")
    return keras.Model(model.input, head.node.input_tensors[0], name=model.name)


def _new_head(units, activation, old, behind, name) -> list[Layer]:
    """The layers of the new head."""
    given = [units] if isinstance(units, Layer) else units
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given or not all(isinstance(layer, Layer) for layer in given):
            reject("units", units, "an integer, a layer or a list of layers")
        if activation is not None:
            reject("activation", activation, "None where `units` is a layer")
        return list(given)
    check_integer("units", units, minimum=1)
    if activation is None:
        activation = _old_activation(old, behind)
    try:
        activation = keras.activations.get(activation)
    except (TypeError, ValueError):
        reject("activation", activation, "a function or the name of one of Keras's")
    if units == 1 and activation is keras.activations.softmax:
        reject("activation", "softmax", 'another for a single unit, such as "sigmoid"')
    # float32 whatever the policy: see `build_mlp`.
    return [layers.Dense(units, activation=activation, name=name, dtype="float32")]


def _old_activation(old: Layer | None, behind: list[Layer]) -> Any:
    if old is None:
        return None
    for layer in behind:
        if isinstance(layer, layers.Softmax):
            return "softmax"
        if isinstance(layer, layers.ReLU):
            return "relu"
        if isinstance(layer, layers.Activation):
            return layer.activation
    return old.activation
