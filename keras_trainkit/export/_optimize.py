"""Optimize a model for inference: remove training-only layers and merge others."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._checks import check_choice, reject
from keras_trainkit._keras import sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit._model.compare import check_same, random_inputs
from keras_trainkit._model.copy import remake
from keras_trainkit._model.dropout import AlwaysOn
from keras_trainkit._model.graph import REMOVED, Call, Graph
from keras_trainkit._model.kinds import (
    CONVOLUTIONS,
    CONVS,
    DEPTHWISE,
    ONLY_IN_TRAINING,
    PADDINGS,
    channels_first,
)
from keras_trainkit.folding import fold_batch_norm

_DTYPES = (None, "float16", "bfloat16")
# The largest relative output error that rounding everything to the dtype may cause.
_ROUNDING = {"float16": 0.1, "bfloat16": 0.5}
_WITH_ACTIVATION = (layers.Dense, layers.EinsumDense, *CONVOLUTIONS)

# The old layer, its replacement, and the new weights (None: those of the old layer).
Change = tuple[Any, Any, list[np.ndarray] | None]


def optimize_for_inference(
    model: keras.Model,
    *,
    dtype: str | None = None,
    drop_mc: bool = False,
    x: Any = None,
) -> keras.Model:
    """Copy a model for inference: fold, merge, and remove training-only layers.

    BatchNorms are folded. Dropout, noise and similar layers are removed. An Activation,
    ReLU, ELU or Softmax becomes the `activation` of the layer before it. Zero padding
    before a convolution becomes its `padding="same"` if that is equivalent. Two Dense
    layers with nothing between them become one if that needs no more multiplications.
    The copy's outputs are compared with the model's.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        dtype: `"float16"` or `"bfloat16"`, to compute and store in; None to keep the
            model's dtypes.
        drop_mc: Whether to remove Monte Carlo dropout too. By default it is kept, since
            it is meant for inference.
        x: Inputs on which the two models are compared; random by default.

    Returns:
        A plain Keras model, not compiled.

    Raises:
        ValueError: If an argument is wrong.
        RuntimeError: If the outputs differ by more than the dtype's rounding.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.ZeroPadding2D(1),
        ...     keras.layers.Conv2D(4, 3),
        ...     keras.layers.BatchNormalization(),
        ...     keras.layers.ReLU(),
        ...     keras.layers.Dropout(0.2),
        ... ])
        >>> [layer.name for layer in kt.export.optimize_for_inference(model).layers]
        ['conv2d']
    """
    _graph.check_graph(model)
    check_choice("dtype", dtype, _DTYPES)
    small, _ = _graph.rebuild(model, lambda layer: _without_training(layer, drop_mc))
    if not small.layers:
        small = model
    if any(isinstance(layer, layers.BatchNormalization) for layer in sublayers(small)):
        small = fold_batch_norm(small, x).model
    while changes := next(filter(None, _merges(_graph.read(small))), None):
        small = _apply(small, changes)
    if x is None:
        x = random_inputs(model)
    check_same(model, small, x, "The optimized model")
    if dtype is None:
        return small
    cast = _cast(small, dtype)
    check_same(model, cast, x, f"The {dtype} model", at_least=_ROUNDING[dtype])
    return cast


def _without_training(layer: Any, drop_mc: bool) -> Any:
    if type(layer) in ONLY_IN_TRAINING:
        return REMOVED
    if drop_mc and isinstance(layer, AlwaysOn):
        if isinstance(layer, ONLY_IN_TRAINING):
            return REMOVED
        name = getattr(layer, "name", "")
        reject("drop_mc", drop_mc, f"False: {name} drops within a recurrent step")
    return None


def _merges(graph: Graph) -> Iterator[list[Change]]:
    """Yield the changes that can be made at once, one kind at a time."""
    once = {call.layer for call in graph.calls if len(graph.calls_of(call.layer)) == 1}
    for find in (_activation, _padding, _two_dense):
        changes: list[Change] = []
        touched: set[Any] = set()
        for call in graph.calls:
            before = call.inputs[0].producer if len(call.inputs) == 1 else None
            if (
                before is None
                or {call.layer, before.layer} - once
                or {call.layer, before.layer} & touched
                or len(call.inputs[0].consumers) != 1
                or call.inputs[0].is_output
            ):
                continue
            if found := find(before, call):
                changes += found
                touched |= {call.layer, before.layer}
        yield changes


def _apply(model: keras.Model, changes: list[Change]) -> keras.Model:
    replacements = {old: new for old, new, _ in changes}
    copy, pairs = _graph.rebuild(model, replacements.get)
    for old, new, weights in changes:
        if new is not REMOVED:
            pairs[old].set_weights(old.get_weights() if weights is None else weights)
    return copy


def _activation(before: Call, call: Call) -> list[Change] | None:
    layer = before.layer
    activation = _activation_of(call.layer)
    if (
        activation is None
        or type(layer) not in _WITH_ACTIVATION
        or layer.activation is not keras.activations.linear
        or layer.compute_dtype != call.layer.compute_dtype
    ):
        return None
    new = remake(layer, activation=activation)
    return [(layer, new, None), (call.layer, REMOVED, None)]


def _activation_of(layer) -> Any:
    """Return the `activation` argument equivalent to a layer; None if there is none."""
    kind = type(layer)
    if kind is layers.Activation:
        return layer.activation
    if kind is layers.ReLU and not layer.negative_slope and not layer.threshold:
        return {None: "relu", 6: "relu6"}.get(layer.max_value)
    if kind is layers.ELU and layer.alpha == 1:
        return "elu"
    if kind is layers.LeakyReLU and np.isclose(layer.negative_slope, 0.2):
        return "leaky_relu"
    if kind is layers.Softmax and layer.axis == -1:
        return "softmax"
    return None


def _padding(before: Call, call: Call) -> list[Change] | None:
    pad, conv = before.layer, call.layer
    if (
        type(pad) not in PADDINGS
        or type(conv) not in (*CONVS, *DEPTHWISE)
        or conv.padding != "valid"
        or channels_first(conv)
        or channels_first(pad)
    ):
        return None
    sizes = before.inputs[0].shape[1:-1]
    given = np.reshape(pad.padding, (-1, 2))
    for size, kernel, stride, dilation, pair in zip(
        sizes, conv.kernel_size, conv.strides, conv.dilation_rate, given, strict=True
    ):
        if size is None and stride > 1:
            return None
        reach = (kernel - 1) * dilation + 1
        steps = 0 if size is None else (-(-size // stride) - 1) * stride - size
        total = max(reach - 1 if size is None else steps + reach, 0)
        if (total // 2, total - total // 2) != tuple(pair):
            return None
    return [(conv, remake(conv, padding="same"), None), (pad, REMOVED, None)]


def _two_dense(before: Call, call: Call) -> list[Change] | None:
    first, second = before.layer, call.layer
    if (
        type(first) is not layers.Dense
        or type(second) is not layers.Dense
        or first.activation is not keras.activations.linear
        or first.dtype_policy.name != second.dtype_policy.name
    ):
        return None
    a, b = (_array(layer.kernel) for layer in (first, second))
    if a.shape[0] * b.shape[1] > a.size + b.size:
        # The two layers are a low-rank factorization that needs fewer products.
        return None
    weights = [a @ b]
    bias = np.zeros(b.shape[1])
    for layer, kernel in ((first, b), (second, np.eye(b.shape[1]))):
        if layer.use_bias:
            bias = bias + _array(layer.bias) @ kernel
    if first.use_bias or second.use_bias:
        weights.append(bias)
    new = remake(second, use_bias=len(weights) == 2)
    return [(first, REMOVED, None), (second, new, weights)]


def _array(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")


def _cast(model: keras.Model, dtype: str) -> keras.Model:
    """Copy a model with all weights and activations in another dtype."""
    changed: Callable[[Any], Any] = lambda layer: (  # noqa: E731
        remake(layer, dtype=dtype)
        if isinstance(layer, layers.Layer) and "float" in layer.compute_dtype
        else None
    )
    copy, pairs = _graph.rebuild(model, changed)
    for old, new in pairs.items():
        if not isinstance(old, keras.Model) and getattr(old, "weights", None):
            new.set_weights(old.get_weights())
    return copy
