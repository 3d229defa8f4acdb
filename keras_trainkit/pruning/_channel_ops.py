"""Rules for `prune_channels`: merging and reshaping layers, and `keras.ops`."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._keras import arguments
from keras_trainkit._model.graph import Call
from keras_trainkit._model.kinds import channels_first
from keras_trainkit.pruning._channel_groups import (
    POSITIONS,
    Channels,
    Lay,
    Left,
    Numbers,
)
from keras_trainkit.pruning._channel_trace import described, rule

_MERGES = (
    layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum,
    layers.Minimum,
)  # fmt: skip
_ELEMENTWISE = (
    "Relu Relu6 Sigmoid Silu Gelu Tanh Elu Selu LeakyRelu HardSigmoid HardSilu "
    "HardTanh Softplus Softsign Celu LogSigmoid Squareplus SparsePlus TanhShrink "
    "SoftShrink HardShrink Threshold Abs Absolute Exp Expm1 Square Sqrt Rsqrt "
    "Reciprocal Negative Log Log1p Sin Cos Sign Floor Ceil Round Erf Clip Cast "
    "StopGradient NanToNum LogicalNot Isnan Isfinite ZerosLike OnesLike"
).split()
_ARITHMETIC = (
    "Add Subtract Multiply Maximum Minimum Divide TrueDivide DivideNoNan FloorDivide "
    "Power Mod Where LogicalAnd LogicalOr LogicalXor Equal NotEqual Greater "
    "GreaterEqual Less LessEqual"
).split()


@rule(*_ELEMENTWISE)
def _elementwise(channels, call, x):
    return x


@rule(*_MERGES)
def _merge(channels: Channels, call: Call, *taken: Lay) -> Lay:
    shapes = [edge.shape for edge in call.inputs]
    return _brought(channels, taken, shapes, call.outputs[0].shape)


def _brought(channels: Channels, lays, shapes, sizes: tuple) -> Lay:
    """Return the layout of tensors that are broadcast to one shape."""
    out: list[Numbers | str] = [POSITIONS] * len(sizes)
    for back in range(1, len(sizes) + 1):
        along = []
        for lay, shape in zip(lays, shapes, strict=True):
            if len(lay) >= back and shape[-back] == 1 != sizes[-back]:
                channels.keep(lay[-back], "is spread over other channels")
            elif len(lay) >= back:
                along.append(lay[-back])
        out[-back] = _met(channels, along)
    return tuple(out)


def _met(channels: Channels, along: list[Numbers | str]) -> Numbers | str:
    if not along:
        return POSITIONS
    first, *rest = along
    for numbers in rest:
        first = channels.meet(first, numbers)
    return first


@rule(*_ARITHMETIC)
def _arithmetic(channels, call, *taken):
    args, kwargs = arguments(call.node, [None] * len(taken))
    out = _merge(channels, call, *taken)
    if any(_entries(value, out) for value in (*args, *kwargs.values())):

        def change(left: Left, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            cut = [_without(value, out, left) for value in args]
            return tuple(cut), {k: _without(v, out, left) for k, v in kwargs.items()}

        channels.changes[call.layer] = change
    return out


def _entries(value: Any, lay: Lay) -> dict[int, Numbers]:
    """Return the axes of a constant with an entry per channel, as negative indices."""
    if value is None or isinstance(value, keras.KerasTensor):
        return {}
    shape = np.shape(value)
    return {
        -back: numbers
        for back in range(1, min(len(shape), len(lay)) + 1)
        if not isinstance(numbers := lay[-back], str) and shape[-back] > 1
    }


def _without(value: Any, lay: Lay, left: Left) -> Any:
    axes = _entries(value, lay)
    if not axes:
        return value
    array = keras.ops.convert_to_numpy(value)
    for axis, numbers in axes.items():
        array = np.compress(left(numbers), array, axis)
    dtype = keras.backend.standardize_dtype(getattr(value, "dtype", array.dtype))
    return keras.ops.convert_to_tensor(array, dtype)


@rule(layers.Concatenate, "Concatenate")
def _concatenate(channels, call, *taken):
    axis = call.layer.axis % len(taken[0])
    out = list(_merge(channels, call, *[_open(lay, axis) for lay in taken]))
    along = [lay[axis] for lay in taken]
    if all(isinstance(numbers, str) for numbers in along):
        out[axis] = along[0]
        return tuple(out)
    sizes = [edge.shape[axis] for edge in call.inputs]
    if None in sizes:
        return None
    out[axis] = np.concatenate(
        [
            channels.new(size, numbers) if isinstance(numbers, str) else numbers
            for size, numbers in zip(sizes, along, strict=True)
        ]
    )
    return tuple(out)


def _open(lay: Lay, axis: int) -> Lay:
    return (*lay[:axis], POSITIONS, *lay[axis + 1 :])


@rule("Stack")
def _stack(channels, call, *taken):
    axis = call.layer.axis % (len(taken[0]) + 1)
    out = taken[0]
    for lay in taken[1:]:
        out = tuple(map(channels.meet, out, lay))
    return (*out[:axis], POSITIONS, *out[axis:])


@rule(layers.Dot)
def _dot(channels, call, a, b):
    axes = call.layer.axes
    first, second = (axes, axes) if isinstance(axes, int) else axes
    first, second = first % len(a), second % len(b)
    channels.meet(a[first], b[second])
    rest = [numbers for axis, numbers in enumerate(a) if axis != first]
    rest += [numbers for axis, numbers in enumerate(b) if axis not in (0, second)]
    return tuple(rest) if len(rest) > 1 else (rest[0], POSITIONS)


@rule("Matmul")
def _matmul(channels, call, *taken):
    if len(taken) != 2 or any(len(lay) < 2 for lay in taken):
        return None
    a, b = taken
    channels.meet(a[-1], b[-2])
    lays = [lay[:-2] for lay in taken]
    shapes = [edge.shape[:-2] for edge in call.inputs]
    lead = _brought(channels, lays, shapes, call.outputs[0].shape[:-2])
    return (*lead, a[-2], b[-1])


@rule("Einsum")
def _einsum(channels, call, *taken):
    operands, output = call.layer.subscripts.replace(" ", "").split("->")
    terms = operands.split(",")
    if "." in call.layer.subscripts or len(terms) != len(taken):
        return None
    along: dict[str, Numbers | str] = {}
    for term, lay in zip(terms, taken, strict=True):
        for label, numbers in zip(term, lay, strict=True):
            along[label] = channels.meet(along.get(label, numbers), numbers)
    return tuple(along[label] for label in output)


@rule("Softmax", "LogSoftmax", "Cumsum", "Flip", "Roll", "Normalize")
def _along_an_axis(channels, call, x):
    axis = getattr(call.layer, "axis", None)
    if axis is None:
        return None
    if type(call.layer).__name__ == "Normalize":
        return x
    axes = np.ravel(axis) % len(x)
    free = [i for i in range(len(x)) if i not in axes]
    return channels.only(x, free, f"goes along {described(call.layer)}")


@rule(
    "Mean", "Sum", "Max", "Min", "Amax", "Amin", "Var", "Std", "Any", "All", "Median",
    "Logsumexp", "CountNonzero", "Moments",
)  # fmt: skip
def _reduction(channels, call, x):
    """Reduce over the channels that remain."""
    layer = call.layer
    axis = layer.axes if hasattr(layer, "axes") else layer.axis
    axes = range(len(x)) if axis is None else np.ravel(axis) % len(x)
    if getattr(layer, "keepdims", False):
        out = tuple(POSITIONS if i in axes else n for i, n in enumerate(x))
    else:
        out = tuple(n for i, n in enumerate(x) if i not in axes)
    return [out] * len(call.outputs)


@rule(layers.Permute)
def _permute(channels, call, x):
    return tuple(x[axis] for axis in (0, *call.layer.dims))


@rule("Transpose", "Swapaxes", "Moveaxis")
def _transpose(channels, call, x):
    # Let NumPy move the axes of an array whose sizes number its axes.
    config = {k: v for k, v in call.layer.get_config().items() if k != "name"}
    name = type(call.layer).__name__.lower()
    moved = getattr(np, name)(np.empty(range(len(x))), **config)
    return tuple(x[axis] for axis in moved.shape)


@rule("ExpandDims")
def _expand_dims(channels, call, x):
    rank = len(call.outputs[0].shape)
    axes = np.ravel(call.layer.axis) % rank
    rest = iter(x)
    return tuple(POSITIONS if axis in axes else next(rest) for axis in range(rank))


@rule("Squeeze")
def _squeeze(channels, call, x):
    shape, axis = call.inputs[0].shape, call.layer.axis
    axes = (
        [i for i, n in enumerate(shape) if n == 1]
        if axis is None
        else np.ravel(axis) % len(x)
    )
    channels.only(x, [i for i in range(len(x)) if i not in axes])
    return tuple(numbers for i, numbers in enumerate(x) if i not in axes)


@rule(layers.Flatten)
def _flatten(channels, call, x):
    before = call.inputs[0].shape
    if channels_first(call.layer) and len(x) > 2:
        x, before = ((*v[:1], *v[2:], v[1]) for v in (x, before))
    return _reshaped(channels, x, before, call.outputs[0].shape)


@rule(layers.Reshape, "Reshape")
def _reshape(channels, call, x):
    is_layer = isinstance(call.layer, layers.Layer)
    name = "target_shape" if is_layer else "newshape"
    out = _reshaped(channels, x, call.inputs[0].shape, call.outputs[0].shape)
    told = list(call.layer.get_config()[name])
    along = list(out or ())[is_layer:]
    own = {i: n for i, n in enumerate(along) if not isinstance(n, str)}

    def make(*counts: int) -> list:
        sizes = dict(zip(own, counts, strict=True))
        return [sizes.get(i, size) for i, size in enumerate(told)]

    if own:
        channels.width(call.layer, name, *own.values(), make=make)
    return out


def _reshaped(channels: Channels, lay: Lay, before: tuple, after: tuple) -> Lay | None:
    """Return the layout of a reshaped tensor; None if unknown."""
    sizes = _sizes(before, after)
    out: list[Numbers | str] = [POSITIONS] * len(after)
    for axis, numbers in enumerate(lay):
        if isinstance(numbers, str):
            continue
        # With an unknown size after the channels, their new positions are unknown.
        if sizes is None or None in before[axis:]:
            return None
        shape = [len(numbers) if i == axis else 1 for i in range(len(lay))]
        places = np.broadcast_to(numbers.reshape(shape), sizes[0]).reshape(sizes[1])
        target, own = _settled(channels, places)
        if None in after[target:]:
            return None
        if isinstance(out[target], str):
            out[target] = own
        else:
            channels.keep(numbers, "shares an axis with other channels")
    return tuple(out)


def _sizes(before: tuple, after: tuple) -> tuple[list[int], list[int]] | None:
    """Return both shapes with unknown sizes filled in so that their totals match."""
    closed = [[size or 1 for size in shape] for shape in (before, after)]
    totals = [math.prod(shape) for shape in closed]
    if totals[0] == totals[1]:
        return closed[0], closed[1]
    few = int(totals[1] < totals[0])
    factor, rest = divmod(totals[1 - few], totals[few])
    if rest or (before, after)[few][0] is not None:
        return None
    closed[few][0] *= factor
    return closed[0], closed[1]


def _settled(channels: Channels, places: np.ndarray) -> tuple[int, Numbers | str]:
    """Choose one axis for the channels of a tensor; return it and its channels.

    Channels may vary along several axes, for example when the units of a Dense are
    reshaped to heads. Then the largest of these axes is chosen, and the channels that
    share a position along it are merged.
    """
    varied = [
        axis
        for axis, size in enumerate(places.shape)
        if size > 1 and (places.take([0], axis) != places).any()
    ]
    if not varied:
        channels.keep(places.reshape(-1)[:1], "is the only one of its axis")
        return places.ndim - 1, POSITIONS
    target = max(varied, key=lambda axis: places.shape[axis])
    index = tuple(slice(None) if i in varied else 0 for i in range(places.ndim))
    columns = np.moveaxis(places[index], varied.index(target), 0)
    columns = columns.reshape(len(columns), -1)
    for column in columns.T[1:]:
        channels.join(columns[:, 0], column)
    return target, columns[:, 0]


@rule("Split")
def _split(channels, call, x):
    layer, axis = call.layer, call.layer.axis % len(x)
    told, numbers = layer.indices_or_sections, x[axis]
    if isinstance(numbers, str):
        return [x] * len(call.outputs)
    parts = np.split(numbers, told if isinstance(told, int) else list(told))
    if isinstance(told, int):
        # Remove the same number from each part, so that all keep one size.
        for part in parts[1:]:
            channels.join(parts[0], part)
    else:
        channels.width(
            layer,
            "indices_or_sections",
            *parts[:-1],
            make=lambda *counts: np.cumsum(counts).tolist(),
        )
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


@rule("GetItem")
def _get_item(channels, call, x):
    args, kwargs = arguments(call.node, [None])
    key = kwargs["key"] if "key" in kwargs else args[1]
    keys = _full_key(key, len(x))
    if keys is None:
        return None
    out: list[Numbers | str] = []
    rest = iter(x)
    # By position in the key: the channels before the selected ones, and the selected.
    cut: dict[int, tuple[Numbers, Numbers]] = {}
    for place, part in enumerate(keys):
        numbers = POSITIONS if part is None else next(rest)
        own: Numbers | str = numbers
        if isinstance(numbers, np.ndarray) and part != slice(None):
            start, stop, step = _places(part, len(numbers))
            own = numbers[start:stop:step]
            cut[place] = numbers[:start], own
            if isinstance(part, int):
                channels.keep(own, f"is picked by {described(call.layer)}")
            if step != 1:
                channels.keep(numbers, f"is picked from by {described(call.layer)}")
                del cut[place]
        if not isinstance(part, int):
            out.append(own)

    def change(left: Left, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        new = list(keys)
        for place, (front, own) in cut.items():
            start = int(left(front).sum())
            stop = start + int(left(own).sum())
            new[place] = start if isinstance(keys[place], int) else slice(start, stop)
        return (args[0] if args else kwargs["x"], tuple(new)), {}

    if cut:
        channels.changes[call.layer] = change
    return tuple(out)


def _places(part: int | slice, size: int) -> tuple[int, int | None, int]:
    """Return the start, stop and step of a part of a key."""
    if isinstance(part, int):
        return part % size, part % size + 1, 1
    start, stop, step = part.indices(size)
    return start, None if stop < 0 else stop, step


def _full_key(key: Any, rank: int) -> list | None:
    """Return a key with a slice for each omitted axis; None if it has arrays."""
    keys = list(key) if isinstance(key, tuple | list) else [key]
    if not all(k is None or isinstance(k, int | slice | type(...)) for k in keys):
        return None
    missing = rank - sum(k is not None and k is not ... for k in keys)
    at = next((i for i, k in enumerate(keys) if k is ...), len(keys))
    return [*keys[:at], *[slice(None)] * missing, *keys[at + 1 :]]


@rule("Pad")
def _pad(channels, call, x):
    widths = [list(pair) for pair in call.layer.pad_width]
    out, told = list(x), []
    for axis, numbers in enumerate(x):
        if isinstance(numbers, str) or not any(widths[axis]):
            continue
        if call.layer.mode != "constant":
            return None
        front, back = (channels.new(n) for n in widths[axis])
        out[axis] = np.concatenate([front, numbers, back])
        told.append((axis, front, back))

    def make(*counts: int) -> list:
        new = [list(pair) for pair in widths]
        for i, (axis, _, _) in enumerate(told):
            new[axis] = list(counts[2 * i : 2 * i + 2])
        return new

    if told:
        numbers = [n for _, front, back in told for n in (front, back)]
        channels.width(call.layer, "pad_width", *numbers, make=make)
    return tuple(out)
