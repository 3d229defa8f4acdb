"""The `keras-trainkit deploy` and `keras-trainkit inspect` commands."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_trainkit as kt
from keras_trainkit._model.graph import is_graph
from keras_trainkit._training.batches import num_rows, take
from keras_trainkit.cli._inputs import (
    check_weights,
    first_line,
    load_data,
    load_model,
)
from keras_trainkit.cli._output import CommandError, whole_folder

_CALIBRATION_ROWS = 200


@dataclass(frozen=True)
class Plan:
    """Which variants of a model to create, and how.

    Attributes:
        fold: Whether to optimize the model for inference.
        ratio: The fraction of channels to remove, if any.
        quantization: How to quantize the last variant's LiteRT file, if at all.
        quantize_aware: Whether to apply quantization-aware int8 training to the last
            variant.
        train: The `.npz` file with the training data, if any.
        loss: The loss to train with, if the model's file has none.
        epochs: Epochs of each training run.
        learning_rate: Learning rate of each training run.
        c_array: Whether to also export the last variant with int8 inputs and outputs,
            and write it as a C header.
    """

    fold: bool = False
    ratio: float | None = None
    quantization: str | None = None
    quantize_aware: bool = False
    train: Path | None = None
    loss: str | None = None
    epochs: int = 3
    learning_rate: float = 1e-4
    c_array: bool = False

    def check(self) -> None:
        """Raise a CommandError if the options contradict each other."""
        if self.quantize_aware and self.train is None:
            raise CommandError("--quantize-aware needs training data: --train NPZ")
        if self.train and not (self.quantize_aware or self.ratio):
            raise CommandError("--train needs --quantize-aware or --prune-channels")
        if self.quantize_aware and self.quantization not in (None, "int8"):
            raise CommandError("--quantize-aware gives int8: leave --quantize out")
        if self.c_array and not self.in_int8:
            raise CommandError("--c-array needs --quantize int8 or --quantize-aware")

    @property
    def in_int8(self) -> bool:
        """Whether the last variant is exported as int8."""
        return self.quantize_aware or self.quantization == "int8"


def run_deploy(
    model_path: Path,
    data_path: Path,
    out: Path,
    plan: Plan,
    *,
    repetitions: int = 50,
    force: bool = False,
) -> Path:
    """Write variants of a model and a report that compares them.

    Args:
        model_path: The `.keras` file.
        data_path: The `.npz` file with `x` and `y`.
        out: The output folder. Files appear there only if everything succeeds.
        plan: Which variants to create.
        repetitions: Number of timed passes.
        force: Whether to write into a folder that is not empty.

    Returns:
        The path of the report.

    Raises:
        CommandError: If a file or an argument is missing or invalid. The message is
            one line.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise CommandError('deploy needs ai-edge-litert: pip install "ai-edge-litert"')
    plan.check()
    model = load_model(model_path, plan.loss, compile=plan.train is not None)
    check_weights(model_path, model)
    x, y = load_data(data_path, model)
    training = None if plan.train is None else load_data(plan.train, model)
    with whole_folder(out, force) as folder:
        variants = _Variants(model, folder, x, plan, training)
        try:
            variants.make()
            report = kt.export.deployment_report(
                variants.found, x, y, repetitions=repetitions
            )
        except (ValueError, RuntimeError) as error:
            raise CommandError(first_line(error)) from None
        notes = variants.notes(report)
        note = "".join(f"\n\n{text}" for text in notes)
        if importlib.util.find_spec("matplotlib"):
            _save_figure(report, folder / "report.png")
            note += "\n\n![The variants side by side](report.png)"
        text = (
            f"# Deployment report: {model_path.name}\n\n{report.to_markdown()}{note}\n"
        )
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    print(report.to_markdown())
    print(*notes, f"written to {out}", sep="\n\n")
    return out / "report.md"


@dataclass
class _Variants:
    """Create the variants of a plan, each from the previous one.

    Attributes:
        found: The variants by name, for the report: models or paths of files.
    """

    model: keras.Model
    folder: Path
    x: Any
    plan: Plan
    training: tuple[Any, Any] | None
    found: dict[str, Any] = field(default_factory=dict)

    def make(self) -> None:
        plan, last, name = self.plan, self.model, "trained"
        self.found["trained, in Keras"] = last
        self._export(name, last)
        if plan.fold:
            last, name = kt.export.optimize_for_inference(last), "folded"
            self._export(name, last, keep=True)
        if plan.ratio is not None:
            self._export(f"{name}, int8", last, "int8")
            self.uncut = name
            last = kt.pruning.prune_channels(last, plan.ratio).model
            name = f"{name}, fewer channels"
            if self.training:
                self._train(last, f"{name}, trained")
                name = f"{name}, trained"
            self._export(name, last, keep=True)
            self.cut = name
        if plan.quantize_aware:
            last = kt.quantization.quantize_aware(last)
            name = f"{name}, quantization-aware int8"
            self._train(last, name)
            self._export(name, last, "int8", trained_ranges=True)
        elif plan.quantization is not None:
            name = f"{name}, {plan.quantization}"
            self._export(name, last, plan.quantization)
        if plan.c_array:
            self._write_c(name, last)

    def _file(self, name: str, suffix: str) -> Path:
        stem = name.replace(", ", "_").replace(" ", "_").replace("-", "_")
        return self.folder / f"{stem}{suffix}"

    def _export(
        self,
        name: str,
        model: keras.Model,
        how: str | None = None,
        *,
        keep: bool = False,
        trained_ranges: bool = False,
    ) -> None:
        if keep:
            model.save(self._file(name, ".keras"))
        rows = None if trained_ranges else self._sample()
        path = self._file(name, ".tflite")
        self.found[name] = kt.export.to_litert(model, path, how, rows)

    def _write_c(self, name: str, model: keras.Model) -> None:
        rows = None if self.plan.quantize_aware else self._sample()
        name = f"{name}, int8 inputs"
        path = self._file(name, ".tflite")
        kt.export.to_litert(model, path, "int8", rows, io_dtype="int8")
        self.found[name] = path
        kt.export.to_c_array(path, self._file("model", ".h"))

    def _sample(self) -> Any:
        order = np.random.default_rng(0).permutation(num_rows(self.x))
        return take(self.x, order[:_CALIBRATION_ROWS])

    def _train(self, model: keras.Model, name: str) -> None:
        assert self.training is not None
        print(f"training: {name}", flush=True)
        optimizer = keras.optimizers.Adam(self.plan.learning_rate)
        model.compile(optimizer, self.model.loss)
        model.fit(*self.training, epochs=self.plan.epochs, verbose=2)

    def notes(self, report: kt.export.DeploymentReport) -> list[str]:
        """Describe what pruning cost; empty if nothing was pruned."""
        if self.plan.ratio is None:
            return []
        by_name = {variant.name: variant for variant in report.variants}
        cut, uncut = by_name[self.cut], by_name[self.uncut]
        told = f"Cutting {self.plan.ratio:.0%} of the channels"
        if self.training:
            told += " and training on"
        if cut.accuracy is not None and uncut.accuracy is not None:
            lost = 100 * (uncut.accuracy - cut.accuracy)
            told += f" cost {lost:.2f} points of accuracy: {uncut.accuracy:.2%} became "
            told += f"{cut.accuracy:.2%}."
        else:
            told += f" changed the outputs by {cut.max_difference:.1e} of the largest."
        whole = by_name[f"{self.uncut}, int8"]
        told += f" Uncut, the model takes {whole.bytes / 1e3:,.1f} kB in int8"
        if whole.accuracy is not None:
            told += f", with an accuracy of {whole.accuracy:.2%}"
        told += f" ({self._file(whole.name, '.tflite').name})."
        if not self.training:
            told += " The variant with fewer channels has not been trained since: give "
            told += "--train, or use keras-trainkit compress, which trains."
        return [told]


def _save_figure(report, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    kt.plots.variants(report.measures())
    pyplot.gcf().savefig(path, dpi=110)
    pyplot.close()


def run_inspect(model_path: Path) -> None:
    """Print what could be folded, dropped and pruned in a model, and what could not."""
    model = load_model(model_path)
    if not is_graph(model):
        raise CommandError(
            f"{model_path} holds a {type(model).__name__}: only Functional and "
            "Sequential models can be looked into"
        )
    if not model.weights:
        raise CommandError(f"{model_path} holds no weights: nothing to fold or prune")
    check_weights(model_path, model)
    try:
        _print_savings(model)
    except (ValueError, RuntimeError) as error:
        raise CommandError(first_line(error)) from None


def _print_savings(model: keras.Model) -> None:
    small = kt.export.optimize_for_inference(model)
    before, after = len(_names(model)), len(_names(small))
    print(f"{model.name}: {before} layers, {model.count_params():,} parameters")
    print(f"\nFor inference {after} layers would do (deploy --fold):")
    gone = [name for name in _names(model) if name not in set(_names(small))]
    print(f"  without {', '.join(gone)}" if gone else "  nothing can be left out")
    for layer, reason in kt.folding.fold_batch_norm(model).kept.items():
        print(f"  {layer} stays: {reason}")
    try:
        result = kt.pruning.prune_channels(model, 0.5)
    except ValueError as error:
        print(f"\nChannels: {first_line(error)}")
    else:
        print("\nHalf of the channels out (deploy --prune-channels 0.5):")
        print("  " + result.summary().replace("\n", "\n  "))
    print("\nZeros now:")
    print("  " + kt.pruning.sparsity_report(model).summary().replace("\n", "\n  "))


def _names(model) -> list[str]:
    return [
        layer.name
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]
