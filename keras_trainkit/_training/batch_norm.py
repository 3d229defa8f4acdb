"""Recompute the statistics of BatchNorm layers."""

from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_integer,
    refusing,
    reject,
)
from keras_trainkit._keras import patched, sublayers
from keras_trainkit._training.batches import (
    batch_of,
    batches_of,
    is_arrays,
    training_arrays,
)
from keras_trainkit._training.state import weights_back_on_error
from keras_trainkit._training.trainable import restore_flags, trainable_flags


def recalibrate_batch_norm(
    model: keras.Model, x: Any, *, batch_size: int = 32
) -> list[str]:
    """Recompute the mean and variance of every BatchNorm layer, in place.

    After averaging weights (EMA, SWA), pruning or quantization, the moving averages no
    longer match the weights. This function runs each BatchNorm with batch statistics,
    as in training, and all other layers in inference mode. From the mean `m` and
    variance `v` of each batch it then sets `mean = avg(m)` and
    `variance = avg(v + m^2) - avg(m)^2`. Frozen BatchNorm layers are recomputed too.
    The optimizer and the trainable weights do not change.

    Args:
        model: A built model; only its BatchNorm statistics change.
        x: Inputs as arrays, or an iterable of batches: `x`, `(x, y)` or
            `(x, y, sample_weight)`.
        batch_size: Batch size if `x` is arrays; use the same as in training.

    Returns:
        The paths of the BatchNorm layers.

    Raises:
        ValueError: If the model is not built, has no BatchNorm, or there are no rows;
            the model is then unchanged.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> norm = keras.layers.BatchNormalization(name="norm")
        >>> model = keras.Sequential([keras.Input((2,)), norm])
        >>> len(kt.recalibrate_batch_norm(model, np.array([[1.0, 4.0], [3.0, 8.0]])))
        1
        >>> np.array(norm.moving_mean).tolist(), np.array(norm.moving_variance).tolist()
        ([2.0, 6.0], [1.0, 4.0])

    Reference:
        Y. Wu and J. Johnson, Rethinking "Batch" in BatchNorm (2021), arXiv:2105.07576,
        section 3.
    """
    if not isinstance(model, keras.Model) or not model.built:
        reject("model", getattr(model, "name", model), "a built Keras model")
    norms = [
        layer
        for layer in sublayers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not norms:
        reject("model", model.name, "a model with a BatchNormalization layer")
    seen = {layer: _Statistics() for layer in norms}
    flags = trainable_flags(model)
    with weights_back_on_error(model):
        try:
            # A frozen BatchNorm uses its moving averages even in training mode.
            for layer in norms:
                layer.trainable = True
            with patched(
                [change for layer in norms for change in _measured(layer, seen)]
            ):
                for batch in _inputs(x, batch_size):
                    with refusing("x", batch, "inputs that the model takes"):
                        model(batch, training=False)
        finally:
            restore_flags(flags)
        if not all(statistics.count for statistics in seen.values()):
            reject("x", type(x).__name__, "inputs that reach every BatchNorm")
        if not all(np.isfinite(s.mean + s.square).all() for s in seen.values()):
            reject(
                "x", type(x).__name__, "inputs that give each BatchNorm finite values"
            )
        for layer, statistics in seen.items():
            statistics.assign_to(layer)
    return [layer.path for layer in norms]


class _Statistics:
    """Sums over batches, in float64."""

    def __init__(self):
        self.count = 0
        self.mean = self.square = np.zeros(())

    def add(self, mean: np.ndarray, variance: np.ndarray) -> None:
        self.count += 1
        self.mean = self.mean + mean
        self.square = self.square + variance + mean**2

    def assign_to(self, layer: keras.layers.BatchNormalization) -> None:
        mean = self.mean / self.count
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(np.maximum(self.square / self.count - mean**2, 0))


def _measured(layer: Any, seen: dict[Any, _Statistics]) -> list[tuple]:
    """Return patches that make a BatchNorm use and record batch statistics.

    With a momentum of 0, its moving averages after a call are the statistics of that
    batch, with masks taken into account.
    """
    call = layer.call

    def measure(inputs, training=None, mask=None):
        outputs = call(inputs, training=True, mask=mask)
        mean, variance = layer.moving_mean, layer.moving_variance
        seen[layer].add(
            *(
                keras.ops.convert_to_numpy(v).astype(np.float64)
                for v in (mean, variance)
            )
        )
        return outputs

    return [(layer, "call", measure), (layer, "momentum", 0.0)]


def _inputs(x: Any, batch_size: int) -> Any:
    size = check_integer("batch_size", batch_size, minimum=1)
    if not is_arrays(x):
        yield from (batch[0] for batch in batches_of(x)[0])
        return
    arrays, rows = training_arrays(x, None, None)
    for start in range(0, rows, size):
        yield batch_of(arrays, slice(start, start + size))[0]
