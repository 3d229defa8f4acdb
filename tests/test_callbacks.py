from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import JIT_OPTIONS, mean_output, one_weight_model, save_and_load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

import keras_trainkit as kt

TORCH = keras.backend.backend() == "torch"
EPOCHS, STEPS = 4, 5
TOTAL = EPOCHS * STEPS
GRADIENTS = np.random.default_rng(0).normal(size=STEPS).astype("float32")[:, np.newaxis]


def fit(model, *callbacks, epochs=EPOCHS, **options):
    options = {"batch_size": 1, "shuffle": False, "verbose": 0, **options}
    return model.fit(
        GRADIENTS, GRADIENTS, epochs=epochs, callbacks=list(callbacks), **options
    ).history


def weight(model):
    return float(model.get_weights()[0][0, 0])


def at_steps(schedule, steps=range(TOTAL)):
    return [float(schedule(step)) for step in steps]


def one_cycle(total=TOTAL, max_lr=0.5):
    rates = at_steps(kt.schedules.OneCycle(max_lr, total), range(total))
    momenta = at_steps(kt.schedules.OneCycleMomentum(total), range(total))
    return rates, momenta


def sgd_by_hand(rates, momenta, nesterov=False, w=1.0, velocity=0.0):
    gradients = np.tile(GRADIENTS[:, 0], len(rates) // STEPS)
    for rate, momentum, g in zip(rates, momenta, gradients, strict=True):
        velocity = momentum * velocity - rate * g
        w += momentum * velocity - rate * g if nesterov else velocity
    return w


@pytest.mark.parametrize("jit", JIT_OPTIONS)
@pytest.mark.parametrize("steps_per_execution", [1] if TORCH else [1, 5])
@pytest.mark.parametrize(
    ("optimizer", "nesterov"),
    [
        ("sgd", False),
        (lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True), True),
        (lambda: kt.optimizers.SGD(0.01, momentum=0.9), False),
    ],
)
def test_one_cycle_cycles_rate_and_momentum(
    jit, steps_per_execution, optimizer, nesterov
):
    model = one_weight_model(
        optimizer if isinstance(optimizer, str) else optimizer(),
        jit_compile=jit,
        steps_per_execution=steps_per_execution,
    )
    history = fit(model, kt.callbacks.OneCycle(0.5))
    rates, momenta = one_cycle()
    np.testing.assert_allclose(
        weight(model), sgd_by_hand(rates, momenta, nesterov), rtol=1e-4
    )
    last = slice(STEPS - 1, None, STEPS)
    np.testing.assert_allclose(history["learning_rate"], rates[last], rtol=1e-6)
    np.testing.assert_allclose(history["momentum"], momenta[last], rtol=1e-6)


def test_one_cycle_with_adam_is_our_adam():
    rate, momentum = (
        kt.schedules.OneCycle(0.1, TOTAL),
        kt.schedules.OneCycleMomentum(TOTAL),
    )
    direct = one_weight_model(kt.optimizers.Adam(rate, beta_1=momentum))
    fit(direct)
    model = one_weight_model("adam")
    fit(model, kt.callbacks.OneCycle(0.1))
    np.testing.assert_array_equal(model.get_weights()[0], direct.get_weights()[0])


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: keras.optimizers.SGD(0.01, momentum=0.7), 0.7),
        (lambda: keras.optimizers.SGD(0.01), 0.95),
    ],
)
def test_afterwards_the_users_optimizer_is_back(make, left, tmp_path):
    optimizer = make()
    model = one_weight_model(optimizer)
    fit(model, kt.callbacks.OneCycle(0.5))
    assert type(model.optimizer) is type(optimizer)
    assert (model.optimizer is optimizer) == (optimizer.momentum != 0)
    assert model.optimizer.momentum == left
    assert int(model.optimizer.iterations) == TOTAL
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.01)
    # What is saved is plain Keras, velocity included, and goes on with it.
    loaded = save_and_load(model, tmp_path)
    fit(model, epochs=1)
    fit(loaded, epochs=1)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_a_second_fit_is_a_second_cycle():
    model = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    fit(model, kt.callbacks.OneCycle(0.5))
    fit(model, kt.callbacks.OneCycle(0.5))
    rates, momenta = one_cycle()
    expected = sgd_by_hand(2 * rates, 2 * momenta)
    np.testing.assert_allclose(weight(model), expected, rtol=1e-4)


def test_initial_epoch_goes_on_in_the_middle():
    whole = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    fit(whole, kt.callbacks.OneCycle(0.5))
    parts = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    fit(parts, kt.callbacks.OneCycle(0.5, total_steps=TOTAL), epochs=2)
    fit(parts, kt.callbacks.OneCycle(0.5), initial_epoch=2)
    np.testing.assert_array_equal(parts.get_weights()[0], whole.get_weights()[0])


def test_total_steps_may_be_longer_than_the_fit():
    model = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    fit(model, kt.callbacks.OneCycle(0.5, total_steps=3 * TOTAL))
    rates, momenta = one_cycle(3 * TOTAL)
    expected = sgd_by_hand(rates[:TOTAL], momenta[:TOTAL])
    np.testing.assert_allclose(weight(model), expected, rtol=1e-4)


def generator():
    while True:
        yield GRADIENTS[:1], GRADIENTS[:1]


def test_a_length_that_is_not_known_is_refused_before_training():
    class Stream(keras.utils.PyDataset):
        @property
        def num_batches(self):
            return None

        def __getitem__(self, index):
            return GRADIENTS[:1], GRADIENTS[:1]

    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model = one_weight_model(optimizer)
    for callback, message in (
        (kt.callbacks.OneCycle(0.5), r"pass OneCycle\(max_lr, total_steps=...\)"),
        (kt.callbacks.PowerSchedule(0.5, 3), "pass steps_per_epoch to fit"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(Stream(), callbacks=[callback], shuffle=False, verbose=0)
    assert model.optimizer is optimizer
    assert weight(model) == 1


def test_a_generator_with_steps_per_epoch():
    model = one_weight_model("sgd")
    history = model.fit(
        generator(),
        steps_per_epoch=3,
        epochs=2,
        callbacks=[kt.callbacks.OneCycle(0.5)],
        shuffle=False,
        verbose=0,
    ).history
    rates, _ = one_cycle(6)
    np.testing.assert_allclose(history["learning_rate"], rates[2::3], rtol=1e-6)


def test_no_momentum_to_cycle_is_said_once():
    model = one_weight_model("rmsprop")
    with pytest.warns(UserWarning, match="cannot cycle the momentum of RMSprop") as w:
        history = fit(model, kt.callbacks.OneCycle(0.1))
    assert sum(issubclass(each.category, UserWarning) for each in w) == 1
    assert "momentum" not in history
    np.testing.assert_allclose(
        history["learning_rate"][-1], one_cycle(max_lr=0.1)[0][-1], rtol=1e-6
    )
    # Not with momentum=None, which says so.
    fit(one_weight_model("rmsprop"), kt.callbacks.OneCycle(0.1, momentum=None))


def test_momentum_none_leaves_the_momentum_alone():
    model = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.6))
    fit(model, kt.callbacks.OneCycle(0.5, momentum=None))
    expected = sgd_by_hand(one_cycle()[0], [0.6] * TOTAL)
    np.testing.assert_allclose(weight(model), expected, rtol=1e-4)


def test_an_optimizer_with_a_schedule_gets_it_back():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    model = one_weight_model(keras.optimizers.SGD(schedule, momentum=0.9))
    fit(model, kt.callbacks.OneCycle(0.5))
    np.testing.assert_allclose(
        float(model.optimizer.learning_rate), 0.1 * 0.5 ** (TOTAL / 5), rtol=1e-5
    )


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    outer = model.optimizer
    assert isinstance(outer, keras.optimizers.LossScaleOptimizer)
    inner = outer.inner_optimizer
    history = fit(model, kt.callbacks.OneCycle(0.1))
    rates, momenta = one_cycle(max_lr=0.1)
    np.testing.assert_allclose(history["learning_rate"], rates[4::5], rtol=1e-6)
    assert model.optimizer is outer
    assert outer.inner_optimizer is inner
    # The gradients have float16's 11 bits.
    np.testing.assert_allclose(
        weight(model), sgd_by_hand(rates, momenta), rtol=5e-3, atol=5e-3
    )


def test_gradient_accumulation_and_ema():
    options = {
        "momentum": 0.9,
        "gradient_accumulation_steps": 5,
        "use_ema": True,
        "ema_momentum": 0.5,
    }
    direct = one_weight_model(
        kt.optimizers.SGD(
            kt.schedules.OneCycle(0.5, TOTAL),
            **{**options, "momentum": kt.schedules.OneCycleMomentum(TOTAL)},
        )
    )
    fit(direct)
    model = one_weight_model(keras.optimizers.SGD(0.01, **options))
    fit(model, kt.callbacks.OneCycle(0.5))
    np.testing.assert_array_equal(model.get_weights()[0], direct.get_weights()[0])


def test_an_interrupted_fit_loses_nothing():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    model = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    with pytest.raises(KeyboardInterrupt):
        fit(model, kt.callbacks.OneCycle(0.5), Stop())
    fit(model, kt.callbacks.OneCycle(0.5), initial_epoch=2)
    whole = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    fit(whole, kt.callbacks.OneCycle(0.5))
    np.testing.assert_array_equal(model.get_weights()[0], whole.get_weights()[0])


def test_evaluate_with_the_callback_changes_nothing():
    model = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    optimizer = model.optimizer
    model.evaluate(
        GRADIENTS, GRADIENTS, callbacks=[kt.callbacks.OneCycle(0.5)], verbose=0
    )
    assert model.optimizer is optimizer


def test_tensorboard_gets_the_rates(tmp_path):
    model = one_weight_model(keras.optimizers.SGD(0.01, momentum=0.9))
    fit(model, kt.callbacks.OneCycle(0.5), keras.callbacks.TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    momenta = [
        float(tensor_util.make_ndarray(event.tensor_proto))
        for event in events.Tensors("epoch_momentum")
    ]
    np.testing.assert_allclose(momenta, one_cycle()[1][4::5], rtol=1e-6)
    assert len(events.Tensors("epoch_learning_rate")) == EPOCHS


EPOCH_SCHEDULES = [
    (kt.callbacks.ExponentialSchedule(0.5, 2), lambda e: 0.5 * 0.1 ** (e / 2)),
    (kt.callbacks.PowerSchedule(0.5, 2, 1.5), lambda e: 0.5 / (1 + e / 2) ** 1.5),
    (
        kt.callbacks.PiecewiseConstantSchedule([1, 2.6], [0.5, 0.3, 0.1]),
        lambda e: 0.5 if e < 1 else 0.3 if e < 2.6 else 0.1,
    ),
    (
        kt.callbacks.ApplySchedule(kt.schedules.Linear(0.5, 0.1, TOTAL)),
        lambda e: 0.5 - 0.4 * e / EPOCHS,
    ),
]


@pytest.mark.parametrize(("callback", "rate"), EPOCH_SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_epoch_schedules_change_at_every_step(callback, rate, optimizer):
    model = one_weight_model(optimizer)
    rates = [rate(step / STEPS) for step in range(TOTAL)]
    for _ in range(2):  # A callback can be used again.
        history = fit(model, callback)
        np.testing.assert_allclose(history["learning_rate"], rates[4::5], rtol=1e-5)
    if optimizer == "sgd":
        expected = sgd_by_hand(2 * rates, [0] * 2 * TOTAL)
        np.testing.assert_allclose(weight(model), expected, rtol=1e-4)


def losses(values):
    """A callback in front of another that makes up the loss of each epoch."""

    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = values[epoch]

    return Losses()


PLATEAUS = [5.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0]


def keras_rates(values, **options):
    """The rates of Keras's own ReduceLROnPlateau."""
    model = one_weight_model(keras.optimizers.SGD(0.5))
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    reduce = keras.callbacks.ReduceLROnPlateau(**options)
    fit(model, Rates(), losses(values), reduce, epochs=len(values))
    return rates


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0.5, "patience": 2},
        {"factor": 0.1, "patience": 1, "cooldown": 2},
        {"factor": 0.5, "patience": 1, "min_delta": 1.5},
    ],
)
def test_plateau_is_kerass_on_a_constant_rate(options):
    model = one_weight_model(keras.optimizers.SGD(0.5))
    plateau = kt.callbacks.PlateauSchedule(**options)
    history = fit(model, losses(PLATEAUS), plateau, epochs=len(PLATEAUS))
    expected = keras_rates(PLATEAUS, **options)
    assert len(set(expected)) > 2
    np.testing.assert_allclose(history["learning_rate"], expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "options",
    [
        {"patience": 1, "cooldown": 0, "relative": True},
        {"patience": 1, "cooldown": 2, "relative": True, "min_delta": 0.3},
        {"patience": 0, "cooldown": 1, "relative": False, "min_delta": 0.5},
    ],
)
def test_plateau_is_that_of_torch(mode, options):
    torch = pytest.importorskip("torch")
    values = [5.0, 4.0, 4.0, 3.9, 3.8, 3.0, 3.0, 3.0, 2.9, 3.0, 3.0, 1.0, 1.1, 1.0]
    values = values if mode == "min" else [9 - value for value in values]
    options = {"min_delta": 1e-2, **options}
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    reduce = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs,
        mode,
        0.5,
        options["patience"],
        threshold=options["min_delta"],
        threshold_mode="rel" if options["relative"] else "abs",
        cooldown=options["cooldown"],
    )
    expected = []
    for value in values:
        expected.append(theirs.param_groups[0]["lr"])
        reduce.step(value)
    model = one_weight_model(keras.optimizers.SGD(0.5))
    plateau = kt.callbacks.PlateauSchedule(mode=mode, counting="torch", **options)
    history = fit(model, losses(values), plateau, epochs=len(values))
    assert len(set(expected)) > 2
    np.testing.assert_allclose(history["learning_rate"], expected, rtol=1e-6)


def test_plateau_lowers_a_schedule():
    warmup = kt.schedules.Warmup(kt.schedules.Constant(0.5), 12)
    model = one_weight_model("sgd")
    plateau = kt.callbacks.PlateauSchedule(warmup, factor=0.5, patience=2)
    history = fit(model, losses(PLATEAUS), plateau, epochs=len(PLATEAUS))
    factors = np.array(keras_rates(PLATEAUS, factor=0.5, patience=2)) / 0.5
    per_step = at_steps(warmup, range(10 * STEPS)) * np.repeat(factors, STEPS)
    np.testing.assert_allclose(history["learning_rate"], per_step[4::5], rtol=1e-5)
    expected = sgd_by_hand(per_step, [0] * 10 * STEPS)
    np.testing.assert_allclose(weight(model), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer", [lambda: keras.optimizers.SGD(0.5, momentum=0.9), lambda: "rmsprop"]
)
def test_plateau_goes_on_after_a_file(optimizer, tmp_path):
    def plateau():
        return kt.callbacks.PlateauSchedule(patience=2)

    whole = one_weight_model(optimizer())
    expected = fit(whole, losses(PLATEAUS), plateau(), epochs=10)["learning_rate"]
    model = one_weight_model(optimizer())
    rates = fit(model, losses(PLATEAUS), plateau(), epochs=4)["learning_rate"]
    model = save_and_load(model, tmp_path)
    rates += fit(model, losses(PLATEAUS), plateau(), epochs=10, initial_epoch=4)[
        "learning_rate"
    ]
    assert rates == expected
    np.testing.assert_array_equal(model.get_weights()[0], whole.get_weights()[0])


def test_plateau_goes_on_after_a_checkpoint_in_mid_fit(tmp_path):
    path = tmp_path / "{epoch}.keras"
    whole = one_weight_model(keras.optimizers.SGD(0.5, momentum=0.9))
    expected = fit(
        whole,
        losses(PLATEAUS),
        kt.callbacks.PlateauSchedule(patience=2),
        keras.callbacks.ModelCheckpoint(path),
        epochs=10,
    )["learning_rate"]
    model = keras.saving.load_model(tmp_path / "4.keras")
    rates = fit(
        model,
        losses(PLATEAUS),
        kt.callbacks.PlateauSchedule(patience=2),
        epochs=10,
        initial_epoch=4,
    )["learning_rate"]
    assert rates == expected[4:]
    np.testing.assert_array_equal(model.get_weights()[0], whole.get_weights()[0])


def test_plateau_keeps_the_rate_and_searches_anew_in_a_new_fit():
    model = one_weight_model(keras.optimizers.SGD(0.5))
    plateau = kt.callbacks.PlateauSchedule(patience=2)
    fit(model, losses(PLATEAUS), plateau, epochs=4)
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.25)
    rates = fit(model, losses([9.0, 8.0, 8.0, 8.0, 8.0]), plateau, epochs=5)
    np.testing.assert_allclose(rates["learning_rate"], [0.25, 0.25, 0.25, 0.25, 0.125])


def test_plateau_takes_more_for_better_where_it_is():
    model = one_weight_model(keras.optimizers.SGD(0.5))
    plateau = kt.callbacks.PlateauSchedule(monitor="val_accuracy", patience=1)

    class Accuracy(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_accuracy"] = [0.1, 0.5, 0.9, 0.9][epoch]

    rates = fit(model, Accuracy(), plateau, epochs=4)["learning_rate"]
    assert rates == [0.5] * 4
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.25)


def test_plateau_misses_its_quantity():
    model = one_weight_model("sgd")
    with pytest.raises(ValueError, match="`monitor` must be one of 'loss'"):
        fit(model, kt.callbacks.PlateauSchedule())


def test_several_optimizers_are_refused():
    model = SimpleNamespace(optimizer=object())
    callback = kt.callbacks.OneCycle(0.1)
    callback.set_model(model)
    with pytest.raises(ValueError, match="`optimizer` must be a single Keras"):
        callback.set_params({"epochs": 1, "steps": 5})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: kt.schedules.OneCycleMomentum(10, max_momentum=2.5),
            r"`max_momentum` must be a number in \(0, 1\]",
        ),
        (
            lambda: kt.optimizers.Adam(beta_1="abc"),
            "`beta_1` must be a number or a LearningRateSchedule. Received: beta_1",
        ),
        (lambda: kt.callbacks.OneCycle(0), "`max_lr` must be a finite number > 0"),
        (lambda: kt.callbacks.OneCycle(0.1, (0.95, 0.85)), r"`momentum` must be a pai"),
        (lambda: kt.callbacks.OneCycle(0.1, (0.9,)), r"`momentum` must be a pair"),
        (lambda: kt.callbacks.OneCycle(0.1, total_steps=0), "`total_steps` must be"),
        (lambda: kt.callbacks.OneCycle(0.1, pct_start=1), "`pct_start` must be"),
        (lambda: kt.callbacks.OneCycle(0.1, anneal="exp"), "`anneal` must be one of"),
        (lambda: kt.callbacks.ExponentialSchedule(0.1, 0), "`epochs` must be"),
        (lambda: kt.callbacks.PowerSchedule(-0.1, 3), "`initial` must be"),
        (
            lambda: kt.callbacks.PiecewiseConstantSchedule([3, 2], [1, 1, 1]),
            "`boundaries` must be in increasing order. Received: boundaries=",
        ),
        (
            lambda: kt.callbacks.PiecewiseConstantSchedule([3], [1, 1, 1]),
            "`values` must be 2 rates. Received: values=",
        ),
        (lambda: kt.callbacks.ApplySchedule(0.1), "`schedule` must be a Learning"),
        (lambda: kt.callbacks.PlateauSchedule(0.1), "`schedule` must be a Learning"),
        (lambda: kt.callbacks.PlateauSchedule(factor=1), "`factor` must be a number"),
        (lambda: kt.callbacks.PlateauSchedule(patience=0), "`patience` must be an"),
        (lambda: kt.callbacks.PlateauSchedule(mode="up"), "`mode` must be one of"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_loss_of_the_model_is_what_it_says():
    assert float(mean_output(None, np.array([1.0, 3.0], "float32"))) == 2


def test_one_cycle_says_that_no_rate_was_found():
    with pytest.raises(ValueError, match="a range test that found none returns None"):
        kt.callbacks.OneCycle(None)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Lion"])
def test_weight_decay_is_at_the_scheduled_rate(optimizer):
    model = one_weight_model(
        getattr(keras.optimizers, optimizer)(0.1, weight_decay=0.5)
    )
    schedule = kt.schedules.Lambda(lambda t: 0.4 / (1 + keras.ops.cast(t, "float32")))
    x = np.zeros((12, 1), "float32")
    callbacks = [kt.callbacks.ApplySchedule(schedule)]
    model.fit(x, x, batch_size=4, callbacks=callbacks, verbose=0)
    # There is no gradient, so that decay alone moves the weight.
    expected = np.prod([1 - 0.5 * 0.4 / (1 + t) for t in range(3)])
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-5)
