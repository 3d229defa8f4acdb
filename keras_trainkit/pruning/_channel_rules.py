"""Rules for `prune_channels`: how each kind of layer passes channels on.

A rule ties each axis of a layer's variables to the channels of its input or output, and
returns the layout of the output: the channel numbers along each axis, or a reason why
nothing can be cut there.
"""

import keras
import numpy as np
from keras import layers

from keras_trainkit._keras import arguments, projections
from keras_trainkit._model.graph import Call, Edge
from keras_trainkit._model.kinds import (
    CONVS,
    DEPTHWISE,
    DROPOUTS,
    SEPARABLE,
    TRANSPOSED,
    channel_axis,
    einsum_labels,
)
from keras_trainkit.layers import RReLU
from keras_trainkit.pruning._channel_groups import POSITIONS, Channels, Lay, Numbers
from keras_trainkit.pruning._channel_trace import follow, rule

_GATES = {layers.SimpleRNN: 1, layers.GRU: 3, layers.LSTM: 4}
_POOLING = [
    getattr(layers, f"{kind}Pooling{rank}D")
    for kind in ("Max", "Average")
    for rank in (1, 2, 3)
]
_GLOBAL_POOLING = [
    getattr(layers, f"Global{kind}Pooling{rank}D")
    for kind in ("Max", "Average")
    for rank in (1, 2, 3)
]
_RESIZING = [
    getattr(layers, f"{kind}{rank}D")
    for kind in ("UpSampling", "ZeroPadding", "Cropping")
    for rank in (1, 2, 3)
]
# Keras's activations that combine several channels.
_MIXING = {"softmax", "log_softmax", "sparsemax", "sparse_softmax", "glu"}


def _activated(channels: Channels, layer, lay: Lay) -> Lay:
    """Keep channels whose activation is custom or combines several channels."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", "")
    own = getattr(keras.activations, name, None) is activation and name not in _MIXING
    if activation is not None and not own:
        for numbers in lay:
            channels.keep(numbers, f"goes through the activation of {layer.name!r}")
    return lay


def _with(lay: Lay, axis: int, numbers: Numbers | str) -> Lay:
    """Return the layout with one axis replaced."""
    out = list(lay)
    out[axis] = numbers
    return tuple(out)


def _along(channels: Channels, call: Call, lay: Lay) -> Numbers | str:
    """Return the channels along a layer's channel axis, the only axis that is cut."""
    axis = channel_axis(call.layer, len(lay))
    return channels.only(lay, [axis])[axis]


def _into(call: Call, numbers: Numbers | str) -> Lay:
    """Return the layout of an output with these channels."""
    rank = len(call.outputs[0].shape)
    axis = channel_axis(call.layer, rank)
    return tuple(numbers if i == axis else POSITIONS for i in range(rank))


def _outputs(channels: Channels, call: Call, width: str, out: Numbers) -> Lay:
    """Record a layer's own units and their biases; return the output's layout."""
    layer = call.layer
    channels.cut(layer.bias, {0: out})
    channels.width(layer, width, out)
    channels.units(layer, out)
    return _activated(channels, layer, _into(call, out))


@rule(
    layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity,
    layers.ActivityRegularization, RReLU,
)  # fmt: skip
def _same(channels, call, x):
    return _activated(channels, call.layer, x)


@rule("StochasticDepth")
def _stochastic_depth(channels, call, x):
    return x


@rule(*DROPOUTS)
def _dropout(channels, call, x):
    shape = getattr(call.layer, "noise_shape", None)
    if shape is not None:
        # An axis whose size is fixed by `noise_shape` is not cut.
        free = [axis for axis, size in enumerate(shape) if size in (None, 1)]
        channels.only(x, free, f"has its size told to {call.layer.name!r}")
    return x


@rule(layers.Softmax)
def _softmax(channels, call, x, *masks):
    axes = np.ravel(call.layer.axis) % len(x)
    free = [axis for axis in range(len(x)) if axis not in axes]
    return channels.only(x, free, f"goes through the softmax of {call.layer.name!r}")


@rule(*_POOLING, *_RESIZING, *_GLOBAL_POOLING)
def _pooling(channels, call, x, *masks):
    return _into(call, _along(channels, call, x))


@rule(layers.RepeatVector)
def _repeat_vector(channels, call, x):
    return (x[0], POSITIONS, x[1])


@rule(layers.Rescaling)
def _rescaling(channels, call, x):
    scalars = np.size(call.layer.scale) == np.size(call.layer.offset) == 1
    return x if scalars else None


@rule(layers.BatchNormalization)
def _batch_norm(channels, call, x, *masks):
    layer = call.layer
    for weight in (layer.gamma, layer.beta):
        channels.cut(weight, {0: x[layer.axis]})
    for weight in (layer.moving_mean, layer.moving_variance):
        channels.cut(weight, {0: x[layer.axis]}, statistic=True)
    return x


@rule(layers.LayerNormalization, layers.RMSNormalization, layers.UnitNormalization)
def _layer_norm(channels, call, x, *masks):
    axes = np.ravel(call.layer.axis)
    for weight in call.layer.weights:
        channels.cut(weight, {i: x[axis] for i, axis in enumerate(axes)})
    return x


@rule(layers.GroupNormalization)
def _group_norm(channels, call, x, *masks):
    layer = call.layer
    numbers = x[layer.axis]
    for weight in layer.weights:
        channels.cut(weight, {0: numbers})
    if not isinstance(numbers, str):
        if layer.groups == len(numbers):
            channels.width(layer, "groups", numbers)
        else:
            _same_places(channels, numbers, layer.groups)
    return x


def _same_places(channels: Channels, numbers: Numbers, groups: int) -> None:
    """Make all groups lose the same positions, so that they keep equal sizes."""
    first, *rest = numbers.reshape(groups, -1)
    for group in rest:
        channels.join(first, group)


@rule("LayerScale")
def _layer_scale(channels, call, x):
    channels.cut(call.layer.gamma, {0: x[-1]})
    if not isinstance(x[-1], str):
        channels.width(call.layer, "projection_dim", x[-1])
    return x


@rule(layers.PReLU)
def _prelu(channels, call, x):
    shape = call.layer.alpha.shape
    own = {axis: x[axis + 1] for axis, size in enumerate(shape) if size > 1}
    channels.cut(call.layer.alpha, own)
    return x


@rule(layers.Dense)
def _dense(channels, call, x):
    out = channels.new(call.layer.units)
    channels.cut(call.layer.kernel, {0: x[-1], 1: out}, units=1)
    _outputs(channels, call, "units", out)
    # The layer works along the last axis; channels along other axes pass through.
    return _activated(channels, call.layer, _with(x, -1, out))


@rule(layers.EinsumDense)
def _einsum_dense(channels, call, x):
    layer = call.layer
    taken, kernel, output = einsum_labels(layer)
    own = [label for label in kernel if label in output]
    if kernel.count(taken[-1]) != 1 or taken[-1] in output or own != [output[-1]]:
        return None
    if layer.bias is not None and len(layer.bias.shape) != 1:
        return None
    channels.only(x, [-1])
    units = kernel.index(own[0])
    out = channels.new(layer.kernel.shape[units])
    channels.cut(
        layer.kernel, {kernel.index(taken[-1]): x[-1], units: out}, units=units
    )
    channels.cut(layer.bias, {0: out})
    channels.units(layer, out)
    shape = layer.get_config()["output_shape"]
    rest = tuple(shape[:-1]) if isinstance(shape, list | tuple) else None
    channels.width(
        layer,
        "output_shape",
        out,
        make=int if rest is None else lambda count: (*rest, count),
    )
    return _activated(channels, layer, _into(call, out))


@rule(*CONVS)
def _conv(channels, call, x):
    layer, numbers = call.layer, _along(channels, call, x)
    if layer.groups == 1:
        out = channels.new(layer.filters)
        channels.cut(layer.kernel, {-2: numbers, -1: out}, units=-1)
        return _outputs(channels, call, "filters", out)
    if isinstance(numbers, str):
        return None
    if layer.groups == len(numbers):
        # One group per input channel: it is removed with its channel.
        out = np.repeat(numbers, layer.filters // len(numbers))
        channels.cut(layer.kernel, {-1: out})
        channels.cut(layer.bias, {0: out})
        channels.width(layer, "groups", numbers)
        channels.width(layer, "filters", out)
        return _activated(channels, layer, _into(call, out))
    out = channels.new(layer.filters)
    for grouped in (numbers, out):
        _same_places(channels, grouped, layer.groups)
    inputs = numbers.reshape(layer.groups, -1)[0]
    channels.cut(layer.kernel, {-2: inputs, -1: out}, units=-1)
    return _outputs(channels, call, "filters", out)


@rule(*TRANSPOSED)
def _transposed(channels, call, x):
    out = channels.new(call.layer.filters)
    inputs = _along(channels, call, x)
    channels.cut(call.layer.kernel, {-1: inputs, -2: out}, units=-2)
    return _outputs(channels, call, "filters", out)


@rule(*DEPTHWISE)
def _depthwise(channels, call, x):
    layer, numbers = call.layer, _along(channels, call, x)
    if isinstance(numbers, str):
        return None
    out = np.repeat(numbers, layer.depth_multiplier)
    channels.cut(layer.kernel, {-2: numbers})
    channels.cut(layer.bias, {0: out})
    return _activated(channels, layer, _into(call, out))


@rule(*SEPARABLE)
def _separable(channels, call, x):
    layer, numbers = call.layer, _along(channels, call, x)
    out = channels.new(layer.filters)
    if isinstance(numbers, str):
        channels.cut(layer.pointwise_kernel, {-1: out}, units=-1)
    else:
        channels.cut(layer.depthwise_kernel, {-2: numbers})
        between = np.repeat(numbers, layer.depth_multiplier)
        channels.cut(layer.pointwise_kernel, {-2: between, -1: out}, units=-1)
    return _outputs(channels, call, "filters", out)


@rule(layers.Embedding)
def _embedding(channels, call, x):
    layer = call.layer
    channels.only(x, [])
    out = channels.new(layer.output_dim)
    channels.cut(layer.embeddings, {1: out}, units=1)
    channels.width(layer, "output_dim", out)
    channels.units(layer, out)
    return (*(POSITIONS,) * len(x), out)


@rule(layers.ReversibleEmbedding)
def _reversible_embedding(channels, call, x):
    layer = call.layer
    args, kwargs = call.node.arguments.args, call.node.arguments.kwargs
    if not (kwargs.get("reverse") or (len(args) > 1 and args[1])):
        out = _embedding(channels, call, x)
        if not layer.tie_weights:
            channels.cut(layer.reverse_embeddings, {0: out[-1]})
        return out
    if layer.tie_weights:
        channels.cut(layer.embeddings, {1: x[-1]}, units=1)
    else:
        channels.cut(layer.reverse_embeddings, {0: x[-1]})
    return _with(x, -1, f"is the vocabulary of {layer.name!r}")


@rule(*_GATES)
def _recurrent(channels, call, x, *states):
    layer = call.layer
    if states or len(call.outputs) != 1:
        return None
    out = _cell_units(channels, layer, channels.only(x, [-1])[-1])
    return _activated(channels, layer, _into(call, out))


def _cell_units(channels: Channels, layer, numbers: Numbers | str) -> Numbers:
    cell = layer.cell
    out = channels.new(layer.units)
    every = np.tile(out, _GATES[type(layer)])
    channels.cut(cell.kernel, {0: numbers, 1: every})
    channels.cut(cell.recurrent_kernel, {0: out, 1: every}, units=0)
    channels.cut(cell.bias, {-1: every})
    channels.width(layer, "units", out)
    channels.units(layer, out)
    return out


@rule(layers.Bidirectional)
def _bidirectional(channels, call, x, *states):
    layer = call.layer
    parts = (layer.forward_layer, layer.backward_layer)
    if states or any(type(part) not in _GATES or part.return_state for part in parts):
        return None
    numbers = channels.only(x, [-1])[-1]
    outs = []
    for part in parts:
        channels.layers.setdefault(part, f"{call.path}/{part.name}")
        out = _cell_units(channels, part, numbers)
        outs.append(_activated(channels, part, _into(call, out)))
    first, second = (lay[-1] for lay in outs)
    if layer.merge_mode is None:
        return outs
    if layer.merge_mode == "concat":
        return _into(call, np.concatenate([first, second]))
    channels.join(first, second)
    return outs[0]


@rule(layers.TimeDistributed)
def _time_distributed(channels, call, x, *masks):
    """Apply the rule of the wrapped layer to one time step."""
    inner = call.layer.layer
    before, after = (
        [Edge((e.shape[0], *e.shape[2:])) for e in edges]
        for edges in ([call.inputs[0]], call.outputs)
    )
    channels.layers.setdefault(inner, f"{call.path}/{inner.name}")
    step = Call(inner, f"{call.path}/{inner.name}", before, after, node=call.node)
    channels.keep(x[1], "is a step in time")
    outs = follow(channels, step, [(x[0], *x[2:])])
    return [(out[0], POSITIONS, *out[1:]) for out in outs]


@rule(layers.MultiHeadAttention)
def _attention(channels, call, *taken):
    layer = call.layer
    shape = layer.get_config().get("output_shape")
    if shape is not None and np.size(shape) != 1:
        return None
    heads = channels.new(layer.num_heads)
    out = _attend(channels, call, taken, heads, heads, shape is None)
    if out is not None:
        channels.width(layer, "num_heads", heads)
        if shape is not None:
            channels.width(layer, "output_shape", out[0][-1])
    return out


def _query_value_key(call: Call, taken: tuple[Lay, ...]) -> list[Lay] | None:
    """Return the layouts of query, value and key; other inputs may be masks."""
    args, kwargs = arguments(call.node, list(range(len(taken))))
    if args and isinstance(args[0], list | tuple):
        args = tuple(args[0])
    named = [kwargs.get(name) for name in ("query", "value", "key")]
    found = [*args[:3], *named[len(args[:3]) :]]
    if found[0] is None or found[1] is None:
        return None
    places = [found[0], found[1], found[1] if found[2] is None else found[2]]
    return [taken[place] for place in places]


def _attend(
    channels: Channels, call: Call, taken, heads, shared, as_query: bool
) -> list[Lay] | None:
    """Cut the projections of an attention layer; return the layouts of its outputs.

    Args:
        channels: The channels.
        call: The call.
        taken: The layouts of the inputs.
        heads: The query heads.
        shared: The heads of key and value; fewer if several query heads share one.
        as_query: Whether the output is as wide as the query.
    """
    found = _query_value_key(call, taken)
    scores = len(call.outputs[-1].shape)
    if found is None or (len(call.outputs) > 1 and scores != 4):
        return None
    query, value, key = found
    for name, dense in projections(call.layer).items():
        x = {"key": key, "value": value}.get(name, query)
        own = shared if name in ("key", "value") else heads
        if name != "output":
            channels.cut(dense.kernel, {0: channels.only(x, [-1])[-1], 1: own})
            channels.cut(dense.bias, {0: own})
    last = projections(call.layer)["output"]
    out = channels.new(last.kernel.shape[-1])
    channels.cut(last.kernel, {0: heads, -1: out}, units=0)
    channels.cut(last.bias, {0: out})
    channels.units(call.layer, heads)
    width = channels.meet(query[-1], out) if as_query else out
    lays = [_into(call, width), (POSITIONS, heads, POSITIONS, POSITIONS)]
    return lays[: len(call.outputs)]


@rule(layers.GroupQueryAttention)
def _group_query_attention(channels, call, *taken):
    layer = call.layer
    shared = channels.new(layer.num_key_value_heads)
    if len(shared) == 1:
        # All query heads share the only key and value head, which must be kept.
        channels.keep(shared, "is the only head of key and value")
        heads = channels.new(layer.num_query_heads)
    else:
        heads = np.repeat(shared, layer.num_repeats)
    out = _attend(channels, call, taken, heads, shared, as_query=True)
    if out is not None:
        channels.width(layer, "num_query_heads", heads)
        channels.width(layer, "num_key_value_heads", shared)
    return out


@rule(layers.Attention, layers.AdditiveAttention)
def _plain_attention(channels, call, *taken):
    found = _query_value_key(call, taken)
    if found is None or len(call.outputs) != 1:
        return None
    query, value, key = found
    shared = channels.meet(query[-1], channels.only(key, [-1])[-1])
    for weight in call.layer.weights:
        if len(weight.shape):
            channels.cut(weight, {0: shared})
    channels.only(value, [-1])
    return _with(query, -1, value[-1])
