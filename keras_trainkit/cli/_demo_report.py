"""What the demo found out, and the page that shows it."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_trainkit._table import Table


@dataclass(frozen=True)
class Judgement:
    """How good and how calibrated a set of predictions is."""

    name: str
    accuracy: float
    nll: float
    ece: float


@dataclass(frozen=True)
class Variant:
    """One exported file and what was measured of it."""

    name: str
    file: str
    kilobytes: float
    gzip_kilobytes: float
    latency_ms: float
    accuracy: float


@dataclass(frozen=True)
class Results:
    """Everything that the report tells."""

    data: str
    architecture: keras.Model
    max_lr: float
    verdict: str
    epochs: int
    history: dict[str, list[float]]
    num_samples: int
    judged: Sequence[Judgement]
    halves: Sequence[float]
    folding: Any
    sparsity: Any
    variants: Sequence[Variant]
    seconds: float


def render(results: Results) -> str:
    """The report as Markdown; its figures lie beside it."""
    return "\n".join(
        [
            "# From learning rate to LiteRT file",
            "",
            f"{results.data}. Keras {keras.__version__} on "
            f"{keras.backend.backend()}, {platform.machine()} with {os.cpu_count()} "
            f"processors, {results.seconds:.0f} s for everything below.",
            "",
            *_training(results),
            *_certainty(results),
            *_shipping(results),
        ]
    )


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
    folding, sparsity = results.folding, results.sparsity
    kept = [f"- `{name}` stays: {reason}" for name, reason in folding.kept.items()]
    rows = [
        [
            f"[{v.name}]({v.file})",
            f"{v.kilobytes:.0f}",
            f"{v.gzip_kilobytes:.0f}",
            f"{v.latency_ms:.3f}",
            f"{v.accuracy:.2%}",
        ]
        for v in results.variants
    ]
    return [
        "## Fold, prune, ship",
        "",
        f"{len(folding.folded)} BatchNorm layers went into their neighbours; the "
        f"outputs differ by {folding.max_error:.1e} at most.",
        *kept,
        "",
        f"Then the smallest half of each kernel was set to zero, without training "
        f"again: {sparsity.nonzeros:,} of {sparsity.parameters:,} weights are left, "
        f"{sparsity.gzip_bytes:,} bytes after gzip. Such zeros are scattered, so they "
        "make a file smaller once it is compressed and no faster.",
        "",
        "Each file was run by LiteRT: the latency is the median over 300 runs of one "
        "image, the files taking turns.",
        "",
        Table(
            ["file", "kB", "kB after gzip", "ms for one image", "test accuracy"], rows
        ).markdown(),
        "",
        "![Size, latency and accuracy of each file](variants.png)",
        "",
        "The same networks for Keras: [trained](model.keras), "
        "[folded](model_folded.keras), [pruned](model_pruned.keras).",
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
