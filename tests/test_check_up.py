import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_trainkit as kt
from keras_trainkit import cli
from keras_trainkit.diagnostics import Finding
from keras_trainkit.diagnostics._curves import curve_findings
from keras_trainkit.diagnostics._finding import KINDS, in_order
from keras_trainkit.diagnostics._probe import neighbours_agree


def check_up(*args, time_limit=1e6, **options):
    """However busy the machine is."""
    return kt.diagnostics.check_up(*args, time_limit=time_limit, **options)


# The names of the kinds, which are a contract.
CONTRACT = """
nan_in_data unscaled_inputs constant_feature one_wild_feature labels_out_of_range
labels_not_integers_or_one_hot wrong_loss_for_output logits_without_from_logits
probabilities_as_logits activation_of_output_cannot_reach_targets class_imbalance
duplicates_across_split conflicting_labels too_few_rows
bad_initial_loss dead_units saturated_units vanishing_gradient exploding_gradient
symmetric_initialization nothing_trains frozen_by_mistake batch_norm_batch_too_small
output_does_not_depend_on_input rows_leak_into_each_other
not_deterministic_at_inference
cannot_overfit_a_batch learning_rate_too_high learning_rate_too_low
labels_carry_no_signal oscillating_loss overfitting underfitting
regularization_too_strong dropout_too_strong
""".split()

SPARSE = "sparse_categorical_crossentropy"
ROWS = 192


def blobs(classes=3, features=6, rows=ROWS, seed=0):
    """Classes around centres of their own, standardized."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, features)) * 2
    y = rng.integers(0, classes, rows)
    x = centres[y] + rng.normal(size=(rows, features))
    x = (x - x.mean(0)) / x.std(0)
    return x.astype("float32"), y.astype("int32")


def quantities(rows=ROWS):
    x, _ = blobs(rows=rows)
    y = x[:, :1] - x[:, 1:2]
    return x, ((y - y.mean()) / y.std()).astype("float32")


def network(
    units=3,
    activation="softmax",
    loss=SPARSE,
    optimizer=None,
    before=(),
    after=(),
    hidden=None,
    features=6,
):
    model = keras.Sequential(
        [
            keras.Input((features,)),
            *before,
            layers.Dense(16, **(hidden or {"activation": "relu"})),
            *after,
            layers.Dense(units, activation=activation),
        ]
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss)
    return model


def regressor(activation=None, **options):
    return network(1, activation, "mse", **options)


def test_the_kinds_are_the_contract():
    assert sorted(KINDS) == sorted(CONTRACT)


def changed(x, rows, column, value):
    x = x.copy()
    x[rows, column] = value
    return x


X, Y = blobs()
XQ, YQ = quantities()

# kind, model, x, y, validation data, where
FIRST_ROUND = {
    "nan in x": ("nan_in_data", network, changed(X, 3, 1, np.nan), Y, None, "x"),
    "nan in y": ("nan_in_data", regressor, XQ, changed(YQ, 0, 0, np.inf), None, "y"),
    "nan in validation": (
        "nan_in_data",
        network,
        X,
        Y,
        (changed(X, 3, 1, np.nan)[:9], Y[:9]),
        "x_val",
    ),
    "bytes": ("unscaled_inputs", network, 60 * X + 120, Y, None, "x"),
    "tiny": ("unscaled_inputs", network, 1e-3 * X, Y, None, "x"),
    "huge column": (
        "one_wild_feature",
        network,
        X * np.array([1, 1, 1e4, 1, 1, 1], "float32"),
        Y,
        None,
        "x, column 2",
    ),
    "constant column": (
        "constant_feature",
        network,
        changed(X, slice(None), 4, 2.0),
        Y,
        None,
        "x, column 4",
    ),
    "from one": ("labels_out_of_range", network, X, Y + 1, None, None),
    "minus one": ("labels_out_of_range", network, X, Y - 1, None, None),
    "one hot": (
        "labels_not_integers_or_one_hot",
        network,
        X,
        np.eye(3, dtype="float32")[Y],
        None,
        None,
    ),
    "floats": ("labels_not_integers_or_one_hot", network, X, Y + 0.5, None, None),
    "integers": (
        "labels_not_integers_or_one_hot",
        lambda: network(loss="categorical_crossentropy"),
        X,
        Y,
        None,
        None,
    ),
    "multi hot": (
        "labels_not_integers_or_one_hot",
        lambda: network(loss="categorical_crossentropy"),
        X,
        np.ones((ROWS, 3)),
        None,
        None,
    ),
    "signs": (
        "labels_out_of_range",
        lambda: network(1, "sigmoid", "binary_crossentropy"),
        X,
        np.sign(X[:, :1]),
        None,
        None,
    ),
    "binary for many": (
        "wrong_loss_for_output",
        lambda: network(loss="binary_crossentropy"),
        X,
        Y[:, None],
        None,
        None,
    ),
    "mse for many": (
        "wrong_loss_for_output",
        lambda: network(loss="mse"),
        X,
        Y[:, None],
        None,
        None,
    ),
    "softmax of one": (
        "wrong_loss_for_output",
        lambda: network(1, "softmax", "binary_crossentropy"),
        X,
        Y[:, None] % 2,
        None,
        None,
    ),
    "relu classes": (
        "wrong_loss_for_output",
        lambda: network(3, "relu"),
        X,
        Y,
        None,
        None,
    ),
    "logits": (
        "logits_without_from_logits",
        lambda: network(activation=None),
        X,
        Y,
        None,
        None,
    ),
    "twice": (
        "probabilities_as_logits",
        lambda: network(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ),
        X,
        Y,
        None,
        None,
    ),
    "relu": (
        "activation_of_output_cannot_reach_targets",
        lambda: regressor("relu"),
        XQ,
        YQ,
        None,
        None,
    ),
    "sigmoid": (
        "activation_of_output_cannot_reach_targets",
        lambda: regressor("sigmoid"),
        XQ,
        YQ,
        None,
        None,
    ),
    "rare class": (
        "class_imbalance",
        network,
        X,
        np.where(np.arange(ROWS) < 4, 1, 0),
        None,
        None,
    ),
    "one class": ("class_imbalance", network, X, 0 * Y, None, None),
    "seen": (
        "duplicates_across_split",
        network,
        X,
        Y,
        (X[:20], Y[:20]),
        "validation_data",
    ),
    "contradicting": (
        "conflicting_labels",
        network,
        np.concatenate([X, X[:40]]),
        np.concatenate([Y, (Y[:40] + 1) % 3]),
        None,
        None,
    ),
    "few": ("too_few_rows", network, X[:20], Y[:20], None, "x"),
}


@pytest.mark.parametrize("case", FIRST_ROUND)
def test_the_data_the_loss_and_the_output(case):
    kind, make, x, y, validation, where = FIRST_ROUND[case]
    found = check_up(make(), x, y, validation, epochs=0)
    assert found.findings[0].kind == kind
    assert found.skipped == {}
    if where is not None:
        assert found.findings[0].where == where
    assert found.healthy == (kind == "constant_feature")


class BatchMean(layers.Layer):
    """Not registered: a file would not have it."""

    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


class Jitter(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


def frozen(part):
    model = network()
    for layer in model.layers[:-1] if part == "hidden" else model.layers:
        layer.trainable = False
    model.compile("adam", SPARSE)
    return model


def deep(activation, initializer):
    hidden = [
        layers.Dense(16, activation, kernel_initializer=initializer) for _ in range(14)
    ]
    return network(before=hidden, hidden={"activation": activation})


SECOND_ROUND = {
    "all frozen": ("nothing_trains", lambda: frozen("all")),
    "rate 0": (
        "nothing_trains",
        lambda: network(optimizer=keras.optimizers.SGD(0.0)),
    ),
    "hidden frozen": ("frozen_by_mistake", lambda: frozen("hidden")),
    "zeros": (
        "symmetric_initialization",
        lambda: network(
            before=[layers.Dense(8, "tanh", kernel_initializer="zeros")],
            hidden={"kernel_initializer": "zeros", "activation": "tanh"},
        ),
    ),
    "constant": (
        "symmetric_initialization",
        lambda: network(hidden={"kernel_initializer": "ones", "activation": "tanh"}),
    ),
    "dead": (
        "dead_units",
        lambda: network(
            hidden={
                "activation": "relu",
                "bias_initializer": keras.initializers.Constant(-10.0),
            }
        ),
    ),
    "saturated": (
        "saturated_units",
        lambda: network(
            hidden={
                "activation": "tanh",
                "kernel_initializer": keras.initializers.RandomNormal(stddev=20.0),
            }
        ),
    ),
    "vanishing": ("vanishing_gradient", lambda: deep("sigmoid", "glorot_uniform")),
    "stopped": (
        "vanishing_gradient",
        lambda: network(after=[layers.Lambda(ops.stop_gradient)]),
    ),
    "leak": ("rows_leak_into_each_other", lambda: network(after=[BatchMean()])),
    "noise": ("not_deterministic_at_inference", lambda: network(after=[Jitter()])),
    "cut off": (
        "output_does_not_depend_on_input",
        lambda: network(
            before=[layers.Lambda(lambda x: ops.ones_like(x))],
            hidden={"activation": "tanh"},
        ),
    ),
}


@pytest.mark.parametrize("case", SECOND_ROUND)
def test_one_batch(case):
    kind, make = SECOND_ROUND[case]
    found = check_up(make(), X, Y, epochs=0)
    assert found.findings[0].kind == kind
    assert found.rounds == 2
    assert found.skipped == {}


def test_gradients_that_explode():
    large = keras.initializers.RandomNormal(stddev=2.0)
    hidden = [layers.Dense(16, kernel_initializer=large) for _ in range(14)]
    found = check_up(regressor(before=hidden), XQ, YQ, epochs=0)
    assert found.findings[0].kind == "exploding_gradient"


def test_large_targets():
    found = check_up(regressor(), XQ, 100 * YQ + 900, epochs=0)
    assert [f.kind for f in found.findings] == ["bad_initial_loss"]
    assert "(y - mean) / std" in found.findings[0].remedy


def test_batch_norm_and_the_size_of_the_batch():
    model = network(after=[layers.BatchNormalization()])
    small = check_up(model, X, Y, epochs=0, batch_size=2)
    assert [f.kind for f in small.findings] == ["batch_norm_batch_too_small"]
    assert check_up(model, X, Y, epochs=0, batch_size=32).findings == ()


def test_a_last_layer_of_zeros_is_no_fault():
    model = network()
    kernel = model.layers[-1].kernel
    kernel.assign(np.zeros(kernel.shape))
    assert check_up(model, X, Y, epochs=0).findings == ()


def test_pretrained_and_frozen_is_no_fault():
    model = network()
    model.fit(X, Y, epochs=2, verbose=0)
    for layer in model.layers[:-1]:
        layer.trainable = False
    model.compile("adam", SPARSE)
    assert check_up(model, X, Y, epochs=0).findings == ()


def test_monte_carlo_dropout_is_no_fault():
    model = network(after=[kt.layers.MCDropout(0.2)])
    assert check_up(model, X, Y, epochs=0).findings == ()


def test_a_network_that_scales_its_inputs():
    scale = layers.Normalization()
    scale.adapt(1e4 * X)
    assert check_up(network(before=[scale]), 1e4 * X, Y, epochs=0).findings == ()
    halved = network(before=[layers.Rescaling(1 / 60, offset=-2.0)])
    assert check_up(halved, 60 * X + 120, Y, epochs=0).findings == ()


def kinds(result):
    return [finding.kind for finding in result.findings]


def test_a_healthy_training_and_nothing_is_changed():
    def fitted(ask):
        keras.utils.set_random_seed(1)
        model = network(after=[layers.BatchNormalization(), layers.Dropout(0.2)])
        first = model.fit(X, Y, epochs=1, verbose=0)
        if ask:
            state = [np.array(ops.convert_to_numpy(v)) for v in model.variables]
            result = check_up(model, X, Y)
            assert result.findings == ()
            assert result.healthy
            assert result.rounds == 3
            assert result.skipped == {}
            assert model.history is first
            for variable, value in zip(model.variables, state, strict=True):
                np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
        model.fit(X, Y, epochs=1, verbose=0)
        return model.get_weights()

    for a, b in zip(fitted(False), fitted(True), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_rate_is_too_high_and_the_remedy_mends_it():
    model = network(optimizer=keras.optimizers.Adam(10.0))
    found = check_up(model, X, Y)
    assert kinds(found)[0] == "learning_rate_too_high"
    code = found.findings[0].remedy.split("`")[1]
    exec(code, {"model": model})
    assert float(model.optimizer.learning_rate) < 1.0
    assert check_up(model, X, Y).findings == ()


def test_the_rate_is_too_low():
    found = check_up(network(optimizer=keras.optimizers.Adam(1e-6)), X, Y)
    assert kinds(found) == ["learning_rate_too_low"]


def test_shuffled_labels():
    found = check_up(network(), X, np.random.default_rng(5).permutation(Y))
    assert kinds(found) == ["labels_carry_no_signal"]


def test_penalties_and_decay():
    penalty = {"activation": "relu", "kernel_regularizer": keras.regularizers.L2(1.0)}
    squeezed = [layers.Dense(16, **penalty) for _ in range(3)]
    found = check_up(network(before=squeezed, hidden=penalty), X, Y)
    assert kinds(found)[0] == "regularization_too_strong"
    decayed = network(optimizer=keras.optimizers.AdamW(0.01, weight_decay=50.0))
    assert kinds(check_up(decayed, X, Y))[0] == "regularization_too_strong"


def test_dropout():
    found = check_up(network(after=[layers.Dropout(0.95)]), X, Y)
    assert kinds(found)[0] == "dropout_too_strong"


def test_a_batch_that_cannot_be_learned():
    model = network(after=[layers.Lambda(lambda x: 1e-6 * x)])
    found = check_up(model, X, Y)
    assert kinds(found)[0] in ("vanishing_gradient", "cannot_overfit_a_batch")


def test_curves():
    falling = np.linspace(2.0, 0.1, 12)
    rising = np.concatenate([np.linspace(2.0, 1.0, 5), np.linspace(1.1, 2.5, 7)])
    zigzag = 1 + 0.5 * (-1.0) ** np.arange(12)

    def of(**curves):
        return [f.kind for f in curve_findings(curves)]

    assert of(loss=falling, val_loss=falling + 0.1) == []
    assert of(loss=falling, val_loss=rising) == ["overfitting"]
    assert of(loss=zigzag) == ["oscillating_loss"]
    assert of(loss=[1.0, np.nan]) == ["learning_rate_too_high"]
    assert of(accuracy=falling) == []


def test_the_history_of_the_last_fit_counts():
    model = network()
    model.fit(X, Y, verbose=0)
    model.history.history = {
        "loss": [2.0, 1.0, 0.5, 0.2, 0.1],
        "val_loss": [2.0, 1.0, 1.2, 1.5, 2.0],
    }
    assert kinds(check_up(model, X, Y, epochs=0)) == ["overfitting"]


def test_neighbours():
    near = neighbours_agree(X[:150], Y[:150], X[150:], Y[150:], True, 0)
    assert near > 5
    rng = np.random.default_rng(0)
    noise = rng.normal(size=X.shape).astype("float32")
    far = neighbours_agree(noise[:150], Y[:150], noise[150:], Y[150:], True, 0)
    assert abs(far) < 3
    line = neighbours_agree(XQ[:150], YQ[:150], XQ[150:], YQ[150:], False, 0)
    assert line > 5


def test_batches_instead_of_arrays():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            part = slice(32 * index, 32 * index + 32)
            return X[part], Y[part] + 1

    data = Batches()
    found = check_up(network(), data, validation_data=data, epochs=0)
    assert kinds(found)[0] == "labels_out_of_range"


def two_ends(loss_b="mse"):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    hidden = layers.Dense(8, "relu")(layers.Concatenate()([a, b]))
    outputs = {
        "c": layers.Dense(3, "softmax", name="c")(hidden),
        "q": layers.Dense(1, "relu", name="q")(hidden),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("adam", {"c": SPARSE, "q": loss_b})
    return model


def test_several_inputs_and_outputs():
    x = {"a": X, "b": 1e4 * X}
    found = check_up(two_ends(), x, {"c": Y + 1, "q": XQ[:, :1]}, epochs=0)
    assert {(f.kind, f.where) for f in found.findings} >= {
        ("labels_out_of_range", "output 'c'"),
        ("activation_of_output_cannot_reach_targets", "output 'q'"),
    }
    healthy = {"c": Y, "q": np.abs(XQ[:, :1])}
    assert not kinds(check_up(two_ends(), {"a": X, "b": X}, healthy))


class Subclassed(keras.Model):
    """A model of one's own, with a training step of its own."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(16, "relu")
        self.out = layers.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


def test_a_subclassed_model():
    model = Subclassed()
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    assert kinds(check_up(model, X, Y)) == []
    model = Subclassed()
    model.compile("adam", SPARSE)
    assert kinds(check_up(model, X, Y)) == ["logits_without_from_logits"]


def own_loss(y_true, y_pred):
    return ops.mean(ops.abs(ops.cast(y_true, "float32")[:, None] - y_pred))


def test_what_cannot_be_judged_is_left_out():
    assert kinds(check_up(network(activation=None, loss=own_loss), X, Y)) == []


def test_order_and_tables():
    def finding(kind, severity):
        return Finding(kind, severity, "here", "a | b", "do `this`")

    ordered = in_order(
        [
            finding("constant_feature", "hint"),
            finding("too_few_rows", "warning"),
            finding("learning_rate_too_high", "error"),
            finding("unscaled_inputs", "warning"),
        ]
    )
    assert [f.kind for f in ordered] == [
        "unscaled_inputs",
        "learning_rate_too_high",
        "too_few_rows",
        "constant_feature",
    ]
    found = check_up(network(), X, Y + 1, epochs=0)
    assert "labels_out_of_range" in found.summary()
    assert "train on `y - 1`" in found.to_markdown()
    assert "fix this, then run it again" in repr(found)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": keras.Sequential([layers.Dense(1)])}, "a compiled Keras model"),
        ({"y": None}, "given where x is an array"),
        ({"y": Y[:5]}, "of as many rows as"),
        ({"epochs": -1}, "`epochs` must be a finite number >= 0"),
        ({"time_limit": 0}, "`time_limit` must be a finite number > 0"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
    ],
)
def test_bad_arguments(options, match):
    arguments = {"model": network(), "x": X, "y": Y, **options}
    with pytest.raises(ValueError, match=match):
        check_up(**arguments)


def test_the_command(tmp_path, capsys):
    model, data = tmp_path / "m.keras", tmp_path / "d.npz"
    network().save(model)
    np.savez(data, x=X, y=Y + 1, x_val=X[:9], y_val=Y[:9])
    command = ["check", str(model), "--data", str(data)]
    assert cli.main(command) == 3
    assert "labels_out_of_range: labels from 1 to 3" in capsys.readouterr().out
    assert cli.main([*command, "--loss", "no_such_loss"]) == 1
    assert "no_such_loss" in capsys.readouterr().err
    assert cli.main(["check", str(model), "--data", str(model)]) == 1
    assert "is not an .npz file with arrays x and y" in capsys.readouterr().err
    assert cli.main(["check", str(data), "--data", str(data)]) == 1
    assert "is not a .keras file" in capsys.readouterr().err
    plain = tmp_path / "plain.keras"
    keras.Sequential([keras.Input((6,)), layers.Dense(3)]).save(plain)
    assert cli.main(["check", str(plain), "--data", str(data)]) == 1
    assert "give --loss" in capsys.readouterr().err


class Autoencoder(keras.Model):
    """Takes x alone, as `fit` does."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(X.shape[-1])

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=1):
        return keras.ops.mean(keras.ops.square(x - y_pred))


def test_arrays_without_targets_where_the_model_has_a_loss_of_its_own():
    model = Autoencoder()
    model(X[:2])
    model.compile("adam")
    before = model.get_weights()
    found = check_up(model, X, epochs=0)
    assert found.rounds == 2
    assert "outputs" in found.skipped
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    x = np.where(np.arange(len(X))[:, None] == 3, np.nan, X)
    assert "nan_in_data" in [f.kind for f in check_up(model, x, epochs=0).findings]
