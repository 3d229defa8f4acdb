"""The only place that reaches past the public `keras` API.

Each entry says why the public API does not do, and on which Keras versions it was
tried.
"""

from typing import Any

import keras


def backend_class(cls: Any) -> Any:
    """The class that Keras really instantiates for one of its optimizers.

    On PyTorch, `keras.optimizers.Adam(...)` makes an object of a private subclass that
    updates all variables at once, and does so only for the exact public class. A
    subclass that is to give the same bits must derive from that one. Asking `__new__`
    names it without importing it. Tried on Keras 3.13 and 3.15.
    """
    return type(cls.__new__(cls))


def step_counter(optimizer: keras.optimizers.Optimizer):
    """The variable that counts the batches an optimizer has seen.

    `optimizer.iterations` is divided by `gradient_accumulation_steps`; Keras evaluates
    a learning-rate schedule on the undivided count, which it keeps as its first
    variable. Tried on Keras 3.13 and 3.15.
    """
    return optimizer.variables[0]


def set_saved_optimizer(model: keras.Model, optimizer: Any) -> None:
    """Make `optimizer` the one that the model's file names.

    A file gets the optimizer that was given to `compile`, also after `model.optimizer`
    was exchanged, and the variables of the present one; where the two differ it cannot
    be loaded. Tried on Keras 3.13 and 3.15.
    """
    saved = getattr(model, "_compile_config", None)
    if saved is not None and not hasattr(saved.config["optimizer"], "inner_optimizer"):
        saved.config["optimizer"] = optimizer


def torch_rng_state(state: Any = None) -> Any:
    """Return PyTorch's random state, or set it; None on the other backends.

    There, layers without a seed draw from PyTorch's own generator, not from a
    `keras.random.SeedGenerator`. Tried on Keras 3.13 and 3.15.
    """
    if keras.backend.backend() != "torch":
        return None
    import torch

    if state is not None:
        torch.set_rng_state(state)
    return torch.get_rng_state()
