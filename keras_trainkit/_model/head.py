"""The Dense layer that a classifier or a regressor ends in."""

from keras import layers
from keras.layers import Layer

from keras_trainkit._checks import reject
from keras_trainkit._model import graph as _graph

# What may be behind the last Dense of a head.
_BEHIND = (
    layers.Activation,
    layers.Softmax,
    layers.ReLU,
    layers.Dropout,
    layers.Rescaling,
    layers.Identity,
)


def last_dense(graph: _graph.Graph) -> tuple[Layer | None, list[Layer]]:
    """The Dense layer that a model ends in, and what is behind it, from the end on.

    None if it ends in something else.
    """
    behind = []
    call = graph.outputs[0].producer
    while call is not None and isinstance(call.layer, _BEHIND):
        behind.append(call.layer)
        call = call.inputs[0].producer
    if call is not None and isinstance(call.layer, layers.Dense):
        if len(graph.calls_of(call.layer)) > 1:
            reject("model", call.layer.name, "a model whose last layer is not shared")
        return call.layer, behind
    return None, []
