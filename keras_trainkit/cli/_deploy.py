"""`keras-trainkit deploy` and `inspect`."""

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_trainkit as kt
from keras_trainkit.cli._output import CommandError, whole_folder

_CALIBRATION_ROWS = 200


def run_deploy(
    model_path: Path,
    data_path: Path,
    out: Path,
    *,
    fold: bool = False,
    ratio: float | None = None,
    quantization: str | None = None,
    repetitions: int = 50,
    force: bool = False,
) -> Path:
    """Write variants of a model and a report of what each costs.

    Args:
        model_path: The `.keras` file.
        data_path: The `.npz` file with `x` and `y`.
        out: The folder to write; nothing appears there unless all of it succeeds.
        fold: Whether to optimize for inference.
        ratio: The fraction of the channels to take out, if any.
        quantization: How to quantize the last variant's LiteRT file, if at all.
        repetitions: Passes that are timed.
        force: Whether the folder may hold files already.

    Returns:
        The path of the report.

    Raises:
        CommandError: If something is missing or wrong; its message is one clear line.
    """
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise CommandError('deploy needs ai-edge-litert: pip install "ai-edge-litert"')
    model = _load_model(model_path)
    x, y = _load_data(data_path, model)
    with whole_folder(out, force) as folder:
        try:
            report = _make_variants(
                model, x, y, folder, fold, ratio, quantization, repetitions
            )
        except (ValueError, RuntimeError) as error:
            raise CommandError(_first_line(error)) from None
        title = f"# Deployment report: {model_path.name}\n\n"
        note = ""
        if ratio is not None:
            note = "\n\nThe variant with fewer channels has not been trained since."
        if importlib.util.find_spec("matplotlib"):
            _save_figure(report, folder / "report.png")
            note += "\n\n![The variants side by side](report.png)"
        text = f"{title}{report.to_markdown()}{note}\n"
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    print(report.to_markdown())
    print(f"\nwritten to {out}")
    return out / "report.md"


def _make_variants(model, x, y, folder, fold, ratio, quantization, repetitions):
    sample = np.random.default_rng(0).permutation(x)[:_CALIBRATION_ROWS]
    variants: dict[str, Any] = {"trained, in Keras": model}

    def file(name: str, suffix: str) -> Path:
        return folder / f"{name.replace(', ', '_').replace(' ', '_')}{suffix}"

    def export(name: str, variant: keras.Model, how: str | None = None) -> None:
        variants[name] = kt.export.to_litert(
            variant, file(name, ".tflite"), how, sample
        )

    export("trained", model)
    last, name = model, "trained"
    if fold:
        last, name = kt.export.optimize_for_inference(model), "folded"
        last.save(file(name, ".keras"))
        export(name, last)
    if ratio is not None:
        result = kt.pruning.prune_channels(last, ratio)
        last, name = result.model, f"{name}, fewer channels"
        last.save(file(name, ".keras"))
        export(name, last)
    if quantization is not None:
        export(f"{name}, {quantization}", last, quantization)
    return kt.export.deployment_report(variants, x, y, repetitions=repetitions)


def _save_figure(report, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    kt.plots.variants(report.measures())
    pyplot.gcf().savefig(path, dpi=110)
    pyplot.close()


def run_inspect(model_path: Path) -> None:
    """Print what could be folded, dropped and pruned in a model, and why not."""
    model = _load_model(model_path)
    if not _is_graph(model):
        raise CommandError(
            f"{model_path} holds a {type(model).__name__}: only Functional and "
            "Sequential models can be looked into"
        )
    if not model.weights:
        raise CommandError(f"{model_path} holds no weights: nothing to fold or prune")
    try:
        _print_savings(model)
    except (ValueError, RuntimeError) as error:
        raise CommandError(_first_line(error)) from None


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
        print(f"\nChannels: {_first_line(error)}")
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


def _is_graph(model) -> bool:
    from keras_trainkit._model.graph import is_graph

    return is_graph(model)


def _load_model(path: Path) -> keras.Model:
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise CommandError(f"{path} is not a .keras file")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        # A file from elsewhere can fail in any way; safe mode stays on.
        raise CommandError(f"{path} cannot be loaded: {_first_line(error)}") from None
    if getattr(model, "input_shape", None) is None:
        raise CommandError(
            f"{path} holds a model that is not built: call it on some data, then save"
        )
    for weight in model.weights:
        if not _is_finite(keras.ops.convert_to_numpy(weight)):
            raise CommandError(f"{path} holds NaN or infinity in {weight.path}")
    return model


def _load_data(path: Path, model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    x, y = _read_arrays(path)
    for name, array in (("x", x), ("y", y)):
        if array.dtype.kind not in "biuf" or not _is_finite(array):
            raise CommandError(
                f"{path} must have finite real numbers in {name}; it has {array.dtype}"
                + (" with NaN or infinity" if array.dtype.kind == "f" else "")
            )
    expected = tuple(model.input_shape[1:])
    fits = len(expected) == x.ndim - 1 and all(
        a in (None, b) for a, b in zip(expected, x.shape[1:], strict=True)
    )
    if not fits or not y.ndim or len(x) != len(y) or not len(x):
        raise CommandError(
            f"{path} must have x of shape (rows, {', '.join(map(str, expected))}) and "
            f"as many y; it has {x.shape} and {y.shape}"
        )
    return x.astype("float32"), y


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    try:
        # By a file of our own: NumPy leaves one that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["x"], arrays["y"]
    except Exception as error:
        # A damaged archive fails in many ways: BadZipFile, zlib.error, TokenError,
        # MemoryError, NotImplementedError ...
        raise CommandError(
            f"{path} is not an .npz file with arrays x and y: {_first_line(error)}"
        ) from None


def _is_finite(array: np.ndarray) -> bool:
    # float16's relatives (bfloat16, float8) are of kind "V", and NumPy's isfinite
    # knows them; integers and keys of generators have nothing to check.
    return array.dtype.kind not in "fV" or bool(np.isfinite(array).all())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
