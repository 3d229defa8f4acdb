"""Dropout that stays on at inference: how such layers are told from others."""

import functools
from collections.abc import Callable
from typing import Any

from keras import layers

# Those that are nothing but dropout; the spatial ones are subclasses of the first.
PURE_DROPOUTS = (layers.Dropout, layers.AlphaDropout, layers.GaussianDropout)


class AlwaysOn:
    """Base class of all layers whose dropout is active at inference."""


def in_training(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `call` so that it always runs with `training=True`; same signature."""

    @functools.wraps(call)
    def always(*args, **kwargs):
        return call(*args, **{**kwargs, "training": True})

    return always
