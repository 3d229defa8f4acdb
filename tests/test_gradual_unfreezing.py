"""`GradualUnfreezing` in `fit`, against stages trained by hand."""

import itertools

import keras
import numpy as np
import pytest
from helpers import JIT_OPTIONS, save_and_load

import keras_trainkit as kt


def make_model(optimizer=None, **compile_options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation="tanh", name="low"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(4, activation="tanh", name="middle"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    model.compile(optimizer, "mse", **compile_options)
    return model


def data(rows=64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, np.tanh(x[:, :2] * 2 - 1)


def fit(model, epochs, callbacks=(), **options):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, **options}
    return model.fit(*data(), epochs=epochs, callbacks=list(callbacks), **options)


def weights(model):
    return {v.path.split("/", 1)[1]: np.array(v) for v in model.weights}


def assert_same(model, expected, rtol=1e-5):
    for name, value in weights(model).items():
        np.testing.assert_allclose(
            value, expected[name], rtol=rtol, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("jit_compile", JIT_OPTIONS)
def test_as_by_stages_with_the_state_carried_by_hand(jit_compile):
    gradual = make_model(jit_compile=jit_compile)
    fit(gradual, 5, [kt.callbacks.GradualUnfreezing({0: "head", 2: ".*"})])

    by_hand = make_model()
    for layer in by_hand.layers[:-1]:
        layer.trainable = False
    by_hand.compile(keras.optimizers.Adam(0.01), "mse")
    fit(by_hand, 2)
    first = {v.name: np.array(v) for v in by_hand.optimizer.variables}
    for layer in by_hand.layers:
        layer.trainable = True
    by_hand.compile(keras.optimizers.Adam(0.01), "mse")
    by_hand.optimizer.build(by_hand.trainable_variables)
    for variable in by_hand.optimizer.variables:
        if variable.name in first:
            variable.assign(first[variable.name])
    fit(by_hand, 3)
    assert_same(gradual, weights(by_hand))
    # The model's optimizer knows everything, as one compiled for all of it does.
    names, expected = (
        [v.name.removeprefix(f"{model.name}_") for v in model.optimizer.variables]
        for model in (gradual, by_hand)
    )
    assert names == expected


def test_what_is_frozen_stays_and_joins_in():
    model = make_model()
    seen = [weights(model)]

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(weights(self.model))

    gradual = kt.callbacks.GradualUnfreezing({0: "head", 1: ["middle"], 2: "low|norm"})
    history = fit(model, 3, [gradual, Watch()]).history
    moves = [
        {name for name in after if not np.array_equal(before[name], after[name])}
        for before, after in itertools.pairwise(seen)
    ]
    head = {"head/kernel", "head/bias"}
    middle = head | {"middle/kernel", "middle/bias"}
    assert moves == [head, middle, set(seen[0])]
    assert history["trainable_layers"] == [1, 2, 4]


def test_numbers_and_batch_norms():
    model = make_model()
    history = fit(model, 4, [kt.callbacks.GradualUnfreezing(1, batch_norm=False)])
    assert history.history["trainable_layers"] == [1, 2, 2, 3]
    assert not model.get_layer("norm").trainable
    model = make_model()
    history = fit(model, 3, [kt.callbacks.GradualUnfreezing({0: -1, 1: 0.5, 2: 1})])
    assert history.history["trainable_layers"] == [1, 2, 3]
    assert not model.get_layer("low").trainable


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "all"])
def test_with_one_cycle_in_any_order(first, frozen):
    """A frozen layer is one whose rate is 0; the cycle goes on through the stages."""

    def train(order):
        model = make_model(keras.optimizers.SGD(0.1, momentum=0.9))
        if frozen:
            for layer in model.layers[:-1]:
                layer.trainable = False
            model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        gradual = kt.callbacks.GradualUnfreezing({0: "head", 2: ".*"})
        cycle = kt.callbacks.OneCycle(0.2)
        history = fit(model, 4, [gradual, cycle] if order else [cycle, gradual])
        return model, history.history

    model, history = train(first)
    other, _ = train(True)
    assert_same(model, weights(other), rtol=1e-6)
    plain = fit(
        make_model(keras.optimizers.SGD(0.1, momentum=0.9)),
        4,
        [kt.callbacks.OneCycle(0.2)],
    ).history
    assert history["learning_rate"] == pytest.approx(plain["learning_rate"])
    assert history["momentum"] == pytest.approx(plain["momentum"])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)
    assert int(model.optimizer.iterations) == 16
    # The velocities of all layers are there for the next fit.
    slots = model.optimizer.variables[2:]
    assert len(slots) == len(model.trainable_variables) == 8
    assert all(np.abs(np.array(slot)).max() > 0 for slot in slots)


def test_with_layerwise_rates_and_steps_per_execution():
    steps = 1 if keras.backend.backend() == "torch" else 2
    optimizer = kt.optimizers.layerwise(
        keras.optimizers.SGD(0.1), {"low": 0.0, "middle": 0.5}
    )
    model = make_model(optimizer, steps_per_execution=steps)
    before = weights(model)
    fit(model, 3, [kt.callbacks.GradualUnfreezing({0: "head", 1: "low|middle"})])
    after = weights(model)
    np.testing.assert_array_equal(after["low/kernel"], before["low/kernel"])
    assert np.abs(after["middle/kernel"] - before["middle/kernel"]).max() > 1e-4
    assert model.optimizer.multipliers == {"low": 0.0, "middle": 0.5}


@pytest.mark.parametrize("options", [{}, {"ema_overwrite_frequency": 6}])
def test_moving_averages_of_what_trains(options):
    """At the end the weights are their averages, those that stay frozen as they were.

    By NumPy, with a rate that keeps the weights where they are and averages that start
    at them, there is nothing to move; a wrong pairing or a start at zero moves much.
    """
    adam = keras.optimizers.Adam(1e-9, use_ema=True, ema_momentum=0.5, **options)
    model = make_model(adam)
    before = {k: v for k, v in weights(model).items() if "moving" not in k}
    fit(model, 4, [kt.callbacks.GradualUnfreezing({0: "head", 1: "middle", 9: ".*"})])
    after = weights(model)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-5, err_msg=name)


def test_mixed_precision_and_accumulated_gradients():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_model(keras.optimizers.SGD(0.1, momentum=0.9))
        half = fit(model, 3, [kt.callbacks.GradualUnfreezing({0: "head", 1: ".*"})])
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    finally:
        keras.config.set_dtype_policy("float32")
    full = fit(
        make_model(keras.optimizers.SGD(0.1, momentum=0.9)),
        3,
        [kt.callbacks.GradualUnfreezing({0: "head", 1: ".*"})],
    )
    assert half.history["loss"] == pytest.approx(full.history["loss"], rel=0.05)

    model = make_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    before = weights(model)
    fit(model, 2, [kt.callbacks.GradualUnfreezing({0: "head", 1: "middle|head"})])
    moved = {k for k, v in weights(model).items() if not np.array_equal(v, before[k])}
    assert moved >= {"head/kernel", "middle/kernel"}


def test_backup_and_restore_resumes_in_the_right_stage(tmp_path):
    def callbacks():
        return [
            kt.callbacks.GradualUnfreezing({0: "head", 1: "middle", 3: ".*"}),
            kt.callbacks.OneCycle(0.05),
        ]

    whole = make_model()
    fit(whole, 5, callbacks())

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), 5, [*callbacks(), backup, Stop()])
    resumed = make_model()
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    history = fit(resumed, 5, [*callbacks(), backup])
    assert history.epoch == [2, 3, 4]
    assert history.history["trainable_layers"] == [2, 4, 4]
    assert_same(resumed, weights(whole), rtol=1e-6)


def test_layers_left_frozen_are_so_in_the_file(tmp_path):
    model = make_model()
    fit(model, 1, [kt.callbacks.GradualUnfreezing({0: "head", 9: ".*"})])
    loaded = save_and_load(model, tmp_path)
    assert [layer.trainable for layer in loaded.layers] == [False] * 3 + [True]
    assert len(loaded.optimizer.variables) == 2 + 2 * 2
    for one in (model, loaded):
        fit(one, 2)
    for got, want in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_pruning_needs_a_fit_of_its_own(first):
    # It would prune what trains in the first epoch, and nothing else.
    model = make_model()
    before = weights(model)
    gradual = kt.callbacks.GradualUnfreezing({0: "head", 1: ".*"})
    pruning = kt.pruning.MagnitudePruning(0.5, schedule="constant")
    callbacks = [pruning, gradual] if first else [gradual, pruning]
    with pytest.raises(ValueError, match="`trainable_variables` must be the same 8"):
        fit(model, 3, callbacks)
    assert_same(model, before, rtol=0)
    fit(model, 3, [gradual])
    fit(model, 1, [pruning])
    report = kt.pruning.sparsity_report(model)
    assert [layer.sparsity for layer in report.layers] == pytest.approx([0.5] * 3)


def test_evaluate_changes_nothing():
    model = make_model()
    model.get_layer("low").trainable = False
    model.compile("sgd", "mse")
    gradual = kt.callbacks.GradualUnfreezing({0: "head", 1: ".*"})
    model.evaluate(*data(), verbose=0, callbacks=[gradual])
    model.predict(data()[0], verbose=0, callbacks=[gradual])
    assert [layer.trainable for layer in model.layers] == [False] + [True] * 3


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "a dict with at least one entry"),
        (0, "an integer >= 1"),
        ("head", "an integer >= 1"),
        ({-1: "head"}, "an integer >= 0"),
    ],
)
def test_bad_schedule(schedule, message):
    with pytest.raises(ValueError, match=message):
        kt.callbacks.GradualUnfreezing(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({0: "haed"}, "matches a layer"),
        ({0: 7}, "an integer from -4 to 4"),
        ({2: ".*"}, "a layer trains in epoch 0"),
    ],
)
def test_schedule_that_does_not_fit(schedule, message):
    model = make_model()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, 3, [kt.callbacks.GradualUnfreezing(schedule)])
    assert all(layer.trainable for layer in model.layers)
    assert_same(model, before, rtol=0)
    fit(model, 1)
