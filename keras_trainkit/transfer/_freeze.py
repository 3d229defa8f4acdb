"""Freeze and unfreeze layers."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_trainkit._checks import (
    check_flag,
    reject,
)
from keras_trainkit._model.select import Selector, path_of
from keras_trainkit._training.optimizer import (
    check_not_following,
    core_optimizer,
    follow_trainable,
)
from keras_trainkit._training.trainable import (
    Chain,
    Start,
    meant,
    place,
    set_trainable,
    weighted_layers,
    without_parts_of,
)


def freeze(
    model: keras.Model,
    layers: Selector | Sequence[Selector] | None = None,
    *,
    until: Start | None = None,
) -> list[str]:
    """Stop layers from training; without arguments all of them.

    A frozen BatchNorm runs in inference mode, so its statistics do not change either.
    Layers that are not selected are left unchanged. On a compiled model this takes
    effect in the next `fit`: its optimizer is replaced by a copy with the state of the
    layers that still train. If the model is inside another one, freeze it through that
    one.

    Args:
        model: The model, built; models inside it are opened up.
        layers: What to freeze: a layer, a type of layers, a regular expression that
            matches the whole of a layer's name or path, a function of a layer, or a
            list of these.
        until: Freeze the layers before this one: a layer or another selector; the
            number of layers to freeze, or to leave trainable if negative; or the
            fraction of the layers to freeze, as a float. Only layers with weights
            count. A layer that is also part of one that trains, such as a tied
            embedding, is not frozen.

    Returns:
        The paths of the layers that are frozen now.

    Raises:
        ValueError: If an argument is wrong or matches no layer, or if all layers from
            `until` on were frozen before, so that nothing would train.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((8,), 3, hidden_units=(4, 4, 4))
        >>> len(kt.transfer.freeze(model, until=-1))  # all but the head
        3
        >>> len(model.trainable_variables)
        2
    """
    chains = weighted_layers(model)
    if until is None:
        chosen = meant(chains, layers)
    elif layers is not None:
        reject("until", until, "None where `layers` is given")
    else:
        number = place("until", until, chains)
        chosen = without_parts_of(chains[:number], chains[number:])
        if number < len(chains) and model.trainable_variables:
            _check_trains("until", until, model, chains[number:])
    return _set(model, chosen, False)


def unfreeze(
    model: keras.Model,
    layers: Selector | Sequence[Selector] | None = None,
    *,
    since: Start | None = None,
    batch_norm: bool = True,
) -> list[str]:
    """Make layers trainable; without arguments all of them.

    Args:
        model: The model, built; models inside it are opened up.
        layers: What to unfreeze, as in `freeze`.
        since: Unfreeze this layer and all after it: a layer or another selector, a
            number of layers (from the end if negative) or a fraction of them.
        batch_norm: Whether BatchNorms train too. With False they are left unchanged,
            which is better for a pretrained model and small batches.

    Returns:
        The paths of the selected layers that train now.

    Raises:
        ValueError: If an argument is wrong or matches no layer.

    Examples:
        >>> import keras_trainkit as kt
        >>> model = kt.models.build_mlp((8,), 3, hidden_units=(4, 4, 4))
        >>> frozen = kt.transfer.freeze(model)
        >>> len(kt.transfer.unfreeze(model, since=0.5))  # the upper half
        2
    """
    chosen = meant(weighted_layers(model), layers, since, names=("layers", "since"))
    if not check_flag("batch_norm", batch_norm):
        norm = keras.layers.BatchNormalization
        chosen = [chain for chain in chosen if not isinstance(chain[-1], norm)]
    return _set(model, chosen, True)


def _check_trains(name: str, value: Any, model: keras.Model, chains: list[Chain]):
    trainable = {id(variable) for variable in model.trainable_variables}
    owned = {id(variable) for *_, layer in chains for variable in layer.variables}
    if not trainable & owned:
        paths = ", ".join(repr(path_of(chain)) for chain in chains[:3])
        expected = "before a layer that trains, or nothing would: unfreeze first what "
        reject(name, value, f"{expected}is frozen in {paths}")


def _set(model: keras.Model, chosen: list[Chain], value: bool) -> list[str]:
    if model.compiled:
        # Raises before anything is changed, if this optimizer cannot be exchanged.
        check_not_following(core_optimizer(model))
    set_trainable(model, chosen, value)
    if model.compiled:
        follow_trainable(model)
    return [path_of(chain) for chain in chosen]
