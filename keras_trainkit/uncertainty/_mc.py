"""Monte Carlo dropout."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit import _graph, layers
from keras_trainkit._checks import check_integer, reject

# From each of Keras's dropouts to the one that stays on.
_ALWAYS_ON: dict[type, type] = {
    keras.layers.Dropout: layers.MCDropout,
    keras.layers.AlphaDropout: layers.MCAlphaDropout,
    keras.layers.GaussianDropout: layers.MCGaussianDropout,
    keras.layers.SpatialDropout1D: layers.MCSpatialDropout1D,
    keras.layers.SpatialDropout2D: layers.MCSpatialDropout2D,
    keras.layers.SpatialDropout3D: layers.MCSpatialDropout3D,
}


@dataclass(frozen=True, repr=False)
class MCPrediction:
    """What the samples say, for each input.

    Attributes:
        mean: Mean of the samples, `(rows, outputs)`.
        std: Standard deviation of the samples, `(rows, outputs)`.
        predictive_entropy: Entropy of the mean in nats, `(rows,)`: all the uncertainty.
        mutual_information: Entropy of the mean less the mean entropy of the samples, in
            nats, `(rows,)`: the part that the model's ignorance makes.
        variation_ratio: Fraction of the samples that vote for another class than most
            do, `(rows,)`.
        num_samples: Number of samples.
        samples: `(num_samples, rows, outputs)`, or None where they were not kept.
    """

    mean: np.ndarray
    std: np.ndarray
    predictive_entropy: np.ndarray
    mutual_information: np.ndarray
    variation_ratio: np.ndarray
    num_samples: int
    samples: np.ndarray | None = None

    def summary(self) -> str:
        """The shapes and the mean uncertainties in one line."""
        return (
            f"MCPrediction({self.num_samples} samples of {len(self.mean)} rows; in the "
            f"mean, predictive entropy {self.predictive_entropy.mean():.3g} nats, "
            f"mutual information {self.mutual_information.mean():.3g} nats)"
        )

    __repr__ = summary


def to_mc(model: keras.Model, seed: int | None = None) -> keras.Model:
    """Copy a model with every dropout layer active at inference.

    BatchNorm and all else stay in inference mode. The copy has the same weights and
    saves as `.keras`.

    Args:
        model: A Sequential or Functional model, with nested ones if need be; it is not
            changed.
        seed: Integer seed of the masks, from which each layer gets its own; by default
            the layers keep the seeds they have.

    Returns:
        The copy, not compiled.

    Raises:
        ValueError: If the model has no dropout layer, or is subclassed.

    Reference:
        Y. Gal and Z. Ghahramani, Dropout as a Bayesian Approximation (2016),
        arXiv:1506.02142.
    """
    if seed is not None:
        check_integer("seed", seed, minimum=0)
    if not _graph.is_graph(model):
        raise ValueError(
            "`model` must be a Functional or a built Sequential model; in a subclassed "
            "one, use kt.layers.MCDropout in place of Dropout. Received: "
            f"model={model!r} of type {type(model).__name__}"
        )
    live: list[str] = []

    def always_on(layer):
        inner = (
            layer.layer if isinstance(layer, keras.layers.TimeDistributed) else layer
        )
        cls: Any = _ALWAYS_ON.get(type(inner), type(inner))
        if cls not in _ALWAYS_ON.values():
            return None
        live.append(layer.name)
        config = inner.get_config()
        if seed is not None:
            sequence = np.random.SeedSequence([seed, len(live)])
            # Keras wants a signed 32-bit integer.
            config["seed"] = int(sequence.generate_state(1)[0] >> 1)
        new = cls.from_config(config)
        if inner is layer:
            return new
        return type(layer)(**{**layer.get_config(), "layer": new})

    copy, _ = _graph.rebuild(model, always_on)
    if not live:
        reject("model", model.name, "a model with at least one dropout layer")
    return copy


def mc_predict(
    model: keras.Model,
    x: np.ndarray,
    num_samples: int = 100,
    batch_size: int | None = None,
    seed: int | None = None,
    keep_samples: bool = False,
) -> MCPrediction:
    """Predict with dropout switched on, many times, and sum up the samples.

    Args:
        model: A classifier with dropout layers and a softmax output of shape
            `(rows, classes)`; it is not changed.
        x: Inputs of shape `(rows, *input_shape)`.
        num_samples: Number of samples.
        batch_size: Rows of a batch; 1024 by default.
        seed: Integer seed of the masks; another each time by default.
        keep_samples: Whether to keep all samples, which takes `num_samples` times the
            memory.

    Returns:
        An `MCPrediction`.

    Raises:
        ValueError: If an argument is wrong, or the model has no dropout layer.

    Reference:
        Y. Gal, Uncertainty in Deep Learning (2016), section 3.3.
    """
    check_integer("num_samples", num_samples, minimum=1)
    batch_size = check_integer("batch_size", batch_size or 1024, minimum=1)
    sampler = to_mc(model, seed)
    x = np.asarray(x)
    parts = [
        _sample_batch(sampler, x[start : start + batch_size], num_samples, keep_samples)
        for start in range(0, len(x), batch_size)
    ]
    mean, variance, entropy, votes, samples = (
        np.concatenate(part, axis=-2 if i == 4 and keep_samples else 0)
        for i, part in enumerate(zip(*parts, strict=True))
    )
    predictive = _entropy(mean)
    return MCPrediction(
        mean=mean,
        std=np.sqrt(variance),
        predictive_entropy=predictive,
        mutual_information=np.maximum(predictive - entropy, 0),
        variation_ratio=1 - votes.max(1) / num_samples,
        num_samples=num_samples,
        samples=samples if keep_samples else None,
    )


def _sample_batch(model, x, num_samples, keep_samples):
    """Moments by Welford's update, so that the samples need not be kept."""
    mean: Any = 0.0
    squares: Any = 0.0
    entropy: Any = 0.0
    votes: Any = 0.0
    kept = []
    for count in range(1, num_samples + 1):
        sample = np.asarray(model.predict_on_batch(x), np.float64)
        delta = sample - mean
        mean = mean + delta / count
        squares = squares + delta * (sample - mean)
        entropy = entropy + (_entropy(sample) - entropy) / count
        votes = votes + (sample == sample.max(1, keepdims=True))
        if keep_samples:
            kept.append(sample)
    return mean, squares / num_samples, entropy, votes, np.array(kept)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(-1)
