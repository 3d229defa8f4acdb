"""Distill Monte Carlo dropout into a model that needs a single pass."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_trainkit._checks import check_integer, check_positive
from keras_trainkit._keras import functional_part
from keras_trainkit._model.copy import live_copy
from keras_trainkit._training.batches import batches_of, columns, is_arrays, num_rows
from keras_trainkit.uncertainty._head import body, check_head
from keras_trainkit.uncertainty._predict import mc_predict, preprocessed
from keras_trainkit.uncertainty._prediction import MCPrediction

# Hidden units of the uncertainty head; the uncertainty is not linear in the features.
_HIDDEN = 64
_TINY = float(np.finfo(np.float32).tiny)
# A row's standard deviation is at least this fraction of the usual one.
_LEAST = 1e-3


def distill(
    model: keras.Model,
    x: Any,
    *,
    num_samples: int = 100,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    task: str | None = None,
    seed: int | None = None,
    verbose: int = 0,
) -> keras.Model:
    """Train a copy of a model to predict in one pass what `mc_predict` estimates.

    The copy has a second head, on the input of the last `Dense` layer, and starts from
    the model's weights. It learns the mean of the samples and their spread for each row
    of `x`, without labels: for a classifier the mean probabilities and the mutual
    information, for a regression the mean and the standard deviation. It is trained in
    inference mode: dropout is off and BatchNorm keeps its statistics. Frozen layers
    stay frozen.

    The copy consists of Keras's layers and the model's own, saves as a plain `.keras`
    file, and exports like any model.

    Args:
        model: A Sequential or Functional model with dropout and one output, which ends
            in a `Dense` layer. It is not changed.
        x: Inputs, as for `mc_predict`: the training inputs, and any others, because no
            labels are needed. The more `x` resembles the inputs in use, including
            out-of-distribution ones, the better the copy works on them.
        num_samples: Number of samples per row.
        epochs: Passes over `x`.
        learning_rate: Adam's initial rate; it falls to 0 along a cosine.
        batch_size: Rows per batch.
        task: As in `mc_predict`.
        seed: Integer seed of the samples and of the new layers.
        verbose: As in `fit`.

    Returns:
        A Functional model, not compiled, whose output is a dict: for classification
        `"mean"`, `(rows, classes)`, and `"mutual_information"` in nats, `(rows,)`; for
        binary outputs both are `(rows, outputs)`; for regression `"mean"` and `"std"`,
        `(rows, outputs)`, and for a heteroscedastic head also `"aleatoric_std"`.

    Raises:
        ValueError: If an argument is wrong, or the model has no dropout or does not end
            in a `Dense` layer.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((4,), 3, preset="risk_sensitive")
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> fast = kt.uncertainty.distill(model, x, num_samples=10, epochs=1, seed=0)
        >>> found = fast.predict(x, verbose=0)
        >>> found["mean"].shape, found["mutual_information"].shape
        ((64, 3), (64,))

    Reference:
        A. Malinin, B. Mlodozeniec and M. Gales, Ensemble Distribution Distillation
        (2020), arXiv:1905.00076, section 3: the distribution over the samples is
        distilled, not only its mean; here by its mean and its mutual information.
    """
    check_integer("epochs", epochs, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    check_positive("learning_rate", learning_rate)
    check_head(model)
    x = preprocessed(model, columns(x) if is_arrays(x) else _collected(x))
    found = mc_predict(model, x, num_samples, task=task, seed=seed)
    student = _with_second_head(model, found, task, seed)
    steps = epochs * -(-num_rows(x) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    trained = _AtInference(student)
    trained.compile(keras.optimizers.Adam(schedule), loss=_losses(found))
    trained.fit(x, _targets(found), batch_size, epochs, verbose=verbose)
    return student


class _AtInference(keras.Model):
    """A model that trains with its layers in inference mode."""

    def __init__(self, model: keras.Model):
        super().__init__(name="distill", dtype="float32")
        self.model = model

    def call(self, inputs):
        return self.model(inputs, training=False)


def _collected(x: Any) -> Any:
    """Return the inputs of all batches, concatenated."""
    parts = [inputs for inputs, *_ in batches_of(x)[0]]
    return keras.tree.map_structure(
        lambda *arrays: np.concatenate([np.asarray(columns(a)) for a in arrays]), *parts
    )


def _with_second_head(model, found: MCPrediction, task, seed) -> keras.Model:
    """Copy a model so that it also outputs the spread of its samples, untrained."""
    dense, behind = check_head(model)
    base = body(model)
    memo: dict[int, Any] = {}
    # A Sequential model that was never called has no `input` of its own.
    inputs = functional_part(base).input
    features = mean = base.outputs[0]
    for layer in (dense, *reversed(behind)):
        mean = live_copy(layer, memo)(mean)
    outputs = {}
    if task == "logits":
        mean = layers.Softmax(name="mean", dtype="float32")(mean)
    elif found.aleatoric_std is not None:
        mean, log_variance = ops.split(mean, 2, axis=-1)
        outputs["aleatoric_std"] = ops.exp(log_variance / 2)
    spread = _spread(features, found, dense.name, seed)
    if found.mutual_information is None:
        return keras.Model(inputs, {"mean": mean, "std": spread, **outputs})
    entropy = mean * ops.log(ops.maximum(mean, _TINY))
    if _is_binary(found):
        other = 1 - mean
        entropy = entropy + other * ops.log(ops.maximum(other, _TINY))
    else:
        entropy = ops.sum(entropy, axis=-1)
        spread = ops.squeeze(spread, axis=-1)
    # The mutual information is at most the whole entropy.
    outputs = {"mean": mean, "mutual_information": -entropy * spread}
    return keras.Model(inputs, outputs, name=model.name)


def _spread(features, found: MCPrediction, name: str, seed: int | None) -> Any:
    """Return the new head's output: standard deviations, or a fraction of the entropy.

    They start at the mean over all rows.
    """
    information, entropy = found.mutual_information, found.predictive_entropy
    if information is None or entropy is None:
        start = np.log(_scale(found))
        activation = "exponential"
    else:
        fraction = np.clip(information.sum() / max(entropy.sum(), _TINY), 1e-6, 0.999)
        start = np.log(fraction / (1 - fraction))
        activation = "sigmoid"
    per_output = information is None or _is_binary(found)
    units = found.mean.shape[-1] if per_output else 1
    rng = np.random.default_rng(seed)

    def dense(units, activation, role):
        # Always float32, because the numbers are small.
        return layers.Dense(
            units,
            activation,
            kernel_initializer=keras.initializers.GlorotUniform(
                int(rng.integers(2**31))
            ),
            name=f"{name}_spread_{role}",
            dtype="float32",
        )

    last = dense(units, activation, "output")
    spread = last(dense(_HIDDEN, "relu", "hidden")(features))
    last.bias.assign(np.broadcast_to(start, (units,)))
    return spread


def _is_binary(found: MCPrediction) -> bool:
    information = found.mutual_information
    return information is not None and information.ndim == found.mean.ndim


def _scale(found: MCPrediction) -> np.ndarray:
    """Return the usual standard deviation of each output."""
    rows = found.std.reshape(-1, found.std.shape[-1])
    return np.maximum(np.sqrt((rows**2).mean(0)), _TINY)


def _targets(found: MCPrediction) -> dict[str, np.ndarray]:
    spread = {"std": found.std, "aleatoric_std": found.aleatoric_std}
    if found.mutual_information is not None:
        spread = {"mutual_information": found.mutual_information}
    targets = {"mean": found.mean, **spread}
    return {k: v.astype("float32") for k, v in targets.items() if v is not None}


def _losses(found: MCPrediction) -> dict[str, Any]:
    if found.mutual_information is None:
        scale = _scale(found).astype("float32")

        def mean_loss(y, z):
            # In standard deviations, so that the target's unit does not matter.
            return ops.mean(ops.square(ops.divide(y - z, scale)), axis=-1)

        def std_loss(y, z):
            ratio = ops.maximum(z, _TINY) / ops.maximum(y, _LEAST * scale)
            return ops.mean(ops.square(ops.log(ratio)), axis=-1)

        losses = {"mean": mean_loss, "std": std_loss}
        if found.aleatoric_std is not None:
            losses["aleatoric_std"] = std_loss
        return losses
    binary = _is_binary(found)
    most = math.log(2 if binary else found.mean.shape[-1])

    def information_loss(y, z):
        # Fractions of the largest; logarithms would overweight confident rows.
        crossed = keras.losses.binary_crossentropy
        return crossed(y[..., None] / most, z[..., None] / most)

    mean = "binary_crossentropy" if binary else "kl_divergence"
    return {"mean": mean, "mutual_information": information_loss}
