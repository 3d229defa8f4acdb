"""Split a model before its last Dense layer."""

from typing import Any

import keras
from keras import layers
from keras.layers import Layer

from keras_trainkit._checks import reject
from keras_trainkit._keras import sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit._model.dropout import PURE_DROPOUTS, AlwaysOn
from keras_trainkit._model.head import last_dense


def check_head(model: Any) -> tuple[Layer, list[Layer]]:
    """Return the last Dense layer of a model and the layers after it, last one first.

    Raises:
        ValueError: If the model does not have one output that ends in a Dense layer.
    """
    _graph.check_graph(model)
    graph = _graph.read(model)
    expected = "a model with one output, which ends in a Dense layer"
    if len(graph.outputs) != 1:
        reject("model", f"{len(graph.outputs)} outputs", expected)
    dense, behind = last_dense(graph)
    if dense is None:
        call = graph.outputs[0].producer
        reject("model", type(getattr(call, "layer", model)).__name__, expected)
    for layer in behind:
        if len(graph.calls_of(layer)) > 1:
            reject("model", layer.name, "a model whose last activation is not shared")
    return dense, behind


def last_activation(dense: Layer, behind: list[Layer]) -> str:
    """Return what the last layers compute: `"softmax"`, `"sigmoid"` or `"linear"`.

    Raises:
        ValueError: If it is something else.
    """
    silent = (layers.Dropout, layers.Identity)
    shown = [layer for layer in (dense, *behind) if not isinstance(layer, silent)]
    names = {_activation(layer) for layer in shown} - {"linear"}
    if len(names) > 1 or names - {"softmax", "sigmoid"}:
        expected = "a model whose last activation is softmax, sigmoid or none"
        reject("model", sorted(names), expected)
    return "".join(names) or "linear"


def _activation(layer: Any) -> str:
    if isinstance(layer, layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    for name in ("linear", "softmax", "sigmoid"):
        if activation is getattr(keras.activations, name):
            return name
    return getattr(activation, "__name__", type(layer).__name__)


def body(model: keras.Model) -> keras.Model:
    """Copy a model's layers up to its last Dense; the copy outputs the Dense's input.

    Layers that drop at inference become plain ones in the copy.

    Raises:
        ValueError: If a layer contains such a layer, or the model does not end in a
            Dense layer.
    """
    dense, behind = check_head(model)
    trained = {call.layer for call in _graph.read(model).calls if call.training is True}
    exchanged: list[Any] = []

    def replacement(layer: Any) -> Any:
        if layer in behind:
            return _graph.REMOVED
        if layer is dense:
            name, dtype = f"{layer.name}_input", layer.compute_dtype
            return layers.Identity(name=name, dtype=dtype)
        if not isinstance(layer, Layer):
            return None
        on = layer in trained or isinstance(layer, AlwaysOn)
        if on and isinstance(layer, PURE_DROPOUTS):
            return _graph.REMOVED
        if isinstance(layer, AlwaysOn):
            exchanged.append(layer)
            return _off(layer)
        if layer in trained or any(isinstance(x, AlwaysOn) for x in sublayers(layer)):
            expected = "a model whose layers can be at inference"
            reject("model", f"{layer.name}, a {type(layer).__name__}", expected)
        return None

    copy, pairs = _graph.rebuild(model, replacement)
    for layer in exchanged:
        pairs[layer].set_weights(layer.get_weights())
    return copy


def _off(layer: Any) -> Layer:
    """Return Keras's layer that replaces one that drops at inference too."""
    base: Any = next(x for x in type(layer).__mro__ if not issubclass(x, AlwaysOn))
    return base.from_config(layer.get_config())
