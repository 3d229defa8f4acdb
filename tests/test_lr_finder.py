import random
import sys
import threading

import keras
import numpy as np
import pytest
from helpers import to_numpy

import keras_trainkit as kt
from keras_trainkit.lr_finder._range_test import default_steps


def make_model(optimizer=None, seed=1):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, activation="relu", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=seed),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


@pytest.fixture
def data(rng):
    x = rng.normal(size=(70, 6)).astype("float32")
    return x, (x @ rng.normal(size=(6, 3))).argmax(-1)


def descent(lr):
    """The synthetic curve, with its steepest point at 3.2e-3."""
    u = np.log10(lr)
    sigmoid = 1 / (1 + np.exp(-(u + 2.5) / 0.25))
    return 2.3 - 1.8 * sigmoid + 0.2 * np.exp(np.minimum(4 * u, 3))


@pytest.mark.parametrize(("sigma", "at_least"), [(0.02, 95), (0.1, 90)])
@pytest.mark.parametrize("rule", ["descent", "steepest"])
def test_the_suggestion_stands_noise(sigma, at_least, rule):
    lrs = np.logspace(-7, 1, 100)
    near = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(0, sigma, 100)
        result = kt.lr_finder.analyse(lrs, descent(lrs) + noise)
        assert result.suggestion == result.suggestions["descent"]
        near += 3.2e-3 / 3 <= result.suggestions.get(rule, 0) <= 3.2e-3 * 3
    assert near >= at_least


def test_rules_on_curves_whose_answer_is_known():
    lrs = np.logspace(-7, 1, 401)
    curve = 2 - np.tanh((np.log10(lrs) + 3) * 2)
    result = kt.lr_finder.analyse(lrs, curve)
    np.testing.assert_array_equal(result.losses, curve)
    assert result.verdict == "clear"
    known = {
        "steepest": -3,
        # 2 - tanh falls from 3 to 1, and reaches 1.5 where tanh is 1/2.
        "descent": -3 + np.arctanh(0.5) / 2,
        # It falls all the way.
        "valley": -3,
    }
    for name, decade in known.items():
        found = np.log10(result.suggestions[name])
        np.testing.assert_allclose(found, decade, atol=0.1, err_msg=name)

    bowl = kt.lr_finder.analyse(lrs, (np.log10(lrs) + 1) ** 2).suggestions
    np.testing.assert_allclose(np.log10(bowl["minimum"]), -2, atol=0.05)
    # It begins at 5.25^2, the median of its first quarter, and has risen by a tenth of
    # this at -1 + 5.25 / sqrt(10).
    edge = -1 + 5.25 / np.sqrt(10)
    np.testing.assert_allclose(np.log10(bowl["one_cycle"]), edge - 0.5, atol=0.05)


def test_smoothing_is_two_moving_averages_with_bias_correction(rng):
    lrs = np.logspace(-5, 0, 26)
    losses = 2 - np.tanh(np.log10(lrs) + 3) + rng.normal(0, 0.01, 26)
    weights = np.exp(-np.abs(np.arange(26)[:, None] - np.arange(26)) * 0.2 / 0.1)
    left = np.tril(weights)
    right = np.triu(weights)
    by_hand = sum((w / w.sum(1, keepdims=True)) @ losses / 2 for w in (left, right))
    result = kt.lr_finder.analyse(lrs, losses)
    np.testing.assert_allclose(result.smoothed, by_hand, rtol=1e-10)


@pytest.mark.parametrize(
    ("curve", "verdict"),
    [
        (lambda lr: 2.3 + 0 * lr, "no descent: model does not learn at any rate"),
        (
            lambda lr: 2.3 - 0.2 * (np.log10(lr) + 7),
            "still falling at max_lr: raise it",
        ),
        (lambda lr: np.where(lr < 3e-7, 2.3, np.nan), "diverges at min_lr: lower it"),
        (lambda lr: 2.3 + 0.1 * (lr / 1e-7), "diverges at min_lr: lower it"),
        (descent, "clear"),
    ],
)
def test_verdicts(curve, verdict):
    lrs = np.logspace(-7, 1, 100)
    result = kt.lr_finder.analyse(lrs, curve(lrs))
    assert result.verdict == verdict
    assert (result.suggestion is None) == verdict.startswith(("no", "diverges"))
    assert verdict in repr(result)


def test_pure_noise_has_no_suggestion(rng):
    lrs = np.logspace(-7, 1, 100)
    noise = rng.normal(0, 0.1, (200, 100))
    found = [kt.lr_finder.analyse(lrs, 2.3 + row).suggestion for row in noise]
    assert sum(rate is not None for rate in found) <= 10


def test_an_explosion_at_the_end_does_not_hide_the_descent(rng):
    lrs = np.logspace(-7, 1, 100)
    curve = descent(lrs) + rng.normal(0, 0.05, 100)
    curve[-15:] += rng.uniform(0, 4, 15)
    assert kt.lr_finder.analyse(lrs, curve).verdict == "clear"


def test_losses_are_those_of_a_hand_written_loop(data):
    x, y = data
    found = kt.find_lr(make_model(), x, y, num_steps=12, batch_size=16, seed=5)
    model = make_model()
    # One random order after the other; a batch may have rows of two.
    order = np.random.default_rng(5)
    rows = np.concatenate([order.permutation(70) for _ in range(3)])
    losses = []
    for step, rate in enumerate(found.lrs):
        model.optimizer.learning_rate = float(rate)
        chosen = rows[16 * step : 16 * step + 16]
        model.reset_metrics()
        losses.append(
            model.train_on_batch(x[chosen], y[chosen], return_dict=True)["loss"]
        )
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(found.lrs[[0, -1]], [1e-7, 10], rtol=1e-6)


def weights_after_fit(model, data):
    model.fit(*data, epochs=2, batch_size=16, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9), momentum=0.9
        ),
    ],
)
@pytest.mark.parametrize("trained", [False, True])
def test_a_fit_afterwards_is_the_same_as_without(data, optimizer, trained):
    results = []
    for search in (False, True):
        model = make_model(optimizer(), seed=None)
        if trained:
            weights_after_fit(model, data)
        if search:
            mine = model.optimizer
            kt.find_lr(model, *data, num_steps=20)
            assert model.optimizer is mine
        results.append(weights_after_fit(model, data))
    for plain, searched in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, searched)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_an_interruption_loses_nothing(data, error):
    model = make_model()
    before = model.get_weights()
    optimizer = model.optimizer

    def batches():
        for start in range(0, 64, 16):
            yield data[0][start : start + 16], data[1][start : start + 16]
        raise error

    with pytest.raises(error):
        kt.find_lr(model, batches(), num_steps=20)
    assert model.optimizer is optimizer
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_stops_where_the_loss_explodes(data):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    before = model.get_weights()
    found = kt.find_lr(model, data[0], 100 * data[1], max_lr=1e6, num_steps=100)
    assert len(found.lrs) == len(found.losses) < 100
    assert np.isfinite(model.get_weights()[0]).all()
    np.testing.assert_array_equal(before[0], model.get_weights()[0])


def sources(x, y):
    """The same batches of 16 rows in every form that `fit` takes."""
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]

    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return batches[index]

    def generator():
        while True:
            yield from batches

    import torch

    tensors = torch.utils.data.TensorDataset(torch.tensor(x[:64]), torch.tensor(y[:64]))
    found = {
        "list": batches,
        "weighted": [(*batch, np.ones(16)) for batch in batches],
        "PyDataset": Sequence(),
        "generator": generator(),
        "DataLoader": torch.utils.data.DataLoader(tensors, batch_size=16),
    }
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((x[:64], y[:64])).batch(16)
        found["tf.data"] = data
        found["tf.data, endless"] = data.repeat()
    return found


def test_it_takes_what_fit_takes(data):
    results = {
        name: kt.find_lr(make_model(), source, num_steps=12).losses
        for name, source in sources(*data).items()
    }
    for name, losses in results.items():
        np.testing.assert_allclose(losses, results["list"], rtol=1e-5, err_msg=name)


def two_ended_model(loss_weights=None):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    x = keras.layers.Concatenate()([a, b])
    outputs = {
        "p": keras.layers.Dense(3, activation="softmax", name="p")(x),
        "q": keras.layers.Dense(1, name="q")(x),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    losses = {"p": "sparse_categorical_crossentropy", "q": "mse"}
    model.compile("adam", losses, metrics={"p": "accuracy"})
    return model


def test_several_inputs_and_outputs(data):
    x, y = data
    inputs = {"a": x, "b": -x}
    targets = {"p": y, "q": x[:, :1]}
    keras.utils.set_random_seed(1)
    model = two_ended_model()
    before = model.get_weights()
    found = kt.find_lr(model, inputs, targets, num_steps=20, max_lr=0.01)
    assert len(found.losses) == 20
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    first = model.predict({k: v[:32] for k, v in inputs.items()}, verbose=0)
    assert first["p"].shape == (32, 3)


def test_weights_of_rows_and_classes(data):
    x, y = data
    plain = kt.find_lr(make_model(), x, y, num_steps=10)
    doubled = kt.find_lr(
        make_model(), x, y, num_steps=10, sample_weight=2 * np.ones(70)
    )
    by_class = kt.find_lr(
        make_model(), x, y, num_steps=10, class_weight=dict.fromkeys(range(3), 2.0)
    )
    np.testing.assert_allclose(by_class.losses, doubled.losses, rtol=1e-5)
    # At the first rate nothing has been learnt, and the L2 penalty is not weighted.
    penalty = to_numpy(make_model().losses[0])
    np.testing.assert_allclose(
        doubled.losses[0] - penalty, 2 * (plain.losses[0] - penalty), rtol=1e-4
    )


class OwnStep(keras.Model):
    """A training step of its own, with a tracker of its own."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, activation="softmax")
        self.mean = keras.metrics.Mean(name="mean")

    def call(self, x):
        return self.dense(x)

    @property
    def metrics(self):
        return [self.mean]

    def _result(self, loss):
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._result(loss)


def test_a_training_step_of_ones_own(data):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the training step above is TensorFlow's")

    def make():
        keras.utils.set_random_seed(1)
        model = OwnStep()
        model.compile("sgd", "sparse_categorical_crossentropy")
        model(data[0][:2])
        return model

    found = kt.find_lr(make(), *data, num_steps=10, seed=5)
    model = make()
    rows = np.random.default_rng(5).permutation(70)[:32]
    p = model.predict(data[0][rows], verbose=0)
    expected = -np.log(p[np.arange(32), data[1][rows]]).mean()
    np.testing.assert_allclose(found.losses[0], expected, rtol=1e-5)
    # The mean over the steps would move by a tenth of this.
    last = np.diff(found.losses)[-1]
    assert len(set(found.losses)) == 10
    assert np.isfinite(last)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_and_frozen_layers(policy, data):
    keras.config.set_dtype_policy(policy)
    model = make_model(keras.optimizers.Adam(1e-3))
    model.layers[0].trainable = False
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    before = model.get_weights()
    found = kt.find_lr(model, *data, num_steps=20)
    assert len(found.losses) == 20
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_several_steps_in_one_call(data):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch's trainer accepts one step only")
    model = make_model()
    model.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=4)
    found = kt.find_lr(model, *data, num_steps=12, batch_size=16)
    assert model.steps_per_execution == 4
    plain = make_model()
    plain.compile("sgd", "sparse_categorical_crossentropy")
    expected = kt.find_lr(plain, *data, num_steps=12, batch_size=16)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


def callback_losses(data, steps_per_execution):
    model = make_model()
    model.compile(
        "sgd",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    before = model.get_weights()
    optimizer = model.optimizer
    finder = kt.callbacks.LRFinder(max_lr=0.1, num_steps=10)
    history = model.fit(
        *data, epochs=9, batch_size=16, shuffle=False, callbacks=[finder], verbose=0
    )
    assert len(history.epoch) < 9
    assert model.optimizer is optimizer
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # The model trains on.
    model.fit(*data, batch_size=16, verbose=0)
    assert not np.array_equal(before[0], model.get_weights()[0])
    return finder.result


def test_the_callback_takes_the_loss_of_each_step(data):
    x, y = data
    result = callback_losses(data, 1)
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 70, 16)]
    model = make_model()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    expected = kt.find_lr(model, batches, num_steps=10, max_lr=0.1)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(result.lrs, expected.lrs)
    if keras.backend.backend() != "torch":
        many = callback_losses(data, 2)
        np.testing.assert_allclose(many.losses, expected.losses, rtol=1e-5)


def test_the_callback_puts_the_model_back_after_an_error(data):
    model = make_model()
    before, optimizer = model.get_weights(), model.optimizer
    finder = kt.callbacks.LRFinder()

    class Breaks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise Interrupted

    with pytest.raises(Interrupted):
        model.fit(
            *data, epochs=9, callbacks=[finder, Breaks()], batch_size=8, verbose=0
        )
    assert model.optimizer is not optimizer
    finder.restore()
    assert model.optimizer is optimizer
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def legacy_state():
    """Of the generator that Keras shuffles with."""
    return np.random.get_state()[1].copy()  # noqa: NPY002


def test_history_and_random_states_are_as_they_were(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model()
    history = model.fit(*data, verbose=0)
    states = random.getstate(), legacy_state()
    kt.find_lr(model, *data, num_steps=10)
    assert model.history is history
    assert model.stop_training is False
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(legacy_state(), states[1])
    assert list(tmp_path.iterdir()) == []


def test_linear_growth(data):
    found = kt.find_lr(
        make_model(), *data, min_lr=0.1, max_lr=1.0, num_steps=10, scale="linear"
    )
    np.testing.assert_allclose(found.lrs, np.linspace(0.1, 1, 10))


def test_sweep_trains_each_rate_from_the_same_start(data):
    def build():
        model = make_model()
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    sweep = kt.lr_sweep(
        build, [1e-6, 0.1, 1e-6], *data, epochs=3, progress=False, batch_size=16
    )
    loss = sweep.curves["loss"]
    assert loss.shape == (3, 3)
    np.testing.assert_array_equal(loss[0], loss[2])
    assert sweep.best() == 0.1
    assert sweep.best("accuracy", "max") in (0.1, 1e-6)
    assert "accuracy" in sweep.summary()
    keras.utils.set_random_seed(0)
    model = build()
    model.optimizer.learning_rate = 0.1
    expected = model.fit(*data, epochs=3, batch_size=16, verbose=0).history["loss"]
    np.testing.assert_allclose(loss[1], expected, rtol=1e-6)


def test_sweep_in_processes_needs_joblib(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(ImportError, match="pip install joblib"):
        kt.lr_sweep(make_model, [0.1], *data, n_jobs=2)


def test_sweep_refuses_threads(data):
    joblib = pytest.importorskip("joblib")
    with (
        joblib.parallel_config(backend="threading"),
        pytest.raises(ValueError, match=r"seeds are shared.*Received: n_jobs=2"),
    ):
        kt.lr_sweep(make_model, [0.1], *data, n_jobs=2)


@pytest.mark.slow
def test_sweep_in_processes_gives_the_same_bits(data):
    pytest.importorskip("joblib")
    x, y = data[0], data[1]
    lock = threading.Lock()

    class Unregistered(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    def build(held=None):
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                Unregistered(),
                keras.layers.Lambda(lambda inputs: inputs + 1),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(10, "softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    options = {"epochs": 2, "progress": False}
    one = kt.lr_sweep(build, [1e-3, 1e-2, 1e30], x, y, **options)
    two = kt.lr_sweep(build, [1e-3, 1e-2, 1e30], x, y, n_jobs=2, **options)
    np.testing.assert_array_equal(two.rates, one.rates)
    np.testing.assert_array_equal(two.curves["loss"], one.curves["loss"])
    with pytest.raises(ValueError, match=r"cannot be sent.*lock.*Received: n_jobs=2"):
        kt.lr_sweep(lambda: build(lock), [0.1], x, y, n_jobs=2, **options)


def test_sweep_shows_what_diverged(data):
    def build():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    sweep = kt.lr_sweep(build, [1e-3, 1e30], data[0], data[0][:, :1], epochs=3)
    assert np.isnan(sweep.curves["loss"][1, -1])
    assert sweep.best() == 1e-3
    labels = [
        t.get_text() for t in kt.plots.compare_learning_rates(sweep).get_legend().texts
    ]
    assert labels == ["0.001", "1e+30 (diverged)"]
    for rates in ([], [0.0]):
        with pytest.raises(ValueError, match="rates"):
            kt.lr_sweep(build, rates, *data)


def test_the_number_of_steps_grows_with_the_data():
    assert [default_steps(n) for n in (None, 5, 150, 5000)] == [
        100,
        100,
        150,
        300,
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_lr": 0}, "`min_lr` must be a finite number > 0"),
        ({"max_lr": 1e-8}, "`max_lr` must be > min_lr"),
        ({"num_steps": 5}, "`num_steps` must be an integer >= 10"),
        ({"batch_size": -1}, "`batch_size` must be an integer >= 1"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"stop_factor": 1.0}, "`stop_factor` must be > 1, or None"),
        ({"num_steps": 20, "skip_start": 11}, "`skip_start` must be at most num_steps"),
        ({"y": None}, "`y` must be given"),
        ({"scale": "log"}, "`scale` must be one of"),
        ({"sample_weight": np.ones(3)}, "of as many rows"),
    ],
)
def test_bad_arguments(data, kwargs, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        kt.find_lr(**{"model": model, "x": data[0], "y": data[1], **kwargs})


def test_bad_curves():
    with pytest.raises(ValueError, match="`lrs` must be at least 10"):
        kt.lr_finder.analyse([1, 2], [1, 2])
    with pytest.raises(ValueError, match="`losses` must be of the shape"):
        kt.lr_finder.analyse(np.arange(1, 12), np.zeros(3))


def bowl(count=120):
    """A descent around 1e-3 and a divergence at the end."""
    lrs = np.geomspace(1e-6, 10, count)
    t = np.log10(lrs)
    return lrs, 2 - np.tanh(t + 3) + np.where(t > 0, np.exp(6 * t) - 1, 0)


@pytest.mark.parametrize("position", range(3))
def test_rates_that_are_no_rates_are_refused(position):
    lrs, losses = bowl(30)
    lrs[[0, 15, -1][position]] = np.nan
    with pytest.raises(ValueError, match="`lrs` must be at least 10 positive"):
        kt.lr_finder.analyse(lrs, losses)
    lrs[[0, 15, -1][position]] = np.inf
    with pytest.raises(ValueError, match="`lrs` must be at least 10 positive"):
        kt.lr_finder.analyse(lrs, losses)


def test_single_losses_that_are_not_finite_do_not_count():
    lrs, losses = bowl()
    plain = kt.lr_finder.analyse(lrs, losses)
    gaps = losses.copy()
    gaps[[20, 40, 60]] = np.nan, np.inf, np.nan
    found = kt.lr_finder.analyse(lrs, gaps)
    np.testing.assert_allclose(found.suggestion, plain.suggestion, rtol=0.02)
    np.testing.assert_array_equal(found.losses, gaps)
    gaps[21] = np.nan
    assert kt.lr_finder.analyse(lrs, gaps).suggestion != plain.suggestion


def test_the_start_can_be_skipped():
    lrs, losses = bowl()
    high = losses.copy()
    high[:8] += 40
    found = kt.lr_finder.analyse(lrs, high, skip_start=8)
    expected = kt.lr_finder.analyse(lrs[8:], losses[8:])
    assert found.suggestions == expected.suggestions
    np.testing.assert_array_equal(found.losses, high)
    assert np.isnan(found.smoothed[:8]).all()
    assert len(found.lrs) == len(found.smoothed) == 120
    with pytest.raises(ValueError, match="`skip_start` must be at most 110"):
        kt.lr_finder.analyse(lrs, losses, skip_start=111)


def test_rules_that_run_to_the_edge_are_left_out():
    lrs = np.geomspace(1e-6, 1, 60)
    found = kt.lr_finder.analyse(lrs, np.linspace(2, 1, 60))
    assert found.suggestions
    assert all(1e-6 < rate < 1 for rate in found.suggestions.values())


def test_it_need_not_stop_where_the_loss_explodes(data):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    options = {"max_lr": 1e3, "num_steps": 40}
    x, y = data
    assert len(kt.find_lr(model, x, y, **options).losses) < 40
    found = kt.find_lr(model, x, y, stop_factor=None, skip_start=3, **options)
    assert len(found.losses) == 40


def test_the_rate_for_one_cycle():
    found = kt.lr_finder.analyse(*bowl())
    assert found.one_cycle == found.suggestions["one_cycle"] > found.suggestion


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_jobs": 0}, "`n_jobs` must be a number of processes"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1"),
        ({"x": iter([])}, "`x` must be arrays or a dataset"),
        ({"rates": [np.nan]}, "`rates` must be a finite number > 0"),
        ({"optimizer": "d_optimizer"}, "`optimizer` must be one of 'optimizer'"),
        ({"build": keras.Sequential}, "`build` must be a function that returns"),
    ],
)
def test_bad_arguments_of_a_sweep(data, options, message):
    defaults = {"build": make_model, "rates": [0.1], "x": data[0], "y": data[1]}
    with pytest.raises(ValueError, match=message):
        kt.lr_sweep(**(defaults | options), progress=False)


def test_what_yields_no_batches_is_refused():
    for source in ("text", 3):
        with pytest.raises(ValueError, match="`x` must be arrays, a dataset"):
            kt.find_lr(make_model(), source)


def test_an_uncompiled_model_is_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="`model` must be a compiled Keras model"):
        kt.find_lr(model, np.ones((4, 2)), np.ones(4))


def scattered(noise, scale=1.0):
    """A task of one weight whose losses are noisy from batch to batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(320, 4)).astype("float32")
    y = x[:, :1] * scale + noise * rng.normal(size=(320, 1)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.layers[0].kernel.assign(np.zeros((4, 1)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model, x, y


@pytest.mark.parametrize(
    ("options", "verdict", "low", "high"),
    [
        ({"max_lr": 1e-2}, "still falling at max_lr: raise it", 1e-7, 1.0),
        ({"min_lr": 50.0, "max_lr": 500.0}, "diverges at min_lr: lower it", 0.05, 500),
    ],
)
def test_a_test_that_is_not_clear_is_repeated_once(options, verdict, low, high):
    model, x, y = scattered(0.0)
    x, y = x[:32], y[:32]
    before = model.get_weights()
    found = kt.find_lr(model, x, y, **options)
    assert found.first.verdict == verdict
    assert found.first.first is None
    np.testing.assert_allclose([found.lrs[0]], [low], rtol=1e-5)
    # It ends where the loss explodes.
    assert found.first.lrs[0] < found.lrs[-1] <= 1.0001 * high
    assert found.suggestion > 0.01
    assert repr(verdict) in found.summary()
    assert model.optimizer.iterations == 0
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert kt.find_lr(model, x, y, num_steps=100, **options).first is None
    batches = ((x, y) for _ in range(900))
    assert kt.find_lr(model, batches, **options).first is None


def test_confirm_trains_at_rates_around_the_suggestion():
    """Against gradient descent on the same quadratic in NumPy."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 3)).astype("float32") * np.array([1.5, 1.0, 0.5], "f")
    y = x @ np.array([[1.0], [-2.0], [3.0]], "f")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign(np.zeros((3, 1)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    found = kt.find_lr(model, x, y, batch_size=64, num_steps=80, confirm=5)
    plain = kt.find_lr(model, x, y, batch_size=64, num_steps=80)
    np.testing.assert_array_equal(model.get_weights()[0], np.zeros((3, 1)))
    assert model.optimizer.iterations == 0
    assert model.optimizer.learning_rate == np.float32(0.1)

    def descent(rate, steps):
        w, losses = np.zeros((3, 1)), []
        for _ in range(steps):
            error = x @ w - y
            losses.append(np.square(error).mean())
            w = w - rate * 2 * x.T @ error / len(x)
        if not losses[-1] < 8 * losses[0]:
            return np.inf
        return np.mean(losses[-(steps // 4) :])

    rates = plain.suggestion * np.array([1 / 3, 3**-0.5, 1, 3**0.5, 3])
    first = {rate: descent(rate, 40) for rate in rates}
    second = sorted(rates, key=first.get)[:3]
    third = sorted(second, key=lambda rate: descent(rate, 80))[:2]
    expected = {
        rate: descent(rate, 160 if rate in third else 80 if rate in second else 40)
        for rate in rates
    }
    np.testing.assert_allclose(sorted(found.confirmed), rates, rtol=1e-5)
    for rate, loss in found.confirmed.items():
        near = min(expected, key=lambda r: abs(r - rate))
        np.testing.assert_allclose(loss, expected[near], rtol=1e-3, atol=1e-10)
    best = min(third, key=lambda rate: expected[rate])
    np.testing.assert_allclose(found.suggestion, best, rtol=1e-5)
    assert "the best of 5" in found.summary()


def test_confirm_is_checked(data):
    model, x, y = scattered(0.1)
    with pytest.raises(ValueError, match="`confirm` must be an integer >= 2"):
        kt.find_lr(model, x, y, confirm=1)
    batches = ((x[:32], y[:32]) for _ in range(300))
    with pytest.raises(ValueError, match="an iterator is used up"):
        kt.find_lr(model, batches, num_steps=100, confirm=2)
    assert model.optimizer.iterations == 0


def test_a_noisy_test_is_repeated_with_more_steps():
    model, x, y = scattered(0.7)
    found = kt.find_lr(model, x, y)
    assert found.first.verdict == "noisy"
    assert len(found.lrs) > 2 * len(found.first.lrs)


def _with_head(frozen=False):
    """A pretrained body whose layers are not registered, and a head."""

    class Twice(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = keras.layers.Dense(8, "relu")

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return 2 * self.inner(x)

    keras.utils.set_random_seed(5)
    inputs = keras.Input((6,))
    body = keras.Sequential(
        [keras.Input((6,)), Twice(), keras.layers.BatchNormalization()], name="body"
    )
    outputs = keras.layers.Dense(3, "softmax", name="head")(body(inputs))
    model = keras.Model(inputs, outputs)
    body.trainable = not frozen
    model.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    return model


def test_a_rate_for_the_head_alone(data):
    x, y = data
    by_hand = kt.find_lr(_with_head(frozen=True), x, y, num_steps=60)
    model, plain = _with_head(), _with_head()
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
    optimizer = model.optimizer
    found = kt.find_lr(model, x, y, num_steps=60, where="head")
    np.testing.assert_array_equal(found.losses, by_hand.losses)
    body = kt.find_lr(model, x, y, num_steps=60, where=["body"], confirm=2)
    assert not np.array_equal(body.losses, found.losses)
    assert len(body.confirmed) == 2
    assert model.optimizer is optimizer
    assert all(layer.trainable for layer in model._flatten_layers())
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))
    options = {"epochs": 2, "shuffle": False, "verbose": 0}
    assert model.fit(x, y, **options).history == plain.fit(x, y, **options).history


def test_where_is_checked(data):
    model = _with_head(frozen=True)
    with pytest.raises(
        ValueError, match="`where` must be such that it matches a layer"
    ):
        kt.find_lr(model, *data, where="haed")
    with pytest.raises(ValueError, match=r"layers that train .kt.transfer.unfreeze"):
        kt.find_lr(model, *data, where="body")
    with pytest.raises(ValueError, match="`where` must be None if `optimizer`"):
        kt.find_lr(model, *data, where="head", optimizer="optimizer")
    assert [layer.trainable for layer in model.layers[1:]] == [False, True]


def test_a_progress_bar_names_its_phase(data, capsys):
    kt.find_lr(_with_head(), *data, num_steps=60, confirm=2, verbose=1)
    said = capsys.readouterr().out
    assert "find_lr: range test from 1e-07 to 10, 60 steps" in said
    assert said.count("find_lr: training at") == 2
    kt.find_lr(_with_head(), *data, num_steps=20)
    assert capsys.readouterr().out == ""
