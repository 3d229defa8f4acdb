"""Learning rates by layer, against optimizers that have one variable each."""

import re

import keras
import numpy as np
import pytest
from helpers import JIT_OPTIONS, check_config, save_and_load

import keras_trainkit as kt

OPTIMIZERS = [
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"weight_decay": 0.1}),
    ("Adam", {}),
    ("AdamW", {"weight_decay": 0.1}),
    ("Nadam", {}),
    ("RMSprop", {"momentum": 0.5}),
    ("Adagrad", {}),
    ("Adadelta", {}),
    ("Adamax", {}),
    ("Adafactor", {}),
    ("Ftrl", {}),
    ("Lion", {"weight_decay": 0.1}),
    ("Lamb", {}),
    *([("Muon", {})] if hasattr(keras.optimizers, "Muon") else []),
    *(
        [("ScheduleFreeAdamW", {})]
        if hasattr(keras.optimizers, "ScheduleFreeAdamW")
        else []
    ),
]


def two_layers():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation="tanh", name="low"),
            keras.layers.Dense(2, name="high"),
        ]
    )


def data(rows=32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, x[:, :2] * 2 - 1


def weights(model):
    return [np.array(w) for w in model.get_weights()]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_each_layer_is_updated_as_by_an_optimizer_of_its_own(name, options):
    rng = np.random.default_rng(1)
    starts = [rng.normal(size=(3, 4)), rng.normal(size=(4, 2))]
    grads = [
        [rng.normal(size=start.shape).astype("float32") for start in starts]
        for _ in range(3)
    ]
    cls = getattr(keras.optimizers, name)

    def make(values):
        return [
            keras.Variable(v.astype("float32"), name=f"layer_{i}")
            for i, v in enumerate(values)
        ]

    ours = make(starts)
    one = kt.optimizers.layerwise(cls(0.02, **options), {"layer_0": 0.25})
    one.build(ours)
    theirs = make(starts)
    several = [cls(0.02 * 0.25, **options), cls(0.02, **options)]
    for optimizer, variable in zip(several, theirs, strict=True):
        optimizer.build([variable])
    for step in grads:
        tensors = [keras.ops.convert_to_tensor(g) for g in step]
        one.apply(tensors, ours)
        for optimizer, gradient, variable in zip(several, tensors, theirs, strict=True):
            optimizer.apply([gradient], [variable])
    for got, expected, start in zip(ours, theirs, starts, strict=True):
        got, expected = (keras.ops.convert_to_numpy(v) for v in (got, expected))
        assert np.abs(expected - start).max() > 1e-5
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("jit_compile", JIT_OPTIONS)
def test_fit_gives_each_layer_its_rate(jit_compile):
    """Plain SGD's first step is the rate times the gradient."""
    x, y = data()
    changes = {}
    for factor in (1.0, 0.5, 0.0):
        model = two_layers()
        optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.1), {"low": factor})
        model.compile(optimizer, "mse", jit_compile=jit_compile)
        before = weights(model)
        model.fit(x, y, batch_size=32, verbose=0)
        changes[factor] = [a - b for a, b in zip(weights(model), before, strict=True)]
    for factor in (0.5, 0.0):
        for number, (whole, part) in enumerate(
            zip(changes[1.0], changes[factor], strict=True)
        ):
            expected = whole * (factor if number < 2 else 1.0)
            np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-7)


def test_slice_spreads_the_rates_over_depth():
    model = keras.Sequential(
        [keras.Input((3,)), *(keras.layers.Dense(2, name=f"d{i}") for i in range(4))]
    )
    optimizer = kt.optimizers.layerwise(keras.optimizers.Adam(7.0), slice(1e-5, 8e-5))
    optimizer.build(model.trainable_variables)
    rates = [
        optimizer.factor(v) * float(optimizer.learning_rate)
        for v in model.trainable_variables
    ]
    expected = np.repeat([1e-5, 2e-5, 4e-5, 8e-5], 2)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_slice_leaves_a_schedule_and_a_single_layer():
    schedule = kt.schedules.Power(0.1, 10)
    optimizer = kt.optimizers.layerwise(
        keras.optimizers.SGD(schedule), slice(0.001, 0.1)
    )
    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    optimizer.build(layer.trainable_variables)
    assert [optimizer.factor(v) for v in layer.trainable_variables] == [1.0, 1.0]
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


def test_keys_mean_layers_models_and_variables():
    body = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="first"),
            keras.layers.Dense(4, name="second"),
        ],
        name="body",
    )
    head = keras.layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((3,)), body, head])

    def factors(rates):
        optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.1), rates)
        optimizer.build(model.trainable_variables)
        return [optimizer.factor(v) for v in model.trainable_variables]

    assert factors({"body": 0.1}) == [0.1] * 4 + [1.0] * 2
    assert factors({body: 0.1, head: 2}) == [0.1] * 4 + [2.0] * 2
    assert factors({"first": 0.5, "body": 0.1}) == [0.5, 0.5, 0.1, 0.1, 1.0, 1.0]
    assert factors({".*bias": 0.0}) == [1.0, 0.0] * 3
    assert factors({"first|head": 3}) == [3.0, 3.0, 1.0, 1.0, 3.0, 3.0]
    # A frozen layer has nothing to scale, and is no mistake.
    body.trainable = False
    assert factors({"body": 0.1}) == [1.0, 1.0]


def test_one_cycle_moves_rates_in_proportion_and_the_momentum():
    x, y = data(64)

    def train(rates, frozen=False):
        model = two_layers()
        model.get_layer("low").trainable = not frozen
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        if rates is not None:
            optimizer = kt.optimizers.layerwise(optimizer, rates)
        model.compile(optimizer, "mse")
        history = model.fit(
            x,
            y,
            batch_size=16,
            epochs=3,
            verbose=0,
            shuffle=False,
            callbacks=[kt.callbacks.OneCycle(0.05)],
        )
        return model, history.history

    plain, expected = train(None)
    same, history = train({"low": 1.0})
    assert history["momentum"] == expected["momentum"]
    assert history["learning_rate"] == expected["learning_rate"]
    for got, want in zip(weights(same), weights(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # A layer whose rate is 0 throughout is a frozen one.
    stopped, _ = train({"low": 0.0})
    frozen, _ = train(None, frozen=True)
    for got, want in zip(weights(stopped), weights(frozen), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert type(stopped.optimizer).__name__ == "LayerwiseSGD"
    assert stopped.optimizer.multipliers == {"low": 0.0}


def test_saved_with_the_model(tmp_path):
    x, y = data()
    model = two_layers()
    optimizer = kt.optimizers.layerwise(keras.optimizers.Adam(0.01), {"low": 0.1})
    model.compile(optimizer, "mse")
    model.fit(x, y, verbose=0)
    loaded = save_and_load(model, tmp_path)
    for one in (model, loaded):
        one.fit(x, y, epochs=2, verbose=0, shuffle=False)
    for got, want in zip(weights(loaded), weights(model), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert loaded.optimizer.multipliers == {"low": 0.1}


@pytest.mark.parametrize("rates", [{"low": 0.1}, slice(1e-4, 1e-2)])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_config(name, options, rates):
    optimizer = getattr(keras.optimizers, name)(0.02, **options)
    copy = check_config(kt.optimizers.layerwise(optimizer, rates))
    assert copy.get_config()["learning_rate"] == pytest.approx(
        0.01 if isinstance(rates, slice) else 0.02
    )


def test_state_is_kept():
    model = two_layers()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = data()
    model.fit(x, y, verbose=0)
    before = [np.array(v) for v in model.optimizer.variables]
    copy = kt.optimizers.layerwise(model.optimizer, {"low": 0.1})
    for got, want in zip(copy.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(got), want)


def test_exclusions_from_weight_decay_are_kept():
    start = np.ones((2,), "float32")
    decayed = keras.Variable(start, name="kernel")
    spared = keras.Variable(start, name="bias")
    adamw = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    adamw.exclude_from_weight_decay(var_names=["bias"])
    optimizer = kt.optimizers.layerwise(adamw, {"kernel": 0.5})
    optimizer.build([decayed, spared])
    zero = keras.ops.zeros((2,))
    optimizer.apply([zero, zero], [decayed, spared])
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(decayed), start * (1 - 0.5 * 0.1 * 0.5), rtol=1e-6
    )
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(spared), start)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (0.1, "a dict from layers to multipliers, or a slice"),
        (slice(0.1), "slice(low, high)"),
        (slice(0.1, 0.01), "0 < low <= high"),
        (slice(0.1, 1, 2), "slice(low, high)"),
        ({"low": -1}, ">= 0"),
        ({"(": 1}, "regular expressions"),
        ({3: 1}, "layers or regular expressions"),
    ],
)
def test_bad_rates(rates, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kt.optimizers.layerwise(keras.optimizers.SGD(0.1), rates)


def test_key_that_means_nothing():
    optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.1), {"hihg": 1})
    with pytest.raises(ValueError, match=r"each key matches a layer.*hihg"):
        optimizer.build(two_layers().trainable_variables)


def named(*names):
    return keras.Sequential(
        [keras.Input((3,)), *(keras.layers.Dense(3, name=name) for name in names)]
    )


@pytest.mark.parametrize("key", ["other", r"oth.*"])
def test_key_of_another_model(key):
    model, other = named("low", "high"), named("other")
    for one in (key, other.layers[0]):
        optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.1), {one: 0.5})
        with pytest.raises(ValueError, match="rates"):
            optimizer.build(model.trainable_variables)


def test_layer_of_another_model_with_the_name_of_one_of_this():
    model, other = named("low", "high"), named("low")
    rates = {other.layers[0]: 0.5}
    optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.1), rates)
    model.compile(optimizer, "mse")
    x = np.ones((8, 3), "float32")
    before = weights(model)
    with pytest.raises(ValueError, match="layers are of the model that trains"):
        # The callback's copy of the optimizer knows the layers too.
        model.fit(x, x, verbose=0, callbacks=[kt.callbacks.OneCycle(0.1)])
    for got, want in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(got, want)
    optimizer = kt.optimizers.layerwise(
        keras.optimizers.SGD(0.1), {model.layers[0]: 0.5}
    )
    optimizer.build(model.trainable_variables)
    assert [optimizer.factor(v) for v in model.trainable_variables] == [0.5] * 2 + [
        1.0
    ] * 2


def test_name_that_two_layers_share():
    left, right = named("same", "left"), named("same", "right")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, left(inputs) + right(inputs))

    def factors(rates):
        optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.1), rates)
        optimizer.build(model.trainable_variables)
        return [optimizer.factor(v) for v in model.trainable_variables]

    for key in ("same", left.layers[0]):
        with pytest.raises(ValueError, match=r"2 layers have.*Received: rates='same'"):
            factors({key: 0.5})
    # An expression says that all of them are wanted.
    assert factors({"(.*/)?same": 0.5}) == [0.5, 0.5, 1.0, 1.0] * 2
    right.trainable = False
    assert factors({"same": 0.5}) == [0.5, 0.5, 1.0, 1.0]


def test_other_optimizers_are_refused():
    class Own(keras.optimizers.SGD):
        pass

    for optimizer in (Own(0.1), "sgd"):
        with pytest.raises(ValueError, match="one of Keras's SGD, Adam"):
            kt.optimizers.layerwise(optimizer, {"low": 1})
