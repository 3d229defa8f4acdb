"""Models whose training step uses several optimizers."""

import keras
import numpy as np
import pytest
from helpers import to_numpy

import keras_trainkit as kt
from keras_trainkit._training.optimizer import optimizers_of, set_optimizer


class Gan(keras.Model):
    """Two networks, each with an optimizer of its own, as on keras.io."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        self.discriminator = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(1)]
        )

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer


def test_every_optimizer_is_found_once_and_can_be_exchanged():
    gan = Gan()
    d, g, inner, third = (keras.optimizers.Adam() for _ in range(4))
    gan.compile(d, g)
    gan.discriminator.compile(inner, "mse")
    gan.others = [third, d]
    found = optimizers_of(gan)
    assert found == {
        "optimizer": gan.optimizer,
        "d_optimizer": d,
        "g_optimizer": g,
        "others[0]": third,
        "discriminator.optimizer": inner,
    }
    new = keras.optimizers.SGD()
    set_optimizer(gan, d, new)
    assert gan.d_optimizer is new
    assert gan.others == [third, new]
    set_optimizer(gan, inner, d)
    assert gan.discriminator.optimizer is d


def test_a_plain_model_has_one():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert optimizers_of(model) == {"optimizer": model.optimizer}


class Trainable(Gan):
    """Each network learns to put out a number, at the rate of its own optimizer."""

    def __init__(self):
        super().__init__()
        self.d_loss = keras.metrics.Mean(name="d_loss")
        self.g_loss = keras.metrics.Mean(name="g_loss")
        # It has no `call`, and all its parts are built.
        self.built = True

    @property
    def metrics(self):
        return [self.d_loss, self.g_loss]

    def train_step(self, data):
        x = keras.ops.convert_to_tensor(data[0] if isinstance(data, tuple) else data)
        for model, optimizer, metric in (
            (self.discriminator, self.d_optimizer, self.d_loss),
            (self.generator, self.g_optimizer, self.g_loss),
        ):
            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                with tf.GradientTape() as tape:
                    loss = self.error(model, x)
                grads = tape.gradient(loss, model.trainable_weights)
                optimizer.apply_gradients(
                    zip(grads, model.trainable_weights, strict=True)
                )
            else:
                import torch

                self.zero_grad()
                loss = self.error(model, x)
                loss.backward()
                weights = list(model.trainable_weights)
                with torch.no_grad():
                    optimizer.apply([w.value.grad for w in weights], weights)
            metric.update_state(loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}

    def error(self, model, x):
        width = model.input_shape[-1]
        return keras.ops.mean(keras.ops.square(model(x[:, :width]) - 3.0))


not_on_jax = pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="a train_step of JAX has the state of one optimizer",
)


def trainable(fitted):
    keras.utils.set_random_seed(0)
    gan = Trainable()
    gan.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02))
    if fitted:
        gan.fit(X, verbose=0)
    return gan


X = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")


@not_on_jax
@pytest.mark.parametrize("fitted", [False, True])
def test_the_rate_of_one_optimizer_is_found_and_all_are_put_back(fitted):
    plain, searched = trainable(fitted), trainable(fitted)
    mine = optimizers_of(searched)
    found = kt.find_lr(
        searched, X, optimizer="d_optimizer", monitor="d_loss", num_steps=60
    )
    assert 1e-3 < found.suggestion < 3
    other = kt.find_lr(
        searched, X, optimizer="g_optimizer", monitor="d_loss", num_steps=60
    )
    # The discriminator goes on at its own constant rate.
    assert other.losses[-1] < other.losses[0]
    for name, optimizer in optimizers_of(searched).items():
        assert optimizer is mine[name]
    for model in (plain, searched):
        model.fit(X, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), searched.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@not_on_jax
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "d_loss"}, "`optimizer` must be one of .*: 'd_optimizer', 'g_opt"),
        ({}, "`train_step` must return the loss under the name 'loss', or `monitor`"),
        (
            {"optimizer": "optimizer", "monitor": "d_loss"},
            "that the training step uses",
        ),
        (
            {"optimizer": "e_optimizer"},
            "`optimizer` must be one of 'optimizer', 'd_opt",
        ),
    ],
)
def test_several_optimizers_are_refused_by_name(options, message):
    gan = trainable(True)
    before = [to_numpy(v) for o in optimizers_of(gan).values() for v in o.variables]
    before += gan.get_weights()
    with pytest.raises(ValueError, match=message):
        kt.find_lr(gan, X, num_steps=10, **options)
    after = [to_numpy(v) for o in optimizers_of(gan).values() for v in o.variables]
    for a, b in zip(before, after + gan.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_inner_model_that_was_compiled_once_is_no_second_optimizer():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    inner.compile("adam", "mse")
    inner.fit(X, X[:, :1], verbose=0)
    model = keras.Sequential([inner, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert len(kt.find_lr(model, X, X[:, :1], num_steps=10).losses) == 10


def scheduled_by_hand(total_steps):
    keras.utils.set_random_seed(0)
    gan = Trainable()
    rate = kt.schedules.OneCycle(0.1, total_steps)
    momentum = kt.schedules.OneCycleMomentum(total_steps)
    gan.compile(kt.optimizers.Adam(rate, beta_1=momentum), keras.optimizers.Adam(0.02))
    return gan


@not_on_jax
def test_one_of_several_optimizers_follows_a_cycle():
    theirs, ours = scheduled_by_hand(6), trainable(False)
    theirs.fit(X, epochs=3, shuffle=False, verbose=0)
    history = ours.fit(
        X,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[kt.callbacks.OneCycle(0.1, optimizer="d_optimizer")],
    ).history
    for a, b in zip(theirs.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    rate = kt.schedules.OneCycle(0.1, 6)
    expected = [float(rate(step)) for step in (1, 3, 5)]
    np.testing.assert_allclose(history["d_optimizer_learning_rate"], expected)
    assert "d_optimizer_momentum" in history
    assert float(ours.d_optimizer.learning_rate) == pytest.approx(0.01)


def test_no_rate_is_found_for_one_of_several_optimizers():
    automatic = kt.callbacks.OneCycle("auto", optimizer="d_optimizer")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="one of several optimizers; find it before"):
        model.fit(X, X[:, :1], verbose=0, callbacks=[automatic])


@not_on_jax
def test_two_optimizers_have_a_schedule_each():
    gan = trainable(False)
    constant = kt.schedules.Constant(1e-9)
    callbacks = [
        kt.callbacks.ApplySchedule(constant, optimizer=name)
        for name in ("d_optimizer", "g_optimizer")
    ]
    before = gan.get_weights()
    gan.fit(X, verbose=0, callbacks=callbacks)
    for a, b in zip(before, gan.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    callbacks[1] = kt.callbacks.OneCycle(0.1, optimizer="d_optimizer")
    with pytest.raises(
        ValueError, match="sets the learning rate of 'd_optimizer' alon"
    ):
        gan.fit(X, verbose=0, callbacks=callbacks)


@not_on_jax
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: kt.callbacks.OneCycle(0.1, momentum=None),
        lambda: kt.callbacks.ExponentialSchedule(0.1, 2),
        lambda: kt.pruning.MagnitudePruning(0.5, end_step=3, frequency=1),
    ],
)
def test_a_callback_that_would_do_nothing_is_refused(make, fitted):
    gan, plain = trainable(fitted), trainable(fitted)
    before = gan.get_weights()
    message = "`optimizer` must be .*uses 'd_optimizer', 'g_optimizer'.*'optimizer'"
    with pytest.raises(ValueError, match=message):
        gan.fit(X, epochs=2, verbose=0, callbacks=[make()])
    for a, b in zip(before, gan.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for model in (gan, plain):
        model.fit(X, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), gan.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@not_on_jax
@pytest.mark.parametrize("fitted", [False, True])
def test_kernels_that_another_optimizer_trains_are_not_pruned(fitted):
    def gan():
        keras.utils.set_random_seed(0)
        gan = Trainable()
        gan.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02))
        gan.optimizer = gan.g_optimizer
        if fitted:
            gan.fit(X, verbose=0)
        return gan

    both, plain = gan(), gan()
    before = both.get_weights()
    options = {"end_step": 3, "frequency": 1}
    pruning = kt.pruning.MagnitudePruning(0.5, **options)
    with pytest.raises(ValueError, match=r"`exclude` must be .*leave out sequential"):
        both.fit(X, epochs=2, verbose=0, callbacks=[pruning])
    for model in (both, plain):
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        model.fit(X, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), both.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    some = kt.pruning.MagnitudePruning(0.5, include=both.generator.layers[0], **options)
    both.fit(X, epochs=2, verbose=0, callbacks=[some])
    assert np.sum(both.generator.layers[0].get_weights()[0] == 0) == 3


class Descent(keras.Model):
    """Takes its steps without the optimizer, or several with it."""

    def __init__(self, updates):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.updates = updates
        self.build((None, 3))

    def call(self, inputs):
        return self.dense(inputs)

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def train_step(self, *args):
        if keras.backend.backend() == "jax":
            weights, others, state, metrics = args[0]
            for _ in range(self.updates):
                weights, state = self.optimizer.stateless_apply(state, weights, weights)
            return {"loss": 0.0}, (weights, others, state, metrics)
        weights = self.trainable_variables
        for _ in range(self.updates):
            # A penalty alone: its gradients are the weights.
            self.optimizer.apply([w + 0.0 for w in weights], weights)
        return {"loss": 0.0}


@pytest.mark.parametrize("updates", [0, 2])
def test_other_counts_than_one_step_for_each_batch_are_refused(updates):
    model = Descent(updates)
    model.compile("sgd", "mse")
    before = model.get_weights()
    with pytest.raises(ValueError, match="one step with each batch"):
        model.fit(X, X[:, :1], verbose=0, callbacks=[kt.callbacks.OneCycle(0.1)])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)


def test_a_step_of_ones_own_that_uses_the_optimizer_once_is_fine():
    model = Descent(1)
    model.compile("sgd", "mse")
    model.fit(X, X[:, :1], verbose=0, callbacks=[kt.callbacks.OneCycle(0.1)])
    assert int(model.optimizer.iterations) == 2
