"""Train a smaller model on the outputs of the original and on the targets."""

from dataclasses import dataclass, replace

import keras
from keras import ops

from keras_trainkit._training.optimizer import core_optimizer, own_schedule
from keras_trainkit.callbacks import OneCycle


class OutputDistillation(keras.distillation.DistillationLoss):
    """Pulls outputs towards the teacher's: probabilities by likelihood, others by MSE.

    `keras.distillation.LogitsDistillation` takes logits, which a trained model with a
    softmax does not output.
    """

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """The mean over all outputs."""
        pairs = zip(
            keras.tree.flatten(teacher_outputs),
            keras.tree.flatten(student_outputs),
            strict=True,
        )
        losses = [_distance(teacher, student) for teacher, student in pairs]
        return sum(losses) / len(losses)


def _distance(teacher, student):
    teacher, student = (ops.cast(t, "float32") for t in (teacher, student))
    squared = ops.mean(ops.square(teacher - student))
    if len(teacher.shape) < 2 or teacher.shape[-1] < 2:
        return squared
    tiny = 1e-7
    logs = ops.log(ops.clip(student, tiny, 1.0))
    cross = -ops.mean(ops.sum(ops.clip(teacher, 0.0, 1.0) * logs, axis=-1))
    sums_to_one = ops.all(ops.abs(ops.sum(teacher, axis=-1) - 1) < 1e-2)
    probabilities = ops.logical_and(sums_to_one, ops.min(teacher) >= 0)
    return ops.where(probabilities, cross, squared)


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


def train(
    student: keras.Model,
    teacher: keras.Model,
    model: keras.Model,
    data: tuple,
    training: Training,
) -> None:
    """Train a student in place, on one cycle.

    Args:
        student: The smaller model.
        teacher: A copy of the original, which is frozen.
        model: The original, for its loss and the kind of its optimizer.
        data: `(x, y)`.
        training: How.
    """
    keras.utils.set_random_seed(training.seed)
    distiller = keras.distillation.Distiller(teacher, student, OutputDistillation())
    optimizer = core_optimizer(model)
    config = {**optimizer.get_config(), "learning_rate": training.max_lr}
    distiller.compile(type(optimizer).from_config(config), loss=model.loss)
    distiller.fit(
        *data,
        epochs=training.epochs,
        batch_size=training.batch_size,
        verbose=0,
        callbacks=[OneCycle(training.max_lr)],
    )


def usual_rate(model: keras.Model) -> float:
    """The learning rate that a model was compiled with, or that its schedule has."""
    rate = own_schedule(core_optimizer(model))
    if isinstance(rate, float):
        return rate
    # A cycle begins and ends low: the highest rate that it has.
    return max(float(rate(step)) for step in range(0, 10_000, 50))
