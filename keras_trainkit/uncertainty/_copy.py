"""Monte Carlo dropout."""

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
