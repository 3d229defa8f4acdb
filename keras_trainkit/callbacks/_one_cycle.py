"""The 1cycle policy as a callback."""

import warnings
from collections.abc import Sequence
from typing import Any

from keras_trainkit import schedules
from keras_trainkit._checks import (
    check_in_range,
    check_integer,
    check_items,
    check_positive,
    reject,
)
from keras_trainkit._training.scheduled import momentum_name
from keras_trainkit.callbacks._automatic_rate import automatic_rate
from keras_trainkit.callbacks._schedule_callback import ScheduleCallback
from keras_trainkit.lr_finder import LRFinderResult


class OneCycle(ScheduleCallback):
    """Train on one cycle: the learning rate rises and falls, the momentum the reverse.

    Works on a model compiled with any Keras optimizer. During `fit` its learning rate
    and momentum (`beta_1` in Adam, AdamW and Nadam) follow `kt.schedules.OneCycle` and
    `OneCycleMomentum` in the compiled step. SGD without momentum gets a momentum. If
    the momentum of an optimizer cannot be scheduled, as in RMSprop, only the learning
    rate is cycled, and a warning says so.

    The cycle begins with the first batch of epoch 0: `fit(epochs=6, initial_epoch=3)`
    continues in the middle of it, and so does a fit that
    `keras.callbacks.BackupAndRestore` resumes. A second fit from epoch 0 is a new
    cycle. After the fit, even one that raised, the optimizer has its own learning rate
    and momentum again (SGD that had no momentum is left with `max(momentum)`, to keep
    its velocity). Files written during the fit contain the original values too.

    Args:
        max_lr: The highest learning rate; or `"auto"`, to find it before the first step
            with `kt.find_lr` on the data of the fit. This costs a few hundred steps
            (three times as many again if the first test is not clear) and prints one
            line if the fit prints. The rate is reused by a later fit with the same
            callback, and by one that `BackupAndRestore` or `kt.callbacks.Resumable`
            resumes. A fit that continues from a `.keras` file raises: pass the rate
            instead.
        momentum: `(base, max)`: the momentum at the peak of the rate, and at the
            beginning and the end. None leaves the momentum alone.
        total_steps: Length of the cycle in batches; by default the whole `fit`.
        pct_start: As in `kt.schedules.OneCycle`.
        div_factor: As in `kt.schedules.OneCycle`.
        final_div_factor: As in `kt.schedules.OneCycle`.
        anneal: As in `kt.schedules.OneCycle`.
        three_phase: As in `kt.schedules.OneCycle`.
        optimizer: Which optimizer, if a custom `train_step` uses several: an attribute
            such as `"d_optimizer"`, or `"optimizers[0]"`, `"generator.optimizer"`. Each
            can have its own cycle; the logs then contain `d_optimizer_learning_rate`.
            The default is `model.optimizer`; a fit whose first step does not use it
            raises.

    Attributes:
        found: What `kt.find_lr` found for `"auto"`, an `LRFinderResult`; None before.

    Raises:
        ValueError: If an argument is wrong; from `fit`, if the number of batches is
            not known and `total_steps` is not given, or if no rate can be found.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss="mse")
        >>> x = np.ones((64, 2), "float32")
        >>> history = model.fit(
        ...     x, x[:, :1], batch_size=16, epochs=5, verbose=0,
        ...     callbacks=[kt.callbacks.OneCycle(0.1)],
        ... )
        >>> [round(m, 3) for m in history.history["momentum"]]
        [0.885, 0.855, 0.889, 0.931, 0.95]

    Reference:
        L. Smith, A disciplined approach to neural network hyper-parameters (2018),
        arXiv:1803.09820.
    """

    def __init__(
        self,
        max_lr: float | str | None,
        momentum: Sequence[float] | None = (0.85, 0.95),
        total_steps: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        anneal: str = "cos",
        three_phase: bool = False,
        optimizer: str | None = None,
    ):
        super().__init__(optimizer)
        if max_lr is None:
            reject(
                "max_lr",
                max_lr,
                "a rate: a range test that found none returns None. Its `verdict` says "
                "why; give it more steps (`num_steps=300`) or another range, or look "
                "at the model with `kt.diagnostics.check_up`",
            )
        self._finds = isinstance(max_lr, str) and max_lr == "auto"
        self.found: LRFinderResult | None = None
        # Until the rate is found, any value serves to check the other arguments.
        self.max_lr = 1.0 if self._finds else check_positive("max_lr", max_lr)
        if total_steps is not None:
            check_integer("total_steps", total_steps, minimum=2)
        self.total_steps = total_steps
        self.momentum = None if momentum is None else _check_momentum(momentum)
        self._shape: dict[str, Any] = {
            "pct_start": pct_start,
            "anneal": anneal,
            "three_phase": three_phase,
        }
        self._factors: dict[str, Any] = {
            "div_factor": div_factor,
            "final_div_factor": final_div_factor,
        }
        # Any length serves to check the arguments.
        self._make(total_steps or 1000)

    def set_params(self, params):
        """Find the rate if it is `"auto"`, then install the cycle."""
        if self._finds:
            self.max_lr = automatic_rate(self, "max_lr", "one_cycle")
        super().set_params(params)

    def _make(self, total_steps):
        rate = schedules.OneCycle(
            self.max_lr, total_steps, **self._factors, **self._shape
        )
        if self.momentum is None:
            return rate, None
        base, top = self.momentum
        return rate, schedules.OneCycleMomentum(total_steps, top, base, **self._shape)

    def make_schedules(self, optimizer, steps_per_epoch):
        """Return the cycle over the whole fit, or over `total_steps`."""
        total_steps = self.total_steps
        if total_steps is None:
            if steps_per_epoch is None:
                raise ValueError(
                    "OneCycle cannot know how many batches an epoch of these data has: "
                    "pass OneCycle(max_lr, total_steps=...), or steps_per_epoch to "
                    "fit. Received: total_steps=None"
                )
            total_steps = max(2, steps_per_epoch * self.params["epochs"])
        rate, momentum = self._make(total_steps)
        if momentum is not None and momentum_name(optimizer) is None:
            warnings.warn(
                f"OneCycle cannot cycle the momentum of {type(optimizer).__name__}; it "
                "cycles the learning rate alone. Pass momentum=None to say so yourself",
                stacklevel=2,
            )
            momentum = None
        return rate, momentum

    def options(self, optimizer):
        """Give an SGD without momentum a velocity, which it keeps."""
        if self.momentum is not None and momentum_name(optimizer) == "momentum":
            if optimizer.momentum == 0:
                return {"least_momentum": self.momentum[1]}
        return {}


def _check_momentum(momentum: Any) -> tuple[float, ...]:
    expected = "a pair (base, max) with 0 <= base <= max < 1"
    pair = tuple(check_items("momentum", momentum, expected))
    if len(pair) != 2:
        reject("momentum", momentum, expected)
    for value in pair:
        check_in_range("momentum", value, 0, 1, closed="left")
    if pair[0] > pair[1]:
        reject("momentum", momentum, expected)
    return pair
