import keras
import numpy as np
import pytest
from helpers import check_config, save_and_load, to_numpy
from keras import layers

import keras_trainkit as kt

Lp, Orthogonality = kt.regularizers.Lp, kt.regularizers.Orthogonality


def gradient(penalty, w):
    """The gradient of a penalty, by one step of SGD at rate 1 on it alone."""
    model = keras.Sequential(
        [
            keras.Input((w.shape[0],)),
            layers.Dense(w.shape[1], use_bias=False, kernel_regularizer=penalty),
        ]
    )
    model.set_weights([w])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    # Inputs of 0 leave the data's loss without a gradient.
    model.train_on_batch(np.zeros((2, w.shape[0])), np.zeros((2, w.shape[1])))
    return w - model.get_weights()[0]


@pytest.mark.parametrize("p", [1, 1.1, 1.5, 2, 3])
def test_lp_and_its_gradient(p, rng):
    w = rng.normal(size=(4, 3)).astype("float32")
    w[0, 0] = 0
    np.testing.assert_allclose(
        to_numpy(Lp(p, 0.3)(w)), 0.3 * (np.abs(w) ** p).sum(), rtol=1e-5
    )
    by_hand = 0.3 * p * np.sign(w) * np.abs(w) ** (p - 1)
    np.testing.assert_allclose(gradient(Lp(p, 0.3), w), by_hand, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("p", "keras_name"), [(1, "l1"), (2, "l2")])
def test_lp_is_keras_where_keras_has_it(p, keras_name, rng):
    w = rng.normal(size=(4, 3)).astype("float32")
    expected = keras.regularizers.get(keras_name)(w)
    np.testing.assert_allclose(to_numpy(Lp(p, 0.01)(w)), to_numpy(expected), rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 3, 2, 4)])
def test_orthogonality(shape, rng):
    w = rng.normal(size=shape).astype("float32")
    matrix = w.reshape(-1, shape[-1]).astype(float)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    by_hand = np.square(matrix.T @ matrix - np.eye(matrix.shape[1])).sum()
    np.testing.assert_allclose(
        to_numpy(Orthogonality(0.1)(w)), 0.1 * by_hand, rtol=1e-4
    )
    orthonormal = np.linalg.qr(matrix)[0].astype("float32")
    assert to_numpy(Orthogonality(1.0)(orthonormal)) < 1e-10
    assert np.isfinite(gradient(Orthogonality(1.0), np.zeros((3, 2), "float32"))).all()


def test_orthogonality_takes_the_units_of_the_layer(rng):
    layer = layers.Conv2DTranspose(4, 3, kernel_regularizer=Orthogonality(1.0))
    layer.build((None, 5, 5, 6))
    w = np.moveaxis(to_numpy(layer.kernel), 2, -1).reshape(54, 4)
    by_hand = np.square(w.T @ w - np.eye(4)).sum()
    np.testing.assert_allclose(to_numpy(layer.losses[0]), by_hand, rtol=1e-4)


def test_configs():
    check_config(Lp(1.5, 0.1))
    check_config(Orthogonality(0.1))


def make_model():
    inner = keras.Sequential(
        [keras.Input((6, 4)), layers.Conv1D(4, 2, name="conv"), layers.LSTM(3)],
        name="inner",
    )
    inputs = keras.Input((6, 4))
    attended = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    norm = layers.BatchNormalization()(attended)
    outputs = layers.Dense(2, name="out")(inner(norm))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    return model


def test_apply_reaches_every_kernel_and_the_file(tmp_path, rng):
    model = make_model()
    x, y = rng.normal(size=(8, 6, 4)), rng.normal(size=(8, 2))
    plain = model.evaluate(x, y, verbose=0)
    model.fit(x, y, verbose=0)
    changed = kt.regularizers.apply(model, kernel=Lp(1, 0.1), constraint="non_neg")
    assert len(changed) == 4 + 3 + 1
    expected = sum(
        0.1 * np.abs(to_numpy(w)).sum() for w in model.weights if w.path in changed
    )
    total = penalty(model)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    loaded = save_and_load(model, tmp_path)
    np.testing.assert_allclose(
        sum(float(to_numpy(loss)) for loss in loaded.losses), expected, rtol=1e-5
    )
    # Training minds both.
    assert model.evaluate(x, y, verbose=0) > plain
    model.fit(x, y, verbose=0)
    for w in model.weights:
        if w.path in changed:
            assert to_numpy(w).min() >= 0


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (r"conv/kernel", 1),
        (r"recurrent", 1),
        (lambda layer: isinstance(layer, layers.Dense), 1),
        (r"attention", 4),
    ],
)
def test_apply_where(where, count):
    model = make_model()
    assert len(kt.regularizers.apply(model, kernel="l2", where=where)) == count
    assert len(model.losses) == count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Lp(0.5, 1), r">= 1.*p=0.5"),
        (lambda: Lp(2, -1), r"strength=-1"),
        (lambda: Orthogonality(float("nan")), r"strength=nan"),
        (lambda: kt.regularizers.apply(make_model()), r"kernel=None, constraint=None"),
        (
            lambda: kt.regularizers.apply(make_model(), kernel="l2", where="nowhere"),
            r"at least one kernel.*where='nowhere'",
        ),
        (
            lambda: kt.regularizers.apply(make_model(), kernel="l2", where="("),
            r"a regular expression.*where='\('",
        ),
        (
            lambda: kt.regularizers.apply(keras.Sequential(), kernel="l2"),
            r"built",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def penalty(model):
    return sum(float(to_numpy(loss)) for loss in model.losses)


class Block(keras.layers.Layer):
    """Not registered, and its config says nothing of the layer inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(4, kernel_regularizer="l1")

    def call(self, x):
        return self.inner(x)


def test_what_the_file_would_lose_is_refused_and_nothing_changes():
    """9 penalties of a KerasHub ResNet became 0 after loading, in silence."""
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="plain")(inputs)
    model = keras.Model(inputs, Block(name="block")(x))
    before = penalty(model)
    with pytest.raises(ValueError, match="the config of Block 'block' does not have"):
        kt.regularizers.apply(model, kernel="l2")
    assert penalty(model) == before
    plain, block = model.layers[1:]
    assert plain.kernel_regularizer is None
    assert float(block.inner.kernel_regularizer.l1) == pytest.approx(0.01)
    assert kt.regularizers.apply(model, kernel="l2", where="plain") == ["plain/kernel"]

    class Backbone(keras.Model):
        """A Functional model whose config has its arguments alone."""

        def __init__(self, units):
            inputs = keras.Input((3,))
            outputs = keras.layers.Dense(units, name="inside")(inputs)
            super().__init__(inputs, outputs)
            self.units = units

        def get_config(self):
            return {"units": self.units}

    backbone = Backbone(2)
    for whole in (backbone, keras.Sequential([keras.Input((3,)), backbone])):
        with pytest.raises(ValueError, match=r"the config of Backbone .*inside'"):
            kt.regularizers.apply(whole, kernel="l2")
        assert not whole.losses

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    own = Own()
    own(np.ones((1, 3)))
    with pytest.raises(ValueError, match="the config of Own"):
        kt.regularizers.apply(own, kernel="l2")
    assert not own.losses


class Half(keras.layers.Layer):
    """Its config says what one of its two layers has."""

    def __init__(self, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(4, kernel_regularizer=kernel_regularizer)
        self.second = keras.layers.Dense(4)

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        penalty = keras.regularizers.serialize(self.first.kernel_regularizer)
        return {**super().get_config(), "kernel_regularizer": penalty}


def test_each_kernel_must_be_in_the_config():
    model = keras.Sequential([keras.Input((3,)), Half(name="half")])
    with pytest.raises(ValueError, match="does not have that of its 'half/dense_"):
        kt.regularizers.apply(model, kernel="l2")
    half = model.layers[0]
    first = half.first.kernel.path
    assert kt.regularizers.apply(model, kernel="l2", where=f"{first}$") == [first]


def test_some_projections_of_attention_are_refused():
    with pytest.raises(ValueError, match="the config of MultiHeadAttention"):
        kt.regularizers.apply(make_model(), kernel="l2", where="query")


def test_int8_and_lora_are_refused_by_name():
    model = keras.Sequential(
        [keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in "abc")]
    )
    model.get_layer("a").quantize("int8")
    model.get_layer("b").enable_lora(2)
    for name, reason in (("a", "quantized to int8"), ("b", "LoRA")):
        with pytest.raises(ValueError, match=f"{name}' .*{reason}.*where='/{name}/'"):
            kt.regularizers.apply(model, kernel="l2", where=f"/{name}/")
    assert not model.losses
    assert len(kt.regularizers.apply(model, kernel="l2", where="/c/")) == 1
