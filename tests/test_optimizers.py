import keras
import numpy as np
import pytest
from helpers import JIT_OPTIONS, check_config, one_weight_model, save_and_load

import keras_trainkit as kt

STEPS = 12
PAIRS = {
    "SGD": (kt.optimizers.SGD, keras.optimizers.SGD, {"momentum": 0.9}),
    "Nesterov": (
        kt.optimizers.SGD,
        keras.optimizers.SGD,
        {"momentum": 0.9, "nesterov": True},
    ),
    "plain SGD": (kt.optimizers.SGD, keras.optimizers.SGD, {}),
    "Adam": (kt.optimizers.Adam, keras.optimizers.Adam, {"beta_1": 0.8}),
    "AdamW": (kt.optimizers.AdamW, keras.optimizers.AdamW, {}),
    "Nadam": (kt.optimizers.Nadam, keras.optimizers.Nadam, {}),
}


def one_cycle_momentum(total=STEPS):
    return kt.schedules.OneCycleMomentum(total, 0.95, 0.5, pct_start=0.5)


GRADIENTS = np.random.default_rng(0).normal(size=STEPS)


def train(model, gradients=GRADIENTS):
    x = np.asarray(gradients, "float32")[:, np.newaxis]
    model.fit(x, x, batch_size=1, shuffle=False, verbose=0)
    return float(model.get_weights()[0][0, 0])


def momenta(total=STEPS):
    """One cycle of the momentum, computed by hand in float64."""
    peak = 0.5 * total - 1
    steps = np.arange(total)
    up = (1 - np.cos(np.pi * np.minimum(steps / peak, 1))) / 2
    down = (1 - np.cos(np.pi * (steps - peak) / (total - 1 - peak))) / 2
    return np.where(steps <= peak, 0.95 - 0.45 * up, 0.5 + 0.45 * down)


def sgd_by_hand(rates, momentum, gradients, nesterov=False, decay=0.0):
    w, velocity = 1.0, 0.0
    for rate, m, g in zip(rates, momentum, gradients, strict=True):
        w -= w * decay * rate
        velocity = m * velocity - rate * g
        w += m * velocity - rate * g if nesterov else velocity
    return w


def adam_by_hand(momentum, gradients, rate=0.1, beta_2=0.999, epsilon=1e-7):
    w, mean, square = 1.0, 0.0, 0.0
    for t, (beta_1, g) in enumerate(zip(momentum, gradients, strict=True), 1):
        mean = beta_1 * mean + (1 - beta_1) * g
        square = beta_2 * square + (1 - beta_2) * g**2
        step = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        w -= step * mean / (np.sqrt(square) + epsilon)
    return w


def nadam_by_hand(momentum, gradients, rate=0.1, beta_2=0.999, epsilon=1e-7):
    w, mean, square, product = 1.0, 0.0, 0.0, 1.0
    for t, (beta_1, g) in enumerate(zip(momentum, gradients, strict=True), 1):
        now = beta_1 * (1 - 0.5 * 0.96**t)
        following = beta_1 * (1 - 0.5 * 0.96 ** (t + 1))
        product *= now
        mean = beta_1 * mean + (1 - beta_1) * g
        square = beta_2 * square + (1 - beta_2) * g**2
        m_hat = following * mean / (1 - product * following)
        m_hat += (1 - now) * g / (1 - product)
        w -= rate * m_hat / (np.sqrt(square / (1 - beta_2**t)) + epsilon)
    return w


@pytest.fixture(scope="module")
def digits_like():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 4)).astype("float32")
    return x, (x @ rng.normal(size=(4, 3))).argmax(-1)


@pytest.mark.parametrize("name", PAIRS)
def test_with_a_constant_it_is_keras_bit_for_bit(name, digits_like):
    ours, theirs, options = PAIRS[name]
    weights = []
    for cls in (ours, theirs):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(cls(0.05, **options), loss="mse")
        x, y = digits_like
        model.fit(x, np.eye(3)[y], epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("jit", JIT_OPTIONS)
@pytest.mark.parametrize(
    "steps_per_execution", [1] if keras.backend.backend() == "torch" else [1, 4]
)
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_the_cycle(jit, steps_per_execution, nesterov):
    optimizer = kt.optimizers.SGD(0.1, one_cycle_momentum(), nesterov)
    model = one_weight_model(
        optimizer, jit_compile=jit, steps_per_execution=steps_per_execution
    )
    expected = sgd_by_hand([0.1] * STEPS, momenta(), GRADIENTS, nesterov)
    np.testing.assert_allclose(train(model), expected, rtol=1e-5)


@pytest.mark.parametrize("jit", JIT_OPTIONS)
@pytest.mark.parametrize(
    ("cls", "by_hand"),
    [(kt.optimizers.Adam, adam_by_hand), (kt.optimizers.Nadam, nadam_by_hand)],
)
def test_adams_family_follows_the_cycle(cls, by_hand, jit):
    model = one_weight_model(cls(0.1, beta_1=one_cycle_momentum()), jit_compile=jit)
    np.testing.assert_allclose(train(model), by_hand(momenta(), GRADIENTS), rtol=1e-5)


def test_adamw_decays_the_weight_first():
    optimizer = kt.optimizers.AdamW(0.1, weight_decay=0.2, beta_1=one_cycle_momentum())
    w, mean, square = 1.0, 0.0, 0.0
    for t, (beta_1, g) in enumerate(zip(momenta(), GRADIENTS, strict=True), 1):
        w -= w * 0.2 * 0.1
        mean = beta_1 * mean + (1 - beta_1) * g
        square = 0.999 * square + 0.001 * g**2
        step = 0.1 * np.sqrt(1 - 0.999**t) / (1 - beta_1**t)
        w -= step * mean / (np.sqrt(square) + 1e-7)
    np.testing.assert_allclose(train(one_weight_model(optimizer)), w, rtol=1e-5)


def test_weight_decay_and_scheduled_rate():
    rate = kt.schedules.Linear(0.2, 0.05, 20)
    optimizer = kt.optimizers.SGD(rate, one_cycle_momentum(), weight_decay=0.1)
    rates = 0.2 - 0.15 * np.arange(STEPS) / 20
    expected = sgd_by_hand(rates, momenta(), GRADIENTS, decay=0.1)
    np.testing.assert_allclose(train(one_weight_model(optimizer)), expected, rtol=1e-5)


def test_gradient_accumulation_counts_batches():
    # As Keras does with the learning rate: the schedule sees batches, not updates.
    optimizer = kt.optimizers.SGD(
        0.1, one_cycle_momentum(), gradient_accumulation_steps=3
    )
    expected = sgd_by_hand([0.1] * 4, momenta()[2::3], GRADIENTS.reshape(4, 3).mean(1))
    np.testing.assert_allclose(train(one_weight_model(optimizer)), expected, rtol=1e-5)


def test_ema():
    optimizer = kt.optimizers.SGD(
        0.1, one_cycle_momentum(), use_ema=True, ema_momentum=0.8
    )
    average, w, velocity = 0.0, 1.0, 0.0
    for t, (m, g) in enumerate(zip(momenta(), GRADIENTS, strict=True)):
        velocity = m * velocity - 0.1 * g
        w += velocity
        average = w if t == 0 else 0.8 * average + 0.2 * w
    # At the end of fit the average replaces the weight.
    np.testing.assert_allclose(train(one_weight_model(optimizer)), average, rtol=1e-5)


def test_loss_scaling():
    optimizer = keras.optimizers.LossScaleOptimizer(
        kt.optimizers.SGD(0.1, one_cycle_momentum()), initial_scale=1024
    )
    expected = sgd_by_hand([0.1] * STEPS, momenta(), GRADIENTS)
    np.testing.assert_allclose(train(one_weight_model(optimizer)), expected, rtol=1e-5)


def test_a_momentum_of_zero_still_moves_the_velocity():
    momentum = kt.schedules.MultiStep(0.9, [3, 4], 1e-30)
    optimizer = kt.optimizers.SGD(0.1, momentum)
    expected = sgd_by_hand([0.1] * 6, [0.9] * 3 + [0.0] * 3, GRADIENTS[:6])
    np.testing.assert_allclose(
        train(one_weight_model(optimizer), GRADIENTS[:6]), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        kt.optimizers.SGD(0.1, one_cycle_momentum(), nesterov=True),
        kt.optimizers.SGD(0.1, 0.5),
        kt.optimizers.Adam(kt.schedules.OneCycle(0.1, 12), one_cycle_momentum()),
        kt.optimizers.AdamW(0.1, 0.01, one_cycle_momentum()),
        kt.optimizers.Nadam(0.1, one_cycle_momentum()),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_config_and_file(optimizer, tmp_path):
    copy = check_config(optimizer)
    assert type(copy) is type(optimizer)
    model = one_weight_model(optimizer)
    train(model, GRADIENTS[:5])
    loaded = save_and_load(model, tmp_path)
    assert type(loaded.optimizer) is type(optimizer)
    # It goes on in the middle of the cycle, with its velocity.
    model.fit(np.ones((7, 1)), np.ones((7, 1)), batch_size=1, verbose=0)
    loaded.fit(np.ones((7, 1)), np.ones((7, 1)), batch_size=1, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])


def test_the_momentum_of_now_can_be_read():
    optimizer = kt.optimizers.SGD(0.1, one_cycle_momentum())
    train(one_weight_model(optimizer), GRADIENTS[:4])
    np.testing.assert_allclose(float(optimizer.momentum), momenta()[4], rtol=1e-5)
    assert optimizer.momentum_schedule is not None
    assert kt.optimizers.SGD(0.1, 0.5).momentum_schedule is None


@pytest.mark.parametrize("momentum", [-0.1, 1.1, "high"])
def test_a_bad_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum"):
        kt.optimizers.SGD(0.1, momentum)


def test_a_plain_callable_is_refused():
    with pytest.raises(ValueError, match="`beta_1` must be a number or a Learning"):
        kt.optimizers.Adam(0.1, beta_1=lambda: 0.9)
