"""An optimizer with a separate learning rate for each layer."""

import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
from keras.layers import Layer

from keras_trainkit._checks import check_positive, reject
from keras_trainkit._keras import decays, live_layers
from keras_trainkit._model.select import is_plain
from keras_trainkit._training.optimizer import converted, has_schedule
from keras_trainkit._types import Tensor
from keras_trainkit.optimizers._momentum import ScheduledBeta, ScheduledMomentum

# The mixins that, added to Keras's class, let the momentum be a schedule.
_MIXINS = {
    "SGD": ScheduledMomentum,
    "Adam": ScheduledBeta,
    "AdamW": ScheduledBeta,
    "Nadam": ScheduledBeta,
}
_NAMES = (
    *_MIXINS,
    *("RMSprop", "Adagrad", "Adadelta", "Adamax", "Adafactor", "Ftrl"),
    *("Lion", "Lamb", "Muon", "ScheduleFreeAdamW"),
)


class Layerwise(keras.optimizers.Optimizer):
    """A mixin: the learning rate times a factor that depends on the layer.

    On PyTorch, Keras's own class updates all variables at once; this one updates them
    one by one.
    """

    # A dict from patterns to factors, or just the factor of the lowest layer.
    multipliers: dict[str, float] | float
    weight_decay: float | None
    _factors: tuple[float, ...] = ()
    # The layers passed as keys, to tell them from others with the same name.
    _keys: tuple[weakref.ref, ...] = ()

    def __init__(self, *args, multipliers=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(multipliers, float | int):
            multipliers, self._keys = _check_dict(multipliers)
        self.multipliers = multipliers

    def build(self, variables):
        """Build the slots and find each variable's factor."""
        if self.built:
            return
        super().build(variables)
        if isinstance(self.multipliers, dict):
            keys = filter(None, (key() for key in self._keys))
            self._factors = tuple(_by_name(variables, self.multipliers, keys))
        else:
            self._factors = tuple(_by_depth(variables, self.multipliers))

    def factor(self, variable: Any) -> float:
        """Return the factor of a variable's learning rate."""
        return self._factors[self._get_variable_index(variable)]

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor):
        """Update one variable."""
        rate = learning_rate * self.factor(variable)
        return super().update_step(gradient, variable, rate)

    def _apply_weight_decay(self, variables):
        # Keras subtracts `weight_decay * learning_rate` times the variable.
        whole = self.weight_decay
        if not whole:
            return
        by_factor: dict[float, list[Any]] = {}
        for variable in variables:
            if decays(self, variable):
                by_factor.setdefault(self.factor(variable), []).append(variable)
        try:
            for factor, group in by_factor.items():
                self.weight_decay = whole * factor
                super()._apply_weight_decay(group)
        finally:
            self.weight_decay = whole

    def get_config(self) -> dict:
        multipliers = self.multipliers
        if isinstance(multipliers, dict):
            multipliers = dict(multipliers)
        return {**super().get_config(), "multipliers": multipliers}


def _make_classes() -> Iterator[tuple[str, Any]]:
    register = keras.saving.register_keras_serializable(package="keras_trainkit")
    for name in _NAMES:
        theirs = getattr(keras.optimizers, name, None)
        if theirs is not None:
            bases = (Layerwise, *filter(None, [_MIXINS.get(name)]), theirs)
            yield name, register(type(f"Layerwise{name}", bases, {}))


_CLASSES = dict(_make_classes())


def layerwise(
    optimizer: keras.optimizers.Optimizer, rates: Mapping[Any, float] | slice
) -> keras.optimizers.Optimizer:
    """Return the same optimizer with a separate learning rate for each layer.

    The result is a single Keras optimizer: the rates apply in the compiled step, follow
    a schedule or `kt.callbacks.OneCycle` (each layer in proportion), scale the weight
    decay too, and are saved with the model. Scaling the gradients of a layer instead
    has no effect in Adam, which divides the scale out again.

    Args:
        optimizer: One of Keras's or of `kt.optimizers`; it is left unchanged.
        rates: Either a dict from layers to multipliers of the optimizer's rate, 0 or
            more. A key is a layer, or a regular expression that matches the whole name
            or path of a layer (or of one that contains it) or the whole path of a
            variable; the first matching key counts, and a variable that no key matches
            has the multiplier 1. Or `slice(low, high)`: the rates (> 0) of the lowest
            and the highest of the layers that train, with a constant ratio from each to
            the next. The optimizer's rate is then `high`; if it is a schedule it is
            kept, and the lowest layer has `low / high` of it.

    Returns:
        A new optimizer with the state of `optimizer`.

    Raises:
        ValueError: If an argument is wrong; when built, if a key matches no layer.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = kt.models.build_mlp((8,), 3)
        >>> adam = keras.optimizers.Adam(1e-3)
        >>> optimizer = kt.optimizers.layerwise(adam, {model.layers[0]: 0.1})
        >>> optimizer.build(model.trainable_variables)
        >>> [optimizer.factor(v) for v in model.trainable_variables]
        [0.1, 0.1, 1.0, 1.0, 1.0, 1.0]
        >>> optimizer = kt.optimizers.layerwise(adam, slice(1e-5, 1e-3))
        >>> optimizer.build(model.trainable_variables)
        >>> [round(optimizer.factor(v), 3) for v in model.trainable_variables]
        [0.01, 0.01, 0.1, 0.1, 1.0, 1.0]

    Reference:
        J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text
        Classification (2018), arXiv:1801.06146, section 3.2.
    """
    cls = next(
        (ours for name, ours in _CLASSES.items() if _is(optimizer, name, ours)), None
    )
    if cls is None:
        reject("optimizer", optimizer, f"one of Keras's {', '.join(_CLASSES)}")
    if not isinstance(rates, slice):
        _check_dict(rates)
        return converted(optimizer, cls, {"multipliers": rates})
    low, high = _check_slice(rates)
    changes = {"multipliers": low / high}
    if not has_schedule(optimizer):
        changes["learning_rate"] = high
    return converted(optimizer, cls, changes)


def _is(optimizer: Any, name: str, ours: type) -> bool:
    """Whether an optimizer is Keras's class of a name, ours, or a layer-wise one."""
    cls = type(optimizer)
    public = getattr(keras.optimizers, name)
    return isinstance(optimizer, public) and (
        cls is ours
        or (cls.__name__ == name and cls.__module__.startswith(("keras.", __package__)))
    )


def _check_slice(rates: slice) -> tuple[float, float]:
    expected = "slice(low, high) with 0 < low <= high"
    if rates.start is None or rates.stop is None or rates.step is not None:
        reject("rates", rates, expected)
    low = check_positive("rates", rates.start)
    high = check_positive("rates", rates.stop)
    if low > high:
        reject("rates", rates, expected)
    return low, high


def _check_dict(rates: Any) -> tuple[dict[str, float], tuple[weakref.ref, ...]]:
    """Return the factors by regular expression, and the layers among the keys."""
    if not isinstance(rates, Mapping):
        reject("rates", rates, "a dict from layers to multipliers, or a slice of rates")
    checked, layers = {}, []
    for key, value in rates.items():
        if isinstance(key, Layer):
            layers.append(weakref.ref(key))
            key = re.escape(key.name)
        if not isinstance(key, str):
            reject("rates", key, "a dict whose keys are layers or regular expressions")
        try:
            re.compile(key)
        except re.error as error:
            reject("rates", key, f"a dict of regular expressions ({error})")
        if key in checked:
            reject("rates", key, "a dict in which no two keys have the same name")
        checked[key] = check_positive("rates", value, allow_zero=True)
    return checked, tuple(layers)


def _by_depth(variables: list[Any], lowest: float) -> Iterator[float]:
    """Return the factor of each variable, from that of the lowest layer up to 1."""
    layers = [variable.path.rpartition("/")[0] for variable in variables]
    depth = {path: number for number, path in enumerate(dict.fromkeys(layers))}
    top = max(len(depth) - 1, 1)
    for path in layers:
        yield lowest ** (1 - depth[path] / top) if len(depth) > 1 else 1.0


def _by_name(
    variables: list[Any], multipliers: dict[str, float], keys: Iterable[Layer]
) -> Iterator[float]:
    """Return the factor of each variable by the names of the layers that contain it."""
    names: dict[int, set[str]] = {id(v): {v.path} for v in variables}
    # An optimizer receives only the variables, whose paths do not name the models that
    # a layer is in.
    related = _related(set(names))
    known = {v.path for v in variables}.union(*map(_names, related))
    for layer in related:
        for weight in layer.weights:
            if id(weight) in names:
                names[id(weight)] |= _names(layer)
    _check_keys(keys, related)
    for pattern in multipliers:
        if not any(re.fullmatch(pattern, name) for name in known):
            reject("rates", pattern, "such that each key matches a layer or a variable")
        _check_not_shared(pattern, related, set(names))
    for variable in variables:
        yield next(
            (
                factor
                for pattern, factor in multipliers.items()
                if any(re.fullmatch(pattern, name) for name in names[id(variable)])
            ),
            1.0,
        )


def _names(layer: Layer) -> set[str]:
    return {layer.name, getattr(layer, "path", None) or layer.name}


def _related(variables: set[int]) -> list[Layer]:
    """Return the layers with weights of all models that own one of these variables.

    Includes frozen layers of these models, but no layers of other live models.
    """
    living = [(layer, {id(w) for w in layer.weights}) for layer in live_layers()]
    family = set(variables).union(*(ids for _, ids in living if ids & variables))
    return [layer for layer, ids in living if ids & family]


def _check_keys(keys: Iterable[Layer], related: list[Layer]) -> None:
    """Raise if a layer passed as a key belongs to another model."""
    ours = {id(layer) for layer in related}
    for layer in keys:
        if layer.weights and id(layer) not in ours:
            reject("rates", layer, "a dict whose layers are of the model that trains")


def _check_not_shared(pattern: str, related: list[Layer], variables: set[int]) -> None:
    """Raise if two layers have the same plain name, neither inside the other."""
    name = pattern.replace("\\", "")
    if not is_plain(name):
        return
    found = [layer for layer in related if layer.name == name]
    owned = [{id(w) for w in layer.weights} & variables for layer in found]
    if owned and set.union(*owned) not in owned:
        paths = {w.path.rpartition("/")[0] for layer in found for w in layer.weights}
        places = f" ({', '.join(sorted(paths)[:4])})" if len(paths) > 1 else ""
        reject(
            "rates",
            name,
            f"a dict whose names are those of one layer, but {len(found)} layers have "
            f"this one{places}: give the paths of their variables, or a regular "
            f"expression for all of them, such as '(.*/)?{name}'",
        )
