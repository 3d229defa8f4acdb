"""Affine functions put into the weights of linear layers."""

import keras
import numpy as np
from keras import layers

from keras_trainkit._model.copy import remake
from keras_trainkit._model.kinds import (
    CONVOLUTIONS,
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    channels_first,
    einsum_labels,
)
from keras_trainkit.folding._affine import Affine, Kept

_LINEAR = (*CONVOLUTIONS, layers.Dense, layers.EinsumDense, layers.Embedding)

Weights = dict[str, np.ndarray]


def unwrap(layer):
    """The layer that a `TimeDistributed` applies to each step, or the layer itself."""
    return layer.layer if type(layer) is layers.TimeDistributed else layer


def is_linear(layer) -> bool:
    """Whether `after` or `before` can fold into a layer, its activation aside."""
    inner = unwrap(layer)
    return (
        type(inner) in _LINEAR
        and getattr(inner, "quantization_mode", None) is None
        and not getattr(inner, "lora_enabled", False)
    )


def read(layer) -> Weights:
    """The weights of a linear layer by name, in float64."""
    inner = unwrap(layer)
    if type(inner) is layers.Embedding:
        names = ["embeddings"]
    elif type(inner) in SEPARABLE:
        names = ["depthwise_kernel", "pointwise_kernel"]
    else:
        names = ["kernel"]
    if getattr(inner, "bias", None) is not None:
        names.append("bias")
    return {
        name: keras.ops.convert_to_numpy(getattr(inner, name).value).astype(np.float64)
        for name in names
    }


def make(layer, weights: Weights):
    """A new layer like `layer`, to be given `weights` by `write` once it is built."""
    inner = unwrap(layer)
    changes: dict = {}
    if "bias" in weights and hasattr(inner, "use_bias"):
        changes["use_bias"] = True
    if type(inner) is layers.EinsumDense and "bias" in weights:
        changes["bias_axes"] = _bias_axes(inner)
    new = remake(inner, **changes)
    if inner is layer:
        return new
    return layers.TimeDistributed(new, name=layer.name, dtype=layer.dtype_policy)


def write(layer, weights: Weights) -> None:
    """Set the weights of a layer that `make` made."""
    for name, value in weights.items():
        getattr(unwrap(layer), name).assign(value)


def fold_behind(layer, weights: Weights, affine: Affine, rank: int) -> Weights:
    """The weights with which a layer does `affine(layer(x))`.

    Args:
        layer: A linear layer.
        weights: Its weights.
        affine: A function of its output.
        rank: Rank of its output, with the batch axis.

    Raises:
        Kept: If no such weights exist.
    """
    inner = unwrap(layer)
    kind = type(inner)
    if (
        kind is not layers.Embedding
        and inner.activation is not keras.activations.linear
    ):
        name = getattr(inner.activation, "__name__", type(inner.activation).__name__)
        raise Kept(f"the activation {name} of {layer.name} is in between")
    if kind is layers.EinsumDense:
        return _einsum_behind(inner, weights, affine)
    vector = affine.vector(_channels(layer, rank) - 1)
    scale, shift = vector.scale, vector.shift
    if kind is layers.Embedding:
        return {"embeddings": weights["embeddings"] * scale + shift}
    bias = weights.get("bias", 0.0) * scale + shift
    if kind in SEPARABLE:
        pointwise = weights["pointwise_kernel"] * scale
        return {**weights, "pointwise_kernel": pointwise, "bias": bias + 0 * scale}
    kernel = weights["kernel"]
    if kind in TRANSPOSED:
        new = kernel * scale.reshape(-1, 1)
        units = kernel.shape[-2]
    elif kind in DEPTHWISE:
        units = kernel.shape[-2] * kernel.shape[-1]
        new = kernel * np.broadcast_to(scale, units).reshape(kernel.shape[-2:])
    else:
        new = kernel * scale
        units = kernel.shape[-1]
    return {"kernel": new, "bias": np.broadcast_to(bias, units)}


def fold_in_front(layer, weights: Weights, affine: Affine, rank: int) -> Weights:
    """The weights with which a layer does `layer(affine(x))`.

    Args:
        layer: A linear layer.
        weights: Its weights.
        affine: A function of its input.
        rank: Rank of its input, with the batch axis.

    Raises:
        Kept: If no such weights exist.
    """
    inner = unwrap(layer)
    kind = type(inner)
    if kind is layers.Embedding:
        raise Kept(f"{layer.name} takes whole numbers")
    if kind is layers.EinsumDense:
        return _einsum_in_front(inner, weights, affine)
    vector = affine.vector(_channels(layer, rank) - 1)
    if kind in CONVOLUTIONS:
        _check_borders(layer, inner, vector)
    scale, shift = vector.scale, vector.shift
    if kind is layers.Dense:
        kernel = weights["kernel"]
        scale, shift = (np.broadcast_to(a, kernel.shape[0]) for a in (scale, shift))
        bias = weights.get("bias", 0.0) + shift @ kernel
        return {"kernel": kernel * scale[:, np.newaxis], "bias": bias}
    if kind in SEPARABLE:
        depthwise, pointwise = weights["depthwise_kernel"], weights["pointwise_kernel"]
        constant = _space_sum(depthwise) * shift.reshape(-1, 1)
        matrix = pointwise.reshape(-1, pointwise.shape[-1])
        return {
            "depthwise_kernel": depthwise * scale.reshape(-1, 1),
            "pointwise_kernel": pointwise,
            "bias": weights.get("bias", 0.0) + constant.reshape(-1) @ matrix,
        }
    kernel = weights["kernel"]
    old = weights.get("bias", 0.0)
    if kind in TRANSPOSED:
        # Without a shift, by `_check_borders`.
        return {**weights, "kernel": kernel * scale}
    if kind in DEPTHWISE:
        constant = (_space_sum(kernel) * shift.reshape(-1, 1)).reshape(-1)
        return {"kernel": kernel * scale.reshape(-1, 1), "bias": old + constant}
    # Each group of filters sees its own share of the channels.
    groups, (taken, units) = inner.groups, kernel.shape[-2:]

    def for_filters(vector):
        parts = np.broadcast_to(vector, groups * taken).reshape(groups, taken)
        return np.repeat(parts.T, units // groups, axis=1)

    constant = (_space_sum(kernel) * for_filters(shift)).sum(0)
    return {"kernel": kernel * for_filters(scale), "bias": old + constant}


def _channels(layer, rank: int) -> int:
    """The axis of the channels, the batch axis counted."""
    inner = unwrap(layer)
    if channels_first(inner):
        return 1 if inner is layer else 2
    return rank - 1


def _space_sum(kernel: np.ndarray) -> np.ndarray:
    return kernel.sum(tuple(range(kernel.ndim - 2)))


def _check_borders(layer, inner, vector: Affine) -> None:
    """A padded zero is not shifted, so a shift must not meet padding."""
    if not vector.shift.any():
        return
    if type(inner) in TRANSPOSED:
        raise Kept(f"{layer.name} sums fewer terms at its borders")
    size = inner.kernel_size
    if inner.padding != "valid" and any(n > 1 for n in size):
        raise Kept(f"{layer.name} pads with zeros (padding={inner.padding!r})")


def _along(affine: Affine, labels: str, kernel: str) -> tuple[Affine, str]:
    """The arrays along those labels that the kernel has, and these labels."""
    count = len(labels)

    def take(array):
        array = np.asarray(array)
        if array.ndim > count:
            lead = array.shape[: array.ndim - count]
            if any(n > 1 for n in lead):
                raise Kept("its scales differ along axes that the kernel does not have")
            array = array.reshape(array.shape[array.ndim - count :])
        own = labels[count - array.ndim :]
        for axis, label in enumerate(own):
            if array.shape[axis] > 1 and label not in kernel:
                raise Kept("its scales differ along axes that the kernel does not have")
        index = tuple(slice(None) if label in kernel else 0 for label in own)
        return array[index]

    own = labels[-max(affine.scale.ndim, 1) :]
    return affine.map(take), "".join(label for label in own if label in kernel)


def _full(array: np.ndarray, labels: str, sizes: dict[str, int]) -> np.ndarray:
    return np.broadcast_to(array, [sizes[label] for label in labels])


def _einsum_behind(layer, weights: Weights, affine: Affine) -> Weights:
    _, kernel_labels, output = einsum_labels(layer)
    kernel = weights["kernel"]
    sizes = dict(zip(kernel_labels, kernel.shape, strict=True))
    part, own = _along(affine, output, kernel_labels)
    scale, shift = (_full(a, own, sizes) for a in (part.scale, part.shift))
    new = np.einsum(f"{kernel_labels},{own}->{kernel_labels}", kernel, scale)
    return {"kernel": new, "bias": _bias(layer, weights, scale, shift, own, output)}


def _einsum_in_front(layer, weights: Weights, affine: Affine) -> Weights:
    first, kernel_labels, output = einsum_labels(layer)
    kernel = weights["kernel"]
    sizes = dict(zip(kernel_labels, kernel.shape, strict=True))
    part, own = _along(affine, first, kernel_labels)
    scale, shift = (_full(a, own, sizes) for a in (part.scale, part.shift))
    new = np.einsum(f"{kernel_labels},{own}->{kernel_labels}", kernel, scale)
    kept = "".join(label for label in output if label in kernel_labels)
    constant = np.einsum(f"{kernel_labels},{own}->{kept}", kernel, shift)
    bias = _bias(layer, weights, np.ones_like(constant), constant, kept, output)
    return {"kernel": new, "bias": bias}


def _bias(layer, weights, scale, shift, own: str, output: str) -> np.ndarray:
    """`scale * bias + shift`, in the shape that `_bias_axes` asks for."""
    old = weights.get("bias", np.zeros(1))
    old = old.reshape([1] * (len(output) - old.ndim) + list(old.shape))
    scale, shift = (
        array.reshape([array.shape[own.index(c)] if c in own else 1 for c in output])
        for array in (scale, shift)
    )
    bias = old * scale + shift
    _, kernel_labels, _ = einsum_labels(layer)
    sizes = dict(zip(kernel_labels, weights["kernel"].shape, strict=True))
    full = [sizes.get(c, n) for c, n in zip(output, bias.shape, strict=True)]
    first = output.index(_bias_axes(layer)[0])
    return np.broadcast_to(bias, full).reshape(full[first:])


def _bias_axes(layer) -> str:
    """The labels of a bias for each unit, and those of the bias that there was."""
    _, kernel, output = einsum_labels(layer)
    return "".join(c for c in output if c in kernel or c in (layer.bias_axes or ""))
