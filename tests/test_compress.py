"""Compression to a budget, on a small trained CNN."""

import keras
import numpy as np
import pytest

import keras_trainkit as kt

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="each file is made in a process of its own, which takes seconds",
)


@pytest.fixture(scope="module")
def data():
    return kt.datasets.load("digits")


@pytest.fixture(scope="module")
def model(data):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(data.input_shape),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(*data.train, epochs=6, batch_size=32, verbose=0)
    return model


def accuracy_of(path, data):
    outputs = kt.export.predict_litert(path, data.x_val)
    return float(np.mean(outputs.argmax(1) == data.y_val))


@pytest.fixture(scope="module")
def small(model, data, tmp_path_factory):
    """The smallest file within 3 points, and the folder of the search."""
    folder = tmp_path_factory.mktemp("search")
    before = [np.array(w) for w in model.get_weights()]
    optimizer = model.optimizer
    result = kt.compress(
        model,
        *data.train,
        validation_data=data.validation,
        max_drop=0.05,
        path=folder / "small.tflite",
        checkpoint=folder / "steps",
        epochs=2,
        progress=False,
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer is optimizer
    assert model.trainable
    return result, folder


def test_the_result_tells_the_truth_about_its_file(small, data):
    result, _ = small
    assert result.path.stat().st_size == result.chosen.bytes
    assert accuracy_of(result.path, data) == pytest.approx(result.verdict[0])
    assert result.reached
    assert result.chosen.metric >= result.original.metric - 0.05
    # Nothing that was tried is smaller and good enough.
    good = [one for one in result.front if one.metric >= result.original.metric - 0.05]
    assert result.chosen.bytes == min(one.bytes for one in good)
    assert "were not used to choose" in result.report
    assert result.original.bytes > 5 * result.chosen.bytes


def test_the_model_is_what_the_file_was_made_from(small, data):
    result, _ = small
    outputs = result.model.predict(data.x_val, verbose=0).argmax(1)
    file = kt.export.predict_litert(result.path, data.x_val).argmax(1)
    assert np.mean(outputs == file) > 0.97
    assert kt.flops(result.model) == result.chosen.flops


def test_a_search_goes_on_from_its_folder(small, model, data, monkeypatch):
    result, folder = small

    def no_training(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("keras_trainkit.compression._search.train", no_training)
    options = {
        "validation_data": data.validation,
        "checkpoint": folder / "steps",
        "progress": False,
    }
    again = kt.compress(model, *data.train, max_drop=0.05, epochs=2, **options)
    assert again.front == result.front
    assert again.chosen == result.chosen
    assert again.verdict == result.verdict


def test_a_budget_is_met_or_said_not_to_be(model, data, tmp_path):
    def metric(y, outputs):
        """Of the user's own: larger is better."""
        return -float(np.mean((np.eye(10)[y] - outputs) ** 2))

    result = kt.compress(
        model,
        *data.train,
        validation_data=data.validation,
        max_bytes=16_000,
        max_latency=1.4,
        latency=lambda path: path.stat().st_size / 1e4,
        metric=metric,
        path=tmp_path / "model.tflite",
        epochs=1,
        progress=False,
    )
    assert result.reached
    assert result.chosen.bytes <= 14_000
    assert result.chosen.latency == result.chosen.bytes / 1e4
    file = kt.export.predict_litert(result.path, data.x_val)
    assert metric(data.y_val, file) == pytest.approx(result.verdict[0])
    impossible = kt.compress(
        model,
        *data.train,
        validation_data=data.validation,
        max_bytes=100,
        time_limit=1e-3,
        progress=False,
    )
    assert not impossible.reached
    assert "not reached" in impossible.summary()
    assert impossible.path is None


def test_ctrl_c_leaves_the_best_so_far(model, data, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_trainkit.compression._search.train", interrupted)
    result = kt.compress(
        model,
        *data.train,
        validation_data=data.validation,
        path=tmp_path / "model.tflite",
        progress=False,
    )
    assert [one.name for one in result.front] == ["int8"]
    assert accuracy_of(tmp_path / "model.tflite", data) == result.verdict[0]
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_bytes": -1}, "max_bytes=-1"),
        ({"max_drop": "a"}, "max_drop='a'"),
        ({"metric": "f1"}, "metric='f1'"),
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


def test_the_distillation_is_the_cross_entropy_of_probabilities():
    from keras_trainkit.compression._train import OutputDistillation

    rng = np.random.default_rng(0)
    teacher, student = rng.dirichlet(np.ones(3), (2, 5)).astype("float32")
    loss = float(OutputDistillation().compute_loss(teacher, student))
    assert loss == pytest.approx(-(teacher * np.log(student)).sum(1).mean(), rel=1e-5)
    a, b = rng.normal(size=(2, 5, 3)).astype("float32")
    loss = float(OutputDistillation().compute_loss(a, b))
    assert loss == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)
