"""The presets as a search space for KerasTuner."""

from collections.abc import Sequence
from typing import Any

from keras_trainkit._checks import (
    check_choice,
    check_integer,
    check_items,
    check_positive,
    reject,
)
from keras_trainkit.callbacks import OneCycle
from keras_trainkit.models._mlp import build_mlp
from keras_trainkit.models._presets import PRESETS


def hypermodel(
    preset: str | Sequence[str],
    *,
    input_shape: Sequence[int],
    num_classes: int,
    num_layers: tuple[int, int] = (1, 4),
    units: tuple[int, int] = (50, 300),
    max_lr: tuple[float, float] | str = (1e-3, 0.3),
    batch_size: Sequence[int] = (32, 64, 128),
    dropout_rate: tuple[float, float] | None = None,
    **overrides: Any,
) -> Any:
    """Return a `keras_tuner.HyperModel` that searches multilayer perceptrons.

    Pass it to any of KerasTuner's tuners, `RandomSearch`, `GridSearch`,
    `BayesianOptimization` or `Hyperband`, and call `search` as you would call `fit`.
    Each trial builds and compiles a model by its hyperparameters and trains it on one
    cycle over its epochs. Needs `pip install keras-tuner`.

    Args:
        preset: A name in `kt.models.PRESETS`, or several to search among.
        input_shape: Shape of one example; an image is flattened.
        num_classes: Number of classes.
        num_layers: Least and largest number of hidden layers (`num_layers`).
        units: Least and largest width of the hidden layers (`units`), all of the same,
            evenly in the logarithm.
        max_lr: Least and largest peak of the cycle's learning rate (`max_lr`), evenly
            in the logarithm; or `"auto"`, for each trial to find it on its data, as
            `kt.callbacks.OneCycle("auto")` does. It is then among the trial's values,
            and not part of the search.
        batch_size: The batch sizes (`batch_size`), unless `search` is given one.
        dropout_rate: Least and largest dropout rate (`dropout_rate`); None to leave it
            to the preset.
        **overrides: As in `kt.models.build_mlp`.

    Returns:
        A `keras_tuner.HyperModel`.

    Raises:
        ValueError: If an argument is wrong.
        ImportError: If KerasTuner is not installed.

    Examples:
        ```python
        import keras_tuner

        space = kt.models.hypermodel(
            "default", input_shape=data.input_shape, num_classes=data.num_classes
        )
        tuner = keras_tuner.BayesianOptimization(
            space, objective="val_accuracy", max_trials=20, directory="search"
        )
        tuner.search(*data.train, validation_data=data.validation, epochs=10)
        print(tuner.get_best_hyperparameters()[0].values)
        ```

    Reference:
        T. O'Malley et al., KerasTuner (2019), https://keras.io/keras_tuner.
    """
    names = (
        [preset]
        if isinstance(preset, str)
        else check_items("preset", preset, "a name or several")
    )
    for name in names or [""]:
        check_choice("preset", name, PRESETS)
        PRESETS[name].override(**overrides)
    for argument, bounds in {"num_layers": num_layers, "units": units}.items():
        _check_bounds(argument, bounds)
        for bound in bounds:
            check_integer(argument, bound, minimum=1)
    if not isinstance(max_lr, str) or max_lr != "auto":
        _check_bounds("max_lr", max_lr, "a pair (low, high) with low <= high or 'auto'")
        check_positive("max_lr", max_lr[0])
    batch_size = check_items("batch_size", batch_size, "a list of integers >= 1")
    for size in batch_size or [0]:
        check_integer("batch_size", size, minimum=1)
    if dropout_rate is not None:
        _check_bounds("dropout_rate", dropout_rate)
        for rate in dropout_rate:
            PRESETS[names[0]].override(dropout_rate=rate)
    try:
        import keras_tuner
    except ImportError:
        raise ImportError(
            "kt.models.hypermodel needs KerasTuner: pip install keras-tuner"
        ) from None

    class PresetSpace(keras_tuner.HyperModel):
        """The models, and how to train them."""

        def build(self, hp):
            name = hp.Choice("preset", names) if len(names) > 1 else names[0]
            changes = dict(overrides)
            if dropout_rate is not None:
                low, high = dropout_rate
                changes["dropout_rate"] = hp.Float("dropout_rate", low, high)
                changes.setdefault("dropout", PRESETS[name].dropout or _dropout(name))
            depth = hp.Int("num_layers", *num_layers)
            width = hp.Int("units", *units, sampling="log")
            hidden = [width] * depth
            model = build_mlp(input_shape, num_classes, name, hidden, **changes)
            rate = None
            if max_lr != "auto":
                rate = hp.Float("max_lr", *max_lr, sampling="log")
            return PRESETS[name].compile(model, rate)

        def fit(self, hp, model, *args, callbacks=(), **kwargs):
            if "batch_size" not in kwargs:
                kwargs["batch_size"] = hp.Choice("batch_size", list(batch_size))
            # A trial that goes on with another one, as Hyperband's do, has its rate.
            cycle = OneCycle(hp.values.get("max_lr", "auto"))
            history = model.fit(*args, callbacks=[*callbacks, cycle], **kwargs)
            hp.values["max_lr"] = cycle.max_lr
            return history

    return PresetSpace()


def _dropout(preset: str) -> str:
    return "alpha" if PRESETS[preset].self_normalizing else "dropout"


def _check_bounds(
    name: str, bounds: Any, expected: str = "a pair (low, high) with low <= high"
) -> None:
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        reject(name, bounds, expected)
    if bounds[0] > bounds[1]:
        reject(name, bounds, expected)
