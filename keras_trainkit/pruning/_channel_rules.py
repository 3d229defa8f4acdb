"""How each kind of layer hands its channels on.

A rule takes the channels, a call and the numbers of its inputs' channels, and returns
those of its output, or None where it cannot tell.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._keras import arguments
from keras_trainkit._model.graph import Edge, read
from keras_trainkit._model.kinds import (
    CONVS,
    DEPTHWISE,
    DROPOUTS,
    SEPARABLE,
    TRANSPOSED,
    channels_first,
    einsum_labels,
)
from keras_trainkit.layers import RReLU
from keras_trainkit.pruning._channel_groups import Channels, Numbers

Rule = Callable[..., "Numbers | None"]
_RULES: dict[type, Rule] = {}
_OPERATIONS: dict[str, Rule] = {}

_GATES = {layers.SimpleRNN: 1, layers.GRU: 3, layers.LSTM: 4}
_POOLING = [
    getattr(layers, f"{kind}Pooling{rank}D")
    for kind in ("Max", "Average", "GlobalMax", "GlobalAverage")
    for rank in (1, 2, 3)
]
_RESIZING = [
    getattr(layers, f"{kind}{rank}D")
    for kind in ("UpSampling", "ZeroPadding", "Cropping")
    for rank in (1, 2, 3)
]
_MERGES = (
    layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum,
    layers.Minimum,
)  # fmt: skip
# Activations of Keras that look at more than one channel.
_MIXING = {"softmax", "log_softmax", "sparsemax", "glu"}


def trace(model: keras.Model) -> Channels:
    """The channels of a Functional or built Sequential model."""
    channels, graph = Channels(), read(model)
    tensors: dict[int, Numbers] = {}

    def numbers(edge: Edge) -> Numbers:
        if id(edge) not in tensors:
            # An input, of the model or of one that is applied to each step.
            tensors[id(edge)] = channels.new(edge.shape[-1] or 1, "is an input")
        return tensors[id(edge)]

    for call in graph.calls:
        layer = call.layer
        channels.layers.setdefault(layer, call.path)
        taken = [numbers(edge) for edge in call.inputs]
        rule = _rule_of(layer)
        out = rule(channels, call, *taken) if rule and len(call.outputs) == 1 else None
        what = f"{type(layer).__name__} {layer.name!r}"
        if out is None:
            for x in taken:
                channels.keep(x, f"feeds {what}, which is left whole")
        for edge in call.outputs:
            if out is None:
                size = edge.shape[-1] if len(edge.shape) > 1 else 1
                out_of_it = channels.new(size or 1, f"comes from {what}")
            tensors[id(edge)] = out_of_it if out is None else out
    for x, edge in graph.entries:
        # A model that is used twice takes in channels alike.
        channels.join(channels.entries.setdefault(id(x), numbers(edge)), numbers(edge))
    for call in graph.calls:
        for edge in call.outputs:
            if edge.is_output:
                channels.keep(numbers(edge), "is an output")
    return channels


def _rule_of(layer: Any) -> Rule | None:
    """The rule for a layer or an operation; None for one that is not known.

    What a class of the user's does is not known, whatever it derives from.
    """
    kind = type(layer)
    if kind.__module__.split(".")[0] not in ("keras", "keras_trainkit"):
        return None
    if channels_first(layer):
        return None
    if not isinstance(layer, layers.Layer):
        return _OPERATIONS.get(kind.__name__)
    for base in kind.__mro__:
        if base in _RULES:
            return _RULES[base]
    return None


def _rule(*kinds: type) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def _activated(channels: Channels, layer, numbers: Numbers) -> Numbers:
    """Keep the channels together that an activation mixes."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", "")
    own = getattr(keras.activations, name, None) is activation and name not in _MIXING
    if activation is not None and not own:
        channels.keep(numbers, f"goes through the activation of {layer.name!r}")
    return numbers


@_rule(
    layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity,
    layers.RepeatVector, RReLU, *_POOLING, *_RESIZING, *DROPOUTS,
)  # fmt: skip
def _pass(channels, call, x, *_):
    return _activated(channels, call.layer, x)


@_rule(layers.Rescaling)
def _rescaling(channels, call, x):
    scalars = np.size(call.layer.scale) == np.size(call.layer.offset) == 1
    return x if scalars else None


@_rule(layers.BatchNormalization)
def _batch_norm(channels, call, x, *_):
    layer = call.layer
    if layer.axis not in (-1, len(call.inputs[0].shape) - 1):
        return None
    for weight in layer.weights:
        channels.cut(weight, {0: x})
    return x


@_rule(layers.PReLU)
def _prelu(channels, call, x):
    if call.layer.alpha.shape[-1] == len(x):
        channels.cut(call.layer.alpha, {-1: x})
    return x


@_rule(layers.Dense)
def _dense(channels, call, x):
    layer = call.layer
    out = channels.new(layer.units)
    channels.cut(layer.kernel, {0: x, 1: out}, units=1)
    return _put_out(channels, layer, "units", out)


def _put_out(channels: Channels, layer, width: str | None, out: Numbers) -> Numbers:
    channels.cut(layer.bias, {0: out})
    if width:
        channels.width(layer, width, out)
    # A layer that is used twice has the same units both times.
    before = channels.put_out.setdefault(layer, out)
    channels.join(before, out)
    return _activated(channels, layer, out)


@_rule(layers.EinsumDense)
def _einsum_dense(channels, call, x):
    layer = call.layer
    taken, kernel, out = einsum_labels(layer)
    names = [name for name in kernel if name in out]
    if kernel.count(taken[-1]) != 1 or taken[-1] in out or names != [out[-1]]:
        return None
    units = channels.new(layer.kernel.shape[kernel.index(out[-1])])
    axes = {kernel.index(taken[-1]): x, kernel.index(out[-1]): units}
    channels.cut(layer.kernel, axes, units=kernel.index(out[-1]))
    if layer.bias is not None and len(layer.bias.shape) != 1:
        return None
    shape = layer.get_config()["output_shape"]
    rest = tuple(shape[:-1]) if isinstance(shape, list | tuple) else None
    if rest is None:
        return _put_out(channels, layer, "output_shape", units)
    channels.width(layer, "output_shape", units, make=lambda count: (*rest, count))
    return _put_out(channels, layer, None, units)


@_rule(*CONVS)
def _conv(channels, call, x):
    layer = call.layer
    if layer.groups == 1:
        out = channels.new(layer.filters)
        channels.cut(layer.kernel, {-2: x, -1: out}, units=-1)
        return _put_out(channels, layer, "filters", out)
    if layer.groups == len(x):
        # Each channel by itself: a group goes with its channel.
        out = np.repeat(x, layer.filters // len(x))
        channels.cut(layer.kernel, {-1: out})
        channels.width(layer, "groups", x)
        channels.width(layer, "filters", out)
        channels.cut(layer.bias, {0: out})
        return _activated(channels, layer, out)
    # All groups lose the same places, so that they stay of one size.
    out = channels.new(layer.filters)
    places = x.reshape(layer.groups, -1), out.reshape(layer.groups, -1)
    for groups in places:
        for group in groups[1:]:
            channels.join(groups[0], group)
    channels.cut(layer.kernel, {-2: places[0][0], -1: out}, units=-1)
    return _put_out(channels, layer, "filters", out)


@_rule(*TRANSPOSED)
def _transposed(channels, call, x):
    out = channels.new(call.layer.filters)
    channels.cut(call.layer.kernel, {-1: x, -2: out}, units=-2)
    return _put_out(channels, call.layer, "filters", out)


@_rule(*DEPTHWISE)
def _depthwise(channels, call, x):
    layer = call.layer
    out = np.repeat(x, layer.depth_multiplier)
    channels.cut(layer.kernel, {-2: x})
    channels.cut(layer.bias, {0: out})
    return _activated(channels, layer, out)


@_rule(*SEPARABLE)
def _separable(channels, call, x):
    layer = call.layer
    out = channels.new(layer.filters)
    channels.cut(layer.depthwise_kernel, {-2: x})
    between = np.repeat(x, layer.depth_multiplier)
    channels.cut(layer.pointwise_kernel, {-2: between, -1: out}, units=-1)
    return _put_out(channels, layer, "filters", out)


@_rule(layers.Embedding)
def _embedding(channels, call, x):
    out = channels.new(call.layer.output_dim)
    channels.cut(call.layer.embeddings, {1: out}, units=1)
    channels.width(call.layer, "output_dim", out)
    channels.put_out.setdefault(call.layer, out)
    return out if call.layer.embeddings is not None else None


@_rule(*_GATES)
def _recurrent(channels, call, x, *states):
    layer, gates = call.layer, _GATES[type(call.layer)]
    if states or len(call.outputs) != 1:
        return None
    cell = layer.cell
    out = channels.new(layer.units)
    every = np.tile(out, gates)
    channels.cut(cell.kernel, {0: x, 1: every})
    channels.cut(cell.recurrent_kernel, {0: out, 1: every}, units=0)
    channels.cut(cell.bias, {-1: every})
    channels.width(layer, "units", out)
    channels.put_out.setdefault(layer, out)
    channels.join(channels.put_out[layer], out)
    return _activated(channels, layer, out)


@_rule(layers.MultiHeadAttention)
def _attention(channels, call, *taken):
    layer = call.layer
    if not 2 <= len(taken) <= 3 or len(call.outputs) != 1:
        return None
    query, value, key = taken[0], taken[1], taken[-1]
    heads = channels.new(layer.num_heads)
    for dense, x in (
        (layer.query_dense, query),
        (layer.key_dense, key),
        (layer.value_dense, value),
    ):
        channels.cut(dense.kernel, {0: x, 1: heads})
        channels.cut(dense.bias, {0: heads})
    channels.width(layer, "num_heads", heads)
    shape = layer.get_config().get("output_shape")
    if shape is not None and (np.size(shape) != 1):
        return None
    out = channels.new(layer.output_dense.kernel.shape[-1])
    channels.cut(layer.output_dense.kernel, {0: heads, -1: out}, units=0)
    channels.cut(layer.output_dense.bias, {0: out})
    if shape is None:
        # As wide as the query.
        channels.join(query, out)
    else:
        channels.width(layer, "output_shape", out)
    channels.put_out.setdefault(layer, heads)
    return out


@_rule(layers.Flatten)
def _flatten(channels, call, x):
    sizes = call.inputs[0].shape[1:-1]
    return None if None in sizes else np.tile(x, math.prod(sizes))


@_rule(layers.Reshape)
def _reshape(channels, call, x):
    before, after = call.inputs[0].shape[1:], call.outputs[0].shape[1:]
    if None in (*before, *after):
        return None
    places = np.broadcast_to(x, before).reshape(-1, after[-1])
    if (places != places[0]).any():
        return None
    out = places[0]
    rest = tuple(after[:-1])
    channels.width(call.layer, "target_shape", out, make=lambda count: (*rest, count))
    return out


@_rule(layers.Permute)
def _permute(channels, call, x):
    return x if call.layer.dims[-1] == len(call.layer.dims) else None


@_rule(*_MERGES)
def _merge(channels, call, *taken):
    if len({len(edge.shape) for edge in call.inputs}) != 1:
        return None
    widest = max(taken, key=len)
    for x in taken:
        if len(x) == len(widest):
            channels.join(widest, x)
        else:
            channels.keep(x, "is spread over other channels")
    return widest


@_rule(layers.Concatenate)
def _concatenate(channels, call, *taken):
    if call.layer.axis in (-1, len(call.inputs[0].shape) - 1):
        return np.concatenate(taken)
    return _merge(channels, call, *taken)


def _operation(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _OPERATIONS.update(dict.fromkeys(names, rule))
        return rule

    return register


_operation("Concatenate")(_concatenate)


@_operation(
    "Relu", "Relu6", "Sigmoid", "Silu", "Gelu", "Tanh", "Elu", "Selu", "LeakyRelu",
    "HardSigmoid", "HardSilu", "HardSwish", "Softplus",
)  # fmt: skip
def _elementwise(channels, call, x):
    return x


@_operation("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Divide", "TrueDivide")
def _arithmetic(channels, call, *taken):
    args, kwargs = arguments(call.node, [None] * len(taken))
    constants = [*args, *kwargs.values()]
    # A constant with an entry for each channel would have to be cut too.
    if any(c is not None and not isinstance(c, int | float) for c in constants):
        return None
    return _merge(channels, call, *taken)


@_operation("Pad")
def _pad(channels, call, x):
    widths = [list(pair) for pair in call.layer.pad_width]
    front, back = (channels.new(n) for n in widths[-1])
    if call.layer.mode != "constant" or len(widths) != len(call.inputs[0].shape):
        return None
    if not len(front) and not len(back):
        return x

    def make(count_front, count_back):
        return [*widths[:-1], [count_front, count_back]]

    channels.width(call.layer, "pad_width", front, back, make=make)
    return np.concatenate([front, x, back])
