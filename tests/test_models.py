import dataclasses

import keras
import numpy as np
import pytest
from helpers import save_and_load

import keras_trainkit as kt
from keras_trainkit.models import PRESETS


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def dense_layers(model):
    return [x for x in model.layers if isinstance(x, keras.layers.Dense)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_saves(preset, tmp_path, rng):
    x = rng.normal(size=(96, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 3))).argmax(-1)
    model = kt.models.build_mlp((6,), 3, preset, hidden_units=(16, 8))
    recommended = PRESETS[preset]
    assert recommended.compile(model, x=x) is model
    history = model.fit(
        x,
        y,
        epochs=8,
        batch_size=16,
        validation_data=(x, y),
        callbacks=recommended.callbacks(0.05),
        verbose=0,
    ).history
    assert history["accuracy"][-1] > max(history["accuracy"][0], 0.5)
    loaded = save_and_load(model, tmp_path)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_default_is_he_and_elu_with_batch_norm_only_if_deep():
    shallow = kt.models.build_mlp((4, 4), 10, hidden_units=(8, 8, 8))
    assert kinds(shallow) == ["Flatten", *["Dense", "Activation"] * 3, "Dense"]
    deep = kt.models.build_mlp((16,), 10, hidden_units=(8,) * 4)
    block = ["Dense", "Activation", "BatchNormalization"]
    assert kinds(deep) == [*block * 4, "Dense"]
    for layer in dense_layers(deep)[:-1]:
        assert isinstance(layer.kernel_initializer, keras.initializers.HeNormal)
    assert deep.layers[1].activation is keras.activations.elu


def test_self_normalizing_is_lecun_and_selu():
    model = kt.models.build_mlp(
        (16,), 10, "self_normalizing", (8,) * 5, dropout="alpha"
    )
    assert kinds(model) == [*["Dense", "Activation", "AlphaDropout"] * 5, "Dense"]
    for layer in dense_layers(model)[:-1]:
        assert isinstance(layer.kernel_initializer, keras.initializers.LecunNormal)
    assert model.layers[1].activation is keras.activations.selu


def test_low_latency_normalizes_in_front_of_the_activation():
    model = kt.models.build_mlp((6,), 3, "low_latency", (8,))
    assert kinds(model) == ["Dense", "BatchNormalization", "Activation", "Dense"]
    assert not model.layers[0].use_bias
    plain = kt.models.build_mlp((6,), 3, "low_latency", (8,), normalization=None)
    assert plain.layers[0].use_bias


def test_overrides():
    model = kt.models.build_mlp(
        (6,), 3, hidden_units=(8,), activation="relu", l2=0.01, dropout="mc"
    )
    assert kinds(model) == ["Dense", "Activation", "MCDropout", "Dense"]
    np.testing.assert_allclose(dense_layers(model)[0].kernel_regularizer.l2, 0.01)
    sparse = kt.models.build_mlp((6,), 3, "sparse", (8,))
    assert float(dense_layers(sparse)[0].kernel_regularizer.l1) > 0


def test_output_is_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = kt.models.build_mlp((6,), 3, hidden_units=(4,))
    assert model.layers[0].compute_dtype == "float16"
    assert model.outputs[0].dtype == "float32"


@pytest.mark.parametrize(
    ("optimizer", "cls"),
    [
        ("sgd", keras.optimizers.SGD),
        ("nadam", keras.optimizers.Nadam),
        ("rmsprop", keras.optimizers.RMSprop),
    ],
)
def test_make_optimizer(optimizer, cls):
    made = PRESETS["default"].override(optimizer=optimizer).make_optimizer(0.02)
    assert isinstance(made, cls)
    np.testing.assert_allclose(float(made.learning_rate), 0.02, rtol=1e-6)
    if optimizer == "sgd":
        assert made.momentum == 0.9
        assert made.nesterov


def test_compile_takes_other_settings():
    model = kt.models.build_mlp((6,), 3, hidden_units=(4,))
    PRESETS["default"].compile(model, loss="categorical_crossentropy")
    assert model.loss == "categorical_crossentropy"


def test_presets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="activation"):
        PRESETS["default"].activation = "relu"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "best"}, "`preset` must be one of 'default'"),
        ({"num_classes": 1}, "`num_classes` must be an integer >= 2"),
        ({"hidden_units": (8, 0)}, "`hidden_units` must be an integer >= 1"),
        ({"input_shape": ()}, "`input_shape` must be at least one axis"),
        ({"input_shape": (None,)}, "`input_shape` must be an integer >= 1"),
        ({"dropout_rate": 1.0}, r"`dropout_rate` must be a number in \[0, 1\)"),
        ({"normalization": "layer"}, "`normalization` must be one of None, 'batch'"),
        ({"batchnorm": True}, "`overrides` must be one of .* Received: overrides="),
        ({"l2": -1}, "`l2` must be a finite number >= 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        kt.models.build_mlp(**{"input_shape": (6,), "num_classes": 3, **kwargs})


def test_self_normalizing_is_no_matter_of_the_name():
    own = PRESETS["self_normalizing"].override(name="mine")
    assert own.self_normalizing
    with pytest.raises(ValueError, match="activation='elu'"):
        own.override(activation="elu")
    assert not PRESETS["default"].override(name="self_normalizing").self_normalizing


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"normalization": "batch"}, "None in a self-normalizing network"),
        ({"dropout": "dropout"}, "None or 'alpha' in a self-normalizing network"),
        ({"dropout": "mc"}, "None or 'alpha' in a self-normalizing network"),
        ({"activation": "relu"}, "`activation` must be one of 'selu'"),
        ({"kernel_initializer": "he_normal"}, "one of 'lecun_normal'"),
    ],
)
def test_self_normalizing_refuses_what_breaks_it(override, message):
    with pytest.raises(ValueError, match=message):
        kt.models.build_mlp((6,), 3, "self_normalizing", **override)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.BatchNormalization(), "cannot have a normalization layer"),
        (keras.layers.Dropout(0.1), "cannot have plain dropout"),
        (keras.layers.SimpleRNN(3), "cannot have any layer but Dense"),
    ],
)
def test_self_normalizing_refuses_foreign_layers(layer, message):
    shape = (4, 3) if isinstance(layer, keras.layers.SimpleRNN) else (6,)
    model = keras.Sequential([keras.Input(shape), keras.Sequential([layer])])
    with pytest.raises(ValueError, match=message):
        PRESETS["self_normalizing"].compile(model)
    assert not model.compiled


def test_self_normalizing_refuses_skip_connections():
    inputs = keras.Input((6,))
    outputs = keras.layers.Add()([inputs, keras.layers.Dense(6)(inputs)])
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="cannot have skip connections"):
        PRESETS["self_normalizing"].compile(model)


def test_self_normalizing_warns_of_raw_inputs(rng):
    model = kt.models.build_mlp((6,), 3, "self_normalizing", (4,))
    x = rng.uniform(0, 255, size=(100, 6))
    with pytest.warns(UserWarning, match="mean 0 and standard deviation 1. Received"):
        PRESETS["self_normalizing"].compile(model, x=x)
    PRESETS["self_normalizing"].compile(model, x=(x - x.mean(0)) / x.std(0))


# He et al. 2015, table 6.
@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)]
)
def test_resnet_parameters(depth, millions):
    model = kt.models.build_cifar_resnet((32, 32, 3), 10, depth=depth)
    digits = 1 if depth == 110 else 2
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert round(trainable / 1e6, digits) == millions
    convolutions = sum(isinstance(x, keras.layers.Conv2D) for x in model.layers)
    assert convolutions + 1 == depth


def test_resnet_shortcut_subsamples_and_pads_with_zeros(rng):
    model = kt.models.build_cifar_resnet((8, 8, 3), 4, depth=8, weight_decay=0)
    shortcut = keras.Model(
        model.input,
        next(
            x for x in model.layers if isinstance(x, keras.layers.AveragePooling2D)
        ).output,
    )
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    before = keras.Model(model.input, shortcut.layers[-2].output)
    np.testing.assert_allclose(
        shortcut.predict(x, verbose=0),
        before.predict(x, verbose=0)[:, ::2, ::2],
        atol=1e-6,
    )


def test_resnet_trains_and_saves(tmp_path, rng):
    model = kt.models.build_cifar_resnet((8, 8, 3), 4, depth=8)
    assert model.losses
    PRESETS["default"].compile(model)
    x = rng.normal(size=(8, 8, 8, 3)).astype("float32")
    model.train_on_batch(x, np.arange(8) % 4)
    loaded = save_and_load(model, tmp_path)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 21}, r"`depth` must be 6 n \+ 2"),
        ({"depth": 2}, "`depth` must be an integer >= 8"),
        ({"input_shape": (32, 32)}, "`input_shape` must be"),
        ({"num_classes": 1}, "`num_classes` must be"),
        ({"weight_decay": -1}, "`weight_decay` must be"),
    ],
)
def test_resnet_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        kt.models.build_cifar_resnet(**kwargs)
