"""Layers whose dropout stays active at inference, and how to recognize them."""

import functools
from collections.abc import Callable
from typing import Any

from keras import layers

# Layers that only apply dropout; spatial dropouts are subclasses of the first.
PURE_DROPOUTS = (layers.Dropout, layers.AlphaDropout, layers.GaussianDropout)


class AlwaysOn:
    """Base class of all layers whose dropout is active at inference."""


def in_training(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `call` so that it always runs with `training=True`; same signature."""

    @functools.wraps(call)
    def always(*args, **kwargs):
        return call(*args, **{**kwargs, "training": True})

    return always
