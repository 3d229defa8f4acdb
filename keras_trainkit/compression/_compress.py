"""Cut, train, quantize and measure until a model is as small as it may be."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_trainkit._checks import check_integer, check_positive, reject
from keras_trainkit._model.graph import check_graph
from keras_trainkit.compression._measure import Data, metric_of
from keras_trainkit.compression._result import CompressResult
from keras_trainkit.compression._search import Search
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
    max_drop: float = 0.01,
    metric: str | Callable[[Any, Any], float] = "accuracy",
    path: str | os.PathLike | None = None,
    epochs: int = 2,
    batch_size: int = 64,
    learning_rate: float | None = None,
    round_to: int = 1,
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

    Without a budget the result is the smallest file within `max_drop`; with one, or
    several, the best file within all of them. What cannot be reached is said, with the
    nearest that was. The choice looks at a part of the training data;
    `validation_data` give the verdict at the end. The model is not changed. Ctrl-C and
    `time_limit` end the search with the best so far.

    Args:
        model: A compiled, trained Sequential or Functional model with one input and one
            output.
        x: Training inputs, `(rows, ...)`.
        y: Training targets.
        validation_data: `(x, y)` for the verdict.
        max_bytes: Largest size of the file, in bytes.
        max_latency: Longest time of a pass of one row, in seconds: in LiteRT on this
            machine, or as `latency` says.
        max_flops: Most floating-point operations of a row.
        max_drop: How much of the metric may be lost if there is no budget.
        metric: `"accuracy"`, or a function of targets and outputs that returns a
            number, larger is better.
        path: The file to write, `*.tflite`. After each step it is the best so far.
        epochs: Epochs of training after each step.
        batch_size: Rows of a batch.
        learning_rate: The peak of the cycles; by default the rate that the model was
            compiled with.
        round_to: Channels are left in multiples of this.
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
    check_positive("max_drop", max_drop, allow_zero=True)
    check_integer("epochs", epochs, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    if time_limit is not None:
        check_positive("time_limit", time_limit)
    _check_model(model)
    if path is not None and not str(path).endswith(".tflite"):
        reject("path", str(path), "a path that ends in .tflite")
    search = Search(
        model=model,
        data=Data.of(x, y, validation_data, seed),
        metric=metric_of(metric),
        budget={name: value for name, value in budget.items() if value is not None},
        max_drop=max_drop,
        path=None if path is None else Path(path),
        training=Training(
            epochs,
            batch_size,
            usual_rate(model)
            if learning_rate is None
            else check_positive("learning_rate", learning_rate),
            seed,
        ),
        options={"round_to": check_integer("round_to", round_to, minimum=1)},
        latency=latency,
        deadline=None if time_limit is None else time.monotonic() + time_limit,
        bar=keras.utils.Progbar(None, unit_name="candidate") if progress else None,
        keep_models=checkpoint is not None,
    )
    with tempfile.TemporaryDirectory() as folder:
        return search.run(Path(folder if checkpoint is None else checkpoint))


def _check_model(model: Any) -> None:
    check_graph(model)
    if not model.compiled:
        reject("model", model.name, "a compiled model, whose loss is trained on")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        reject("model", model.name, "a model with one input and one output")
