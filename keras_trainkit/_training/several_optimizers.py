"""Models whose training step uses several optimizers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_choice, reject
from keras_trainkit._training.optimizer import optimizers_of, set_optimizer


def optimizer_named(model: keras.Model, name: str) -> Any:
    """The optimizer of a model that a name reaches, as in `optimizers_of`."""
    found = optimizers_of(model)
    check_choice("optimizer", name, found)
    return found[name]


@contextlib.contextmanager
def others_as_they_were(model: keras.Model, name: str) -> Iterator[None]:
    """Puts the state of all optimizers of a model back, except that of one."""
    others = [o for other, o in optimizers_of(model).items() if other != name]
    # An optimizer cannot be unbuilt, so a copy is built in its place.
    unbuilt = [(o, type(o).from_config(o.get_config())) for o in others if not o.built]
    kept = [
        (variable, np.array(keras.ops.convert_to_numpy(variable)))
        for optimizer in others
        if optimizer.built
        for variable in optimizer.variables
    ]
    for optimizer, copy in unbuilt:
        set_optimizer(model, optimizer, copy)
    try:
        yield
    finally:
        for optimizer, copy in unbuilt:
            set_optimizer(model, copy, optimizer)
        for variable, value in kept:
            variable.assign(value)


class Movements:
    """Which optimizers of a model take steps."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._begin = self._counts()

    def _counts(self) -> dict[str, list[float]]:
        """The single numbers among the variables: counts of steps, loss scales."""
        return {
            name: [
                float(keras.ops.convert_to_numpy(v))
                for v in optimizer.variables
                if v.shape == ()
            ]
            for name, optimizer in optimizers_of(self._model).items()
        }

    def check(self, chosen: str | None) -> None:
        """Raise unless `chosen`, or the only one, took a step.

        Args:
            chosen: What the user named; None for `model.optimizer`.
        """
        if len(self._begin) < 2 and chosen is None:
            return
        names = [n for n, c in self._counts().items() if c != self._begin.get(n)]
        if chosen is None and names == ["optimizer"]:
            return
        if chosen is None or chosen not in names:
            expected = "one of those that the training step uses: " + ", ".join(
                map(repr, names)
            )
            reject("optimizer", chosen, expected)
