"""Cut, train, quantize and measure until a model is as small as it may be."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import keras

from keras_trainkit._checks import check_choice, check_integer, check_positive, reject
from keras_trainkit._model.graph import check_graph
from keras_trainkit.compression._measure import Data, latency_of, metric_of
from keras_trainkit.compression._result import CompressResult
from keras_trainkit.compression._search import Search
from keras_trainkit.compression._steps import Steps
from keras_trainkit.compression._train import Training, usual_rate


def compress(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    validation_data: tuple[Any, Any],
    max_bytes: int | None = None,
    max_latency: float | None = None,
    max_flops: int | None = None,
    max_drop: float | None = None,
    metric: str | Callable[[Any, Any], float] = "accuracy",
    path: str | os.PathLike | None = None,
    epochs: int = 2,
    batch_size: int = 64,
    learning_rate: float | None = None,
    round_to: int = 1,
    size: str = "file",
    io_dtype: str = "float32",
    latency: Callable[[Path], float] | None = None,
    time_limit: float | None = None,
    checkpoint: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> CompressResult:
    """Compress a trained model to a budget, as an int8 LiteRT file.

    BatchNorms are folded, and weights and activations quantized to int8. Channels are
    cut step by step, starting where a cut costs least for what it saves, which is
    measured for each group of channels separately. After each step the smaller model is
    trained on one cycle, on the targets and on the outputs of the original
    (`keras.distillation`).

    Where int8 costs too much, the smaller model is trained with its rounding too
    (`kt.quantization.quantize_aware`). With `size="gzip"` the smallest weights become
    zero first.

    What is chosen:

    - Without a budget, the smallest file that loses at most `max_drop`, 0.01 by
      default.
    - With budgets, the best metric of the files that are within all of them.
    - With budgets and `max_drop`, the same, and the search goes on training until both
      are met or it helps no more. A file within the budgets is always nearer than one
      that is not.

    What cannot be reached is said, with the nearest that was. The choice looks at a
    part of the training data; `validation_data` give the verdict at the end. The model
    is not changed. Ctrl-C and `time_limit` end the search with the best so far.

    Args:
        model: A compiled, trained Sequential or Functional model. Where it was compiled
            without a loss, the outputs of the original alone are trained on.
        x: Training inputs, `(rows, ...)`; of several a list or dict, as for `fit`.
        y: Training targets; of several outputs a list or dict, as for `fit`.
        validation_data: `(x, y)` for the verdict.
        max_bytes: Largest size of the file, in bytes, as `size` says.
        max_latency: Longest time of a pass of one row, in seconds: in LiteRT on this
            machine, or as `latency` says.
        max_flops: Most floating-point operations of a row.
        max_drop: How much of the metric may be lost. None for 0.01 where there is no
            budget, and for any loss where there is one.
        metric: `"accuracy"`, of several outputs the mean, each of which must have
            labels; or a function of targets and outputs, both in the structure of the
            model's outputs, that returns a number, larger is better.
        path: The file to write, `*.tflite`. After each step it holds the best so far.
        epochs: Epochs of training after each step.
        batch_size: Rows of a batch.
        learning_rate: The peak of the cycles; by default the rate that the model was
            compiled with.
        round_to: Channels are left in multiples of this.
        size: What counts as bytes: `"file"`, or `"gzip"` for the file after gzip, such
            as one that is downloaded. Then weights are set to zero too.
        io_dtype: `"int8"` for int8 inputs and outputs, as microcontrollers have it.
        latency: A function of a file's path that returns its seconds, such as one that
            measures on the device.
        time_limit: Seconds after which no further step begins.
        checkpoint: A folder that keeps the state of the search; called again with the
            same folder, the search resumes.
        seed: Seed of the held-out part and of the trainings.
        progress: Whether to show a progress bar.

    Returns:
        A `CompressResult`.

    Raises:
        ValueError: If an argument is wrong.

    Examples:
        Under 100 kB (a small network and few epochs, to be quick):

        >>> import keras, numpy as np, keras_trainkit as kt
        >>> data = kt.datasets.load("digits")
        >>> model = kt.models.build_mlp(
        ...     data.input_shape, data.num_classes, hidden_units=(32,)
        ... )
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> history = model.fit(*data.train, epochs=3, verbose=0)
        >>> result = kt.compress(  # doctest: +SKIP
        ...     model, *data.train, validation_data=data.validation, max_bytes=3000,
        ...     path="digits.tflite",
        ... )

    Reference:
        T. Yang et al., NetAdapt (2018), arXiv:1804.03230, section 3; G. Hinton, O.
        Vinyals and J. Dean, Distilling the Knowledge in a Neural Network (2015),
        arXiv:1503.02531.
    """
    budget = {"bytes": max_bytes, "latency": max_latency, "flops": max_flops}
    for name, value in budget.items():
        if value is not None:
            check_positive(f"max_{name}", value)
    if max_drop is not None:
        check_positive("max_drop", max_drop, allow_zero=True)
    check_integer("epochs", epochs, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    if time_limit is not None:
        check_positive("time_limit", time_limit)
    check_choice("size", size, ("file", "gzip"))
    check_choice("io_dtype", io_dtype, ("float32", "int8"))
    check_integer("round_to", round_to, minimum=1)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
    _check_model(model)
    if path is not None and not str(path).endswith(".tflite"):
        reject("path", str(path), "a path that ends in .tflite")
    limits = {name: value for name, value in budget.items() if value is not None}
    if max_drop is None and not limits:
        max_drop = 0.01
    data = Data.of(model, x, y, validation_data, seed)
    found_metric = metric_of(metric, model, data.choice[1])
    if latency is None and "latency" in limits:
        latency = partial(latency_of, x=data.choice[0])
    rate = usual_rate(model) if learning_rate is None else learning_rate
    training = Training(epochs, batch_size, rate, seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if checkpoint is None else checkpoint)
        keep = checkpoint is not None
        return Search(
            model=model,
            steps=Steps(data, found_metric, latency, size, io_dtype, folder, keep),
            budget=limits,
            max_drop=max_drop,
            path=None if path is None else Path(path),
            training=training,
            options={"round_to": round_to},
            deadline=None if time_limit is None else time.monotonic() + time_limit,
            bar=keras.utils.Progbar(None, unit_name="candidate") if progress else None,
            settings={
                "budget": limits,
                "max_drop": max_drop,
                "size": size,
                "io_dtype": io_dtype,
                "round_to": round_to,
                "training": asdict(training),
            },
        ).run()


def _check_model(model: Any) -> None:
    check_graph(model)
    if not model.compiled:
        reject("model", model.name, "a compiled model, whose loss is trained on")
