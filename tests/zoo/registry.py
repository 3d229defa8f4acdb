"""The registry: a name for each architecture, and how it is built."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

FAMILIES = ("user", "inputs", "vision", "text", "custom", "hub_vision", "hub_text")


class Skip(Exception):
    """Why an architecture or a cell does not exist here, such as for a backend."""


def fit_with_loss(model: keras.Model, optimizer: Any, case: "Case") -> None:
    """Compile as most people do."""
    model.compile(optimizer, loss=case.loss, run_eagerly=case.eager)


@dataclass
class Case:
    """A model as a user has it.

    Attributes:
        model: The model, with random weights.
        x: What `fit` takes first.
        y: What `fit` takes second.
        inputs: What a call of the model takes; `x` by default.
        predicted: What `predict` takes, where that is something else.
        loss: The loss.
        compile: Compiles a model of this kind with an optimizer.
        eager: Whether steps run eagerly, which costs less where there are few.
        custom: The `custom_objects` that the user's files need.
        optimizers: The attributes that hold optimizers, where the user compiles more
            than one.
        fit: Further arguments of `fit`.
        stages: For `GradualUnfreezing`: what trains in epoch 0, and from 1 on.
        restless: The variables that each plain call changes, by id.
    """

    model: keras.Model
    x: Any
    y: Any = None
    inputs: Any = None
    predicted: Any = None
    loss: Any = "mse"
    compile: Callable[..., None] = fit_with_loss
    eager: bool = True
    custom: dict[str, Any] = field(default_factory=dict)
    optimizers: tuple[str, ...] = ("optimizer",)
    fit: dict[str, Any] = field(default_factory=dict)
    stages: dict[int, Any] = field(default_factory=lambda: {0: -1, 1: 0})
    restless: set[int] = field(default_factory=set)

    def __post_init__(self):
        if self.inputs is None:
            self.inputs = self.x


BUILDERS: dict[str, tuple[str, Callable[[], Case]]] = {}


def case(builder: Callable[[], Case]) -> Callable[[], Case]:
    """Put an architecture into the registry, under its function's name."""
    family = builder.__module__.rpartition(".")[2]
    BUILDERS[builder.__name__] = family, builder
    return builder


def load(*families: str) -> dict[str, tuple[str, Callable[[], Case]]]:
    """Import the families, and return the registry."""
    for family in families or FAMILIES:
        importlib.import_module(f".{family}", __package__)
    return BUILDERS


def build(name: str, optimizer: Any = None) -> Case:
    """Make an architecture anew, the same each time, and compile it."""
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    try:
        made = BUILDERS[name][1]()
    finally:
        keras.config.set_dtype_policy("float32")
    _trained_statistics(made.model)
    # Each operation is compiled there, so that eager steps cost more than others.
    made.eager = made.eager and keras.backend.backend() != "jax"
    made.compile(made.model, optimizer or keras.optimizers.SGD(0.01), made)
    return made


def _trained_statistics(model: keras.Model) -> None:
    """Weights as after a training: no bias or statistic is at its first value."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        name = variable.path.split("/")[-1]
        if name in ("moving_variance", "gamma"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name in ("moving_mean", "beta", "bias"):
            variable.assign(0.3 * rng.normal(size=variable.shape))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def integers(high: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Integers below `high`."""
    return np.random.default_rng(seed).integers(0, high, shape).astype("int32")
