"""The tasks and the faults of study_check_up.py, frozen before a threshold was chosen.

A task is data and a network that learns it. A fault changes the data, the network or
the way it is compiled, and names the kinds of finding that are right.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from sklearn import datasets

import keras_trainkit as kt

ROWS = 1500


@dataclasses.dataclass
class Case:
    """A training: data, network, and how it is compiled."""

    x: Any
    y: Any
    x_val: Any
    y_val: Any
    network: Callable
    units: int
    kind: str = "images"  # "images", "table", "sequences" or "tokens"
    regression: bool = False
    optimizer: Callable = keras.optimizers.Adam
    learning_rate: float = 1e-3
    loss: Any = "sparse_categorical_crossentropy"
    batch_size: int = 32
    hidden: dict = dataclasses.field(default_factory=dict)
    output: str | None = "softmax"
    before: tuple = ()
    after: tuple = ()
    change: Callable | None = None
    epochs: int = 1
    expected: tuple = ()

    def build(self):
        inputs = keras.Input(self.x.shape[1:], dtype=str(self.x.dtype))
        x = inputs
        for make in self.before:
            x = make()(x)
        x = self.network(x, self)
        for make in self.after:
            x = make()(x)
        outputs = layers.Dense(self.units, activation=self.output)(x)
        model = keras.Model(inputs, outputs)
        if self.change:
            self.change(model)
        model.compile(self.optimizer(self.learning_rate), self.loss)
        return model


def dense(case, units):
    return layers.Dense(units, **{"activation": "relu", **case.hidden})


def mlp(x, case):
    x = layers.Flatten()(x)
    for units in (100, 50):
        x = dense(case, units)(x)
    return x


def elu_mlp(x, case):
    x = layers.Flatten()(x)
    for units in (100, 50):
        options = {"activation": "elu", "kernel_initializer": "he_normal"}
        x = layers.Dense(units, **{**options, **case.hidden})(x)
    return x


def cnn(x, case):
    options = {"activation": "relu", "padding": "same", **case.hidden}
    x = layers.Conv2D(16, 3, **options)(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(32, 3, **options)(x)
    x = layers.MaxPooling2D()(x)
    return dense(case, 64)(layers.Flatten()(x))


def resnet(x, case):
    """Residual blocks as in CIFAR-10's networks, two stages."""
    options = {"use_bias": False, "padding": "same", "kernel_initializer": "he_normal"}
    hidden = {**options, **case.hidden}
    activation = hidden.pop("activation", "relu")

    def conv(x, filters, strides=1):
        x = layers.Conv2D(filters, 3, strides=strides, **hidden)(x)
        return layers.BatchNormalization()(x)

    x = layers.Activation(activation)(conv(x, 16, 2))
    for filters, strides in ((16, 1), (32, 2)):
        y = layers.Activation(activation)(conv(x, filters, strides))
        y = conv(y, filters)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides=strides, **options)(x)
        x = layers.Activation(activation)(layers.Add()([x, y]))
    return layers.GlobalAveragePooling2D()(x)


def lstm(x, case):
    if case.kind == "tokens":
        x = layers.Embedding(64, 16)(x)
    x = layers.LSTM(32)(x)
    return dense(case, 32)(x)


def transformer(x, case):
    if case.kind == "tokens":
        x = layers.Embedding(64, 32)(x)
    else:
        x = layers.Dense(32)(x)
    y = layers.MultiHeadAttention(2, 16)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(32)(dense(case, 64)(x))
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(x)
    return dense(case, 32)(x)


def _images(name, network, **options):
    data = kt.datasets.load(name, standardize="channel")
    x, y = data.x_train[:ROWS], data.y_train[:ROWS]
    x_val, y_val = data.x_val[:300], data.y_val[:300]
    return Case(x, y, x_val, y_val, network, 10, **options)


def _table(x, y, network, **options):
    x, y = np.asarray(x, "float32"), np.asarray(y, "float32").reshape(-1, 1)
    x = (x - x.mean(0)) / x.std(0)
    y = (y - y.mean()) / y.std()
    held = len(x) // 5
    options = {"kind": "table", "regression": True, "loss": "mse", **options}
    return Case(
        x[held:], y[held:], x[:held], y[:held], network, 1, output=None, **options
    )


def _sequences(network, **options):
    """Noisy waves of four shapes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, ROWS + 300)
    t = np.arange(30)[None] * rng.uniform(0.3, 0.5, (len(y), 1))
    t = t + rng.uniform(0, 6.28, (len(y), 1))
    shapes = [np.sin(t), np.sign(np.sin(t)), np.sin(t) ** 3, np.abs(np.sin(t)) - 0.6]
    x = np.choose(y[:, None], shapes) + 0.1 * rng.normal(size=t.shape)
    x = (x / x.std())[..., None].astype("float32")
    return Case(
        x[300:], y[300:], x[:300], y[:300], network, 4, kind="sequences", **options
    )


def _tokens(network, seed, **options):
    """Texts of five Markov chains over 64 tokens."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, ROWS + 300)
    chains = rng.dirichlet(np.full(64, 0.1), (5, 64)).cumsum(-1)
    x = np.zeros((len(y), 24), "int32")
    x[:, 0] = rng.integers(0, 64, len(y))
    for place in range(1, 24):
        draw = rng.random(len(y))[:, None]
        x[:, place] = (chains[y, x[:, place - 1]] < draw).sum(-1).clip(0, 63)
    return Case(
        x[300:], y[300:], x[:300], y[:300], network, 5, kind="tokens", **options
    )


def momentum(rate):
    return keras.optimizers.SGD(rate, momentum=0.9)


# The thresholds come from the first half, the published table from the second.
CHOOSE = {
    "digits-mlp": lambda: _images(
        "digits", elu_mlp, optimizer=momentum, learning_rate=0.01
    ),
    "digits-cnn": lambda: _images("digits", cnn),
    "diabetes-mlp": lambda: _table(*datasets.load_diabetes(return_X_y=True), mlp),
    "tokens-lstm": lambda: _tokens(lstm, 0, learning_rate=3e-3),
    "fashion-resnet": lambda: _images("fashion_mnist", resnet),
}
JUDGE = {
    "fashion-mlp": lambda: _images("fashion_mnist", mlp),
    "fashion-cnn": lambda: _images(
        "fashion_mnist", cnn, optimizer=momentum, learning_rate=0.01
    ),
    "cifar10-resnet": lambda: _images("cifar10", resnet),
    "friedman-mlp": lambda: _table(
        *datasets.make_friedman1(1200, noise=1.0, random_state=0),
        elu_mlp,
        optimizer=momentum,
        learning_rate=0.01,
    ),
    "waves-lstm": lambda: _sequences(lstm, learning_rate=3e-3),
    "tokens-transformer": lambda: _tokens(transformer, 1),
}


def _floats(case):
    return case.kind != "tokens"


def _classes(case):
    return not case.regression


def _regression(case):
    return case.regression


def _any(case):
    return True


def _hidden(case):
    """Whether the hidden layers have an activation and no normalization behind them."""
    return case.network in (mlp, elu_mlp, cnn)


@keras.saving.register_keras_serializable(package="faults")
class AlwaysNoise(layers.Layer):
    """Noise at inference as in training."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


def deep(activation, initializer, depth=14):
    def network(x, case):
        x = layers.Flatten()(x)
        for _ in range(depth):
            x = layers.Dense(60, activation=activation, kernel_initializer=initializer)(
                x
            )
        return x

    return network


def bottleneck(network):
    def narrow(x, case):
        x = network(x, case)
        return layers.Dense(1, activation="relu", bias_initializer="ones")(x)

    return narrow


def _freeze(model):
    for layer in model.layers[:-1]:
        layer.trainable = False


def _freeze_all(model):
    model.trainable = False


FAULTS: dict[str, tuple] = {}


def fault(kinds, applies=_any):
    """Register a fault: the right kinds, the tasks that it is for, and the change."""

    def register(change):
        FAULTS[change.__name__] = (tuple(kinds.split()), applies, change)
        return change

    return register


def make_case(task, name):
    """The case of a task with a fault, or None where the fault is not for it."""
    case = {**CHOOSE, **JUDGE}[task]()
    if name is None:
        return case
    kinds, applies, change = FAULTS[name]
    if not applies(case):
        return None
    change(case, np.random.default_rng(1))
    case.expected = kinds
    return case


# Round 1: the data, the labels, and the fit of loss and output.


@fault("nan_in_data", _floats)
def nan_in_inputs(case, rng):
    case.x = case.x.copy()
    case.x.reshape(len(case.x), -1)[rng.integers(0, len(case.x), 3), 0] = np.nan


@fault("nan_in_data", _regression)
def nan_in_targets(case, rng):
    case.y = case.y.copy()
    case.y[5] = np.inf


@fault("unscaled_inputs", _floats)
def inputs_as_bytes(case, rng):
    case.x, case.x_val = 60 * case.x + 120, 60 * case.x_val + 120


@fault("unscaled_inputs", _floats)
def inputs_of_1e4(case, rng):
    case.x, case.x_val = 1e4 * case.x, 1e4 * case.x_val


@fault("unscaled_inputs", _floats)
def inputs_of_1e_4(case, rng):
    case.x, case.x_val = 1e-4 * case.x, 1e-4 * case.x_val


@fault("constant_feature", lambda case: case.kind == "table")
def constant_column(case, rng):
    case.x, case.x_val = case.x.copy(), case.x_val.copy()
    case.x[:, 1] = case.x_val[:, 1] = 3.0


@fault("one_wild_feature", lambda case: case.kind == "table")
def wild_column(case, rng):
    case.x, case.x_val = case.x.copy(), case.x_val.copy()
    case.x[:, 1] *= 1e4
    case.x_val[:, 1] *= 1e4


@fault("labels_out_of_range", _classes)
def labels_from_one(case, rng):
    case.y, case.y_val = case.y + 1, case.y_val + 1


@fault("labels_out_of_range", _classes)
def a_label_of_minus_one(case, rng):
    case.y = np.array(case.y)
    case.y[:20] = -1


@fault("labels_not_integers_or_one_hot", _classes)
def one_hot_with_sparse_loss(case, rng):
    case.y = np.eye(case.units, dtype="float32")[case.y]
    case.y_val = np.eye(case.units, dtype="float32")[case.y_val]


@fault("labels_not_integers_or_one_hot", _classes)
def integers_with_categorical_loss(case, rng):
    case.loss = "categorical_crossentropy"


@fault("wrong_loss_for_output", _classes)
def binary_loss_on_integers(case, rng):
    case.loss = "binary_crossentropy"
    case.y, case.y_val = case.y[:, None], case.y_val[:, None]


@fault("wrong_loss_for_output", _classes)
def mse_on_integers(case, rng):
    case.loss = "mse"
    case.y, case.y_val = case.y[:, None], case.y_val[:, None]


@fault(
    "wrong_loss_for_output output_does_not_depend_on_input "
    "activation_of_output_cannot_reach_targets",
    _regression,
)
def softmax_of_one_unit(case, rng):
    case.output = "softmax"


@fault("logits_without_from_logits", _classes)
def logits_taken_for_probabilities(case, rng):
    case.output = None


@fault("probabilities_as_logits", _classes)
def probabilities_taken_for_logits(case, rng):
    case.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@fault("activation_of_output_cannot_reach_targets", _regression)
def relu_output(case, rng):
    case.output = "relu"


@fault("activation_of_output_cannot_reach_targets", _regression)
def sigmoid_output(case, rng):
    case.output = "sigmoid"


@fault("class_imbalance", _classes)
def one_class_in_fifty(case, rng):
    most = case.y == 0
    case.y = np.where(most, 0, 1)
    kept = np.flatnonzero(~most)
    few = np.flatnonzero(most)[: max(2, len(kept) // 50)]
    rows = rng.permutation(np.concatenate([kept, few]))
    case.x, case.y, case.units = case.x[rows], case.y[rows], 2
    case.y_val = np.where(case.y_val == 0, 0, 1)


@fault("class_imbalance labels_carry_no_signal", _classes)
def labels_all_the_same(case, rng):
    case.y, case.y_val = np.zeros_like(case.y), np.zeros_like(case.y_val)


@fault("duplicates_across_split")
def validation_rows_in_training(case, rng):
    case.x_val = np.concatenate([case.x[:60], case.x_val])
    case.y_val = np.concatenate([case.y[:60], case.y_val])


@fault("conflicting_labels", _classes)
def rows_twice_with_other_labels(case, rng):
    rows = rng.permutation(len(case.x))[: len(case.x) // 4]
    case.x = np.concatenate([case.x, case.x[rows]])
    case.y = np.concatenate([case.y, (case.y[rows] + 1) % case.units])


@fault("too_few_rows")
def sixteen_rows(case, rng):
    case.x, case.y = case.x[:16], case.y[:16]


# Round 2: the network, as one batch shows it.


@fault("bad_initial_loss exploding_gradient saturated_units", _hidden)
def weights_too_large(case, rng):
    case.hidden = {"kernel_initializer": keras.initializers.RandomNormal(stddev=2.0)}


@fault("bad_initial_loss", _regression)
def targets_not_scaled(case, rng):
    case.y, case.y_val = 300 * case.y + 2000, 300 * case.y_val + 2000


@fault("dead_units", _hidden)
def biases_of_minus_ten(case, rng):
    case.hidden = {
        "activation": "relu",
        "bias_initializer": keras.initializers.Constant(-10.0),
    }


@fault("saturated_units", _hidden)
def saturated_tanh(case, rng):
    case.hidden = {
        "activation": "tanh",
        "kernel_initializer": keras.initializers.RandomNormal(stddev=3.0),
    }


@fault("saturated_units", _hidden)
def saturated_sigmoid(case, rng):
    case.hidden = {
        "activation": "sigmoid",
        "kernel_initializer": keras.initializers.RandomNormal(stddev=6.0),
    }


@fault("vanishing_gradient", lambda case: _hidden(case) and _floats(case))
def deep_sigmoid(case, rng):
    case.network = deep("sigmoid", "glorot_uniform")


@fault("vanishing_gradient", lambda case: _hidden(case) and _floats(case))
def deep_tanh_of_small_weights(case, rng):
    case.network = deep("tanh", keras.initializers.RandomNormal(stddev=0.02))


@fault(
    "exploding_gradient bad_initial_loss", lambda case: _hidden(case) and _floats(case)
)
def deep_relu_of_large_weights(case, rng):
    case.network = deep("relu", keras.initializers.RandomNormal(stddev=1.0))


@fault("symmetric_initialization nothing_trains dead_units", _hidden)
def kernels_of_zeros(case, rng):
    case.hidden = {"kernel_initializer": "zeros"}


@fault("symmetric_initialization", lambda case: case.network is not resnet)
def kernels_of_a_constant(case, rng):
    case.hidden = {"kernel_initializer": keras.initializers.Constant(0.02)}


@fault("nothing_trains")
def all_frozen(case, rng):
    case.change = _freeze_all


@fault("nothing_trains learning_rate_too_low")
def rate_of_zero(case, rng):
    case.learning_rate = 0.0


@fault("frozen_by_mistake")
def random_layers_frozen(case, rng):
    case.change = _freeze


@fault("batch_norm_batch_too_small", _floats)
def batch_norm_with_two_rows(case, rng):
    case.after = (layers.BatchNormalization,)
    case.batch_size = 2


@fault("rows_leak_into_each_other")
def mean_over_the_batch(case, rng):
    case.after = (
        lambda: layers.Lambda(lambda x: x - ops.mean(x, axis=0, keepdims=True)),
    )


@fault("rows_leak_into_each_other")
def softmax_over_the_batch(case, rng):
    case.after = (lambda: layers.Softmax(axis=0),)


@fault("output_does_not_depend_on_input")
def inputs_not_used(case, rng):
    case.after = (lambda: layers.Lambda(ops.zeros_like),)


@fault("not_deterministic_at_inference")
def noise_at_inference(case, rng):
    case.after = (AlwaysNoise,)


@fault("vanishing_gradient nothing_trains")
def gradient_stopped(case, rng):
    case.after = (lambda: layers.Lambda(ops.stop_gradient),)


# Round 3: what some steps show.


@fault("learning_rate_too_high oscillating_loss")
def rate_times_1000(case, rng):
    case.learning_rate *= 1000


@fault("learning_rate_too_high oscillating_loss")
def rate_times_100(case, rng):
    case.learning_rate *= 100


@fault("learning_rate_too_low")
def rate_over_1000(case, rng):
    case.learning_rate /= 1000


@fault("labels_carry_no_signal")
def labels_shuffled(case, rng):
    case.y, case.y_val = rng.permutation(case.y), rng.permutation(case.y_val)


@fault("regularization_too_strong", _hidden)
def l2_of_one(case, rng):
    case.hidden = {**case.hidden, "kernel_regularizer": keras.regularizers.L2(1.0)}


@fault("regularization_too_strong")
def weight_decay_of_fifty(case, rng):
    case.optimizer = lambda rate: keras.optimizers.AdamW(rate, weight_decay=50.0)
    case.learning_rate = 3e-3


@fault("dropout_too_strong")
def dropout_of_95_percent(case, rng):
    case.after = (lambda: layers.Dropout(0.95),)


@fault("underfitting cannot_overfit_a_batch", _classes)
def one_unit_wide(case, rng):
    case.network = bottleneck(case.network)


@fault("cannot_overfit_a_batch learning_rate_too_low vanishing_gradient")
def outputs_a_thousand_times_too_small(case, rng):
    case.after = (lambda: layers.Lambda(lambda x: 1e-3 * x),)


@fault("overfitting")
def sixty_rows_for_long(case, rng):
    rows = min(60, len(case.x))
    case.x, case.y = case.x[:rows], case.y[:rows]
    case.epochs = 60
