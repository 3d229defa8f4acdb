"""The results of the demo and the Markdown report that presents them."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import keras

from keras_trainkit._table import Table
from keras_trainkit.compression import CompressResult
from keras_trainkit.diagnostics import CheckUp
from keras_trainkit.export import DeploymentReport
from keras_trainkit.folding import FoldResult


@dataclass(frozen=True)
class Judgement:
    """Accuracy, likelihood and calibration error of a set of predictions."""

    name: str
    accuracy: float
    nll: float
    ece: float


@dataclass(frozen=True)
class Results:
    """Everything that the report contains."""

    data: str
    architecture: keras.Model
    max_lr: float
    verdict: str
    epochs: int
    history: dict[str, list[float]]
    num_samples: int
    judged: Sequence[Judgement]
    halves: Sequence[float]
    folding: FoldResult
    checked: CheckUp
    compressed: CompressResult
    deployed: DeploymentReport
    seconds: float


def render(results: Results) -> str:
    """Render the report as Markdown, with figures from the same folder."""
    return "\n".join(
        [
            "# From learning rate to LiteRT file",
            "",
            f"{results.data}. Keras {keras.__version__} on "
            f"{keras.backend.backend()}, {platform.machine()} with {os.cpu_count()} "
            f"processors, {results.seconds:.0f} s for everything below.",
            "",
            *_check(results),
            *_training(results),
            *_certainty(results),
            *_shipping(results),
        ]
    )


def _check(results: Results) -> list[str]:
    checked = results.checked
    if checked.findings:
        told = checked.to_markdown()
    else:
        told = (
            "`kt.diagnostics.check_up` found nothing wrong with the data, the loss, "
            "the network or its learning rate."
        )
    return ["## Check", "", told, ""]


def _training(results: Results) -> list[str]:
    history = results.history
    layers = " → ".join(_describe(layer) for layer in results.architecture.layers)
    return [
        "## Train",
        "",
        f"The `default` preset: {layers}; "
        f"{results.architecture.count_params():,} parameters.",
        "",
        f"The learning-rate finder suggests **{results.max_lr:.3g}** for the peak of "
        f"the cycle (verdict on the test: {results.verdict}).",
        "",
        "![Loss over learning rate, with the suggestion](learning_rate.png)",
        "",
        f"Training took {len(history['loss'])} of {results.epochs} epochs on one cycle "
        "up to that rate, while the momentum went the other way. The weights are those "
        "of the epoch with the lowest validation loss, "
        f"{min(history['val_loss']):.4f}.",
        "",
        "![Learning rate and momentum over the steps](one_cycle.png)",
        "",
        "![Loss and accuracy over the epochs](learning_curves.png)",
        "",
    ]


def _certainty(results: Results) -> list[str]:
    rows = [[j.name, f"{j.accuracy:.2%}", f"{j.nll:.4f}", f"{j.ece:.2%}"]
            for j in results.judged]  # fmt: skip
    return [
        "## Ask how sure it is",
        "",
        f"The test part, once as usual and as the mean of {results.num_samples} samples"
        " with dropout switched on. NLL is the mean negative log likelihood in nats, "
        "ECE the expected calibration error; lower is better for both.",
        "",
        Table(["prediction", "test accuracy", "NLL", "ECE"], rows).markdown(),
        "",
        "Of the half of the test images that it is more certain of (lower predictive "
        f"entropy), {results.halves[0]:.2%} are right; of the other half, "
        f"{results.halves[1]:.2%}.",
        "",
        "![The most and the least certain test images](certainty.png)",
        "",
        "Above, the images it is surest of; below, the others. The title is the true "
        "class; its bar is green, that of a wrong first guess red.",
        "",
    ]


def _shipping(results: Results) -> list[str]:
    folding = results.folding
    kept = [f"- `{name}` stays: {reason}" for name, reason in folding.kept.items()]
    return [
        "## Fold, compress, ship",
        "",
        f"{len(folding.folded)} BatchNorm layers went into their neighbours; the "
        f"outputs differ by {folding.max_error:.1e} at most.",
        *kept,
        "",
        "Then `kt.compress` cut channels, and trained after each cut, until an int8 "
        "file was within the budget. Each row is a file; the metric is the accuracy on "
        "a part of the training data that these trainings, but not the first, left "
        "out.",
        "",
        results.compressed.to_markdown(),
        "",
        "![Accuracy over the size of all files](front.png)",
        "",
        "The files side by side, on the test part:",
        "",
        results.deployed.to_markdown(),
        "",
        "![Size, latency and accuracy of each file](variants.png)",
        "",
        "The files: [trained](trained.tflite), [folded, int8](folded_int8.tflite), "
        "[compressed](compressed.tflite). The same networks for Keras: "
        "[trained](model.keras), [folded](model_folded.keras), "
        "[compressed](model_compressed.keras).",
        "",
    ]


def _describe(layer: keras.layers.Layer) -> str:
    for attribute in ("units", "rate"):
        value = getattr(layer, attribute, None)
        if value is not None:
            return f"{type(layer).__name__}({value})"
    if isinstance(layer, keras.layers.Activation):
        return keras.activations.serialize(layer.activation).upper()
    return type(layer).__name__
