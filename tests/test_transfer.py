"""Heads, freezing, fine-tuning and pretraining."""

import keras
import numpy as np
import pytest
from helpers import save_and_load

import keras_trainkit as kt

layers = keras.layers


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def conv_body():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 3, name="conv_1"),
            layers.BatchNormalization(name="norm_1"),
            layers.ReLU(),
            layers.Conv2D(4, 3, name="conv_2"),
            layers.BatchNormalization(name="norm_2"),
        ],
        name="body",
    )


def classifier():
    """A Sequential model with another one inside it."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            conv_body(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax", name="top"),
        ],
        name="classifier",
    )


def functional():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    a = layers.Dense(4, activation="relu", name="a")(inputs)
    b = layers.Dense(4, name="b")(a)
    x = layers.Dense(5, name="top")(layers.Add()([a, b]))
    return keras.Model(inputs, layers.Softmax()(x))


def inputs_of(model, rows=4):
    shape = (rows, *model.input_shape[1:])
    return np.random.default_rng(0).normal(size=shape).astype("float32")


class TestReplaceHead:
    @pytest.mark.parametrize("make", [classifier, functional])
    @pytest.mark.parametrize("share", [True, False])
    def test_same_body_and_another_head(self, make, share, tmp_path):
        model = make()
        before = weights(model)
        new = kt.transfer.replace_head(model, 3, share_weights=share)
        assert type(new) is type(model)
        assert new.output_shape == (None, 3)
        assert_equal(weights(new)[:-2], before[:-2])
        probabilities = new.predict(inputs_of(new), verbose=0)
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)

        # What goes into the head is what went into the old one.
        def features(model):
            head = kt.transfer.replace_head(model, layers.Identity())
            return head.predict(inputs_of(head), verbose=0)

        np.testing.assert_allclose(features(new), features(model), rtol=1e-6)
        new.compile("sgd", "sparse_categorical_crossentropy")
        new.fit(inputs_of(new), np.array([0, 1, 2, 0]), verbose=0)
        unchanged = [
            np.array_equal(one, other)
            for one, other in zip(weights(model), before, strict=True)
        ]
        assert unchanged[-2:] == [True, True]
        assert all(unchanged[:-2]) is not share
        loaded = save_and_load(new, tmp_path)
        got, expected = (m.predict(inputs_of(m), verbose=0) for m in (loaded, new))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    def test_what_was_frozen_is(self):
        model = classifier()
        kt.transfer.freeze(model, "conv_1")
        new = kt.transfer.replace_head(model, 3)
        assert not new.layers[0].get_layer("conv_1").trainable
        assert new.layers[0].get_layer("conv_2").trainable

    def test_body_without_a_head_gets_one(self):
        new = kt.transfer.replace_head(conv_body(), 7, "softmax")
        assert [type(layer).__name__ for layer in new.layers[-2:]] == [
            "GlobalAveragePooling2D",
            "Dense",
        ]
        assert new.output_shape == (None, 7)
        application = keras.applications.MobileNetV2(
            (32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
        )
        assert kt.transfer.replace_head(application, 7).output_shape == (None, 7)

    @pytest.mark.parametrize("share", [True, False])
    def test_an_activation_that_the_body_uses_too_stays_there(self, share):
        relu = layers.ReLU(negative_slope=0.5)
        x = keras.Input((6,))
        y = relu(layers.Dense(4, name="hidden")(x))
        model = keras.Model(x, relu(layers.Dense(5, name="top")(y)))
        before = weights(model)
        new = kt.transfer.replace_head(model, 3, "linear", share_weights=share)
        kernel, bias, top, top_bias = before
        rows = inputs_of(model)
        hidden = rows @ kernel + bias
        hidden = np.where(hidden > 0, hidden, hidden / 2)
        expected = hidden @ np.array(new.layers[-1].get_weights()[0])
        np.testing.assert_allclose(new.predict(rows, verbose=0), expected, atol=1e-5)
        scores = hidden @ top + top_bias
        np.testing.assert_allclose(
            model.predict(rows, verbose=0),
            np.where(scores > 0, scores, scores / 2),
            atol=1e-5,
        )
        outer = keras.Sequential([keras.Input((6,)), model])
        with pytest.raises(ValueError, match="last activation is not shared"):
            kt.transfer.replace_head(outer, 3)

    def test_own_layers(self):
        own = [layers.Dropout(0.5), layers.Dense(2, name="own")]
        new = kt.transfer.replace_head(classifier(), own)
        assert new.layers[-2:] == own
        new = kt.transfer.replace_head(
            functional(), own[1].from_config(own[1].get_config())
        )
        assert new.output_shape == (None, 2)

    @pytest.mark.parametrize(
        ("last", "activation", "expected"),
        [
            ("sigmoid", None, "sigmoid"),
            (None, None, "linear"),
            ("sigmoid", "relu", "relu"),
        ],
    )
    def test_activation(self, last, activation, expected):
        first, last = layers.Dense(2), layers.Dense(2, activation=last)
        model = keras.Sequential([keras.Input((3,)), first, last])
        head = kt.transfer.replace_head(model, 4, activation).layers[-1]
        assert (head.name, head.activation.__name__) == ("head", expected)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0,), "an integer >= 1"),
            (("3",), "an integer >= 1"),
            (([],), "a list of layers"),
            ((1,), "another for a single unit"),
            ((layers.Dense(1), "relu"), "None where `units` is a layer"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            kt.transfer.replace_head(classifier(), *arguments)

    def test_bad_models(self):
        x = keras.Input((3,))
        two = keras.Model(x, [layers.Dense(1)(x), layers.Dense(1)(x)])
        with pytest.raises(ValueError, match="a model with one output"):
            kt.transfer.replace_head(two, 3)
        with pytest.raises(ValueError, match="Functional or a built Sequential"):
            kt.transfer.replace_head(keras.Sequential([layers.Dense(1)]), 3)
        dense = layers.Dense(3)
        with pytest.raises(ValueError, match="last layer is not shared"):
            kt.transfer.replace_head(keras.Model(x, dense(dense(x))), 3)


class TestFreeze:
    ALL = ("conv_1", "norm_1", "conv_2", "norm_2", "top")

    def state(self, model):
        """The names of the layers that train."""
        names = [v.path.split("/")[-2] for v in model.trainable_variables]
        return list(dict.fromkeys(names))

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, ()),
            ({"layers": "body"}, ("top",)),
            ({"layers": layers.BatchNormalization}, ("conv_1", "conv_2", "top")),
            ({"layers": ["conv_1", "top"]}, ("norm_1", "conv_2", "norm_2")),
            ({"layers": "body/.*_1"}, ("conv_2", "norm_2", "top")),
            ({"layers": lambda layer: "2" in layer.name}, ("conv_1", "norm_1", "top")),
            ({"until": -1}, ("top",)),
            ({"until": 1}, ALL[1:]),
            ({"until": 0}, ALL),
            ({"until": "conv_2"}, ALL[2:]),
            ({"until": layers.BatchNormalization}, ALL[1:]),
            ({"until": 0.4}, ALL[2:]),
            ({"until": 1.0}, ()),
        ],
    )
    def test_which(self, arguments, expected):
        model = classifier()
        frozen = kt.transfer.freeze(model, **arguments)
        assert self.state(model) == list(expected)
        assert [path.split("/")[-1] for path in frozen] == [
            name for name in self.ALL if name not in expected
        ]
        # The reverse of it all.
        kt.transfer.unfreeze(model)
        assert self.state(model) == list(self.ALL)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"layers": "top"}, ("top",)),
            ({"since": -2}, ("norm_2", "top")),
            ({"since": 0.6}, ("norm_2", "top")),
            ({"since": "conv_2", "batch_norm": False}, ("conv_2", "top")),
        ],
    )
    def test_unfreeze(self, arguments, expected):
        model = classifier()
        kt.transfer.freeze(model)
        model.trainable = False
        kt.transfer.unfreeze(model, **arguments)
        assert self.state(model) == list(expected)

    def test_layer_by_itself(self):
        model = classifier()
        body = model.layers[0]
        kt.transfer.freeze(model, body)
        assert self.state(model) == ["top"]
        kt.transfer.unfreeze(model, body.layers[0])
        assert self.state(model) == ["conv_1", "top"]

    def test_attention_counts_as_one(self):
        x = keras.Input((4, 3))
        y = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
        model = keras.Model(x, layers.Dense(2, name="top")(y))
        assert kt.transfer.freeze(model, until=-1) == ["attention"]
        assert self.state(model) == ["top"]

    def test_frozen_batch_norm_keeps_its_statistics(self):
        model = classifier()
        kt.transfer.freeze(model, "norm_1")
        model.compile("sgd", "sparse_categorical_crossentropy")
        before = [np.array(w) for w in model.weights]
        model.fit(inputs_of(model), np.zeros(4, "int32"), verbose=0)
        for weight, old in zip(model.weights, before, strict=True):
            same = np.array_equal(np.array(weight), old)
            assert same is ("norm_1" in weight.path), weight.path

    def test_takes_effect_on_a_compiled_model_that_has_trained(self):
        """With what goes on training where it was, as in a `fit` that never froze."""
        x, y = inputs_of(classifier(), 8), np.zeros(8, "int32")
        models = [classifier(), classifier()]
        for model in models:
            model.compile(
                keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy"
            )
            model.fit(x, y, epochs=3, verbose=0)
        frozen, plain = models
        kt.transfer.freeze(frozen, "conv_1")
        first = frozen.layers[0].get_layer("conv_1")
        kernel, _ = weights(first)
        old = {v.name: keras.ops.convert_to_numpy(v) for v in plain.optimizer.variables}
        slots = frozen.optimizer.variables
        assert int(slots[0]) == 3
        assert {v.name for v in slots} < set(old)
        for slot in slots:
            value = keras.ops.convert_to_numpy(slot)
            np.testing.assert_allclose(value, old[slot.name], rtol=1e-3, atol=1e-6)
        frozen.fit(x, y, verbose=0)
        np.testing.assert_array_equal(weights(first)[0], kernel)
        kt.transfer.unfreeze(frozen)
        frozen.fit(x, y, verbose=0)
        assert np.abs(weights(first)[0] - kernel).max() > 1e-4
        assert int(frozen.optimizer.iterations) == 5

    def test_moving_averages_begin_at_the_weights(self):
        """With a rate of almost 0 nothing moves, unless an average begins at 0."""
        model = classifier()
        adam = keras.optimizers.Adam(1e-9, use_ema=True, ema_momentum=0.5)
        model.compile(adam, "sparse_categorical_crossentropy")
        kt.transfer.freeze(model, "body")
        x, y = inputs_of(model), np.zeros(4, "int32")
        model.fit(x, y, epochs=2, verbose=0)
        kt.transfer.unfreeze(model, layers.Conv2D)
        before = {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}
        model.fit(x, y, epochs=2, verbose=0)
        for variable in model.weights:
            value = keras.ops.convert_to_numpy(variable)
            np.testing.assert_allclose(value, before[variable.path], atol=1e-5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"layers": "botom"}, "matches a layer"),
            ({"until": "botom"}, "matches a layer"),
            ({"until": 6}, "an integer from -5 to 5"),
            ({"until": 1.5}, r"a number in \[0, 1\]"),
            ({"until": 1, "layers": "top"}, "None where `layers` is given"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        model = classifier()
        with pytest.raises(ValueError, match=message):
            kt.transfer.freeze(model, **arguments)
        assert self.state(model) == list(self.ALL)
        with pytest.raises(ValueError, match="a built model with weights"):
            kt.transfer.freeze(keras.Sequential([layers.Dense(2)]))


def digits(classes, rows):
    data = kt.datasets.load("digits")
    keep = np.isin(data.y_train, classes)
    x, y = data.x_train[keep][:rows], data.y_train[keep][:rows]
    return x, np.searchsorted(classes, y)


class Watch(keras.callbacks.Callback):
    """The weights at the beginning and the end of each fit."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append(weights(self.model))

    def on_train_end(self, logs=None):
        self.seen.append(weights(self.model))


class TestFineTune:
    def pretrained(self):
        keras.utils.set_random_seed(0)
        model = kt.models.build_mlp(
            (8, 8, 1), 5, normalization="batch", hidden_units=(32, 16)
        )
        kt.models.PRESETS["default"].compile(model)
        model.fit(*digits(range(5), 600), epochs=8, batch_size=32, verbose=0)
        return model

    def test_head_first_and_then_everything(self):
        x, y = digits(range(5, 10), 600)
        model = kt.transfer.replace_head(self.pretrained(), 5)
        adam = keras.optimizers.Adam(0.02)
        model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
        watch = Watch()
        history = kt.transfer.fine_tune(
            model,
            x,
            y,
            epochs=9,
            freeze_epochs=3,
            batch_size=20,
            verbose=0,
            callbacks=[watch],
            validation_data=(x, y),
        )
        assert history.epoch == list(range(12))
        assert all(len(values) == 12 for values in history.history.values())
        start, head_trained, again, end = watch.seen
        assert_equal(head_trained[:-2], start[:-2])
        assert not np.array_equal(head_trained[-1], start[-1])
        assert_equal(again, head_trained)
        changed = [not np.array_equal(a, b) for a, b in zip(again, end, strict=True)]
        assert all(changed)
        # fast.ai's cycles: up to the rate, then up to half of it from a fifth.
        rates = history.history["learning_rate"]
        assert max(rates[:3]) <= 0.02
        assert max(rates[3:]) <= 0.01
        assert model.optimizer is adam
        assert float(adam.learning_rate) == pytest.approx(0.02)
        assert int(adam.iterations) == 12 * 30
        accuracy = history.history["val_accuracy"]
        assert accuracy[-1] > max(0.9, accuracy[2] + 0.05)

    def test_lower_layers_learn_more_slowly(self):
        x, y = digits(range(5), 64)
        moves = []
        for lr_mult in (1, 1e6):
            keras.utils.set_random_seed(0)
            model = kt.models.build_mlp((8, 8, 1), 5, hidden_units=(16, 16))
            model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
            before = weights(model)
            kt.transfer.fine_tune(
                model, x, y, epochs=1, freeze_epochs=0, lr_mult=lr_mult, verbose=0
            )
            moves.append(
                [
                    np.abs(a - b).max()
                    for a, b in zip(weights(model), before, strict=True)
                ]
            )
        ratio = np.array(moves[1]) / np.array(moves[0])
        assert ratio[0] < 1e-4
        assert 1e-4 < ratio[2] < 0.01
        assert ratio[4] > 0.5

    def test_mixed_precision(self):
        """Every layer gets its gradient, though the loss is scaled."""
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = kt.models.build_mlp((8, 8, 1), 5, hidden_units=(16,))
            model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
            watch = Watch()
            kt.transfer.fine_tune(
                model, *digits(range(5), 64), epochs=1, verbose=0, callbacks=[watch]
            )
        finally:
            keras.config.set_dtype_policy("float32")
        start, head, again, end = watch.seen
        assert_equal(head[:-2], start[:-2])
        assert not any(np.array_equal(a, b) for a, b in zip(again, end, strict=True))

    def test_what_raises_changes_nothing(self):
        x, y = digits(range(5), 64)
        model = kt.models.build_mlp((8, 8, 1), 5, normalization="batch")
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x, y, verbose=0)
        kt.transfer.freeze(model, "dense.*", until=None)
        before, optimizer = weights(model), model.optimizer
        state = [np.array(v) for v in optimizer.variables]
        flags = [layer.trainable for layer in model.layers]

        class Stop(keras.callbacks.Callback):
            fits = 0

            def on_train_batch_end(self, batch, logs=None):
                self.fits += 1
                if self.fits == 3:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            kt.transfer.fine_tune(model, x, y, epochs=2, callbacks=[Stop()], verbose=0)
        assert model.optimizer is optimizer
        assert_equal(weights(model), before)
        assert_equal([np.array(v) for v in optimizer.variables], state)
        assert [layer.trainable for layer in model.layers] == flags
        model.fit(x, y, verbose=0)

    def test_head_by_name_and_batch_norms_kept(self):
        x, y = digits(range(5), 64)
        model = kt.transfer.replace_head(self.pretrained(), 5)
        model.compile("sgd", "sparse_categorical_crossentropy")
        norm = next(
            layer
            for layer in model.layers
            if isinstance(layer, layers.BatchNormalization)
        )
        before = weights(norm)
        kt.transfer.fine_tune(
            model,
            x,
            y,
            epochs=1,
            head=["head", "dense_1.*"],
            batch_norm=False,
            verbose=0,
        )
        assert_equal(weights(norm), before)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"epochs": 0}, "an integer >= 1"),
            ({"epochs": 1, "freeze_epochs": -1}, "an integer >= 0"),
            ({"epochs": 1, "lr_mult": 0.1}, ">= 1"),
            ({"epochs": 1, "learning_rate": -1}, "> 0"),
            ({"epochs": 1, "initial_epoch": 1}, "left out"),
            ({"epochs": 1, "head": "haed"}, "matches a layer"),
        ],
    )
    def test_bad_arguments(self, arguments, message, tmp_path):
        model = classifier()
        x, y = inputs_of(model), np.zeros(4, "int32")
        with pytest.raises(ValueError, match="a compiled Keras model"):
            kt.transfer.fine_tune(model, x, y, epochs=1)
        model.compile("sgd", "sparse_categorical_crossentropy")
        with pytest.raises(ValueError, match=message):
            kt.transfer.fine_tune(model, x, y, **arguments)
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        for callback in (backup, kt.callbacks.Resumable([], tmp_path)):
            with pytest.raises(ValueError, match="cannot tell the two fits apart"):
                kt.transfer.fine_tune(model, x, y, epochs=1, callbacks=[callback])
        model.compile(
            keras.optimizers.SGD(kt.schedules.Power(0.1, 10)),
            "sparse_categorical_crossentropy",
        )
        with pytest.raises(ValueError, match="where the optimizer has a schedule"):
            kt.transfer.fine_tune(model, x, y, epochs=1)


def encoder(*sizes, activation=None):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(size, activation=activation) for size in sizes]
    return keras.Sequential([keras.Input((6,)), *hidden])


class TestPretrainAutoencoder:
    def data(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(256, 6)) * [3, 2, 1, 0.5, 0.3, 0.1]
        return (x - x.mean(axis=0)).astype("float32")

    def residual(self, x, codes):
        """The part of `x` that no linear function of the codes explains."""
        codes = np.column_stack([codes, np.ones(len(codes))])
        fit, *_ = np.linalg.lstsq(codes, x, rcond=None)
        return np.mean((x - codes @ fit) ** 2)

    @pytest.mark.parametrize("greedy", [True, False])
    def test_linear_encoder_finds_the_principal_components(self, greedy):
        x = self.data()
        model = encoder(2)
        start = self.residual(x, model.predict(x, verbose=0))
        trained = kt.transfer.pretrain_autoencoder(
            model,
            x,
            greedy=greedy,
            epochs=60,
            batch_size=16,
            verbose=0,
            optimizer=keras.optimizers.Nadam(0.01),
        )
        assert trained is model
        spectrum = np.linalg.svd(x, compute_uv=False) ** 2
        best = spectrum[2:].sum() / x.size
        found = self.residual(x, model.predict(x, verbose=0))
        assert start > 1.5 * best
        assert best * 0.999 < found < 1.1 * best

    def test_greedy_trains_layer_by_layer(self):
        shapes = []

        class Watch(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                dense = [
                    layer
                    for layer in self.model.layers
                    if isinstance(layer, layers.Dense)
                ]
                shapes.append([tuple(layer.kernel.shape) for layer in dense])

        model = encoder(5, 4, 3, activation="tanh")
        kt.transfer.pretrain_autoencoder(
            model,
            self.data(),
            greedy=True,
            noise=0.2,
            epochs=1,
            verbose=0,
            callbacks=[Watch()],
        )
        assert shapes == [[(6, 5), (5, 6)], [(5, 4), (4, 5)], [(4, 3), (3, 4)]]

    def test_decoder_is_the_mirror_and_the_noise_comes_first(self):
        seen = []

        class Watch(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                seen.extend(self.model.layers)

        model = kt.models.build_mlp((3, 2, 1), 4, hidden_units=(5,))
        kt.transfer.pretrain_autoencoder(
            model,
            self.data().reshape(-1, 3, 2, 1),
            epochs=1,
            verbose=0,
            noise=layers.GaussianNoise(0.1),
            callbacks=[Watch()],
        )
        noise, inner, hidden, last, reshape = seen
        assert isinstance(noise, layers.GaussianNoise)
        assert inner is model
        assert (hidden.units, hidden.activation.__name__) == (5, "elu")
        assert (last.units, last.activation.__name__) == (6, "linear")
        assert reshape.target_shape == (3, 2, 1)

    def test_noise_is_of_the_input_alone(self):
        """With half of two equal inputs gone, each is half of the other at best."""
        x = np.random.default_rng(0).normal(size=(512, 1)).astype("float32")
        x = np.repeat(x, 6, axis=1)
        losses = {}
        for noise in (0.0, 0.5):
            history = keras.callbacks.History()
            kt.transfer.pretrain_autoencoder(
                encoder(6),
                x,
                noise=noise,
                epochs=40,
                verbose=0,
                callbacks=[history],
                optimizer=keras.optimizers.Nadam(0.01),
            )
            losses[noise] = np.mean(history.history["loss"][-20:])
        assert losses[0.0] < 1e-3
        # Six inputs, each kept and doubled or zero: the mean of them, shrunk, is best,
        # with an error of 1 / (1 + 6) of the variance.
        assert losses[0.5] == pytest.approx(x.var() / 7, rel=0.1)

    def test_own_decoder_for_a_convolutional_encoder(self):
        model = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3)])
        x = np.random.default_rng(0).normal(size=(16, 4, 4, 1)).astype("float32")
        with pytest.raises(ValueError, match="or pass `decoder`"):
            kt.transfer.pretrain_autoencoder(model, x)
        before = weights(model)
        decoder = layers.Conv2DTranspose(1, 3)
        kt.transfer.pretrain_autoencoder(model, x, decoder=decoder, epochs=1, verbose=0)
        assert not np.array_equal(weights(model)[0], before[0])

    def test_what_raises_changes_nothing(self):
        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                raise KeyboardInterrupt

        model = encoder(3, 2)
        before = weights(model)
        for greedy in (True, False):
            with pytest.raises(KeyboardInterrupt):
                kt.transfer.pretrain_autoencoder(
                    model, self.data(), greedy=greedy, verbose=0, callbacks=[Stop()]
                )
            assert_equal(weights(model), before)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"noise": 1.0}, "`noise` must be"),
            ({"epochs": 0}, "an integer >= 1"),
            ({"x": np.ones((4, 5))}, r"an array of shape \(rows, 6\)"),
            ({"greedy": True, "decoder": layers.Dense(6)}, "None with `greedy`"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            kt.transfer.pretrain_autoencoder(
                encoder(2), **{"x": self.data(), **arguments}
            )
        with pytest.raises(ValueError, match="a built model"):
            kt.transfer.pretrain_autoencoder(keras.Sequential(), self.data())
