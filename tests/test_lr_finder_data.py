"""`find_lr` on data and models whose `fit` is not the plain one."""

import threading

import keras
import numpy as np
import pytest
from helpers import to_numpy

import keras_trainkit as kt


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, 6)).astype("float32")


def regression(seed=3):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


class AutoEncoder(keras.Model):
    """Trains without targets, on data that are inputs alone."""

    def __init__(self):
        super().__init__()
        self.parts = keras.Sequential(
            [keras.layers.Dense(3), keras.layers.Dense(6)], name="parts"
        )
        self.tracker = keras.metrics.Mean(name="loss")

    def call(self, x):
        return self.parts(x)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        assert y is None
        assert x.shape == y_pred.shape
        loss = keras.ops.mean(keras.ops.square(x - y_pred))
        self.tracker.update_state(loss)
        return loss


def auto_encoder():
    keras.utils.set_random_seed(3)
    model = AutoEncoder()
    model.compile("sgd")
    return model


def rows_in_order(count, batch, steps, seed=0):
    rng = np.random.default_rng(seed)
    passes = -(-steps * batch // count)
    rows = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return rows[: steps * batch].reshape(steps, batch)


def test_no_targets(x):
    """As arrays and as batches; the first loss is that of the model as it was."""
    model = auto_encoder()
    found = kt.find_lr(model, x, num_steps=12, batch_size=16)
    first = x[rows_in_order(64, 16, 12)[0]]
    error = first - to_numpy(model(first))
    np.testing.assert_allclose(found.losses[0], np.square(error).mean(), rtol=1e-5)
    batches = [(b,) for b in x.reshape(4, 16, 6)]
    losses = kt.find_lr(auto_encoder(), batches, num_steps=12).losses
    arrays = kt.find_lr(auto_encoder(), iter([b for (b,) in batches] * 3), num_steps=12)
    np.testing.assert_allclose(arrays.losses, losses, rtol=1e-5)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices(x).batch(16)
        same = kt.find_lr(auto_encoder(), data, num_steps=12)
        np.testing.assert_allclose(same.losses, losses, rtol=1e-5)


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        a, b = inputs
        return self.dense(keras.ops.concatenate([a, b], axis=-1))


@pytest.mark.parametrize("structure", [list, tuple])
def test_inputs_as_list_or_tuple(structure, x):
    def search(x, y=None):
        keras.utils.set_random_seed(3)
        model = TwoInputs()
        model.compile("sgd", "mse")
        return kt.find_lr(model, x, y, num_steps=10, batch_size=16)

    inputs, y = structure([x, -x]), x[:, :1]
    found = search(inputs, y)
    order = rows_in_order(64, 16, 10)
    batches = [(structure([x[rows], -x[rows]]), y[rows]) for rows in order]
    keras.utils.set_random_seed(3)
    model = TwoInputs()
    model.compile("sgd", "mse")
    same = kt.find_lr(model, batches, num_steps=10)
    np.testing.assert_allclose(found.losses, same.losses, rtol=1e-5)


class OwnFit(keras.Sequential):
    """A `fit` that preprocesses arrays and takes nothing else, as KerasHub's do."""

    def fit(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        if not isinstance(x, np.ndarray):
            raise TypeError(f"unsupported type {type(x)}")
        x = np.array([[len(text)] * 6 for text in x], "float32")
        return super().fit(x, y, batch_size, sample_weight=sample_weight, **kwargs)


@pytest.mark.parametrize("dtype", [None, object])
def test_a_fit_of_ones_own_gets_arrays(dtype):
    texts = np.array(["a", "bcd", "ef"] * 10, dtype)
    y = np.arange(30, dtype="float32")[:, None]
    lengths = np.repeat([[len(t)] for t in texts], 6, axis=1).astype("float32")
    keras.utils.set_random_seed(3)
    model = OwnFit([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    options = {"num_steps": 10, "max_lr": 1e-3, "batch_size": 8}
    options |= {"sample_weight": np.ones(30)}
    found = kt.find_lr(model, texts if dtype else list(texts), y, **options)
    expected = kt.find_lr(regression(), lengths, y, **options)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


class Unpacks(keras.Sequential):
    def train_step(self, data):
        x, y = data
        del x, y
        return super().train_step(data)


def test_a_training_step_that_unpacks_pairs(x):
    losses = []
    for cls in (Unpacks, keras.Sequential):
        keras.utils.set_random_seed(3)
        model = cls([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        if keras.backend.backend() == "jax" and cls is Unpacks:
            continue
        losses.append(kt.find_lr(model, x, x[:, :1], num_steps=10).losses)
    np.testing.assert_allclose(losses[0], losses[-1], rtol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="strings are TensorFlow's"
)
def test_strings_inside_the_model():
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    words, number = keras.Input((1,), dtype="string", name="w"), keras.Input((1,))
    features = keras.layers.Concatenate()([lookup(words), number])
    model = keras.Model([words, number], keras.layers.Dense(1)(features))
    model.compile("sgd", "mse")
    w = np.array([["a"], ["b"], ["c"]] * 10, object)
    n, y = np.ones((30, 1)), np.zeros((30, 1))
    found = kt.find_lr(model, [w, n], y, num_steps=10)
    import tensorflow as tf

    expected = np.square(to_numpy(model([tf.constant(w), tf.constant(n)]))).mean()
    assert abs(found.losses[0] - expected) < 0.5 * expected
    batches = [((w[:10], n[:10]), y[:10])]
    assert len(kt.find_lr(model, batches, num_steps=10).losses) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((0, 6)), np.zeros((0, 1))), "`x` must be at least one row"),
        (([],), "`x` must be at least one"),
        ((iter([]),), "`x` must be at least one batch"),
        ((np.zeros((4, 6)),), "`y` must be given, since the loss needs targets"),
        (([], np.zeros((4, 1))), "`x` must be at least one array"),
    ],
)
def test_no_data_is_refused(arguments, message):
    model = regression()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        kt.find_lr(model, *arguments)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


@pytest.mark.parametrize("search", ["callback", "function"])
def test_the_order_of_a_dataset_afterwards_is_the_same_as_without(search, x):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            rows = slice(8 * index, 8 * index + 8)
            return x[rows], x[rows, :1]

    results = []
    for searched in (False, True):
        model = regression()
        if searched and search == "function":
            kt.find_lr(model, Batches(), num_steps=12)
        elif searched:
            finder = kt.callbacks.LRFinder(num_steps=12)
            model.fit(Batches(), epochs=3, callbacks=[finder], verbose=0)
        model.fit(Batches(), epochs=2, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's own loader")
def test_a_data_loader_shuffles_afterwards_as_without(x):
    import torch

    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(x[:, :1]))
    results = []
    for searched in (False, True):
        model = regression()
        loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        if searched:
            kt.find_lr(model, loader, num_steps=12)
        model.fit(loader, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_order_that_workers_read_ahead_is_the_same_as_without(x):
    def loss(y_true, y_pred):
        # The first fit builds the loss with a batch, while the workers read on. Where
        # they are when it has done so is left to chance otherwise.
        assert batches.all_are_asked_for.wait(60)
        return keras.ops.mean(keras.ops.square(y_true - y_pred), -1)

    class Batches(keras.utils.PyDataset):
        def __init__(self):
            super().__init__(workers=2)
            self.all_are_asked_for = threading.Event()

        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 3:
                self.all_are_asked_for.set()
            rows = slice(16 * index, 16 * index + 16)
            return x[rows], x[rows, :1]

    results = []
    for searched in (False, True):
        model = regression()
        model.compile("adam", loss)
        options = {"shuffle": False, "verbose": 0}
        batches = Batches()
        if searched:
            finder = kt.callbacks.LRFinder(num_steps=10)
            model.fit(batches, epochs=3, callbacks=[finder], **options)
        model.fit(batches, epochs=2, **options)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
