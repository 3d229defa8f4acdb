"""What keeps a network from normalizing itself (Klambauer et al. 2017)."""

import keras
import numpy as np
from keras import layers as kinds

# How far from mean 0 and standard deviation 1 an input counts as standardized.
_MEAN, _STD = 0.2, (0.7, 1.4)
_HARMLESS = (
    kinds.AlphaDropout,
    kinds.Flatten,
    kinds.Reshape,
    kinds.InputLayer,
    kinds.Activation,
    kinds.Rescaling,
    kinds.Normalization,
    kinds.Identity,
)


def standardization_problem(x: np.ndarray) -> str | None:
    """Why inputs are not standardized; None if they are."""
    mean, std = float(np.mean(x)), float(np.std(x))
    if abs(mean) <= _MEAN and _STD[0] < std < _STD[1]:
        return None
    return f"mean {mean:.3g} and standard deviation {std:.3g}, not 0 and 1"


def layer_problem(layer: keras.layers.Layer) -> str | None:
    """What the kind of a layer breaks; None if nothing."""
    if isinstance(layer, kinds.BatchNormalization | kinds.LayerNormalization):
        return "a normalization layer"
    # AlphaDropout is none of its subclasses.
    if isinstance(layer, kinds.Dropout):
        return "plain dropout; AlphaDropout keeps mean and variance"
    if isinstance(layer, kinds.Add | kinds.Concatenate | kinds.Average):
        return "skip connections"
    if isinstance(layer, (kinds.Dense, *_HARMLESS)):
        return None
    return "any layer but Dense (with AlphaDropout and Flatten)"
