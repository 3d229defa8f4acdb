"""Sparsity schedules: the pruned fraction as a function of the step."""

import keras
from keras import ops

from keras_trainkit._checks import check_in_range, check_integer, check_positive, reject
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Tensor

_register = keras.saving.register_keras_serializable(package="keras_trainkit")


class Sparsity(keras.optimizers.schedules.LearningRateSchedule):
    """Base class of the sparsity schedules.

    Args:
        final: Sparsity from `end_step` on, a fraction of the entries in `[0, 1)`.
        begin_step: The first step that prunes.
        end_step: The last step that prunes.
    """

    def __init__(self, final: float, begin_step: int, end_step: int):
        self.final = check_in_range("final", final, 0, 1, closed="left")
        self.begin_step = check_integer("begin_step", begin_step, minimum=0)
        self.end_step = check_integer("end_step", end_step, minimum=0)

    def get_config(self):
        return {
            "final": self.final,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
        }


@_register
class PolynomialSparsity(Sparsity):
    """Polynomial sparsity: rises fast at first, and slower as fewer weights are left.

    `s(t) = final + (initial - final) (1 - (t - begin_step) / (end_step -
    begin_step))^power`, with the fraction kept within `[0, 1]`.

    Args:
        initial: Sparsity at `begin_step`, a fraction of the entries in `[0, 1)`.
        final: Sparsity from `end_step` on, in `[0, 1)`.
        begin_step: The first step that prunes.
        end_step: The last step that prunes, after `begin_step`.
        power: The exponent, > 0.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import keras_trainkit as kt
        >>> sparsity = kt.pruning.PolynomialSparsity(0.2, 0.8, 100, 110)
        >>> [round(float(sparsity(step)), 4) for step in (100, 102, 105, 110)]
        [0.2, 0.4928, 0.725, 0.8]

    Reference:
        M. Zhu and S. Gupta, To Prune, or Not to Prune (2017), arXiv:1710.01878,
        equation 1.
    """

    def __init__(
        self,
        initial: float,
        final: float,
        begin_step: int,
        end_step: int,
        power: float = 3.0,
    ):
        super().__init__(final, begin_step, end_step)
        self.initial = check_in_range("initial", initial, 0, 1, closed="left")
        self.power = check_positive("power", power)
        if self.end_step <= self.begin_step:
            reject("end_step", end_step, f"> begin_step={begin_step}")

    def __call__(self, step) -> Tensor:
        since = ops.cast(as_step(step) - self.begin_step, "float32")
        part = ops.clip(since / (self.end_step - self.begin_step), 0.0, 1.0)
        return (self.initial - self.final) * ops.power(
            1.0 - part, self.power
        ) + self.final

    def get_config(self):
        return {**super().get_config(), "initial": self.initial, "power": self.power}


@_register
class ConstantSparsity(Sparsity):
    """Constant sparsity: the same at every step that prunes.

    `s(t) = final` from `begin_step` on, 0 before.

    Args:
        final: The sparsity, a fraction of the entries in `[0, 1)`.
        begin_step: The first step that prunes.
        end_step: The last step that prunes; by default the first one.

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import keras_trainkit as kt
        >>> sparsity = kt.pruning.ConstantSparsity(0.5, begin_step=10)
        >>> [float(sparsity(step)) for step in (9, 10, 20)]
        [0.0, 0.5, 0.5]
    """

    def __init__(self, final: float, begin_step: int = 0, end_step: int | None = None):
        super().__init__(
            final, begin_step, begin_step if end_step is None else end_step
        )
        if self.end_step < self.begin_step:
            reject("end_step", end_step, f">= begin_step={begin_step}")

    def __call__(self, step) -> Tensor:
        return ops.where(as_step(step) >= self.begin_step, self.final, 0.0)
