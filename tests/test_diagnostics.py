import re

import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers

import keras_trainkit as kt

report_of = kt.diagnostics.signal_report


def deep(activation, initializer, depth=50, width=30):
    model = keras.Sequential([keras.Input((width,))])
    for seed in range(depth):
        initializer = type(initializer).from_config(
            {**initializer.get_config(), "seed": seed}
        )
        model.add(
            layers.Dense(width, activation=activation, kernel_initializer=initializer)
        )
    model.add(layers.Dense(3, activation="softmax"))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.fixture
def batch(rng):
    x = rng.normal(size=(200, 30)).astype("float32")
    return x, rng.integers(0, 3, 200)


def test_vanishing_gradient_of_a_deep_sigmoid_net(batch):
    model = deep("sigmoid", keras.initializers.RandomNormal(0.0, 1.0))
    report = report_of(model, *batch)
    assert any("vanishing gradient" in problem for problem in report.problems)
    assert report.layers[0].gradient_norm < 1e-3 * report.layers[-1].gradient_norm
    assert "vanishing" in report.summary()


def test_no_vanishing_gradient_with_he_and_elu(batch):
    report = report_of(deep("elu", keras.initializers.HeNormal()), *batch)
    assert report.problems == ()


def test_exploding_gradient(batch):
    model = deep("tanh", keras.initializers.RandomNormal(0.0, 0.5))
    (problem,) = report_of(model, *batch).problems
    assert "exploding gradient" in problem


@pytest.mark.parametrize(("scale", "kind"), [(0.5, "exploding"), (0.05, "vanishing")])
def test_signals_that_grow_or_fade(scale, kind, batch):
    # Each of the layers multiplies the deviation by scale * sqrt(30).
    model = deep("linear", keras.initializers.RandomNormal(0.0, scale), depth=20)
    (problem,) = report_of(model, batch[0]).problems
    assert f"{kind} signal" in problem


def test_figures_of_a_small_net_by_hand(rng):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="relu"),
            layers.Dense(2, activation="sigmoid", use_bias=False),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    kernel, bias, out = model.get_weights()
    # Unit 2 is dead, and the outputs are spread wide enough to saturate.
    bias[2], kernel[:, 2], out = -1, 0, 20 * out
    model.set_weights([kernel, bias, out])
    x = rng.normal(size=(64, 4)).astype("float32")
    y = rng.normal(size=(64, 2)).astype("float32")

    hidden = np.maximum(x @ kernel + bias, 0)
    p = 1 / (1 + np.exp(-(hidden @ out)))
    delta_out = 2 * (p - y) / y.size * p * (1 - p)
    delta = delta_out @ out.T * (hidden > 0)
    gradients = [x.T @ delta, delta.sum(0), hidden.T @ delta_out]

    first, second = report_of(model, x, y).layers
    assert (first.kind, second.kind) == ("Dense", "Dense")
    np.testing.assert_allclose(first.mean, hidden.mean(), rtol=1e-4)
    np.testing.assert_allclose(first.std, hidden.std(), rtol=1e-4)
    assert first.dead == pytest.approx((hidden == 0).all(0).mean())
    assert first.dead >= 0.2
    assert first.saturated is None
    np.testing.assert_allclose(
        second.saturated, ((p < 0.05) | (p > 0.95)).mean(), rtol=1e-6
    )
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients[:2]))
    np.testing.assert_allclose(first.gradient_norm, norm, rtol=1e-4)
    np.testing.assert_allclose(
        second.gradient_norm, np.linalg.norm(gradients[2]), rtol=1e-4
    )
    weights = np.sqrt(np.square(kernel).sum() + np.square(bias).sum())
    np.testing.assert_allclose(first.update_ratio, 0.1 * norm / weights, rtol=1e-3)


def nested_model():
    inner = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=3),
        ],
        name="inner",
    )
    shared = layers.Dense(8, name="shared")
    inputs = keras.Input((8,), name="x")
    x = layers.Add()([shared(inputs), inner(shared(inputs))])
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("adam", "mse", metrics=["mae"])
    return model


def test_nested_models_and_shared_layers(rng):
    x = rng.normal(size=(16, 8)).astype("float32")
    report = report_of(nested_model(), x)
    kinds = [layer.kind for layer in report.layers]
    assert kinds.count("Dense") == 3
    assert {"BatchNormalization", "Dropout", "Add"} <= set(kinds)
    assert all(layer.gradient_norm is None for layer in report.layers)
    still = report_of(nested_model(), x, training=False)
    (dropout,) = (s for s in still.layers if s.kind == "Dropout")
    (norm,) = (s for s in still.layers if s.kind == "BatchNormalization")
    assert dropout.std == norm.std


def test_channels_first_has_its_units_on_axis_1(rng):
    layer = layers.DepthwiseConv2D(
        1, data_format="channels_first", depthwise_initializer="ones"
    )
    model = keras.Sequential([keras.Input((4, 3, 3)), layer])
    x = rng.normal(size=(5, 4, 3, 3)).astype("float32")
    x[:, 1] = 0
    try:
        (signal,) = report_of(model, x).layers
    except Exception:
        if keras.backend.backend() == "tensorflow":
            pytest.skip("TensorFlow has no channels_first on a CPU")
        raise
    assert signal.dead == 0.25


@pytest.mark.parametrize("fitted", [False, True])
def test_the_model_is_as_it_was(fitted, rng):
    x, y = rng.normal(size=(16, 8)), rng.normal(size=(16, 2))
    runs = []
    for look in (False, True):
        keras.utils.set_random_seed(1)
        model = nested_model()
        if fitted:
            model.fit(x, y, verbose=0)
        if look:
            report_of(model, x, y)
            assert model.optimizer.built == fitted
        history = model.fit(x, y, epochs=2, verbose=0).history
        runs.append([*model.get_weights(), history["loss"], history["mae"]])
    for without, with_report in zip(*runs, strict=True):
        np.testing.assert_array_equal(without, with_report)


def test_an_error_in_the_pass_leaves_no_trace(rng):
    model = nested_model()
    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        report_of(model, rng.normal(size=(4, 9)))
    for layer in model.layers:
        assert "call" not in vars(layer)


def test_the_logger_reports_and_changes_nothing(tmp_path, rng):
    x, y = rng.normal(size=(32, 8)), rng.normal(size=(32, 2))
    runs = []
    for callbacks in (
        [],
        [kt.callbacks.SignalLogger(x, y, every=2, log_dir=tmp_path / "logs")],
    ):
        keras.utils.set_random_seed(1)
        model = nested_model()
        history = model.fit(
            x, y, epochs=3, batch_size=8, callbacks=callbacks, verbose=0
        ).history
        runs.append([*model.get_weights(), history["loss"], history["mae"]])
    for without, with_logger in zip(*runs, strict=True):
        np.testing.assert_array_equal(without, with_logger)
    (logger,) = callbacks
    assert sorted(logger.reports) == [0, 2]

    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = accumulator.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    name = logger.reports[0].layers[0].name
    logged = events.Tensors(f"signal/gradient_norm/{name}")
    assert [event.step for event in logged] == [0, 2]


def selu(depth, width=100, **options):
    model = keras.Sequential([keras.Input((width,))])
    for seed in range(depth):
        model.add(
            layers.Dense(
                width,
                activation="selu",
                kernel_initializer=keras.initializers.LecunNormal(seed=seed),
            )
        )
    model.add(layers.Dense(3, activation="softmax"))
    return model


def test_a_hundred_selu_layers_stay_near_mean_0_and_std_1(rng):
    x = rng.normal(size=(500, 100)).astype("float32")
    report = kt.diagnostics.self_normalization(selu(100), x)
    assert report.holds
    means, stds = report.means[:100], report.stds[:100]
    # The interval of Klambauer et al., theorem 1, and a margin for width 100.
    assert np.abs(means).max() < 0.25
    assert 0.75 < stds.min() < stds.max() < 1.35
    by_hand = to_numpy(selu(1).layers[0](x))
    np.testing.assert_allclose(report.means[0], by_hand.mean(), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (layers.Dense(8, activation="relu", name="bad"), r"GlorotUniform kernel"),
        (
            layers.Dense(
                8, activation="relu", kernel_initializer="lecun_normal", name="bad"
            ),
            r"activation relu",
        ),
        (layers.Dropout(0.1, name="bad"), r"AlphaDropout"),
        (layers.BatchNormalization(name="bad"), r"normalization"),
        (layers.PReLU(name="bad"), r"any layer but Dense"),
    ],
)
def test_what_breaks_self_normalization(layer, why, rng):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, kernel_initializer="lecun_normal", use_bias=True),
            layers.Activation("selu"),
            layers.AlphaDropout(0.1),
            layer,
            layers.Dense(2),
        ]
    )
    x = rng.normal(size=(64, 8)).astype("float32")
    report = kt.diagnostics.self_normalization(model, x)
    (problem,) = report.problems
    assert not report.holds
    assert "does not hold" in report.summary()
    assert re.search(f"^bad: .*{why}", problem)


def test_inputs_that_are_not_standardized(rng):
    report = kt.diagnostics.self_normalization(
        selu(1), 5 + rng.normal(size=(64, 100)).astype("float32")
    )
    (problem,) = report.problems
    assert problem.startswith("input: mean ")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: report_of(keras.Sequential(), np.ones((1, 2))), r"built"),
        (
            lambda: report_of(selu(1), np.ones((1, 100)), np.ones(1)),
            r"compiled where `y` is given",
        ),
        (
            lambda: kt.diagnostics.self_normalization(keras.Sequential(), np.ones(1)),
            r"built",
        ),
        (lambda: kt.callbacks.SignalLogger(np.ones(1), every=0), r"every=0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
