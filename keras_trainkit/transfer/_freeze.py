"""Freeze and unfreeze layers."""

from collections.abc import Sequence

import keras

from keras_trainkit._checks import reject
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
)


def freeze(
    model: keras.Model,
    layers: Selector | Sequence[Selector] | None = None,
    *,
    until: Start | None = None,
) -> list[str]:
    """Stop layers from training; without arguments all of them.

    A frozen BatchNorm runs in inference mode, so that its statistics stay too. Layers
    that are not meant are left as they are. Compiled or not, the model trains so from
    the next `fit` on: its optimizer is exchanged for a copy that has the state of what
    goes on training. If the model is inside another one, freeze it through that one.

    Args:
        model: The model, built; models inside it are opened up.
        layers: What to freeze: a layer, a type of layers, a regular expression that
            matches the whole of a layer's name or path, a function of a layer, or a
            list of these.
        until: Freeze the layers before this one, which trains on: a layer or another
            selector; the number of layers to freeze, or to leave if negative; or the
            fraction of the layers, as a float. Only layers with weights count.

    Returns:
        The paths of the layers that are frozen now.

    Raises:
        ValueError: If an argument is wrong or matches no layer.

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
        chosen = chains[: place("until", until, chains)]
    return _set(model, chosen, False)


def unfreeze(
    model: keras.Model,
    layers: Selector | Sequence[Selector] | None = None,
    *,
    since: Start | None = None,
    batch_norm: bool = True,
) -> list[str]:
    """Let layers train; without arguments all of them.

    Args:
        model: The model, built; models inside it are opened up.
        layers: What to unfreeze, as in `freeze`.
        since: Unfreeze this layer and all after it: a layer or another selector, a
            number of layers (from the end if negative) or a fraction of them.
        batch_norm: Whether BatchNorms train too. With False they are left as they are,
            which for those of a pretrained model and small batches is the better.

    Returns:
        The paths of the layers that train now, of those that are meant.

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
    if not batch_norm:
        norm = keras.layers.BatchNormalization
        chosen = [chain for chain in chosen if not isinstance(chain[-1], norm)]
    return _set(model, chosen, True)


def _set(model: keras.Model, chosen: list[Chain], value: bool) -> list[str]:
    if model.compiled:
        # Raises before anything is changed, if this optimizer cannot be exchanged.
        check_not_following(core_optimizer(model))
    set_trainable(model, chosen, value)
    if model.compiled:
        follow_trainable(model)
    return [path_of(chain) for chain in chosen]
