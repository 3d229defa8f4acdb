"""Select what to quantize in a model, and open up the layers that contain it."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_trainkit._keras import sublayers
from keras_trainkit._model.graph import Call, copy_model, read
from keras_trainkit._model.opening import open_up
from keras_trainkit._model.select import Selector, chains, check_all_used, selected
from keras_trainkit.quantization import _kinds

Selectors = tuple[Selector, ...]
Chain = tuple[Any, ...]


def opened(
    model: keras.Model, include: Selectors = (), exclude: Selectors = ()
) -> tuple[keras.Model, Callable[[Call], bool], dict[str, str]]:
    """Open up composite layers whose parts are to be quantized.

    Returns:
        A copy; a function that says whether to quantize a call in it, if possible; and
        why each composite layer that stays whole does so, by path.

    Raises:
        ValueError: If a selector matches nothing.
    """
    every = list(chains(model))
    _check_used(model, every, include, exclude)
    wanted = [_is_wanted(chain, include, exclude) for chain in every]
    own = copy_model(model)
    chosen = {
        id(chain[-1])
        for chain, is_chosen in zip(chains(own), wanted, strict=True)
        if is_chosen
    }
    # A function of `keras.ops` is selected with the model or layer that contains it.
    paths = ["/".join(layer.name for layer in chain) for chain in every]
    around = {"": not include} | dict(zip(paths, wanted, strict=True))
    names = [tuple(s for s in x if isinstance(s, str)) for x in (include, exclude)]

    def wants(call: Call) -> bool:
        if isinstance(call.layer, keras.layers.Layer):
            return id(call.layer) in chosen
        is_in = around.get(call.path.rpartition("/")[0], not include)
        chain = (call.layer,)
        return (is_in or selected(chain, names[0])) and not selected(chain, names[1])

    def is_opened(layer: keras.layers.Layer) -> bool:
        parts = sublayers(layer)
        return any(id(p) in chosen and type(p) in _kinds.WRAPPED for p in parts)

    own, closed = open_up(own, is_opened, for_training=True, in_place=True)
    return own, wants, closed


def _is_wanted(chain: Chain, include: Selectors, exclude: Selectors) -> bool:
    return (not include or selected(chain, include)) and not selected(chain, exclude)


def _check_used(
    model: keras.Model, every: Sequence[Chain], include: Selectors, exclude: Selectors
) -> None:
    calls = [call.layer for call in read(model).calls]
    functions = [(c,) for c in calls if not isinstance(c, keras.layers.Layer)]
    for name, given in (("include", include), ("exclude", exclude)):
        for selector in given:
            also = functions if isinstance(selector, str) else []
            check_all_used(name, [*every, *also], [selector])
