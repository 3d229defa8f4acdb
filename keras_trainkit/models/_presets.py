"""The presets: configurations that train well, as data."""

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_choice,
    check_in_range,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._model.self_normalizing import (
    layer_problem,
    standardization_problem,
)
from keras_trainkit._training.recording import leaves
from keras_trainkit.callbacks import OneCycle

_OPTIMIZERS = ("sgd", "rmsprop", "nadam")


@dataclass(frozen=True)
class Preset:
    """A network configuration together with its training configuration.

    Attributes:
        name: The preset's name.
        summary: What it is for, in one line.
        activation: Activation of the hidden layers.
        kernel_initializer: Initializer of the hidden layers.
        normalization: `"batch"`, `None`, or `"deep"`: BatchNorm from
            `DEEP` hidden layers on.
        normalize_first: Whether BatchNorm is before the activation (it then folds
            into its own layer) or behind it (it folds into the next).
        dropout: `None`, `"dropout"`, `"alpha"` or `"mc"`, behind each hidden layer.
        dropout_rate: Fraction of the units to drop.
        l1: Strength of the L1 penalty on the kernels.
        l2: Strength of the L2 penalty on the kernels.
        optimizer: `"sgd"` (with Nesterov momentum), `"rmsprop"` or `"nadam"`.
        learning_rate: The rate to start from until `kt.find_lr` has found a better one.
        patience: Epochs without a better validation loss after which training stops;
            the best weights are kept in any case.
        self_normalizing: Whether activations must keep mean 0 and variance 1 without
            normalization layers; anything that breaks this then raises an error.

    Examples:
        >>> import keras_trainkit as kt
        >>> preset = kt.models.PRESETS["self_normalizing"]
        >>> model = kt.models.build_mlp((20,), 3, preset=preset.name)
        >>> model = preset.compile(model)
        >>> callbacks = preset.callbacks(max_lr=0.05)
    """

    name: str
    summary: str
    activation: str = "elu"
    kernel_initializer: str = "he_normal"
    normalization: str | None = "deep"
    normalize_first: bool = False
    dropout: str | None = None
    dropout_rate: float = 0.2
    l1: float = 0.0
    l2: float = 0.0
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    patience: int = 20
    self_normalizing: bool = False

    DEEP = 4
    """Number of hidden layers from which a network counts as deep."""

    def __post_init__(self):
        check_choice("normalization", self.normalization, (None, "batch", "deep"))
        check_choice("dropout", self.dropout, (None, "dropout", "alpha", "mc"))
        check_in_range("dropout_rate", self.dropout_rate, 0, 1, closed="left")
        check_positive("l1", self.l1, allow_zero=True)
        check_positive("l2", self.l2, allow_zero=True)
        check_choice("optimizer", self.optimizer, _OPTIMIZERS)
        check_positive("learning_rate", self.learning_rate)
        check_integer("patience", self.patience, minimum=1)
        if self.self_normalizing:
            self._check_self_normalizing()

    def override(self, **overrides: Any) -> "Preset":
        """The same preset with some attributes changed."""
        known = [field.name for field in fields(self)]
        for name in overrides:
            check_choice("overrides", name, known)
        return replace(self, **overrides)

    def make_optimizer(self, learning_rate: float | None = None):
        """A new optimizer, by default at the preset's `learning_rate`."""
        rate = check_positive(
            "learning_rate",
            self.learning_rate if learning_rate is None else learning_rate,
        )
        if self.optimizer == "sgd":
            return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
        return keras.optimizers.get(
            {"class_name": self.optimizer, "config": {"learning_rate": rate}}
        )

    def compile(
        self,
        model: keras.Model,
        learning_rate: float | None = None,
        x: np.ndarray | None = None,
        **kwargs: Any,
    ) -> keras.Model:
        """Compile a classifier with the preset's optimizer, loss and metrics.

        Args:
            model: The model; its output is a softmax over the classes.
            learning_rate: The learning rate, by default the preset's own.
            x: Training inputs, or a sample of them, to be checked: a self-normalizing
                network needs them standardized.
            **kwargs: For `model.compile`, over the preset's choices.

        Returns:
            The same model, compiled for integer labels.

        Raises:
            ValueError: If the preset is self-normalizing and the model breaks it.
        """
        self.check(model, x)
        settings = {
            "optimizer": self.make_optimizer(learning_rate),
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
        }
        model.compile(**{**settings, **kwargs})
        return model

    def callbacks(
        self, max_lr: float | str | None = None
    ) -> list[keras.callbacks.Callback]:
        """One cycle and early stopping, which needs `validation_data` in `fit`.

        Args:
            max_lr: The highest rate of the cycle, by default the preset's; or `"auto"`,
                to find it as `kt.callbacks.OneCycle("auto")` does.

        Returns:
            The callbacks, `OneCycle` first.
        """
        return [
            OneCycle(self.learning_rate if max_lr is None else max_lr),
            keras.callbacks.EarlyStopping(
                patience=self.patience, restore_best_weights=True
            ),
        ]

    def check(self, model: keras.Model, x: np.ndarray | None = None) -> None:
        """Raise if a model breaks self-normalization; other presets accept every model.

        Args:
            model: The model to look at.
            x: Inputs; a warning says if they are not standardized.

        Raises:
            ValueError: If a layer breaks self-normalization (Klambauer et al. 2017).
        """
        if not self.self_normalizing:
            return
        for layer in leaves(model):
            reason = layer_problem(layer)
            if reason:
                raise ValueError(
                    f"A self-normalizing network cannot have {reason}. "
                    f"Received: layer={layer.name!r} of type {type(layer).__name__}"
                )
        problem = None if x is None else standardization_problem(x)
        if problem:
            warnings.warn(
                "A self-normalizing network needs inputs with mean 0 and standard "
                f"deviation 1. Received: x with {problem}",
                stacklevel=3,
            )

    def _check_self_normalizing(self) -> None:
        check_choice("activation", self.activation, ("selu",))
        check_choice(
            "kernel_initializer",
            self.kernel_initializer,
            ("lecun_normal", "lecun_uniform"),
        )
        why = "in a self-normalizing network"
        if self.normalization is not None:
            reject("normalization", self.normalization, f"None {why}")
        if self.dropout not in (None, "alpha"):
            reject("dropout", self.dropout, f"None or 'alpha' {why}")


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="default",
            summary="He + ELU, BatchNorm if deep, momentum, one cycle",
        ),
        Preset(
            name="self_normalizing",
            self_normalizing=True,
            summary="LeCun + SELU, no normalization, AlphaDropout if needed",
            activation="selu",
            kernel_initializer="lecun_normal",
            normalization=None,
            dropout_rate=0.05,
        ),
        Preset(
            name="low_latency",
            summary="ReLU with BatchNorm in front, which folds away for inference",
            activation="relu",
            normalization="batch",
            normalize_first=True,
        ),
        Preset(
            name="sparse",
            summary="ReLU and an L1 penalty, to be pruned",
            activation="relu",
            l1=1e-5,
        ),
        Preset(
            name="risk_sensitive",
            summary="MC dropout: a distribution instead of a point",
            dropout="mc",
        ),
    )
}
"""Every preset by its name."""
