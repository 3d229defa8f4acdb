"""Train a smaller model on the outputs of the original and on the targets."""

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._keras import functional_part
from keras_trainkit._training.optimizer import core_optimizer, own_schedule
from keras_trainkit.callbacks import OneCycle
from keras_trainkit.compression._outputs import (
    flat_outputs,
    is_of_logits,
    loss_weights_of,
    losses_of,
    predictions,
)
from keras_trainkit.pruning import MagnitudePruning

# Keras's default in `keras.distillation.LogitsDistillation`.
_TEMPERATURE = 3.0
# Of the loss, what the targets count; the outputs of the original count the rest.
_TARGETS = 0.5


class SoftenedDivergence(keras.losses.Loss):
    """`T^2 KL(softmax(t / T) || softmax(s / T))` for the logits t of the teacher.

    It is what `keras.distillation.LogitsDistillation` computes, for each row by itself,
    and for probabilities, whose logarithms are their logits.

    Args:
        from_logits: Whether the outputs are logits.

    Reference:
        G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network
        (2015), arXiv:1503.02531, section 2.
    """

    def __init__(self, from_logits: bool = False):
        super().__init__(name="softened_divergence")
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        teacher, student = map(self._softened, (y_true, y_pred))
        return _TEMPERATURE**2 * keras.losses.kl_divergence(teacher, student)

    def _softened(self, outputs):
        outputs = ops.cast(outputs, "float32")
        logits = outputs if self.from_logits else ops.log(ops.clip(outputs, 1e-7, 1.0))
        return ops.softmax(logits / _TEMPERATURE, axis=-1)


def distance_for(teacher: np.ndarray, from_logits: bool) -> keras.losses.Loss:
    """What pulls a student's outputs to those of the original."""
    if teacher.ndim > 1 and teacher.shape[-1] > 1:
        sums = teacher.sum(-1)
        if from_logits:
            return SoftenedDivergence(from_logits=True)
        if teacher.min() >= 0 and np.allclose(sums, 1, atol=1e-2):
            return SoftenedDivergence()
    return keras.losses.MeanSquaredError()


@dataclass(frozen=True)
class Training:
    """How a student is trained.

    Attributes:
        epochs: Length of the cycle.
        batch_size: Rows of a batch.
        max_lr: The peak of the cycle.
        seed: Seed of the order of the rows.
    """

    epochs: int
    batch_size: int
    max_lr: float
    seed: int

    def longer(self, times: int) -> "Training":
        """The same with a longer cycle."""
        return replace(self, epochs=times * self.epochs)

    def gentler(self, times: float) -> "Training":
        """The same with a lower peak."""
        return replace(self, max_lr=self.max_lr / times)


class Teacher:
    """What students learn from: the targets, and the outputs of the original.

    Those outputs are computed once, at inference, as `keras.distillation.Distiller`
    computes them in each step.
    """

    def __init__(self, model: keras.Model, x: Any, y: list[np.ndarray]):
        self._x = x
        self._targets: dict[str, Any] = {}
        self._losses: dict[str, Any] = {}
        self._weights: dict[str, float] = {}
        losses, weights = losses_of(model), loss_weights_of(model)
        found = zip(y, predictions(model, x), losses, weights, strict=True)
        for i, (targets, outputs, loss, weight) in enumerate(found):
            if loss is not None:
                self._add(f"targets_{i}", targets, loss, _TARGETS * weight)
            distance = distance_for(outputs, is_of_logits(loss))
            self._add(f"original_{i}", outputs, distance, (1 - _TARGETS) * weight)
        optimizer = core_optimizer(model)
        self._optimizer = type(optimizer), optimizer.get_config()

    def _add(self, name: str, targets: np.ndarray, loss: Any, weight: float) -> None:
        self._targets[name] = targets
        self._losses[name] = loss
        self._weights[name] = weight

    def train(
        self, student: keras.Model, how: Training, sparsity: float | None = None
    ) -> None:
        """Train a student in place, on one cycle.

        Args:
            student: The smaller model.
            how: How.
            sparsity: The fraction of the entries of each kernel that become zero.
        """
        keras.utils.set_random_seed(how.seed)
        part = functional_part(student)
        outputs = flat_outputs(student, part.output)
        # Each output is there twice: for its targets, and for those of the original.
        twice = {name: outputs[int(name.split("_")[1])] for name in self._losses}
        both = keras.Model(part.input, twice)
        kind, config = self._optimizer
        both.compile(
            kind.from_config({**config, "learning_rate": how.max_lr}),
            loss=self._losses,
            loss_weights=self._weights,
        )
        callbacks: list[Any] = [OneCycle(how.max_lr)]
        if sparsity:
            rows = len(next(iter(self._targets.values())))
            steps = how.epochs * -(-rows // how.batch_size)
            callbacks.append(_pruning(sparsity, steps))
        both.fit(
            self._x,
            self._targets,
            epochs=how.epochs,
            batch_size=how.batch_size,
            verbose=0,
            callbacks=callbacks,
        )


def _pruning(sparsity: float, steps: int) -> MagnitudePruning:
    """Zeros that are there after half of the steps."""
    end = max(steps // 2, 1)
    return MagnitudePruning(sparsity, end_step=end, frequency=max(end // 10, 1))


def usual_rate(model: keras.Model) -> float:
    """The learning rate that a model was compiled with, or that its schedule has."""
    rate = own_schedule(core_optimizer(model))
    if isinstance(rate, float):
        return rate
    # A cycle begins and ends low: the highest rate that it has.
    return max(float(rate(step)) for step in range(0, 10_000, 50))
