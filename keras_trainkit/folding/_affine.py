"""Elementwise `scale * x + shift`, and what it may be moved through."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from keras_trainkit._model.kinds import ONLY_IN_TRAINING, channel_axis, channels_first


class Kept(Exception):
    """A BatchNorm cannot go; the message says why."""


@dataclass(frozen=True)
class Affine:
    """`scale * x + shift` on a tensor `x`.

    Both arrays have the rank of `x` less its batch axis, and the size 1 along each axis
    on which they do not depend.
    """

    scale: np.ndarray
    shift: np.ndarray

    def map(self, function) -> "Affine":
        """The same function of both arrays."""
        return Affine(function(self.scale), function(self.shift))

    def vector(self, axis: int) -> "Affine":
        """Both arrays as vectors along `axis`, on which alone they depend."""

        def take(array):
            array = _narrow(array)
            axis_ = axis % array.ndim
            if any(n > 1 for i, n in enumerate(array.shape) if i != axis_):
                raise Kept("its scales differ along other axes than the channels")
            return array.reshape(-1)

        return self.map(take)


def of_batch_norm(norm: layers.BatchNormalization, shape: tuple) -> Affine:
    """What a BatchNorm does at inference to a tensor of a shape with the batch axis."""
    weights = [np.asarray(w, np.float64) for w in norm.get_weights()]
    *affine, mean, variance = weights
    gamma = affine.pop(0) if norm.scale else 1.0
    beta = affine.pop(0) if norm.center else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    sizes = [1] * len(shape)
    sizes[norm.axis] = -1
    return Affine(scale, beta - mean * scale).map(lambda a: a.reshape(sizes[1:]))


_AVERAGES = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
)
_MAXIMA = (layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
_GLOBAL_AVERAGES = (
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)
_GLOBAL_MAXIMA = (
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)


def is_transparent(layer) -> bool:
    """Whether an affine function can be moved through a layer, some of them at least.

    A subclass may do anything, so exact classes count.
    """
    kind = type(layer)
    if kind is layers.Activation:
        return layer.activation is keras.activations.linear
    shapes = (layers.Flatten, layers.Reshape, layers.Permute)
    pools = (*_AVERAGES, *_MAXIMA, *_GLOBAL_AVERAGES, *_GLOBAL_MAXIMA)
    return kind in (*ONLY_IN_TRAINING, *shapes, *pools)


def backward(affine: Affine, layer, before: tuple, after: tuple) -> Affine:
    """The function in front of a layer that does what `affine` does behind it.

    Args:
        affine: The function on the layer's output.
        layer: A layer for which `is_transparent` holds.
        before: Shape of its input, with the batch axis.
        after: Shape of its output.
    """
    kind = type(layer)
    if kind is layers.Permute:
        return affine.map(lambda a: np.transpose(a, np.argsort(_order(layer))))
    if kind in (layers.Flatten, layers.Reshape):
        _check_known(layer, before, after)
        inside = _flattened(layer, before)

        def unflatten(array):
            array = np.broadcast_to(array, after[1:]).reshape(inside)
            if inside != before[1:]:
                array = np.moveaxis(array, -1, 0)
            return _narrow(array)

        return affine.map(unflatten)
    _check_pooling(affine, layer)
    if kind in (*_GLOBAL_AVERAGES, *_GLOBAL_MAXIMA) and not layer.keepdims:
        channel = channel_axis(layer, len(before)) - 1
        sizes = [1] * (len(before) - 1)
        sizes[channel] = -1
        return affine.map(lambda a: a.reshape(sizes))
    return affine


def forward(affine: Affine, layer, before: tuple, after: tuple) -> Affine:
    """The function behind a layer that does what `affine` does in front of it.

    Args:
        affine: The function on the layer's input.
        layer: A layer for which `is_transparent` holds.
        before: Shape of its input, with the batch axis.
        after: Shape of its output.
    """
    kind = type(layer)
    if kind is layers.Permute:
        return affine.map(lambda a: np.transpose(a, _order(layer)))
    if kind in (layers.Flatten, layers.Reshape):
        _check_known(layer, before, after)
        inside = _flattened(layer, before)

        def flatten(array):
            array = np.broadcast_to(array, before[1:])
            if inside != before[1:]:
                array = np.moveaxis(array, 0, -1)
            return array.reshape(after[1:])

        return affine.map(flatten)
    _check_pooling(affine, layer)
    if kind in (*_GLOBAL_AVERAGES, *_GLOBAL_MAXIMA) and not layer.keepdims:
        return affine.map(lambda a: a.reshape(-1))
    return affine


def _order(layer: layers.Permute) -> list[int]:
    return [axis - 1 for axis in layer.dims]


def _check_known(layer, before, after) -> None:
    if None in (*before[1:], *after[1:]):
        raise Kept(f"{layer.name} is in between, and the size of its input is open")


def _flattened(layer, before: tuple) -> tuple:
    """The shape that a layer reshapes, where Flatten puts the channels last first."""
    if channels_first(layer) and len(before) > 2:
        return (*before[2:], before[1])
    return before[1:]


def _check_pooling(affine: Affine, layer) -> None:
    """Pooling needs the same function at each place, and a maximum rising ones."""
    kind = type(layer)
    if kind in ONLY_IN_TRAINING or kind is layers.Activation:
        return
    rank = max(affine.scale.ndim, affine.shift.ndim)
    if rank > 1:
        affine.vector(channel_axis(layer, rank + 1) - 1)
    if kind in (*_MAXIMA, *_GLOBAL_MAXIMA) and (affine.scale < 0).any():
        raise Kept(f"{layer.name} is in between, and some of its scales are negative")


def _narrow(array: np.ndarray) -> np.ndarray:
    """The array with the size 1 along each axis on which it is constant."""
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis) if size else array
        if size > 1 and (array == first).all():
            array = first
    return array
