"""The `keras-trainkit demo` command: the full workflow on real data."""

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

import keras_trainkit as kt
from keras_trainkit.cli import _demo_figures as figures
from keras_trainkit.cli._demo_report import Judgement, Results, render
from keras_trainkit.cli._output import CommandError, whole_folder

_NEEDS = {
    "matplotlib": "matplotlib",
    "ai_edge_litert": "ai-edge-litert",
    "tensorflow": "tensorflow",
    "sklearn": "scikit-learn",
}
_NUM_SAMPLES = 100
# The target size, as a fraction of the float32 file.
_BUDGET = 1 / 4


@dataclass(frozen=True)
class _Plan:
    epochs: int
    batch_size: int
    hidden_units: tuple[int, ...] = (300, 100)


_PLANS = {
    "digits": _Plan(epochs=20, batch_size=32),
    "fashion_mnist": _Plan(epochs=25, batch_size=64),
    "cifar10": _Plan(epochs=15, batch_size=128, hidden_units=(512, 256, 128)),
}


def run_demo(
    name: str, out: Path, epochs: int | None = None, force: bool = False
) -> Path:
    """Check, train, evaluate, fold and compress a network on real data.

    Args:
        name: `"digits"`, `"fashion_mnist"` or `"cifar10"`.
        out: The output folder. Files appear there only if everything succeeds.
        epochs: Number of epochs; the default depends on the data set.
        force: Whether to write into a folder that is not empty.

    Returns:
        The path of the report.

    Raises:
        CommandError: If a dependency or the data is missing, or the folder cannot be
            written. The message is one line.
    """
    missing = [
        pip for module, pip in _NEEDS.items() if not importlib.util.find_spec(module)
    ]
    if missing:
        raise CommandError(
            f"the demo needs {', '.join(missing)}: pip install keras-trainkit[demo]"
        )
    with whole_folder(out, force) as folder:
        try:
            data = kt.datasets.load(name)
        except (ValueError, FileNotFoundError) as error:
            raise CommandError(str(error)) from None
        _run(data, _PLANS[name], epochs or _PLANS[name].epochs, folder)
    report = out / "report.md"
    print(f"Open {report}")
    return report


def _run(data: kt.datasets.Dataset, plan: _Plan, epochs: int, folder: Path) -> None:
    started = time.perf_counter()
    keras.utils.set_random_seed(0)
    print(f"{data!r}\nKeras {keras.__version__} on {keras.backend.backend()}")

    _step(1, "Build the default preset's network")
    # The preset would omit both for such a shallow network. The demo needs a BatchNorm
    # to fold and dropout to sample.
    preset = kt.models.PRESETS["default"].override(
        normalization="batch", dropout="dropout"
    )
    model = kt.models.build_mlp(
        data.input_shape,
        data.num_classes,
        preset="default",
        hidden_units=plan.hidden_units,
        normalization="batch",
        dropout="dropout",
    )
    preset.compile(model)
    _say(f"{model.count_params():,} parameters")

    _step(2, "Check it up")
    checked = kt.diagnostics.check_up(
        model, *data.train, data.validation, batch_size=plan.batch_size
    )
    for finding in checked.findings:
        _say(f"{finding}")
    if checked.healthy:
        _say("nothing is wrong with the data, the loss or the network")

    _step(3, "Find the learning rate")
    found = kt.find_lr(model, *data.train, batch_size=plan.batch_size)
    figures.save(kt.plots.lr_finder(found), folder / "learning_rate.png")
    max_lr = found.one_cycle or preset.learning_rate
    _say(f"{max_lr:.3g} (the range test is {found.verdict})")

    _step(4, f"Train {epochs} epochs on one cycle")
    steps = _Steps()
    history = model.fit(
        *data.train,
        batch_size=plan.batch_size,
        epochs=epochs,
        validation_data=data.validation,
        callbacks=[*preset.callbacks(max_lr), steps],
        verbose=0,
    ).history
    figures.save_cycle(steps.learning_rates, steps.momenta, folder / "one_cycle.png")
    figures.save_curves(history, folder / "learning_curves.png")
    model.save(folder / "model.keras")

    _step(5, f"Ask {_NUM_SAMPLES} dropout samples how sure the network is")
    mc = kt.uncertainty.mc_predict(model, data.x_test, _NUM_SAMPLES, seed=0)
    plain = model.predict(data.x_test, batch_size=1024, verbose=0)
    judged = tuple(
        _judge(name, probabilities, data.y_test)
        for name, probabilities in (("one plain pass", plain), ("MC dropout", mc.mean))
    )
    by_certainty = np.argsort(mc.predictive_entropy)
    right = (mc.mean.argmax(-1) == data.y_test)[by_certainty]
    halves = [float(half.mean()) for half in np.array_split(right, 2)]
    figures.save_certainty(data, mc.mean, by_certainty, folder / "certainty.png")
    _say(f"test accuracy {judged[0].accuracy:.2%}, MC {judged[1].accuracy:.2%}")
    _say(f"the more certain half {halves[0]:.2%}, the other {halves[1]:.2%}")

    _step(6, "Fold the BatchNorms")
    folding = kt.folding.fold_batch_norm(model)
    folding.model.save(folder / "model_folded.keras")
    _say(f"{len(folding.folded)} folded, error {folding.max_error:.1e}")

    _step(7, f"Compress to {_BUDGET:.0%} of the size, and measure")
    compressed, deployed = _ship(data, model, folding.model, folder)
    figures.save(kt.plots.front(compressed), folder / "front.png")
    figures.save(kt.plots.variants(deployed.measures())[0], folder / "variants.png")
    for variant in deployed.variants:
        _say(
            f"{variant.name:<15} {variant.bytes / 1e3:>6.0f} kB  "
            f"{variant.latencies[0].median:.3f} ms  {variant.accuracy:.2%}"
        )

    seconds = time.perf_counter() - started
    results = Results(
        data=repr(data),
        architecture=model,
        max_lr=max_lr,
        verdict=found.verdict,
        epochs=epochs,
        history=history,
        num_samples=_NUM_SAMPLES,
        judged=judged,
        halves=halves,
        folding=folding,
        checked=checked,
        compressed=compressed,
        deployed=deployed,
        seconds=seconds,
    )
    (folder / "report.md").write_text(render(results), encoding="utf-8")
    print(f"Done in {seconds:.0f} s")


class _Steps(keras.callbacks.Callback):
    """Record learning rate and momentum at each step; print a line per epoch."""

    def __init__(self):
        super().__init__()
        self.learning_rates: list[float] = []
        self.momenta: list[float] = []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.learning_rates.append(float(optimizer.learning_rate))
        momentum = optimizer.momentum
        if callable(momentum):
            momentum = momentum(optimizer.iterations)
        self.momenta.append(float(momentum))

    def on_epoch_end(self, epoch, logs=None):
        names = ("loss", "val_loss", "val_accuracy")
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in names)
        _say(f"epoch {epoch + 1:>3}/{self.params['epochs']}  {values}")


def _judge(name: str, probabilities: np.ndarray, labels: np.ndarray) -> Judgement:
    return Judgement(
        name=name,
        accuracy=float(np.mean(probabilities.argmax(-1) == labels)),
        nll=float(kt.uncertainty.nll(labels, probabilities)),
        ece=float(kt.uncertainty.expected_calibration_error(labels, probabilities)),
    )


def _ship(
    data, model, folded, folder: Path
) -> tuple[kt.compression.CompressResult, kt.export.DeploymentReport]:
    """Export a float32, an int8 and a compressed LiteRT file, and compare them."""
    to_litert = kt.export.to_litert
    sample = np.random.default_rng(0).permutation(data.x_train)[:200]
    whole = to_litert(model, folder / "trained.tflite")
    int8 = to_litert(folded, folder / "folded_int8.tflite", "int8", sample)
    compressed = kt.compress(
        model,
        *data.train,
        validation_data=data.validation,
        max_bytes=int(_BUDGET * whole.stat().st_size),
        path=folder / "compressed.tflite",
        progress=False,
    )
    compressed.model.save(folder / "model_compressed.keras")
    files = {"trained": whole, "folded, int8": int8, "compressed": compressed.path}
    return compressed, kt.export.deployment_report(files, *data.test)


def _step(number: int, title: str) -> None:
    print(f"[{number}/7] {title}", flush=True)


def _say(text: str) -> None:
    print(f"      {text}", flush=True)
