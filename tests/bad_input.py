"""Bad values for each argument, for test_bad_input.py and benchmarks/stress.py."""

import contextlib
import functools
import inspect
import io
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import keras
import numpy as np

import keras_trainkit as kt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
P = np.full((4, 2), 0.5)
LABELS = np.array([0, 1, 0, 1])
SECONDS = 60

BAD = {
    "None": None,
    "text": "abc",
    "empty text": "",
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "-1": -1,
    "0": 0,
    "-0.5": -0.5,
    "2.5": 2.5,
    "huge": 10**400,
    "True": True,
    "complex": 1j,
    "[]": [],
    "{}": {},
    "object": object(),
    "type": int,
    "NaN array": np.full((4, 6), np.nan),
    "empty array": np.zeros((0, 6)),
    "rank 0": np.array(3.0),
    "rank 5": np.zeros((1, 1, 1, 1, 1)),
    "array of text": np.array(["a", "b"]),
    "bytes": b"abc",
}


# No argument takes these but data, where they are checked when they are used.
NONSENSE = {"NaN", "complex", "object", "array of text"}
CHECKED_LATER = {
    "kt.callbacks.Monitor": {"x"},
    "kt.callbacks.NoiseScale": {"x", "y"},
    "kt.callbacks.SignalLogger": {"x", "y"},
    # Only some measures of importance use them.
    "kt.pruning.prune_channels": {"x", "y", "seed"},
    "kt.models.hypermodel": {"input_shape", "num_classes"},
}


def learner(built=True, compiled=True, dropout=0.5):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(8, name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(dropout, seed=1, name="dropout"),
        keras.layers.Dense(2, "softmax", name="head"),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers] if built else layers)
    if compiled:
        model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy")
    return model


def weight_normalized():
    layer = kt.layers.WeightNormalization(keras.layers.Dense(3))
    return keras.Sequential([keras.Input((6,)), layer])


def residual():
    inputs = keras.Input((6,))
    y = keras.layers.Dense(6)(keras.layers.Dense(6, "relu")(inputs))
    outputs = keras.layers.Dense(2)(keras.layers.Add()([inputs, y]))
    return keras.Model(inputs, outputs)


@functools.cache
def bad_models():
    """Models without what most functions need."""
    empty = keras.Sequential([keras.Input((6,)), keras.layers.ReLU()])
    empty.compile("sgd", "mse")
    return {
        "unbuilt": learner(built=False),
        "uncompiled": learner(compiled=False),
        "no weights": empty,
    }


def state(model):
    """Everything that a call must leave as it was, as arrays."""
    variables = [*model.variables]
    if getattr(model, "optimizer", None) is not None:
        variables += model.optimizer.variables
    arrays = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    return [*arrays, np.array([layer.trainable for layer in model.layers])]


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True)
    )


def quick_calls():
    """Sensible arguments for what takes milliseconds, by public path."""
    constant = kt.schedules.Constant(0.1)
    schedule = {"schedule": constant}
    scores = {"y_true": LABELS, "probabilities": P}
    model, trained = {"model": learner()}, {"model": learner(), "x": X}
    normalized = {"model": weight_normalized()}
    cyclic = {"step_size_up": 10, "step_size_down": 5, "gamma": 1.0}
    cosine = {"initial": 0.1, "steps": 10}
    return {
        "kt.schedules.OneCycle": {"max_lr": 0.1, "total_steps": 100},
        "kt.schedules.OneCycleMomentum": {"total_steps": 100},
        "kt.schedules.Power": {"initial": 0.1, "steps": 10},
        "kt.schedules.NaturalExponential": {
            "initial": 0.1,
            "decay_steps": 10,
            "decay_rate": 0.5,
        },
        "kt.schedules.Cyclic": {"base_lr": 0.01, "max_lr": 0.1, **cyclic},
        "kt.schedules.CyclicMomentum": {
            "base_momentum": 0.8,
            "max_momentum": 0.9,
            **cyclic,
        },
        "kt.schedules.Constant": {"value": 0.1},
        "kt.schedules.Delay": {**schedule, "steps": 5},
        "kt.schedules.Lambda": {"fn": lambda step: 0.1},
        "kt.schedules.Linear": {"initial": 0.1, "final": 0.0, "steps": 10},
        "kt.schedules.LinearCosine": cosine,
        "kt.schedules.NoisyLinearCosine": cosine,
        "kt.schedules.Multiplicative": {
            "initial": 0.1,
            "fn": lambda step: 0.9,
            "total_steps": 5,
        },
        "kt.schedules.Step": {"initial": 0.1, "step_size": 5},
        "kt.schedules.Reducible": schedule,
        "kt.schedules.WarmupStableDecay": {
            "max_lr": 0.1,
            "total_steps": 100,
            "warmup_steps": 10,
            "decay_steps": 20,
        },
        "kt.schedules.Warmup": {**schedule, "warmup_steps": 5},
        "kt.schedules.Sequential": {"schedules": [constant] * 2, "boundaries": [5]},
        "kt.schedules.Chained": {"schedules": [constant, constant]},
        "kt.schedules.MultiStep": {"initial": 0.1, "milestones": [5, 10]},
        "kt.callbacks.OneCycle": {"max_lr": 0.1, "total_steps": 10},
        "kt.callbacks.ExponentialSchedule": {"initial": 0.1, "epochs": 2},
        "kt.callbacks.PowerSchedule": {"initial": 0.1, "epochs": 2},
        "kt.callbacks.PiecewiseConstantSchedule": {
            "boundaries": [1],
            "values": [0.1, 0.01],
        },
        "kt.callbacks.ApplySchedule": schedule,
        "kt.callbacks.PlateauSchedule": schedule,
        "kt.callbacks.GradualUnfreezing": {"schedule": {0: "head"}},
        "kt.callbacks.LRFinder": {},
        "kt.callbacks.Monitor": {"x": X},
        "kt.callbacks.NoiseScale": {"x": X, "y": Y},
        "kt.callbacks.SignalLogger": {"x": X, "y": Y},
        "kt.callbacks.Snapshots": {"cycle_epochs": 2},
        "kt.callbacks.Resumable": {"callbacks": [], "directory": "backup"},
        "kt.pruning.MagnitudePruning": {"sparsity": 0.5, "end_step": 10},
        "kt.pruning.ConstantSparsity": {"final": 0.5},
        "kt.pruning.PolynomialSparsity": {
            "initial": 0.0,
            "final": 0.5,
            "begin_step": 0,
            "end_step": 10,
        },
        "kt.pruning.prune_once": {**model, "sparsity": 0.5},
        "kt.pruning.prune_channels": {**model, "ratio": 0.5},
        "kt.pruning.sparsity_report": model,
        "kt.quantization.Clustering": {"num_clusters": 4},
        "kt.quantization.kept_float": model,
        "kt.optimizers.layerwise": {
            "optimizer": keras.optimizers.SGD(0.1),
            "rates": {"hidden": 0.1},
        },
        "kt.constraints.MaxNorm": {},
        "kt.regularizers.Lp": {"p": 2.0, "strength": 0.1},
        "kt.regularizers.Orthogonality": {},
        "kt.initializers.fixup": {"model": residual()},
        "kt.initializers.data_dependent": {**normalized, "batch": X},
        "kt.initializers.lsuv": {**model, "batch": X},
        "kt.layers.CReLU": {},
        "kt.layers.LocalResponseNormalization": {},
        "kt.layers.RReLU": {},
        "kt.layers.WeightNormalization": {"layer": keras.layers.Dense(3)},
        **{
            f"kt.layers.MC{kind}": {"rate": 0.5}
            for kind in (
                "Dropout",
                "AlphaDropout",
                "GaussianDropout",
                "SpatialDropout1D",
                "SpatialDropout2D",
                "SpatialDropout3D",
            )
        },
        "kt.losses.GaussianNLL": {},
        "kt.metrics.ExpectedCalibrationError": {},
        "kt.regularizers.apply": {**model, "kernel": "l2"},
        "kt.flops": model,
        "kt.folding.fold_batch_norm": trained,
        "kt.folding.strip_weight_normalization": normalized,
        "kt.recalibrate_batch_norm": trained,
        "kt.transfer.freeze": {**model, "layers": "hidden"},
        "kt.transfer.unfreeze": {**model, "layers": "hidden"},
        "kt.transfer.replace_head": {**model, "units": 3},
        "kt.uncertainty.expected_calibration_error": scores,
        "kt.uncertainty.adaptive_calibration_error": scores,
        "kt.uncertainty.classwise_calibration_error": scores,
        "kt.uncertainty.reliability_curve": scores,
        "kt.uncertainty.rejection_curve": scores,
        "kt.uncertainty.aurc": scores,
        "kt.uncertainty.nll": scores,
        "kt.uncertainty.brier_score": scores,
        "kt.uncertainty.ood_auroc": {"inside": [0.1, 0.2], "outside": [0.3, 0.4]},
        "kt.uncertainty.ensemble_prediction": {"samples": np.full((3, 4, 2), 0.5)},
        "kt.uncertainty.ConformalClassifier": {},
        "kt.uncertainty.ConformalRegressor": {},
        "kt.uncertainty.LastLayerLaplace": model,
        "kt.uncertainty.to_mc": model,
        "kt.lr_finder.analyse": {
            "lrs": np.geomspace(1e-5, 1, 60),
            "losses": np.linspace(2, 1, 60),
        },
        "kt.models.build_mlp": {"input_shape": (6,), "num_classes": 2},
        "kt.models.build_cifar_resnet": {
            "input_shape": (8, 8, 3),
            "num_classes": 2,
            "depth": 8,
        },
        "kt.models.hypermodel": {
            "preset": "default",
            "input_shape": (6,),
            "num_classes": 2,
        },
        "kt.datasets.load": {"name": "digits"},
        "kt.diagnostics.self_normalization": trained,
        "kt.plots.confusion_matrix": {"y_true": LABELS, "y_pred": LABELS},
        "kt.plots.learning_curves": {"history": {"loss": [2.0, 1.0]}},
        "kt.plots.compare": {"histories": {"one": {"val_loss": [2.0, 1.0]}}},
        "kt.plots.schedule": {"learning_rates": np.linspace(0, 1, 5)},
        "kt.plots.intervals": {
            "x": np.arange(4.0),
            "lower": np.zeros(4),
            "upper": np.ones(4),
        },
        "kt.plots.set_sizes": {"sets": P > 0.2},
        "kt.plots.variants": {"table": {"one": {"size": 1.0}, "two": {"size": 2.0}}},
        "kt.plots.top_losses": {
            "images": np.zeros((4, 3, 3)),
            "probabilities": P,
            "y_true": LABELS,
        },
        "kt.plots.uncertain_images": {
            "images": np.zeros((4, 3, 3)),
            "probabilities": P,
            "labels": LABELS,
            "class_names": ["a", "b"],
        },
    }


SLOW = (
    "kt.uncertainty.mc_predict",
    "kt.uncertainty.mc_graph",
    "kt.uncertainty.distill",
    "kt.diagnostics.signal_report",
    "kt.diagnostics.check_up",
    "kt.find_lr",
    "kt.lr_sweep",
    "kt.find_batch_size",
    "kt.batch_size.gradient_noise_scale",
    "kt.transfer.fine_tune",
    "kt.transfer.pretrain_autoencoder",
    "kt.quantization.quantize_aware",
    "kt.quantization.strip",
    "kt.export.optimize_for_inference",
    "kt.export.to_onnx",
    "kt.export.to_litert",
    "kt.export.load_litert",
    "kt.export.predict_litert",
    "kt.export.to_c_array",
    "kt.export.deployment_report",
    "kt.export.quantization_report",
)


def slow_calls():
    """Those of `SLOW`, which train, run or export a model; not all on each backend."""
    model = {"model": learner()}
    fitted, data = {**model, "x": X, "y": Y}, {**model, "x": X}
    found = {
        "kt.uncertainty.mc_predict": {**data, "num_samples": 2},
        "kt.uncertainty.mc_graph": {**model, "num_samples": 2},
        "kt.uncertainty.distill": {**data, "num_samples": 2, "epochs": 1},
        "kt.diagnostics.signal_report": fitted,
        "kt.diagnostics.check_up": fitted,
        "kt.find_lr": {**fitted, "num_steps": 20},
        "kt.lr_sweep": {"build": learner, "rates": [0.1], "x": X, "y": Y},
        "kt.find_batch_size": {**fitted, "max_batch_size": 16},
        "kt.batch_size.gradient_noise_scale": fitted,
        "kt.transfer.fine_tune": {**fitted, "epochs": 1},
        "kt.transfer.pretrain_autoencoder": {
            "encoder": keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]),
            "x": X,
        },
        "kt.quantization.quantize_aware": model,
        "kt.quantization.strip": {
            "model": kt.quantization.quantize_aware(model["model"])
        },
        "kt.export.optimize_for_inference": model,
        "kt.export.to_onnx": {**model, "path": "m.onnx"},
        "kt.export.deployment_report": {
            "variants": {"whole": model["model"]},
            "x": X,
            "y": Y,
            "repetitions": 1,
        },
    }
    found["kt.export.quantization_report"] = {
        "model": kt.quantization.quantize_aware(model["model"]),
        "x": X,
    }
    if keras.backend.backend() != "jax":
        found["kt.export.to_litert"] = {**model, "path": "m.tflite"}
    if keras.backend.backend() == "tensorflow":
        file = kt.export.to_litert(model["model"], "whole.tflite")
        file = Path(file).absolute()
        found["kt.export.load_litert"] = {"path": file}
        found["kt.export.predict_litert"] = {"path": file, "x": X}
        found["kt.export.to_c_array"] = {"path": file, "header": "m.h"}
    return found


# What is not tried, and why.
LEFT_OUT = {
    **dict.fromkeys(
        (
            *(f"kt.layers.MC{kind}" for kind in ("GRU", "LSTM", "SimpleRNN")),
            *(f"kt.layers.MCConvLSTM{rank}D" for rank in (1, 2, 3)),
            "kt.layers.MCAttention",
            "kt.layers.MCAdditiveAttention",
            "kt.layers.MCMultiHeadAttention",
            *(f"kt.optimizers.{n}" for n in ("SGD", "Adam", "AdamW", "Nadam")),
        ),
        "the arguments are those of Keras's class",
    ),
    **dict.fromkeys(
        (
            "kt.uncertainty.TemperatureScaling",
            "kt.uncertainty.VectorScaling",
            "kt.uncertainty.IsotonicScaling",
        ),
        "takes no arguments",
    ),
    **dict.fromkeys(
        (
            *(f"kt.plots.{n}" for n in ("front", "lr_finder", "signal", "reliability")),
            "kt.plots.compare_learning_rates",
            "kt.plots.regression_band",
            "kt.tfmot.from_tf_keras",
            "kt.tfmot.to_tf_keras",
        ),
        "takes a result of another function, or a model of TensorFlow's alone",
    ),
    "kt.cli.main": "the commands' own tests",
    "kt.compress": "minutes for each call",
}


def missing(public: dict) -> set[str]:
    """Public callables without a sensible call here, results apart.

    A function that can be had by two paths is one.
    """
    known = {*quick_calls(), *SLOW, *LEFT_OUT}
    objects = {id(public[path]) for path in known if path in public}
    return {
        path
        for path, value in public.items()
        if callable(value) and id(value) not in objects and not is_dataclass(value)
    }


def resolve(path: str):
    found = kt
    for name in path.split(".")[1:]:
        found = getattr(found, name)
    return found


# Arguments of Keras's base classes, which Keras checks.
OF_KERAS = {"name", "dtype", "reduction", "noise_shape"}


def named(path: str) -> list[str]:
    """The names of a callable's arguments."""
    parameters = inspect.signature(resolve(path)).parameters.values()
    several = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    return [one.name for one in parameters if one.kind not in several]


def changes(path: str, sensible: dict) -> Iterator[tuple[str, str, dict]]:
    """Yield the argument, the kind of bad value, and the whole call, for each."""
    for name in dict.fromkeys([*sensible, *named(path)]):
        if name in OF_KERAS and path != "kt.datasets.load":
            continue
        bad = {**BAD, **bad_models()} if name == "model" else BAD
        for kind, value in bad.items():
            if kind == "type" and name in ("importance", "kernel"):
                # A function of the user's own, whose error is the user's.
                continue
            yield name, kind, {**sensible, name: value}


def refusal(path: str, options: dict, seconds: int = 0) -> str | None:
    """None if the call was taken, empty if refused well, otherwise what was wrong.

    With `seconds`, a call that takes longer is ended.
    """

    def too_long(*_):
        raise TimeoutError

    if seconds:
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(seconds)
    quiet = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            resolve(path)(**options)
    except (ValueError, TypeError) as error:
        text = str(error)
        # Of two that do not fit each other, either may be named.
        if "Received: " in text and any(f"`{one}`" in text for one in named(path)):
            return ""
        return f"{type(error).__name__} without a name or Received: {text[:160]!r}"
    except FileNotFoundError:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]!r}"
    finally:
        if seconds:
            signal.alarm(0)
        if path.startswith("kt.plots"):
            from matplotlib import pyplot

            pyplot.close("all")
    return None


def verdict(path: str, name: str, kind: str, options: dict, seconds: int = 0):
    """As `refusal`; that what makes no sense anywhere was taken is wrong too."""
    fault = refusal(path, options, seconds)
    if fault is None and kind in NONSENSE and not path.startswith("kt.plots"):
        if name not in CHECKED_LATER.get(path, ()):
            return "taken"
    return fault


@contextlib.contextmanager
def scratch_folder():
    """Files that a call writes go into a folder that is deleted."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def try_out(path: str, sensible: dict) -> Iterator[tuple[str, str | None]]:
    """Yield each bad call with `refusal`'s answer, or what it did to the model."""
    if fault := refusal(path, sensible, SECONDS):
        yield f"{path} of what makes sense", fault
    models = {k: v for k, v in sensible.items() if isinstance(v, keras.Model)}
    before = {name: state(model) for name, model in models.items()}
    for name, kind, options in changes(path, sensible):
        where = f"{path}({name}={kind})"
        fault = verdict(path, name, kind, options, SECONDS)
        for other, model in models.items():
            if not same(before[other], state(model)):
                if fault is not None:
                    yield where, "refused, and changed the model"
                # What was taken may change it.
                before[other] = state(model)
        yield where, fault
