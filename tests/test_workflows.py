"""Whole jobs, as a user would do them."""

import re
from pathlib import Path

import keras
import numpy as np
from helpers import once, save_and_load

import keras_trainkit as kt

README = Path(__file__).parent.parent / "README.md"


def nearest_mean_accuracy(data):
    """What needs no network: the class whose mean image is the nearest."""
    means = np.stack([data.x_train[data.y_train == k].mean(0) for k in range(10)])
    distances = ((data.x_test[:, None] - means) ** 2).sum((2, 3, 4))
    return np.mean(distances.argmin(1) == data.y_test)


@once
def test_from_preset_to_file(tmp_path):
    data = kt.datasets.load("digits")
    preset = kt.models.PRESETS["default"]
    model = kt.models.build_mlp(
        data.input_shape,
        data.num_classes,
        hidden_units=(64, 32),
        normalization="batch",
        dropout="dropout",
    )
    preset.compile(model)
    found = kt.find_lr(model, *data.train)
    assert found.suggestion is not None
    model.fit(
        *data.train,
        epochs=8,
        validation_data=data.validation,
        callbacks=preset.callbacks(found.one_cycle),
        verbose=0,
    )
    _, accuracy = model.evaluate(*data.test, verbose=0)
    baseline = nearest_mean_accuracy(data)
    assert accuracy > baseline

    mc = kt.uncertainty.mc_predict(model, data.x_test, 20, seed=0)
    right = mc.mean.argmax(-1) == data.y_test
    order = np.argsort(mc.predictive_entropy)
    assert right[order[:180]].mean() > right[order[180:]].mean()

    folded = kt.folding.fold_batch_norm(model).model
    pruned = save_and_load(kt.pruning.prune_once(folded, 0.5), tmp_path)
    classes = pruned.predict(data.x_test, verbose=0).argmax(-1)
    assert np.mean(classes == data.y_test) > baseline
    path = kt.export.to_litert(pruned, tmp_path / "digits.tflite")
    np.testing.assert_allclose(
        kt.export.predict_litert(path, data.x_test),
        pruned.predict(data.x_test, verbose=0),
        atol=1e-5,
    )


def test_one_cycle_twice_and_a_plain_fit_in_between(rng):
    x = rng.normal(size=(64, 5)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    model = kt.models.build_mlp((5,), 2, hidden_units=(8,))
    kt.models.PRESETS["default"].compile(model, 0.02)
    for epochs in (3, 2):
        rates = model.fit(
            x, y, epochs=epochs, callbacks=[kt.callbacks.OneCycle(0.1)], verbose=0
        ).history["learning_rate"]
        np.testing.assert_allclose(rates[-1], 0.1 / 25 / 1e4, rtol=1e-4)
        assert isinstance(model.optimizer, keras.optimizers.SGD)
        np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.02)
        before = model.get_weights()[0]
        model.fit(x, y, verbose=0)
        assert not np.array_equal(before, model.get_weights()[0])


def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(
        r"<!-- gate: example -->\n```python\n(.*?)```", README.read_text(), re.S
    ).group(1)
    assert len(code.splitlines()) <= 25
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "digits.tflite").stat().st_size > 0
