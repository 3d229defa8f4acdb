"""Compression to a budget, on a small trained CNN."""

import gzip

import keras
import numpy as np
import pytest
from helpers import to_numpy

import keras_trainkit as kt

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="each file is made in a process of its own, which takes seconds",
)


@pytest.fixture(scope="module")
def data():
    return kt.datasets.load("digits")


def classifier():
    """A small network of a kind that is nowhere registered."""

    class Scaled(keras.layers.Layer):
        def call(self, x):
            return x * 0.5

    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            Scaled(),
            keras.layers.Conv2D(8, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def model(data):
    keras.utils.set_random_seed(0)
    model = classifier()
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(*data.train, epochs=4, batch_size=32, verbose=0)
    return model


def accuracy_of(path, data):
    outputs = kt.export.predict_litert(path, data.x_val)
    return float(np.mean(outputs.argmax(1) == data.y_val))


TRAIN = "keras_trainkit.compression._train.Teacher.train"


def few_steps(patch):
    """A search that cuts once, and finds that int8 always loses too much."""
    values = {"_STEP": 0.5, "_SMALLEST": 0.3, "_REFINEMENTS": 0, "_LOST_TO_INT8": -9}
    for name, value in values.items():
        patch.setattr(f"keras_trainkit.compression._search.{name}", value)
    patch.setattr("keras_trainkit.compression._cuts._LEVELS", (0.5, 0.75))


@pytest.fixture(scope="module")
def search(model, data, tmp_path_factory):
    """A search that was interrupted, the same to its end, and what it was asked for."""
    folder = tmp_path_factory.mktemp("search")
    options = {
        "validation_data": data.validation,
        "max_flops": int(0.6 * kt.flops(model)),
        "max_drop": 0.05,
        # Seconds, of a device of the user's own.
        "latency": lambda path: path.stat().st_size / 1e4,
        "path": folder / "small.tflite",
        "checkpoint": folder / "steps",
        "epochs": 1,
        "progress": False,
    }

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        few_steps(patch)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(TRAIN, interrupted)
            first = kt.compress(model, *data.train, **options)
            accuracy = accuracy_of(options["path"], data)
            names = sorted(path.name for path in folder.iterdir())
        assert names == ["small.tflite", "steps"]
        assert [one.name for one in first.front] == ["int8"]
        assert first.verdict[0] == pytest.approx(accuracy)
        assert not first.reached
        before = [np.array(w) for w in model.get_weights()]
        optimizer = model.optimizer
        result = kt.compress(model, *data.train, **options)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer is optimizer
    assert model.trainable
    assert result.front[0] == first.front[0]
    return result, options


def test_the_result_tells_the_truth_about_its_file(search, data):
    result, options = search
    one = result.chosen
    assert result.path.stat().st_size == one.bytes == round(1e4 * one.latency)
    assert accuracy_of(result.path, data) == pytest.approx(result.verdict[0])
    # Nothing that was tried is within the budget and better.
    inside = [one for one in result.front if one.flops <= options["max_flops"]]
    assert len(inside) >= 2
    assert one.metric == max(other.metric for other in inside)
    assert one in inside
    assert result.reached == (one.metric >= result.original.metric - 0.05)
    assert "were not used to choose" in result.report


def test_the_model_is_what_the_file_was_made_from(search, data):
    result, _ = search
    outputs = result.model.predict(data.x_val, verbose=0).argmax(1)
    file = kt.export.predict_litert(result.path, data.x_val).argmax(1)
    assert np.mean(outputs == file) > 0.97


def test_what_int8_costs_is_trained_for(search):
    result, _ = search
    (aware,) = [one for one in result.front if "quantization-aware" in one.name]
    named = {one.name: one for one in result.front}
    plain = named[aware.name.removesuffix(", quantization-aware")]
    assert aware.flops == plain.flops
    assert aware.metric == pytest.approx(aware.float_metric, abs=0.05)


def test_a_search_goes_on_from_its_folder(search, model, data, monkeypatch):
    result, options = search

    def no_training(*_, **__):
        raise AssertionError("trained again")

    with pytest.raises(ValueError, match="a folder of the same search"):
        kt.compress(model, *data.train, **{**options, "max_drop": 0.5})
    few_steps(monkeypatch)
    monkeypatch.setattr(TRAIN, no_training)
    again = kt.compress(model, *data.train, **options)
    assert again.front == result.front
    assert again.chosen == result.chosen
    assert again.verdict == result.verdict


def test_what_is_not_reached_is_said(model, data):
    impossible = kt.compress(
        model,
        *data.train,
        validation_data=data.validation,
        max_bytes=100,
        max_latency=1e-9,
        time_limit=1e-3,
        progress=False,
    )
    assert not impossible.reached
    assert "not reached: the nearest is int8, where bytes is" in impossible.summary()
    assert impossible.chosen.latency > 1e-9
    assert impossible.path is None


def test_more_is_trained_where_a_budget_costs_too_much():
    from keras_trainkit.compression import Candidate
    from keras_trainkit.compression._goal import Goal

    def one(size, metric):
        return Candidate("", size, 0, None, metric, metric)

    goal = Goal({"bytes": 100}, 0.01, before=0.9)
    front = [one(120, 0.9), one(99, 0.85), one(90, 0.88)]
    assert goal.best(front) is front[2]
    assert not goal.is_met(front[2])
    assert goal.missed(front[2]) == "0.0200 is lost"
    assert goal.is_met(one(99, 0.895))
    # Without a budget, size decides among those that are good enough.
    drop = Goal({}, 0.05, before=0.9)
    assert drop.best(front) is front[2]
    assert drop.best([one(9, 0.1), one(12, 0.7)]).bytes == 12


@pytest.mark.slow
def test_gzip_counts_zeros(model, data, tmp_path, monkeypatch):
    few_steps(monkeypatch)
    monkeypatch.setattr("keras_trainkit.compression._search._SPARSITIES", (0.6,))
    # Without a cut.
    monkeypatch.setattr("keras_trainkit.compression._search._SMALLEST", 0.9)
    result = kt.compress(
        model,
        *data.train,
        validation_data=data.validation,
        max_drop=0.9,
        size="gzip",
        io_dtype="int8",
        path=tmp_path / "model.tflite",
        epochs=1,
        progress=False,
    )
    assert [one.name for one in result.front] == ["int8", "60.0% zeros"]
    zipped = len(gzip.compress(result.path.read_bytes(), mtime=0))
    assert result.chosen.bytes == zipped < result.path.stat().st_size
    assert zipped < result.front[0].bytes
    report = kt.pruning.sparsity_report(result.model)
    assert [layer.sparsity for layer in report.layers] == pytest.approx(
        [0.6, 0.6], abs=0.01
    )
    details = kt.export.load_litert(result.path).get_input_details()
    assert details[0]["dtype"] == np.int8


def two_sided(as_dict):
    """Two inputs; a class and a number as outputs."""
    image, extra = keras.Input((8, 8, 1), name="z"), keras.Input((3,), name="extra")
    x = keras.layers.Dense(16, activation="relu")(keras.layers.Flatten()(image))
    x = keras.layers.Concatenate()([x, extra])
    label = keras.layers.Dense(10, activation="softmax", name="label")(x)
    total = keras.layers.Dense(1, name="a_sum")(x)
    if as_dict:
        inputs = {"z": image, "extra": extra}
        return keras.Model(inputs, {"label": label, "a_sum": total})
    return keras.Model([image, extra], [label, total])


@pytest.mark.parametrize("as_dict", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_several_inputs_and_outputs(data, as_dict, tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    model = two_sided(as_dict)
    losses = {"label": "sparse_categorical_crossentropy", "a_sum": "mse"}
    weights = {"label": 1.0, "a_sum": 0.1}
    model.compile(keras.optimizers.Adam(1e-2), losses, loss_weights=weights)

    def inputs(x):
        extra = x[:, 2:5, 3, 0]
        return {"z": x, "extra": extra} if as_dict else [x, extra]

    def targets(x, y):
        return {"label": y, "a_sum": x.mean((1, 2, 3))}

    x, y = inputs(data.x_train), targets(*data.train)
    fitted = y if as_dict else [y["label"], y["a_sum"]]
    model.fit(x, fitted, epochs=5, batch_size=32, verbose=0)
    validation = inputs(data.x_val), targets(*data.validation)

    def metric(y, outputs):
        assert type(y) is type(outputs) is (dict if as_dict else list)
        if as_dict:
            y, outputs = ([one["label"], one["a_sum"]] for one in (y, outputs))
        error = np.mean((y[1] - outputs[1][:, 0]) ** 2)
        return float(np.mean(y[0] == outputs[0].argmax(1)) - error)

    few_steps(monkeypatch)
    result = kt.compress(
        model,
        x,
        y,
        validation_data=validation,
        max_drop=0.2,
        metric=metric,
        path=tmp_path / "model.tflite",
        epochs=1,
        progress=False,
    )
    assert result.reached
    assert result.verdict[1] > 0.8
    # Neither output is lost, or mistaken for the other.
    assert result.verdict[0] > result.verdict[1] - 0.25
    assert "of the weights" in result.chosen.name
    outputs = kt.export.predict_litert(result.path, validation[0])
    assert isinstance(outputs, dict) == as_dict
    with pytest.raises(ValueError, match="has no labels: a_sum"):
        kt.compress(model, x, y, validation_data=validation)
    with pytest.raises(ValueError, match=r"targets for .*label"):
        kt.compress(model, x, y["label"], validation_data=validation)


def test_the_mean_accuracy_of_several_outputs():
    from keras_trainkit.compression._measure import metric_of

    inputs = keras.Input((2,))
    heads = [
        keras.layers.Dense(n, activation=a, name=f"h{n}")(inputs)
        for n, a in ((3, "softmax"), (1, None), (2, "sigmoid"))
    ]
    model = keras.Model(inputs, heads)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("sgd", ["sparse_categorical_crossentropy", loss, "bce"])
    y = [np.array([0, 2]), np.array([1, 0]), np.array([[1, 1], [0, 1]])]
    outputs = [
        np.array([[0.6, 0.2, 0.2], [0.1, 0.8, 0.1]]),
        # Logits: their middle is 0.
        np.array([[0.2], [-3.0]]),
        # Two labels a row.
        np.array([[0.9, 0.2], [0.1, 0.7]]),
    ]
    found = metric_of("accuracy", model, y)(y, outputs)
    assert found == pytest.approx((0.5 + 1.0 + 0.75) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_bytes": -1}, "max_bytes=-1"),
        ({"max_drop": "a"}, "max_drop='a'"),
        ({"metric": "f1"}, "metric='f1'"),
        ({"size": "zip"}, "size='zip'"),
        ({"path": "model.h5"}, "path='model.h5'"),
        ({"epochs": 0}, "epochs=0"),
        ({"validation_data": np.ones(3)}, "`validation_data` must be a pair"),
    ],
)
def test_bad_arguments(model, data, change, message):
    arguments = {"validation_data": data.validation, **change}
    with pytest.raises(ValueError, match=message):
        kt.compress(model, *data.train, **arguments)
    with pytest.raises(ValueError, match="a compiled model"):
        kt.compress(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
                    *data.train, validation_data=data.validation)  # fmt: skip


def test_the_distillation_is_that_of_keras():
    from keras_trainkit.compression._train import SoftenedDivergence, distance_for

    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 5, 3)).astype("float32")
    theirs = keras.distillation.LogitsDistillation(3.0, keras.losses.KLDivergence())
    expected = float(to_numpy(theirs.compute_loss(teacher, student)))
    loss = float(to_numpy(SoftenedDivergence(from_logits=True)(teacher, student)))
    assert loss == pytest.approx(expected, rel=1e-5)
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (teacher, student))
    loss = float(to_numpy(distance_for(p, from_logits=False)(p, q)))
    assert loss == pytest.approx(expected, rel=1e-4)
    loss = float(to_numpy(distance_for(teacher, from_logits=False)(teacher, student)))
    assert loss == pytest.approx(((teacher - student) ** 2).mean(), rel=1e-5)
