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
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

import keras_trainkit as kt
from keras_trainkit import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import bad_input
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


class Steps(keras.callbacks.Callback):
    """Writes the rate and the momentum of each step, and the zeros after it."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.seen = float(optimizer.learning_rate), float(optimizer.momentum)

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations)
        zeros = int((self.model.get_layer("hidden").get_weights()[0] == 0).sum())
        with open(self.path, "a", encoding="utf-8") as file:
            print(step, *self.seen, zeros, file=file)


def train(folder, job, epochs, kill_after):
    """Train with a backup until killed, or to the end: then save the result."""
    folder = Path(folder)
    model = learner(keras.optimizers.SGD(0.1, momentum=0.9))
    total = epochs * STEPS
    pruning = kt.pruning.MagnitudePruning(0.5, end_step=total // 2, frequency=4)
    if job == "BackupAndRestore":
        backup = keras.callbacks.BackupAndRestore(folder / "backup")
        cycle = kt.callbacks.OneCycle(0.1, total_steps=total)
        callbacks = [cycle, pruning, backup]
    else:
        best = folder / "best.weights.h5"
        inner = [
            pruning,
            keras.callbacks.EarlyStopping("loss", patience=epochs),
            keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.05),
            keras.callbacks.ModelCheckpoint(
                best, "loss", save_best_only=True, save_weights_only=True
            ),
        ]
        callbacks = [kt.callbacks.Resumable(inner, folder / "backup")]
    callbacks.append(Steps(folder / "steps.txt"))
    if kill_after:
        callbacks.append(Kill(kill_after))
    fit = model.fit(
        *(X, Y, 64 // STEPS, epochs), shuffle=False, verbose=0, callbacks=callbacks
    )
    result = state(model)
    if job != "BackupAndRestore":
        # Keras's own forgets these.
        result += [np.array(fit.history[name]) for name in sorted(fit.history)]
        model.load_weights(best)
        result += model.get_weights()
    np.savez(folder / "result.npz", *result)


def _result(folder):
    with np.load(Path(folder, "result.npz")) as arrays:
        return [arrays[name] for name in arrays.files]


def _steps(folder):
    """What each step had when it was last taken."""
    lines = Path(folder, "steps.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def _in_child(*arguments):
    """Run `train` in a process that is forked before a backend has begun its work."""
    child = os.fork()
    if not child:
        code = 1
        try:
            train(*arguments)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {str(error)[:300]}", flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(count):
    """Kill trainings again and again at random steps; compare with the unbroken."""
    texts, faults = [], []
    for job in ("BackupAndRestore", "Resumable"):
        rng = np.random.default_rng(1)
        # A kill is in the first or second epoch after a resume.
        epochs, killed, code = count + 1, 0, None
        with tempfile.TemporaryDirectory() as whole:
            if _in_child(whole, job, epochs, 0):
                faults.append(f"{job}: the unbroken training failed")
                continue
            with tempfile.TemporaryDirectory() as torn:
                while killed < count and code in (None, -signal.SIGKILL):
                    after = int(rng.integers(1, 2 * STEPS))
                    code = _in_child(torn, job, epochs, after)
                    killed += code == -signal.SIGKILL
                if code == -signal.SIGKILL:
                    code = _in_child(torn, job, epochs, 0)
                if code or not same(_result(whole), _result(torn)):
                    faults.append(f"{job}: the result is not that of the unbroken one")
                elif _steps(whole) != _steps(torn):
                    faults.append(f"{job}: a step's rate, momentum or zeros differ")
        texts.append(f"{killed} SIGKILLs with {job} in {epochs} epochs")
    return ", ".join(texts), faults


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


def arguments(count):
    """Every argument of public callables replaced by what makes no sense."""
    faults, tried, refused = [], 0, 0
    with bad_input.scratch_folder():
        calls = [*bad_input.quick_calls().items(), *bad_input.slow_calls().items()]
        for path, sensible in calls[:count]:
            for where, fault in bad_input.try_out(path, sensible):
                tried += 1
                refused += fault == ""
                if fault:
                    faults.append(f"{where}: {fault}")
    return f"{tried} calls, {refused} refused", faults


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
    parser.add_argument("parts", nargs="+", choices=names)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
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
