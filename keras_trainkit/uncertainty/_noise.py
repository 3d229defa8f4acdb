"""Random masks from a counter-based hash, without random state.

A mask's bits depend only on the seed, the dropout, the sample, the input's row and the
element. They are therefore the same for any batch size, in a loop inside a compiled
graph and on every backend. They cost a few integer operations, far less than a float
from a generator.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from keras import layers, ops

from keras_trainkit._checks import reject
from keras_trainkit._keras import patched, sublayers
from keras_trainkit._model.dropout import PURE_DROPOUTS, in_training
from keras_trainkit._model.kinds import channels_first

_GOLDEN = 0x9E3779B9
# What Keras's AlphaDropout sets dropped units to: -scale * alpha of SELU.
_ALPHA = -1.7580993408473766


class NotOfRowsError(ValueError):
    """A dropout received a tensor that does not consist of the rows of the batch."""


class Noise:
    """The random numbers of one pass over every sample of every row.

    Args:
        seed: Two 32-bit words, `(2,)`.
        samples: The numbers of the samples, `(samples,)`.
        rows: The numbers of the rows, `(rows,)`; a single one if the rows share masks,
            or if a batch does not consist of independent rows.
        batch: Number of rows in the batch, if `rows` is a single number for all.
    """

    def __init__(self, seed: Any, samples: Any, rows: Any, batch: int | None = None):
        self._num_samples = samples.shape[0]
        self._num_rows = rows.shape[0]
        self._batch = batch or self._num_rows
        # Two keys of 32 bits, because among 10^6 keys of 32 bits some would be equal.
        self._keys = [
            (
                _mix(samples * _word(_GOLDEN) + seed[i])[:, None],
                _mix(_mix(rows * _word(_GOLDEN)) + seed[i])[None, :],
            )
            for i in (0, 1)
        ]
        self._calls = 0

    def drop(self, layer: Any, x: Any) -> Any:
        """Apply an active dropout layer to `(samples * rows, ...)`.

        A row of the batch may be several consecutive rows of `x`, as after a `Reshape`
        that moves the steps of a sequence into the batch axis.
        """
        rate = layer.rate
        shape = tuple(ops.shape(x)[1:])
        if rate == 1:
            return ops.zeros_like(x)
        if isinstance(layer, layers.GaussianDropout):
            stddev = math.sqrt(rate / (1 - rate))
            factor = 1 + stddev * self._normal(self._size(x, shape))
            return self._combine(x, ops.cast(factor, x.dtype), shape, ops.multiply)
        if isinstance(layer, layers.AlphaDropout):
            a = ((1 - rate) * (1 + rate * _ALPHA**2)) ** -0.5
            b = -a * _ALPHA * rate

            def combine(x, kept):
                return ops.where(kept, x, _ALPHA) * a + b

            shape = mask_shape(layer, shape)
            kept = self._kept(self._size(x, shape), rate)
            return self._combine(x, kept, shape, combine)
        return self.dropout(x, rate, mask_shape(layer, shape))

    def dropout(self, x: Any, rate: float, shape: tuple[int, ...]) -> Any:
        """Apply plain dropout, masks of `shape` per row; a size of 1 is broadcast."""
        if rate == 1:
            return ops.zeros_like(x)

        def combine(x, kept):
            factor = ops.cast(kept, x.dtype)
            factor *= 1 / (1 - rate)
            if tuple(factor.shape) != tuple(x.shape) or None in factor.shape:
                return x * factor
            # On PyTorch in place.
            factor *= x
            return factor

        kept = self._kept(self._size(x, shape), rate)
        return self._combine(x, kept, shape, combine)

    def _within(self, x: Any) -> tuple:
        """Return `(n,)` if a row of the batch is `n` rows of `x`; `()` if it is one."""
        rows = self._num_samples * self._batch
        count = ops.shape(x)[0]
        if isinstance(count, int) and count % rows:
            raise NotOfRowsError(f"{count} rows where the batch has {rows}")
        count = count // rows
        # A size that is not known yet, in a TensorFlow graph, may be 1 too.
        return () if isinstance(count, int) and count == 1 else (count,)

    def _size(self, x: Any, shape: tuple) -> Any:
        """Return how many numbers the mask of a row has."""
        return math.prod((*self._within(x), *shape))

    def _combine(self, x, noise, shape, function):
        """Apply noise of `(samples, rows, *shape)`; sizes of 1 are broadcast."""
        within, full = self._within(x), ops.shape(x)
        own = (self._num_samples, self._batch, *within, *full[1:])
        masks = (self._num_samples, self._num_rows, *within, *shape)
        noise = ops.reshape(noise, masks)
        return ops.reshape(function(ops.reshape(x, own), noise), full)

    def _kept(self, size: int, rate: float) -> Any:
        """Return booleans `(samples, rows, size)` that are false at the given rate.

        Each uses 16 bits, so the rate is exact to 2^-17.
        """
        words = self._words(-(-size // 2))
        if isinstance(size, int):
            halves = ops.view(words, "int16")
        else:
            # The same numbers if the size is not known yet, which `view` requires.
            low = ops.right_shift(ops.left_shift(words, 16), 16)
            halves = ops.stack([low, ops.right_shift(words, 16)], axis=-1)
        halves = ops.reshape(halves, (*words.shape[:2], -1))
        threshold = min(round(rate * 2**16) - 2**15, 2**15 - 1)
        return halves[..., :size] >= threshold

    def _normal(self, size: int) -> Any:
        """Return standard normal numbers, `(samples, rows, size)`."""
        # Strictly between -1 and 1: 24 bits and a half.
        middle = ops.cast(ops.right_shift(self._words(size), 8), "float32") + 0.5
        return ops.erfinv(middle / 2**23) * math.sqrt(2)

    def _words(self, size: int) -> Any:
        """Return random 32-bit words, `(samples, rows, size)`, new at each call."""
        self._calls += 1
        call = _word(self._calls * _GOLDEN)
        first, second = (_mix(sample + call) ^ row for sample, row in self._keys)
        count = ops.arange(size, dtype="int32") * _word(_GOLDEN)
        return _mix(first[..., None] + count, second[..., None])


def drops(layer: Any) -> bool:
    """Whether a layer itself, not a layer inside it, drops anything in training."""
    if isinstance(layer, PURE_DROPOUTS):
        return layer.rate > 0
    if isinstance(layer, layers.RNN):
        return bool(_dropping_cells(layer))
    if isinstance(layer, layers.Attention):
        return layer.dropout > 0
    return False


@contextmanager
def live(dropping: Sequence[Any], noise: Noise) -> Iterator[None]:
    """Make dropout layers active, with the random numbers of `noise`.

    Keras's dropouts have no argument for their random numbers, and its generators have
    a state, which a loop inside a compiled function cannot update.
    """
    changes = []
    for layer in dropping:
        if not {"call", "_apply_scores"}.isdisjoint(vars(layer)):
            raise RuntimeError(f"{layer!r} has its own `call` already")
        if isinstance(layer, layers.RNN):
            changes.append((layer, "call", in_training(layer.call)))
            changes += [
                (cell, "_create_dropout_mask", _cell_mask(cell, noise))
                for cell in _dropping_cells(layer)
            ]
        elif isinstance(layer, layers.Attention):
            changes.append((layer, "_apply_scores", _apply_scores(layer, noise)))
        else:
            changes.append((layer, "call", _drop(layer, noise)))
    with patched(changes):
        yield


def _drop(layer, noise):
    return lambda inputs, training=False: noise.drop(layer, inputs)


def _apply_scores(layer, noise):
    """The method of Keras's attention layers that drops scores, with our masks.

    These layers have no dropout layer to replace. Tested with Keras 3.15.
    """
    apply = layer._apply_scores

    def applied(scores, value, scores_mask=None, training=False):
        # The product without dropout is not used, and not computed when compiled.
        _, weights = apply(scores, value, scores_mask=scores_mask, training=False)
        shape = tuple(ops.shape(weights)[1:])
        weights = noise.dropout(weights, layer.dropout, shape)
        return ops.matmul(weights, value), weights

    return applied


def _cell_mask(cell, noise):
    def mask(step_input, rate):
        ones = ops.ones_like(step_input)
        return noise.dropout(ones, rate, tuple(ops.shape(ones)[1:]))

    def create(step_input, rate):
        count = getattr(cell, "dropout_mask_count", None)
        if count is None:
            return mask(step_input, rate)
        return [mask(step_input, rate) for _ in range(count)]

    return create


def _dropping_cells(layer):
    return [
        cell
        for cell in sublayers(layer.cell)
        if getattr(cell, "dropout", 0) or getattr(cell, "recurrent_dropout", 0)
    ]


def mask_shape(layer, shape):
    """Return the shape of a layer's mask without the batch axis; 1 if broadcast."""
    if isinstance(
        layer,
        (layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    ):
        steps = (1,) * (len(shape) - 1)
        return (shape[0], *steps) if channels_first(layer) else (*steps, shape[-1])
    if layer.noise_shape is None:
        return shape
    batch, *rest = layer.noise_shape
    if batch is not None:
        reject("noise_shape", layer.noise_shape, "(None, ...): each row needs its mask")
    return tuple(
        size if given is None else given
        for given, size in zip(rest, shape, strict=True)
    )


def _word(number: int) -> int:
    """Return the low 32 bits as a signed number."""
    return (number + 2**31) % 2**32 - 2**31


def _mix(h: Any, key: Any = None) -> Any:
    """Apply MurmurHash3's finalizer (Appleby 2011) to int32, mixing in a key.

    On PyTorch this works in place and overwrites `h`.
    """
    h ^= _shifted(h, 16)
    if key is not None:
        h ^= key
    h *= _word(0x85EBCA6B)
    h ^= _shifted(h, 13)
    h *= _word(0xC2B2AE35)
    h ^= _shifted(h, 16)
    return h


def _shifted(h, bits):
    """Shift right, filling with zeros."""
    shifted = ops.right_shift(h, bits)
    shifted &= 2 ** (32 - bits) - 1
    return shifted
