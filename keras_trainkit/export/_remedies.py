"""Suggest remedies for operations that an export format does not support."""

import re
from collections.abc import Iterable

import keras

from keras_trainkit._keras import sublayers

# Keyed by a part of the operation's name.
_REMEDIES = {
    "TensorList": "give recurrent layers a fixed number of steps, such as "
    "keras.Input((steps, features))",
    "Lookup": "take lookup layers out of the model and apply them to its data",
    "HashTable": "take lookup layers out of the model and apply them to its data",
    "String": "take layers for strings out of the model and apply them to its data",
    "Bicubic": 'resize with interpolation="bilinear" or "nearest"',
    "ScaleAndTranslate": 'resize with interpolation="bilinear" or "nearest"',
    "FFT": "apply Fourier transforms to the model's data, or multiply by their matrix",
    "Complex": "apply Fourier transforms to the model's data, or multiply by their "
    "matrix",
    "While": "leave out the layer that loops, such as a CTC loss: export "
    "keras.Model of the inputs and the tensor in front of it",
    "Random": "leave out what is random at inference",
}
_OTHERS = "exchange what makes them for other layers or operations"


def describe(model: keras.Model, kind: str, ops: Iterable[tuple[str, str]]) -> str:
    """Describe what `model` must be instead, for an error message.

    Args:
        model: The model.
        kind: The format.
        ops: The name of each operation and its place, a path with slashes.
    """
    names = {layer.name for layer in sublayers(model)[1:]}
    places: dict[str, str] = {}
    for op, place in ops:
        # TensorFlow numbers the calls of a layer.
        parts = [(part, re.sub(r"_\d+$", "", part)) for part in place.split("/")]
        inside = [a if a in names else b for a, b in parts if {a, b} & names]
        places.setdefault(op, inside[-1] if inside else "")
    found = [f"{op} (in layer {p})" if p else op for op, p in sorted(places.items())]
    remedies = {
        next((r for part, r in _REMEDIES.items() if part in op), _OTHERS)
        for op in places
    }
    return (
        f"made of operations that {kind} has, unlike {', '.join(found)}: "
        f"{'; '.join(sorted(remedies))}"
    )
