"""Faults, at numbers: kills, interruptions, full disks, damaged files, bad arguments.

    python benchmarks/stress.py kills interrupts disk files arguments soak
    python benchmarks/stress.py files --count 1000

Prints a row for each; exits with 1 if one found a fault. docs/reliability.md has the
figures.
"""

import argparse
import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

import keras_trainkit as kt
from keras_trainkit import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from corruption import corruptions

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
STEPS = 8


def learner(optimizer="adam"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, name="hidden"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(2, "softmax", name="head"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def state(model):
    """Everything that a tool must leave as it was, as arrays."""
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def same(one, other):
    return len(one) == len(other) and all(map(np.array_equal, one, other))


# --- kills


class Kill(keras.callbacks.Callback):
    """Ends the process at once, after some batches."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, epochs, kill_after):
    """Train with a backup until killed, or to the end: then save the result."""
    model = learner(keras.optimizers.SGD(0.1, momentum=0.9))
    total = epochs * STEPS
    callbacks = [
        kt.callbacks.OneCycle(0.1, total_steps=total),
        kt.pruning.MagnitudePruning(0.5, end_step=total // 2, frequency=4),
        keras.callbacks.EarlyStopping("loss", patience=epochs),
    ]
    backup = kt.callbacks.Resumable(callbacks, Path(folder, "backup"))
    others = [Kill(kill_after)] if kill_after else []
    history = model.fit(
        *(X, Y, 64 // STEPS, epochs),
        shuffle=False,
        verbose=0,
        callbacks=[backup, *others],
    ).history
    series = [np.array(history[name]) for name in sorted(history)]
    np.savez(Path(folder, "result.npz"), *state(model), *series)


def _result(folder):
    with np.load(Path(folder, "result.npz")) as arrays:
        return [arrays[name] for name in arrays.files]


def kills(count):
    """Kill one training again and again at random steps; compare with the unbroken."""
    rng = np.random.default_rng(1)
    # A kill is in the first or second epoch after a resume.
    epochs = count + 1
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as torn:

        def run(folder, kill_after):
            command = [sys.executable, __file__, "train", "--folder", folder]
            command += ["--count", str(epochs), "--after", str(kill_after)]
            return subprocess.run(command, stderr=subprocess.DEVNULL).returncode

        assert run(whole, 0) == 0
        killed = 0
        for _ in range(count):
            code = run(torn, int(rng.integers(1, 2 * STEPS)))
            killed += code == -signal.SIGKILL
            if code == 0:
                break
        finished = Path(torn, "result.npz").exists() or run(torn, 0) == 0
        good = finished and same(_result(whole), _result(torn))
    faults = [] if good else ["the result is not that of the unbroken training"]
    return f"{killed} SIGKILLs in a training of {epochs} epochs", faults


# --- interruptions


def interrupts(count):
    """Ctrl-C at random moments: the model is as it was, the next call works."""
    model = learner()
    calls = {
        "find_lr": lambda: kt.find_lr(model, X, Y, num_steps=30, batch_size=8),
        "mc_predict": lambda: kt.uncertainty.mc_predict(model, X, num_samples=64),
        "signal_report": lambda: kt.diagnostics.signal_report(model, X, Y),
        "fold_batch_norm": lambda: kt.folding.fold_batch_norm(model, X),
    }
    model.fit(X, Y, verbose=0)
    rng = np.random.default_rng(2)
    stopped, faults = 0, []
    for name, call in calls.items():
        call()
        before = state(model)
        for _ in range(count):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(0.01, 0.6)))
            try:
                call()
            except KeyboardInterrupt:
                stopped += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if not same(before, state(model)):
                faults.append(f"{name} left the model changed")
                before = state(model)
    return f"{stopped} of {count * len(calls)} calls interrupted", faults


# --- targets that cannot be written


@contextlib.contextmanager
def full_disk(size):
    """No file can grow past `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def writers():
    """What writes files: a call with a path."""
    model = learner()

    def resumable(path):
        backup = kt.callbacks.Resumable([kt.callbacks.OneCycle(0.1)], path)
        learner().fit(X, Y, 16, epochs=1, verbose=0, callbacks=[backup])

    found = {"Resumable": resumable}
    if keras.backend.backend() != "jax":
        found["to_litert"] = lambda path: kt.export.to_litert(model, path)
    found["to_onnx"] = lambda path: kt.export.to_onnx(model, path)
    return found


def disk(count):
    """A full disk and a target below a file: an error, and no part of a file."""
    faults, tried = [], 0
    for name, write in writers().items():
        suffix = {"to_litert": ".tflite", "to_onnx": ".onnx"}.get(name, "")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"target{suffix}")
            if suffix:
                path.write_bytes(b"what was there")
            for size in np.linspace(0, 1000, count).astype(int):
                tried += 1
                faults += _fails(name, write, path, full_disk(int(size)))
                if suffix and path.read_bytes() != b"what was there":
                    faults.append(f"{name} damaged the file of before")
            Path(folder, "file").write_text("")
            tried += 1
            below = Path(folder, "file", f"target{suffix}")
            faults += _fails(name, write, below, contextlib.nullcontext())
            left = {entry.name for entry in Path(folder).iterdir()}
            if suffix and left != {path.name, "file"}:
                faults.append(f"{name} left {left} behind")
    return f"{tried} writes to full or impossible targets", faults


def _fails(name, write, path, around):
    try:
        with around:
            write(path)
    except (OSError, RuntimeError):
        # An export says why its conversion failed.
        return []
    except Exception as error:
        return [f"{name}: {type(error).__name__}: {str(error)[:150]}"]
    return [f"{name} said nothing"]


# --- damaged files


def files(count):
    """Damaged `.keras`, `.npz` and `.tflite` through the commands, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model = learner()
        model.save(folder / "m.keras")
        np.savez_compressed(folder / "data.npz", x=X, y=Y)
        sources = {".keras": folder / "m.keras", ".npz": folder / "data.npz"}
        if keras.backend.backend() != "jax":
            sources[".tflite"] = folder / "m.tflite"
            kt.export.to_litert(model, sources[".tflite"])
        out, faults, refused = folder / "out", [], 0
        for suffix, source in sources.items():
            path = folder / f"damaged{suffix}"
            for kind, content in corruptions(source.read_bytes(), count):
                path.write_bytes(content)
                command = ["inspect", str(path)]
                if suffix == ".npz":
                    command = ["deploy", str(folder / "m.keras"), "-o", str(out)]
                    command += ["--data", str(path)]
                code, error = _command(command)
                refused += code == 1
                if code not in (0, 1) or (code == 1 and error.count("\n") != 1):
                    faults.append(f"{suffix}, {kind}: {code} {error[:200]}")
        total = count * len(sources)
    return f"{refused} of {total} damaged files refused in one line", faults


def _command(arguments):
    error = io.StringIO()
    with (
        contextlib.redirect_stderr(error),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            return cli.main(arguments), error.getvalue()
        except BaseException as fault:
            return 2, f"{type(fault).__name__}: {fault}"


# --- arguments

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


def calls():
    """Sensible arguments for public callables; each is replaced in turn."""
    s, c, u, d = kt.schedules, kt.callbacks, kt.uncertainty, kt.diagnostics
    probabilities = np.full((4, 2), 0.5)
    labels = np.array([0, 1, 0, 1])
    constant = s.Constant(0.1)
    cycle = {"pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4}
    return {
        s.OneCycle: {"max_lr": 0.1, "total_steps": 100, "anneal": "cos", **cycle},
        s.OneCycleMomentum: {
            "total_steps": 100,
            "max_momentum": 0.95,
            "base_momentum": 0.85,
            "pct_start": 0.3,
        },
        s.Power: {"initial": 0.1, "steps": 10, "power": 1.0},
        s.NaturalExponential: {
            "initial": 0.1,
            "decay_steps": 10,
            "decay_rate": 0.5,
        },
        s.Cyclic: {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 10, "gamma": 1.0},
        s.Warmup: {"schedule": constant, "warmup_steps": 5},
        s.Sequential: {"schedules": [constant, constant], "boundaries": [5]},
        s.Chained: {"schedules": [constant, constant]},
        s.MultiStep: {"initial": 0.1, "milestones": [5, 10], "gamma": 0.5},
        c.OneCycle: {"max_lr": 0.1, "momentum": (0.85, 0.95), "total_steps": 10},
        c.ExponentialSchedule: {"initial": 0.1, "epochs": 2},
        c.PowerSchedule: {"initial": 0.1, "epochs": 2, "power": 1.0},
        c.PiecewiseConstantSchedule: {"boundaries": [1], "values": [0.1, 0.01]},
        c.ApplySchedule: {"schedule": constant},
        c.PlateauSchedule: {"schedule": constant, "patience": 1, "factor": 0.5},
        c.LRFinder: {"min_lr": 1e-5, "max_lr": 1.0, "num_steps": 20},
        kt.pruning.MagnitudePruning: {
            "sparsity": 0.5,
            "begin_step": 0,
            "end_step": 10,
            "frequency": 2,
            "scope": "layer",
        },
        kt.pruning.prune_once: {"model": learner(), "sparsity": 0.5, "include": None},
        kt.pruning.sparsity_report: {"model": learner()},
        kt.optimizers.layerwise: {
            "optimizer": keras.optimizers.SGD(0.1),
            "rates": {"hidden": 0.1},
        },
        kt.constraints.MaxNorm: {"max_value": 1.0, "axis": "auto"},
        kt.regularizers.Lp: {"p": 2.0, "strength": 0.1},
        kt.folding.fold_batch_norm: {"model": learner(), "x": X},
        kt.transfer.freeze: {"model": learner(), "layers": "hidden"},
        kt.transfer.replace_head: {"model": learner(), "units": 3},
        kt.flops: {"model": learner()},
        u.expected_calibration_error: {
            "y_true": labels,
            "probabilities": probabilities,
            "num_bins": 5,
        },
        u.nll: {"y_true": labels, "probabilities": probabilities},
        u.brier_score: {"y_true": labels, "probabilities": probabilities},
        u.mc_predict: {
            "model": learner(),
            "x": X[:4],
            "num_samples": 2,
            "batch_size": 4,
            "noise": "independent",
            "seed": 1,
        },
        kt.lr_finder.analyse: {
            "lrs": np.geomspace(1e-5, 1, 60),
            "losses": np.linspace(2, 1, 60),
        },
        d.signal_report: {"model": learner(), "x": X[:8], "y": Y[:8]},
        d.self_normalization: {"model": learner(), "x": X[:8]},
        kt.models.build_mlp: {
            "input_shape": (6,),
            "num_classes": 2,
            "preset": "default",
            "hidden_units": (8,),
        },
    }


def arguments(count):
    """Every argument of public callables replaced by what makes no sense."""
    faults, tried, refused = [], 0, 0
    for function, sensible in list(calls().items())[:count]:
        model = sensible.get("model")
        if _refusal(function, sensible) is not None:
            faults.append(f"{function.__name__} refused what makes sense")
        before = model and state(model)
        trained = model and [layer.trainable for layer in model.layers]
        for name in sensible:
            for kind, value in BAD.items():
                tried += 1
                where = f"{function.__name__}({name}={kind})"
                fault = _refusal(function, {**sensible, name: value})
                refused += fault is not None
                if fault:
                    faults.append(f"{where}: {fault}")
                if model and fault is not None and not same(before, state(model)):
                    faults.append(f"{where} changed the model")
                if model and fault is None:
                    for layer, flag in zip(model.layers, trained, strict=True):
                        layer.trainable = flag
    return f"{tried} calls, {refused} refused", faults


def _refusal(function, options):
    """None if the call was taken, empty if refused well, otherwise what was wrong."""
    try:
        function(**options)
    except (ValueError, TypeError) as error:
        text = str(error)
        # Of two that do not fit each other, either may be named.
        if "Received: " in text and any(f"`{one}`" in text for one in options):
            return ""
        return f"{type(error).__name__} without a name or Received: {text[:120]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]!r}"
    return None


# --- soak


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def soak(count):
    """find_lr, fit, mc_predict and fold in turns: memory and files do not grow."""
    early = opened = 0
    for cycle in range(count):
        model = learner()
        kt.find_lr(model, X, Y, num_steps=10, batch_size=16)
        model.fit(X, Y, 16, 1, verbose=0, callbacks=[kt.callbacks.OneCycle(0.1)])
        kt.uncertainty.mc_predict(model, X, num_samples=4)
        kt.folding.fold_batch_norm(model, X)
        keras.backend.clear_session()
        if cycle == min(20, count // 2):
            early, opened = _resident(), len(os.listdir("/proc/self/fd"))
    growth = _resident() / early - 1
    more = len(os.listdir("/proc/self/fd")) - opened
    faults = [f"memory grew by {growth:.1%}"] if growth > 0.05 else []
    faults += [f"{more} files were left open"] if more > 0 else []
    return f"{count} cycles, memory {growth:+.1%}, open files {more:+d}", faults


PARTS = {
    kills: 20,
    interrupts: 20,
    disk: 5,
    files: 1000,
    arguments: None,
    soak: 200,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [part.__name__ for part in PARTS]
    parser.add_argument("parts", nargs="+", choices=[*names, "train"])
    parser.add_argument("--count", type=int)
    # What a process that is to be killed is told.
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--after", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts == ["train"]:
        train(options.folder, options.count, options.after)
        return 0
    found = 0
    for part, usual in PARTS.items():
        if part.__name__ in options.parts:
            text, faults = part(options.count or usual)
            backend = keras.backend.backend()
            print(f"{part.__name__} ({backend}): {text}, {len(faults)} faults")
            for fault in faults:
                print("   ", fault)
            found += len(faults)
    return int(bool(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
