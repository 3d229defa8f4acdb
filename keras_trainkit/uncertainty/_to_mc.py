"""`to_mc`: copy a model so that its dropout is active at inference."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit import layers
from keras_trainkit._checks import check_integer, reject
from keras_trainkit._keras import patched, sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit._model.compare import check_copy
from keras_trainkit._model.copy import known_objects
from keras_trainkit._model.dropout import AlwaysOn
from keras_trainkit._model.opening import open_up
from keras_trainkit.uncertainty._noise import drops


def to_mc(model: keras.Model, seed: int | None = None) -> keras.Model:
    """Copy a model with every dropout active at inference.

    BatchNorm and all other layers stay in inference mode; a layer made of layers, such
    as a transformer block, is opened up if its `call` can be traced. The copy has the
    same weights and saves as `.keras`; each call of it, or of its `predict`, is a
    sample. For many samples, `mc_predict` is faster, and works on the model itself.

    Args:
        model: A Sequential or Functional model, which may contain nested models; it is
            not changed.
        seed: Integer seed of the masks, from which each layer's own seed is derived; by
            default the layers keep their seeds.

    Returns:
        The copy, not compiled.

    Raises:
        ValueError: If the model has no dropout, is subclassed, or has dropout inside a
            layer whose config does not contain it.
        RuntimeError: If the copy without its dropout differs from the model on a small
            random batch. Models that accept no random inputs are not compared.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dropout(0.5),
        ...     keras.layers.Dense(3, activation="softmax"),
        ... ])
        >>> x = np.ones((5, 4), "float32")
        >>> mc_model = kt.uncertainty.to_mc(model)
        >>> samples = np.stack([mc_model.predict(x, verbose=0) for _ in range(10)])
        >>> samples.shape, bool(samples.std(axis=0).max() > 0)
        ((10, 5, 3), True)

    Reference:
        Y. Gal and Z. Ghahramani, Dropout as a Bayesian Approximation (2016),
        arXiv:1506.02142.
    """
    if seed is not None:
        check_integer("seed", seed, minimum=0)
    if not _graph.is_graph(model):
        raise ValueError(
            "`model` must be a Functional or a built Sequential model; for a "
            "subclassed one call kt.uncertainty.mc_predict, which needs no copy, or "
            "use kt.layers.MCDropout in it. Received: "
            f"model={model!r} of type {type(model).__name__}"
        )
    model, closed = open_up(model, _is_opened)
    paths = {call.layer: call.path for call in _graph.read(model).calls}
    exchanged: dict[Any, Any] = {}

    def always_on(layer):
        if not _drops_inside(layer):
            return None
        seeds = None
        if seed is not None:
            seeds = np.random.SeedSequence([seed, len(exchanged)])
        new = _live(layer, seeds, closed.get(paths.get(layer, "")))
        exchanged[layer] = new
        return new

    copy, _ = _graph.rebuild(model, always_on)
    if not exchanged:
        reject("model", model.name, "a model with at least one dropout layer")
    for layer, new in exchanged.items():
        new.set_weights(layer.get_weights())
    with _silenced(model), _silenced(copy):
        check_copy(model, copy, "The copy without dropout")
    return copy


@contextlib.contextmanager
def _silenced(model: keras.Model) -> Iterator[None]:
    """The layers whose dropout is always on are those that they are made from."""
    changes = []
    for layer in sublayers(model):
        if isinstance(layer, AlwaysOn):
            bases = type(layer).__mro__
            base: Any = next(x for x in bases if not issubclass(x, AlwaysOn))
            changes.append((layer, "call", functools.partial(base.call, layer)))
    with patched(changes):
        yield


def _drops_inside(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Layer) and any(
        drops(part) for part in sublayers(layer)
    )


def _is_opened(layer: Any) -> bool:
    """Whether a layer is a custom one, whose config may not show its dropouts."""
    known = type(layer).__module__.split(".")[0] in ("keras", "keras_trainkit")
    return not known and _drops_inside(layer)


def _live(layer: Any, seeds: np.random.SeedSequence | None, closed: str | None) -> Any:
    """Build a layer with active dropouts from the config of another."""
    try:
        with keras.saving.custom_object_scope(known_objects(layer)):
            config = keras.saving.serialize_keras_object(layer)
            new = keras.saving.deserialize_keras_object(_exchanged(config, seeds))
            silent = _silent(new)
    except Exception as error:
        silent, closed = layer, closed or f"its config does not make it again: {error}"
    if silent is not None:
        raise ValueError(
            "`model` must show its dropouts: put kt.layers.MCDropout into the "
            "layer, or call kt.uncertainty.mc_predict, which needs no copy"
            f"{f' ({closed})' if closed else ''}. "
            f"Received: a {type(silent).__name__} in {layer.name}, a "
            f"{type(layer).__name__}"
        )
    return new


def _exchanged(config: Any, seeds: np.random.SeedSequence | None) -> Any:
    """Replace each of Keras's dropout layers in a config by the active one."""
    if isinstance(config, list):
        return [_exchanged(part, seeds) for part in config]
    if not isinstance(config, dict):
        return config
    config = {name: _exchanged(part, seeds) for name, part in config.items()}
    inner = config.get("config")
    live = getattr(layers, f"MC{config.get('class_name')}", None)
    if live is not None and config.get("module") == "keras.layers":
        config["module"], config["class_name"] = live.__module__, live.__name__
        config["registered_name"] = keras.saving.get_registered_name(live)
    if seeds is not None and isinstance(inner, dict) and "seed" in inner:
        # Keras requires a signed 32-bit integer.
        inner["seed"] = int(seeds.spawn(1)[0].generate_state(1)[0] >> 1)
    return config


def _silent(layer: Any) -> Any:
    """Return a part of a layer that drops only in training, if there is one."""
    inside = sublayers(layer)
    alive = {
        id(part)
        for whole in inside
        if isinstance(whole, AlwaysOn)
        for part in sublayers(whole)
    }
    return next(
        (part for part in inside if drops(part) and id(part) not in alive), None
    )
