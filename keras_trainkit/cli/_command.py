"""The `keras-trainkit` command: argument parsing and dispatch to the subcommands.

Heavy imports wait until the arguments are parsed, so that `--help` responds
immediately. The wheel also installs this file as the top-level module
`keras_trainkit_command`, because importing the package loads Keras and its backend.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_BACKENDS = ("tensorflow", "jax", "torch")
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The command-line arguments; defaults to `sys.argv[1:]`.

    Returns:
        The exit status: 0 on success, 1 on an error with a one-line message, 2 on an
        invalid argument, 3 if `check` finds a problem or `compress` misses its target,
        130 on Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(argv)
    with _quiet_import():
        from keras_trainkit.cli._output import CommandError
    try:
        _use_backend(arguments.backend, argv)
        with _quiet_tensorflow():
            return arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nkeras-trainkit: interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    except (CommandError, OSError, zipfile.BadZipFile, zlib.error) as error:
        print(f"keras-trainkit: error: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Silence TensorFlow's retracing warnings, which tracing many models triggers."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-trainkit",
        description="Train with Keras 3: find the learning rate, train on one cycle, "
        "know what the model does not know, fold, prune and ship.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=importlib.metadata.version("keras-trainkit"),
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="the whole path on real data, with a report",
        description="Train a network on real data from the learning rate to the "
        "exported model, and write figures, models and report.md.",
    )
    demo.add_argument(
        "--data",
        choices=("digits", "fashion_mnist", "cifar10"),
        default="digits",
        help="the data set (default: digits, which needs no download)",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("keras-trainkit-demo"),
        metavar="DIR",
        help="the folder to write (default: %(default)s)",
    )
    demo.add_argument(
        "--backend",
        choices=_BACKENDS,
        help="the Keras backend (default: Keras's own choice, from KERAS_BACKEND or "
        "~/.keras/keras.json)",
    )
    demo.add_argument(
        "--epochs",
        type=_positive,
        metavar="N",
        help="length of the training (default: by the data set)",
    )
    demo.add_argument(
        "--force", action="store_true", help="write into a folder that is not empty"
    )
    demo.set_defaults(run=_run_demo)

    check = commands.add_parser(
        "check",
        help="what is wrong with a training, and what to do about it",
        description="Say what is wrong with a training, in the data, the loss, the "
        "network or the learning rate. Exits with 3 if there is an error or a warning.",
    )
    check.add_argument("model", type=Path, help="a compiled model, a .keras file")
    check.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="NPZ",
        help="training data: an .npz file with the arrays x and y, and, for validation "
        "data, x_val and y_val",
    )
    check.add_argument("--loss", help="the loss, where the file has none or another")
    check.add_argument(
        "--batch-size", type=_positive, metavar="N", help="as you train (default: 32)"
    )
    check.set_defaults(run=_run_check, backend=None)

    deploy = commands.add_parser(
        "deploy",
        help="variants of a model for deployment, and what each costs",
        description="Write variants of a trained model, each as .keras and .tflite, "
        "and a report of their size, time and accuracy side by side.",
    )
    deploy.add_argument("model", type=Path, help="a .keras file")
    deploy.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="NPZ",
        help="validation data: an .npz file with the arrays x and y",
    )
    deploy.add_argument(
        "--fold",
        action="store_true",
        help="fold the BatchNorms, drop what only training needs, merge layers",
    )
    deploy.add_argument(
        "--prune-channels",
        type=_fraction,
        metavar="RATIO",
        help="take this fraction of the channels out (train the result afterwards)",
    )
    deploy.add_argument(
        "--quantize",
        choices=("float16", "dynamic", "int8", "int16x8"),
        help="quantize the LiteRT file of the last variant as well",
    )
    deploy.add_argument(
        "--train",
        type=Path,
        metavar="NPZ",
        help="training data, on which the model with fewer channels and the one of "
        "--quantize-aware are trained",
    )
    deploy.add_argument(
        "--quantize-aware",
        action="store_true",
        help="train the last variant with the rounding of int8 (needs --train)",
    )
    _add_training(deploy, epochs=3, learning_rate=1e-4)
    deploy.add_argument(
        "--c-array",
        action="store_true",
        help="write the last int8 file, with int8 inputs and outputs, as a C header",
    )
    deploy.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write"
    )
    deploy.add_argument(
        "--repetitions",
        type=_positive,
        default=50,
        metavar="N",
        help="passes that are timed (default: %(default)s)",
    )
    deploy.add_argument(
        "--force", action="store_true", help="write into a folder that is not empty"
    )
    deploy.set_defaults(run=_run_deploy, backend=None)

    compress = commands.add_parser(
        "compress",
        help="the smallest int8 file within a loss, or the best within a size",
        description="Cut, train, quantize and measure a trained model until its LiteRT "
        "file is as small as asked for. Exits with 3 if that is not reached, and "
        "writes the nearest.",
    )
    compress.add_argument("model", type=Path, help="a compiled model, a .keras file")
    compress.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="NPZ",
        help="training data: an .npz file with the arrays x and y",
    )
    compress.add_argument(
        "--validation",
        type=Path,
        required=True,
        metavar="NPZ",
        help="data for the verdict, which is not used to choose",
    )
    compress.add_argument(
        "--max-kb", type=_number, metavar="KB", help="largest file, in 1,000 bytes"
    )
    compress.add_argument(
        "--max-drop",
        type=_fraction,
        metavar="DROP",
        help="the most accuracy to lose, such as 0.01 (the default without --max-kb)",
    )
    _add_training(compress, epochs=2, learning_rate=None)
    compress.add_argument(
        "--batch-size", type=_positive, default=64, metavar="N", help="as you train"
    )
    compress.add_argument(
        "--time-limit", type=_number, metavar="S", help="no step begins after S seconds"
    )
    compress.add_argument(
        "--gzip", action="store_true", help="count the bytes of the file after gzip"
    )
    compress.add_argument(
        "--round-to",
        type=_positive,
        default=1,
        metavar="N",
        help="leave channels in multiples of N",
    )
    compress.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="keep the search there; the same command goes on where it was",
    )
    compress.add_argument(
        "--c-array",
        action="store_true",
        help="int8 inputs and outputs, and a C header beside the file",
    )
    compress.add_argument(
        "-o", "--out", type=Path, required=True, metavar="TFLITE", help="file to write"
    )
    compress.add_argument(
        "--force", action="store_true", help="replace a file that is there"
    )
    compress.set_defaults(run=_run_compress, backend=None)

    inspect = commands.add_parser(
        "inspect",
        help="what could be folded, dropped and pruned in a model, and why not",
        description="Say what could be folded, dropped and pruned in a model, and what "
        "could not and why.",
    )
    inspect.add_argument("model", type=Path, help="a .keras file")
    inspect.set_defaults(run=_run_inspect, backend=None)
    return parser


def _add_training(
    parser: argparse.ArgumentParser, epochs: int, learning_rate: float | None
) -> None:
    parser.add_argument("--loss", help="the loss, where the file has none or another")
    parser.add_argument(
        "--epochs",
        type=_positive,
        default=epochs,
        metavar="N",
        help="epochs of each training (default: %(default)s)",
    )
    told = "%(default)s" if learning_rate else "the one in the file"
    parser.add_argument(
        "--learning-rate",
        type=_number,
        default=learning_rate,
        metavar="LR",
        help=f"of each training (default: {told})",
    )


def _run_demo(arguments: argparse.Namespace) -> int:
    from keras_trainkit.cli._demo import run_demo

    run_demo(arguments.data, arguments.out, arguments.epochs, arguments.force)
    return 0


def _run_check(arguments: argparse.Namespace) -> int:
    from keras_trainkit.cli._check import run_check

    return run_check(
        arguments.model,
        arguments.data,
        loss=arguments.loss,
        batch_size=arguments.batch_size,
    )


def _run_deploy(arguments: argparse.Namespace) -> int:
    from keras_trainkit.cli._deploy import Plan, run_deploy

    plan = Plan(
        fold=arguments.fold,
        ratio=arguments.prune_channels,
        quantization=arguments.quantize,
        quantize_aware=arguments.quantize_aware,
        train=arguments.train,
        loss=arguments.loss,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        c_array=arguments.c_array,
    )
    run_deploy(
        arguments.model,
        arguments.data,
        arguments.out,
        plan,
        repetitions=arguments.repetitions,
        force=arguments.force,
    )
    return 0


def _run_compress(arguments: argparse.Namespace) -> int:
    from keras_trainkit.cli._compress import run_compress

    return run_compress(
        arguments.model,
        arguments.data,
        arguments.validation,
        arguments.out,
        max_kb=arguments.max_kb,
        max_drop=arguments.max_drop,
        loss=arguments.loss,
        c_array=arguments.c_array,
        force=arguments.force,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        batch_size=arguments.batch_size,
        time_limit=arguments.time_limit,
        size="gzip" if arguments.gzip else "file",
        round_to=arguments.round_to,
        checkpoint=arguments.checkpoint,
    )


def _run_inspect(arguments: argparse.Namespace) -> int:
    from keras_trainkit.cli._deploy import run_inspect

    run_inspect(arguments.model)
    return 0


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1). Received: {text}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number > 0. Received: {text}")
    return value


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1. Received: {text}")
    return value


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Hide what the backend logs during import, unless the import fails.

    TensorFlow writes to the file descriptor directly and bypasses `sys.stderr`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        before = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(before, log.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def _use_backend(backend: str | None, argv: list[str]) -> None:
    """Restart the process with another backend, as Keras fixes its own on import."""
    import keras

    from keras_trainkit.cli._output import CommandError

    if backend is None or backend == keras.backend.backend():
        return
    if importlib.util.find_spec(backend) is None:
        raise CommandError(
            f"the backend {backend} is not installed: "
            f"pip install keras-trainkit[{backend}]"
        )
    command = "import sys; from keras_trainkit.cli import main; sys.exit(main())"
    os.execve(
        sys.executable,
        [sys.executable, "-c", command, *argv],
        {**os.environ, "KERAS_BACKEND": backend},
    )
