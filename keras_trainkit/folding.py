"""Fold BatchNorms into the layers beside them."""

from dataclasses import dataclass

import keras
import numpy as np

from keras_trainkit._checks import reject

_PRODUCERS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D,
              keras.layers.Conv3D)  # fmt: skip
# What a BatchNorm may look through to the Dense behind: they act on each feature alone.
_TRANSPARENT = (keras.layers.Dropout, keras.layers.Identity)
# The largest error relative to the largest output that is put down to rounding.
_TOLERANCE = 1e-5


@dataclass(frozen=True, repr=False)
class FoldResult:
    """A model with its BatchNorms folded.

    Attributes:
        model: The folded copy, a plain Keras model.
        folded: Names of the BatchNorm layers that are gone.
        kept: The BatchNorm layers that stay, with the reason.
        max_error: Largest difference of the outputs on random inputs, relative to the
            largest output.
    """

    model: keras.Model
    folded: tuple[str, ...]
    kept: dict[str, str]
    max_error: float

    def summary(self) -> str:
        """What was folded, what was not and why."""
        lines = [
            f"{len(self.folded)} BatchNorm layers folded, {len(self.kept)} kept, "
            f"largest relative error {self.max_error:.1e}"
        ]
        lines += [f"  kept {name}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)

    __repr__ = summary


def fold_batch_norm(model: keras.Model) -> FoldResult:
    """Fold the BatchNorms of a Sequential model into its Dense and Conv layers.

    At inference a BatchNorm is `a x + b` with constants for each channel, which goes
    into the linear layer in front of it (`W -> a W`, `c -> a c + b`), or into the Dense
    behind it (`W -> diag(a) W`, `c -> c + b W`), with dropout between them or not.

    Args:
        model: A built `keras.Sequential` without nested models; it is not changed.

    Returns:
        A `FoldResult`. Its model is not compiled.

    Raises:
        ValueError: If the model is not a Sequential one.
        RuntimeError: If the folded model's outputs differ from the model's.

    Example:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(8),
        ...     keras.layers.BatchNormalization(),
        ... ])
        >>> len(kt.folding.fold_batch_norm(model).model.layers)
        1

    Reference:
        B. Jacob et al., Quantization and Training of Neural Networks (2017),
        arXiv:1712.05877, equation 14.
    """
    if not isinstance(model, keras.Sequential) or not model.built:
        reject("model", type(model).__name__, "a built keras.Sequential")
    # Each layer with its weights by name; the BatchNorms drop out one by one.
    chain = [
        (layer, [np.asarray(w, np.float64) for w in layer.get_weights()])
        for layer in model.layers
    ]
    folded, kept = [], {}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        place = next(i for i, (other, _) in enumerate(chain) if other is layer)
        reason = _fold(chain, place)
        if reason:
            kept[layer.name] = reason
        else:
            folded.append(layer.name)
            del chain[place]
    copy = _rebuild(model, chain)
    return FoldResult(copy, tuple(folded), kept, _check(model, copy))


def _fold(chain: list, place: int) -> str | None:
    """Put the BatchNorm at `place` into a neighbour, or say why it cannot go."""
    norm, weights = chain[place]
    if norm.axis not in (-1, len(norm.input.shape) - 1):
        return f"it normalizes axis {norm.axis}"
    scale, shift = _scale_and_shift(norm, weights)
    if place and isinstance(chain[place - 1][0], _PRODUCERS):
        producer, (kernel, *bias) = chain[place - 1]
        if producer.activation is keras.activations.linear:
            old = bias[0] if bias else 0.0
            chain[place - 1] = producer, [kernel * scale, old * scale + shift]
            return None
    behind = place + 1
    while behind < len(chain) and isinstance(chain[behind][0], _TRANSPARENT):
        behind += 1
    if behind < len(chain) and isinstance(chain[behind][0], keras.layers.Dense):
        consumer, (kernel, *bias) = chain[behind]
        old = bias[0] if bias else 0.0
        new = [kernel * scale[:, np.newaxis], old + shift @ kernel]
        chain[behind] = consumer, new
        return None
    return "no linear layer stands beside it"


def _scale_and_shift(norm, weights) -> tuple[np.ndarray, np.ndarray]:
    *affine, mean, variance = weights
    gamma = affine.pop(0) if norm.scale else 1.0
    beta = affine.pop(0) if norm.center else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def _rebuild(model: keras.Sequential, chain: list) -> keras.Sequential:
    copy = keras.Sequential([keras.Input(model.input_shape[1:])], name=model.name)
    for layer, weights in chain:
        config = layer.get_config()
        if len(weights) > len(layer.get_weights()):
            config["use_bias"] = True
        new = type(layer).from_config(config)
        copy.add(new)
        new.set_weights(weights)
    return copy


def _check(model: keras.Model, copy: keras.Model) -> float:
    rng = np.random.default_rng(0)
    shape = [size or 8 for size in model.input_shape[1:]]
    x = rng.normal(size=(16, *shape)).astype("float32")
    before, after = (np.asarray(m.predict_on_batch(x)) for m in (model, copy))
    error = float(np.abs(before - after).max() / max(np.abs(before).max(), 1e-12))
    if not error <= _TOLERANCE:
        raise RuntimeError(
            f"The folded model's outputs differ by {error:.1e} of the largest, more "
            f"than rounding explains ({_TOLERANCE:.0e}); nothing was changed"
        )
    return error
