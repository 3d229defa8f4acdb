"""Linear cosine decay, plain and with noise."""

import math
from typing import Any

import numpy as np
from keras import ops

from keras_trainkit._checks import check_finite, check_integer, check_positive
from keras_trainkit._training.steps import as_step
from keras_trainkit._types import Tensor
from keras_trainkit.schedules import _base
from keras_trainkit.schedules._base import LearningRateSchedule


@_base.register
class LinearCosine(LearningRateSchedule):
    """Linear cosine decay.

    `initial * ((alpha + l) * c + beta)` at step `t`, with `l = 1 - t / steps` and
    `c = (1 + cos(2 pi num_periods t / steps)) / 2`. It is constant from `t = steps` on.

    Args:
        initial: Scale of the rate.
        steps: Length of the decay.
        num_periods: Number of cosine periods.
        alpha: Added to the linear part.
        beta: Added to the product, in units of `initial`.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.LinearCosine(1.0, steps=100, beta=0.0)
        >>> [round(float(schedule(step)), 4) for step in (0, 50, 100)]
        [1.0, 0.25, 0.0]

    Reference:
        I. Bello et al., Neural Optimizer Search with RL (2017), arXiv:1709.07417;
        `tf.compat.v1.train.linear_cosine_decay`.
    """

    def __init__(
        self,
        initial: float,
        steps: int,
        num_periods: float = 0.5,
        alpha: float = 0.0,
        beta: float = 0.001,
    ):
        self.initial = check_positive("initial", initial)
        self.steps = check_integer("steps", steps, minimum=1)
        self.num_periods = check_positive("num_periods", num_periods)
        self.alpha = check_finite("alpha", alpha)
        self.beta = check_finite("beta", beta)

    def __call__(self, step: Any) -> Tensor:
        step = ops.minimum(as_step(step), self.steps)
        behind, ahead = _base.progress(step, 0, self.steps)
        cosine = (1 + ops.cos(2 * math.pi * self.num_periods * behind)) / 2
        line = self.alpha + ahead + self._noise(step)
        return self.initial * (line * cosine + self.beta)

    def _noise(self, step: Tensor) -> Any:
        return 0.0

    def get_config(self) -> dict:
        return {
            "initial": self.initial,
            "steps": self.steps,
            "num_periods": self.num_periods,
            "alpha": self.alpha,
            "beta": self.beta,
        }


@_base.register
class NoisyLinearCosine(LinearCosine):
    """Linear cosine decay with noise on its linear part.

    Like `LinearCosine`, with `l + eps_t` in place of `l`, where `eps_t` is normal with
    mean 0 and variance `initial_variance / (1 + t) ** variance_decay`. The noise
    depends only on the seed and the step, so a resumed training sees the same noise, on
    every backend.

    Args:
        initial: Scale of the rate.
        steps: Length of the decay.
        initial_variance: Variance of the noise at step 0.
        variance_decay: Exponent of the decay of the variance.
        num_periods: Number of cosine periods.
        alpha: Added to the linear part.
        beta: Added to the product, in units of `initial`.
        seed: Integer seed of the noise.

    Examples:
        >>> import keras_trainkit as kt
        >>> schedule = kt.schedules.NoisyLinearCosine(1.0, steps=100, seed=1)
        >>> float(schedule(7)) == float(schedule(7)) != float(schedule(8))
        True

    Reference:
        I. Bello et al., Neural Optimizer Search with RL (2017), arXiv:1709.07417;
        `tf.compat.v1.train.noisy_linear_cosine_decay`.
    """

    def __init__(
        self,
        initial: float,
        steps: int,
        initial_variance: float = 1.0,
        variance_decay: float = 0.55,
        num_periods: float = 0.5,
        alpha: float = 0.0,
        beta: float = 0.001,
        seed: int = 0,
    ):
        super().__init__(initial, steps, num_periods, alpha, beta)
        self.initial_variance = check_positive("initial_variance", initial_variance)
        self.variance_decay = check_positive(
            "variance_decay", variance_decay, allow_zero=True
        )
        self.seed = check_integer("seed", seed, minimum=0)

    def _noise(self, step: Tensor) -> Any:
        t = ops.cast(step, "float32")
        variance = self.initial_variance / ops.power(1 + t, self.variance_decay)
        return ops.sqrt(variance) * _standard_normal(self.seed, step)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "initial_variance": self.initial_variance,
            "variance_decay": self.variance_decay,
            "seed": self.seed,
        }


def _standard_normal(seed: int, step: Tensor) -> Tensor:
    """Return a normal number for each (seed, step), by the Box-Muller transform.

    `keras.random` accepts no tensor as a seed, and the backends' generators differ.
    """
    step = ops.cast(step, "int32")
    radius = ops.sqrt(-2.0 * ops.log(_uniform(seed, 2 * step)))
    return radius * ops.cos(2 * math.pi * _uniform(seed, 2 * step + 1))


def _uniform(seed: int, counter: Tensor) -> Tensor:
    """Return a number in (0, 1) for each (seed, counter), by an integer hash.

    The hash is C. Wellons's `lowbias32` (2018), in 32-bit integers that wrap around.
    """
    start = np.uint64(seed) * np.uint64(0x9E3779B9) & np.uint64(0xFFFFFFFF)
    x = ops.bitwise_xor(counter, _signed(int(start)))
    x = _xor_shift(x, 16) * _signed(0x7FEB352D)
    x = _xor_shift(x, 15) * _signed(0x846CA68B)
    top = ops.bitwise_and(ops.bitwise_right_shift(_xor_shift(x, 16), 8), 0xFFFFFF)
    return (ops.cast(top, "float32") + 0.5) / 2.0**24


def _xor_shift(x: Tensor, bits: int) -> Tensor:
    # Shifting a signed integer right copies the sign bit; the mask removes it.
    shifted = ops.bitwise_and(ops.bitwise_right_shift(x, bits), (1 << (32 - bits)) - 1)
    return ops.bitwise_xor(x, shifted)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
