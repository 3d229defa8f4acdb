"""The presets as KerasTuner's search space."""

import keras
import numpy as np
import pytest
from helpers import once

import keras_trainkit as kt

keras_tuner = pytest.importorskip("keras_tuner")
pytestmark = [
    # KerasTuner's own, and Keras's when it reads a trial's weights without its slots.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
]

SHAPE = {"input_shape": (4,), "num_classes": 2}


def space(preset="default", **options):
    options = {"units": (2, 8), "num_layers": (1, 2), **options}
    return kt.models.hypermodel(preset, **SHAPE, **options)


def data():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def test_model_has_the_hyperparameters():
    hp = keras_tuner.HyperParameters()
    for name, value in {
        "preset": "self_normalizing",
        "num_layers": 2,
        "units": 5,
        "max_lr": 0.02,
        "dropout_rate": 0.1,
    }.items():
        hp.Fixed(name, value)
    presets = ["default", "self_normalizing"]
    model = space(presets, dropout_rate=(0.0, 0.2)).build(hp)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [5, 5, 2]
    dropouts = [
        layer for layer in model.layers if isinstance(layer, keras.layers.AlphaDropout)
    ]
    assert [layer.rate for layer in dropouts] == [0.1, 0.1]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)


def test_search_space_has_the_bounds():
    hp = keras_tuner.HyperParameters()
    space(max_lr=(0.01, 0.1)).build(hp)
    found = {p.name: (p.min_value, p.max_value) for p in hp.space}
    assert found == {"num_layers": (1, 2), "units": (2, 8), "max_lr": (0.01, 0.1)}


@once
@pytest.mark.parametrize("name", ["RandomSearch", "GridSearch", "BayesianOptimization"])
def test_search_trains_each_trial_on_one_cycle(name, tmp_path):
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((len(self.model.layers), self.params["steps"]))

    tuner = getattr(keras_tuner, name)(
        space(batch_size=[16, 32]),
        objective="val_accuracy",
        max_trials=2,
        directory=tmp_path,
        seed=1,
    )
    x, y = data()
    tuner.search(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=[Watch()])
    assert len(seen) == 4
    assert {steps for _, steps in seen} <= {2, 4}
    best = tuner.get_best_hyperparameters()[0]
    assert set(best.values) == {"num_layers", "units", "max_lr", "batch_size"}
    score = tuner.oracle.get_best_trials()[0].score
    model = tuner.get_best_models()[0]
    assert model.evaluate(x, y, verbose=0)[1] == pytest.approx(score, abs=1e-6)


def test_each_trial_finds_its_rate_once():
    hp = keras_tuner.HyperParameters()
    own = space(max_lr="auto", batch_size=[16])
    history = own.fit(hp, own.build(hp), *data(), epochs=3, verbose=0).history
    assert "max_lr" not in {parameter.name for parameter in hp.space}
    found = hp.values["max_lr"]
    expected = kt.schedules.OneCycle(found, 12)
    ends = [float(expected(step)) for step in (3, 7, 11)]
    assert history["learning_rate"] == pytest.approx(ends, rel=1e-5)
    # Hyperband goes on with the values and weights of an earlier trial.
    later = own.fit(
        hp, own.build(hp), *data(), initial_epoch=1, epochs=3, verbose=0
    ).history
    assert later["learning_rate"] == pytest.approx(ends[1:], rel=1e-5)
    assert hp.values["max_lr"] == found


def test_fit_follows_the_cycle():
    hp = keras_tuner.HyperParameters()
    own = space(batch_size=[16])
    model = own.build(hp)
    history = own.fit(hp, model, *data(), epochs=4, verbose=0).history
    rate = hp.get("max_lr")
    expected = kt.schedules.OneCycle(rate, 16)
    ends = [float(expected(step)) for step in (3, 7, 11, 15)]
    assert history["learning_rate"] == pytest.approx(ends, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "defualt"}, "`preset` must be one of"),
        ({"preset": []}, "`preset` must be one of"),
        ({"num_layers": (2, 1)}, "low <= high"),
        ({"num_layers": (0, 1)}, "an integer >= 1"),
        ({"units": 3}, "a pair"),
        ({"max_lr": (0, 1)}, "> 0"),
        ({"batch_size": ()}, "`batch_size` must be an integer >= 1"),
        ({"dropout_rate": (0.5, 1.0)}, r"in \[0, 1\)"),
        ({"hidden": 3}, "`overrides` must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        space(**arguments)
