"""Some steps of training on a copy of the state."""

import time
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_trainkit._training.as_fit import step_as_fit
from keras_trainkit._training.optimizer import core_optimizer, install, own_schedule
from keras_trainkit._training.scheduled import with_schedules
from keras_trainkit.diagnostics._subject import Subject, has_batch_norm, take

_CHECKPOINTS = 10


@dataclass(frozen=True)
class Run:
    """The result of a trial training.

    Attributes:
        rate: Its learning rate; None for the model's own schedule.
        steps: Number of steps.
        start: The loss on some training rows before it, without penalties.
        start_held: The loss on held-out rows before it.
        train: The loss on those training rows at some points, the last at the end.
        held: The loss on held-out rows at the same points.
    """

    rate: float | None
    steps: int
    start: float
    start_held: float
    train: np.ndarray
    held: np.ndarray

    @property
    def end(self) -> float:
        """Return the final loss on training rows; infinite if it is not finite."""
        last = self.train[-1] if len(self.train) else np.nan
        return float(last) if np.isfinite(last) else np.inf


@dataclass
class Trial:
    """Run trainings from the model's current state. Use it inside `as_it_was`.

    Attributes:
        subject: The model and its data.
        steps: Number of steps of a run.
        deadline: The value of `time.perf_counter` at which a run stops.
    """

    subject: Subject
    steps: int
    deadline: float
    rows: np.ndarray = field(init=False)
    held: Any = field(init=False)
    shown: Any = field(init=False)

    def __post_init__(self):
        subject = self.subject
        model = subject.model
        order = np.random.default_rng(subject.seed).permutation(subject.rows)
        if subject.validation:
            x, y = subject.validation
            some = np.arange(min(len(keras.tree.flatten(x)[0]), 500))
            self.held, self.rows = take((x, y), some), order
        else:
            cut = min(max(subject.rows // 5, 1), 500)
            self.held = subject.take(order[:cut])[:2]
            self.rows = order[cut:] if subject.rows > 1 else order
        self.shown = subject.take(self.rows[:256])[:2]
        self.has_norm = has_batch_norm(model)
        self._schedule = own_schedule(core_optimizer(model))
        self._constant = not callable(self._schedule)
        install(model, with_schedules(model, self._schedule), rewrap=True)
        core_optimizer(model).build(model.trainable_variables)
        self._variables = [*model.variables, *_variables(model.optimizer)]
        self._values = [_array(v) for v in self._variables]

    def user_rate(self) -> float | None:
        """Return the learning rate of the model; None for a schedule."""
        return float(self._schedule) if self._constant else None

    def reset(self) -> None:
        """Restore the model and the optimizer to the initial state."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)

    def set_rate(self, rate: float) -> None:
        """Train at another rate from now on."""
        model = self.subject.model
        if not self._constant:
            self.reset()
            install(model, with_schedules(model, rate), rewrap=True)
            core_optimizer(model).build(model.trainable_variables)
            self._variables = [*model.variables, *_variables(model.optimizer)]
            self._values = [_array(v) for v in self._variables]
            self._constant = True
        core_optimizer(model).learning_rate = rate

    def run(self, rate: float | None = None) -> Run:
        """Train from the initial state."""
        self.reset()
        start, start_held = self.loss(*self.shown), self.loss(*self.held)
        self.reset()
        if rate is not None:
            self.set_rate(rate)
        size = min(self.subject.batch_size, len(self.rows))
        rng = np.random.default_rng(self.subject.seed)
        every = max(self.steps // _CHECKPOINTS, 1)
        train: list[float] = []
        held: list[float] = []
        order = np.empty(0, int)
        done = 0
        while done < self.steps and (time.perf_counter() < self.deadline or not train):
            if len(order) < size:
                order = rng.permutation(self.rows)
            chosen, order = order[:size], order[size:]
            self.step(*self.subject.take(chosen))
            done += 1
            if done % every == 0 or done == self.steps:
                train.append(self.loss(*self.shown))
                held.append(self.loss(*self.held))
                if not np.isfinite(train[-1]):
                    break
        return Run(rate, done, start, start_held, np.array(train), np.array(held))

    def one_batch(self, rate: float | None, steps: int) -> tuple[float, float]:
        """Return the loss on one batch before and after training on it alone."""
        self.reset()
        size = min(self.subject.batch_size, len(self.rows), 32)
        batch = self.subject.take(self.rows[:size])
        start = self.loss(*batch[:2])
        self.reset()
        if rate is not None:
            self.set_rate(rate)
        for _ in range(steps):
            self.step(*batch)
            if time.perf_counter() > self.deadline:
                break
        return start, self.loss(*batch[:2])

    def step(self, x, y, weights=None) -> None:
        """Run one step of the optimizer."""
        step_as_fit(self.subject.model, x, y, weights)

    def loss(self, x, y) -> float:
        """Return the compiled loss without penalties.

        A network with BatchNorm uses the statistics of these rows: its moving averages
        are far behind in so short a training.
        """
        model = self.subject.model
        prediction = model(x, training=self.has_norm)
        total = model.compute_loss(
            x, _tensors(y), prediction, None, training=self.has_norm
        )
        return float(_array(total)) - penalty(model)


def penalty(model: keras.Model) -> float:
    """Return the sum of the regularizers' penalties."""
    return float(sum(float(_array(loss)) for loss in model.losses))


def _tensors(structure):
    return keras.tree.map_structure(keras.ops.convert_to_tensor, structure)


def _variables(optimizer) -> list:
    found = list(optimizer.variables)
    inner = getattr(optimizer, "inner_optimizer", None)
    return found + (list(inner.variables) if inner is not None else [])


def _array(value) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))
