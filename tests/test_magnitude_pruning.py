import json

import keras
import numpy as np
import pytest
from helpers import DTYPE_POLICIES, JIT_OPTIONS, save_and_load

import keras_trainkit as kt
from keras_trainkit._model.kernels import Kernel
from keras_trainkit.pruning._masks import masks, parse_pattern

TORCH = keras.backend.backend() == "torch"
# PyTorch's trainer takes one step at a time.
STEPS_PER_EXECUTION = (1,) if TORCH else (1, 5)
STEPS = 20


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8 * STEPS, 6)).astype("float32")
    return x, (x @ rng.normal(size=(6, 3))).argmax(-1)


def make_model(optimizer="adam", hidden=10, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(hidden, name="first"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(3, activation="softmax", name="last"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return model


def fit(model, data, *callbacks, epochs=1, **options):
    model.fit(*data, 8, epochs=epochs, callbacks=[*callbacks], verbose=0, **options)
    return sparsities(model)


def sparsities(model):
    return [layer.sparsity for layer in kt.pruning.sparsity_report(model).layers]


class EveryStep(keras.callbacks.Callback):
    """Keeps the zeros of the first kernel after every batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.get_layer("first").kernel
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.seen.append(keras.ops.convert_to_numpy(kernel) == 0)


def find(values, inputs, sparsity, pattern=None, together=False):
    """Masks of plain arrays."""
    kernels = [Kernel(None, keras.Variable(value), inputs) for value in values]
    found = masks(
        kernels,
        [keras.ops.convert_to_tensor(value) for value in values],
        [sparsity] * len(values),
        parse_pattern(pattern),
        together,
    )
    return [keras.ops.convert_to_numpy(mask) for mask in found]


# --- schedules


def test_polynomial_is_tfmots():
    sparsity = kt.pruning.PolynomialSparsity(0.2, 0.8, 100, 110, power=3)
    seen = [float(sparsity(step)) for step in (0, 100, 102, 105, 110, 500)]
    np.testing.assert_allclose(seen, [0.2, 0.2, 0.4928, 0.725, 0.8, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        kt.pruning.PolynomialSparsity(0.1, 0.9, 5, 50, power=2.0),
        kt.pruning.ConstantSparsity(0.5, 10, 20),
    ],
)
def test_schedules_are_serializable(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    copy = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert copy.get_config() == schedule.get_config()
    assert float(copy(12)) == float(schedule(12))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: kt.pruning.PolynomialSparsity(0, 1, 0, 5), "`final` must be a number"),
        (lambda: kt.pruning.PolynomialSparsity(0, 0.5, 5, 5), "`end_step` must be > "),
        (lambda: kt.pruning.PolynomialSparsity(0, 0.5, 0, 5, 0), "`power` must be"),
        (lambda: kt.pruning.ConstantSparsity(0.5, 5, 4), "`end_step` must be >= "),
    ],
)
def test_bad_schedules(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# --- masks


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.5, 0.999])
def test_the_smallest_go_and_the_count_is_exact(sparsity, dtype):
    rng = np.random.default_rng(0)
    # Few values, so that many are equal, of both signs and zero.
    value = rng.integers(-20, 20, (40, 25)).astype(dtype) / 16
    (mask,) = find([value], (0,), sparsity)
    order = np.argsort(np.abs(value), axis=None, kind="stable")
    expected = np.ones(value.size, bool)
    expected[order[: value.size - max(round(value.size * (1 - sparsity)), 1)]] = False
    np.testing.assert_array_equal(mask.ravel(), expected)


def test_global_scope_ranks_all_in_one_list():
    rng = np.random.default_rng(0)
    values = [rng.normal(size=s).astype("float32") for s in ((8, 5), (3, 7), (1, 4))]
    found = find(values, (0,), 0.6, together=True)
    everything = np.concatenate([value.ravel() for value in values])
    bound = np.sort(np.abs(everything))[round(65 * 0.6)]
    for value, mask in zip(values, found, strict=True):
        np.testing.assert_array_equal(mask, np.abs(value) >= bound)


def test_two_of_four_is_the_published_example():
    # TF-MOT's own test, with the groups along the rows.
    weights = np.array([[0.25, -1.33, 0.43, -0.11], [0.47, 0.92, -0.13, -2.23]])
    (mask,) = find([weights.astype("float32")], (1,), 0.5, "2:4")
    np.testing.assert_array_equal(mask, [[0, 1, 1, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 8)])
@pytest.mark.parametrize(("shape", "axis"), [((11, 3), 0), ((3, 3, 9, 2), 2)])
def test_n_of_m(n, m, shape, axis):
    value = np.random.default_rng(0).normal(size=shape).astype("float32")
    (mask,) = find([value], tuple(range(axis + 1)), 1 - n / m, f"{n}:{m}")
    scores = np.moveaxis(np.abs(value), axis, -1)
    kept = np.moveaxis(mask, axis, -1)
    for start in range(0, shape[axis], m):
        group = scores[..., start : start + m]
        rank = np.argsort(np.argsort(-group, axis=-1), axis=-1)
        np.testing.assert_array_equal(kept[..., start : start + m], rank < n)


def test_blocks_stay_or_go_as_one():
    value = np.random.default_rng(0).normal(size=(10, 7)).astype("float32")
    (mask,) = find([value], (0,), 0.5, "4x3")
    means = {
        (i, j): np.abs(value[i : i + 4, j : j + 3]).mean()
        for i in range(0, 10, 4)
        for j in range(0, 7, 3)
    }
    bound = sorted(means.values())[-4]  # 9 blocks: round(4.5) = 4 stay
    for (i, j), mean in means.items():
        assert (mask[i : i + 4, j : j + 3] == (mean >= bound)).all()


# --- training


@pytest.mark.parametrize("jit", JIT_OPTIONS)
@pytest.mark.parametrize("per_execution", STEPS_PER_EXECUTION)
@pytest.mark.parametrize("frequency", [3, 100])
def test_final_sparsity_is_exact(data, jit, per_execution, frequency):
    model = make_model(jit_compile=jit, steps_per_execution=per_execution)
    pruning = kt.pruning.MagnitudePruning(0.8, end_step=15, frequency=frequency)
    assert fit(model, data, pruning) == [48 / 60, 24 / 30]
    assert np.all(keras.ops.convert_to_numpy(model.get_layer("first").bias))


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "weight decay": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "ema overwrite": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4
    ),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1, l1_regularization_strength=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_hold_whatever_the_optimizer(data, name):
    model = make_model(OPTIMIZERS[name]())
    seen = EveryStep()
    pruning = kt.pruning.MagnitudePruning(0.5, end_step=10, frequency=5)
    found = fit(model, data, pruning, seen)
    assert found == [0.5, 0.5]
    assert [int(zeros.sum()) for zeros in seen.seen[8:]] == [30] * 12
    for zeros in seen.seen[9:]:
        np.testing.assert_array_equal(zeros, seen.seen[8])


@pytest.mark.parametrize("policy", DTYPE_POLICIES[1:])
def test_mixed_precision(data, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy(before)
    if policy == "mixed_float16":
        assert hasattr(model.optimizer, "inner_optimizer")
        # An initial scale that no gradient here overflows with: every batch counts.
        model.optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(), initial_scale=8.0
        )
    pruning = kt.pruning.MagnitudePruning(0.7, end_step=10, frequency=4)
    assert fit(model, data, pruning) == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize("first", [True, False])
def test_with_one_cycle(data, first):
    model = make_model("sgd")
    pruning = kt.pruning.MagnitudePruning(0.8, end_step=15, frequency=4)
    callbacks = [pruning, kt.callbacks.OneCycle(0.1)]
    assert fit(model, data, *(callbacks if first else callbacks[::-1])) == [0.8, 0.8]
    assert type(model.optimizer) is keras.optimizers.SGD().__class__


def test_steps_and_sparsity_follow_the_schedule(data):
    seen = EveryStep()
    pruning = kt.pruning.MagnitudePruning(0.8, begin_step=3, end_step=14, frequency=5)
    fit(make_model(), data, pruning, seen)
    schedule = kt.pruning.PolynomialSparsity(0, 0.8, 3, 14)
    counts = [int(zeros.sum()) for zeros in seen.seen]
    expected = {
        step: 60 - round(60 * (1 - float(schedule(step)))) for step in (3, 8, 13, 14)
    }
    # After batch `i`, which is step `i + 1`, the weights are pruned for the next.
    for i, count in enumerate(counts):
        last = max([step for step in expected if step <= i + 2], default=3)
        assert count == expected[last], f"step {i + 2}"


def test_what_is_not_yet_pruned_trains_as_without(data):
    plain, pruned = make_model("sgd"), make_model("sgd")
    fit(plain, [array[: 19 * 8] for array in data], shuffle=False)
    pruning = kt.pruning.MagnitudePruning(0.5, begin_step=21, schedule="constant")
    with pytest.raises(ValueError, match="`end_step` must be <= 20"):
        fit(pruned, data, pruning, shuffle=False)
    pruning = kt.pruning.MagnitudePruning(0.5, begin_step=20, schedule="constant")
    fit(pruned, data, pruning, shuffle=False)
    kernels = [m.get_layer("first").kernel for m in (plain, pruned)]
    a, b = (keras.ops.convert_to_numpy(kernel) for kernel in kernels)
    # The masks are those before the last batch.
    np.testing.assert_array_equal(b != 0, np.abs(a) >= np.sort(np.abs(a).ravel())[30])
    assert not np.signbit(b[b == 0]).any()


def test_zeros_that_are_not_pruned_go_on_training(data):
    model = make_model("sgd")
    model.get_layer("last").kernel.assign(np.zeros((10, 3)))
    pruning = kt.pruning.MagnitudePruning(0.5, begin_step=2, end_step=12, frequency=2)
    assert fit(model, data, pruning) == [0.5, 0.5]
    kernel = keras.ops.convert_to_numpy(model.get_layer("last").kernel)
    assert np.abs(kernel[kernel != 0]).min() > 1e-6


def test_a_constraint_that_clips_does_not_prune(data):
    model = make_model("sgd")
    layer = model.get_layer("first")
    layer.kernel.assign(np.abs(layer.kernel))
    layer.kernel.constraint = keras.constraints.NonNeg()
    pruning = kt.pruning.MagnitudePruning(0.3, end_step=5)
    assert fit(model, data, pruning)[0] == pytest.approx(0.3)
    assert np.min(keras.ops.convert_to_numpy(layer.kernel)) == 0


def test_a_second_fit_goes_on(data):
    model = make_model()
    pruning = kt.pruning.MagnitudePruning(0.8, end_step=15, frequency=4)
    fit(model, data, pruning)
    zeros = keras.ops.convert_to_numpy(model.get_layer("first").kernel) == 0
    assert fit(model, data, pruning) == [0.8, 0.8]
    again = keras.ops.convert_to_numpy(model.get_layer("first").kernel) == 0
    np.testing.assert_array_equal(again, zeros)
    # Without the callback nothing holds them any more.
    assert fit(model, data) == [0.0, 0.0]


def test_pruning_after_plain_training_begins_at_its_first_step(data):
    model = make_model()
    fit(model, data, epochs=2)
    seen = EveryStep()
    pruning = kt.pruning.MagnitudePruning(0.8, end_step=10, frequency=5)
    assert fit(model, data, pruning, seen) == [0.8, 0.8]
    assert [int(z.sum()) for z in seen.seen[:10]] == [0] * 3 + [42] * 5 + [48] * 2


def test_pruning_after_plain_training_resumes(data):
    whole, halved = make_model(), make_model()
    for model in (whole, halved):
        fit(model, data, epochs=2, shuffle=False)
    pruning = kt.pruning.MagnitudePruning(0.8, end_step=36, frequency=5)
    fit(whole, data, pruning, epochs=2, shuffle=False)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    again = kt.pruning.MagnitudePruning(0.8, end_step=36, frequency=5)
    with pytest.warns(UserWarning, match="ended at step 20, before end_step=36"):
        fit(halved, data, again, Stop(), epochs=2, shuffle=False)
    assert 0 < sparsities(halved)[0] < 0.8
    fit(halved, data, again, epochs=2, initial_epoch=1, shuffle=False)
    for a, b in zip(whole.get_weights(), halved.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5, "begin_step": 30, "schedule": "constant", "pattern": "2:4"},
        {"sparsity": 0.8, "schedule": kt.pruning.PolynomialSparsity(0.5, 0.8, 30, 36)},
    ],
)
def test_a_schedule_that_has_not_begun_keeps_its_steps(data, options):
    model = make_model()
    fit(model, data)
    seen = EveryStep()
    fit(model, data, kt.pruning.MagnitudePruning(**options), seen, epochs=1)
    pruned = [bool(zeros.any()) for zeros in seen.seen]
    # After 29 batches, before the 30th.
    assert pruned == [False] * 8 + [True] * 12


def test_two_callbacks_and_another_model(data):
    first, last = (
        kt.pruning.MagnitudePruning(s, end_step=10, frequency=5, include=name)
        for name, s in (("first", 0.5), ("last", 0.9))
    )
    model = make_model()
    fit(model, data, epochs=2)
    assert fit(model, data, first, last) == [0.5, 0.9]
    assert fit(make_model(), data, first, last) == [0.5, 0.9]
    assert "apply" not in vars(model.optimizer)
    assert fit(model, data) == [0.0, 0.0]


def test_the_file_is_a_plain_one(data, tmp_path):
    model = make_model()
    fit(model, data, kt.pruning.MagnitudePruning(0.8, end_step=10))
    assert b"keras_trainkit" not in json.dumps(model.get_config()).encode()
    loaded = save_and_load(model, tmp_path)
    assert sparsities(loaded) == [0.8, 0.8]
    assert int(loaded.optimizer.iterations) == STEPS
    assert type(loaded.optimizer) is type(model.optimizer)


def test_targets(data):
    pruning = kt.pruning.MagnitudePruning({"first": 0.5, ".*": 0.9}, end_step=5)
    assert fit(make_model(), data, pruning) == pytest.approx([0.5, 0.9])
    pruning = kt.pruning.MagnitudePruning(0.5, end_step=5, exclude="last")
    assert fit(make_model(), data, pruning) == [0.5, 0.0]
    pruning = kt.pruning.MagnitudePruning(
        0.5, end_step=5, include=lambda layer: getattr(layer, "units", 0) == 3
    )
    assert fit(make_model(), data, pruning) == [0.0, 0.5]
    pruning = kt.pruning.MagnitudePruning(
        0.6, end_step=5, scope="global", include=keras.layers.Dense
    )
    first, last = fit(make_model(), data, pruning)
    assert round(60 * first + 30 * last) == 54
    assert first != last


@pytest.mark.parametrize("pattern", ["2:4", "2x1"])
def test_patterns(data, pattern):
    model = make_model(hidden=8)
    fit(model, data, kt.pruning.MagnitudePruning(0.5, end_step=10, pattern=pattern))
    report = kt.pruning.sparsity_report(model, pattern=pattern)
    assert [layer.pattern for layer in report.layers] == [True, True]
    # Of a unit's 6 inputs, 2:4 keeps 2 of the first 4 and both that are left.
    assert report.layers[1].sparsity == 0.5
    assert report.layers[0].nonzeros == (32 if pattern == "2:4" else 24)
    other = kt.pruning.sparsity_report(make_model(), pattern="2:4")
    assert [layer.pattern for layer in other.layers] == [False, False]


def test_every_kind_of_kernel():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.SeparableConv2D(6, 3, name="separable")(inputs)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.Conv2DTranspose(4, 2, name="transposed")(x)
    x = keras.layers.Reshape((25, 4))(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Bidirectional(keras.layers.GRU(4), name="recurrent")(x)
    tokens = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(10, 4, name="embedding")(tokens)
    x = keras.layers.Concatenate()([x, keras.layers.Flatten()(words)])
    model = keras.Model([inputs, tokens], keras.layers.Dense(2, name="head")(x))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    data = (
        [
            rng.normal(size=(8, 8, 8, 4)).astype("float32"),
            rng.integers(0, 10, (8, 3)),
        ],
        rng.normal(size=(8, 2)),
    )
    pruning = kt.pruning.MagnitudePruning(0.5, end_step=3, frequency=1)
    model.fit(*data, 2, callbacks=[pruning], verbose=0)
    report = kt.pruning.sparsity_report(model)
    assert len(report.layers) == 2 + 1 + 1 + 4 + 4 + 1 + 1
    assert [layer.sparsity for layer in report.layers] == [0.5] * 14


def test_rewinding(data):
    model = make_model("sgd")
    weights = {}

    class KeepWeights(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                if keras.backend.backend() == "jax":
                    self.model.jax_state_sync()
                weights["step 4"] = [np.array(w) for w in self.model.get_weights()]

    keep = KeepWeights()
    pruning = kt.pruning.MagnitudePruning(0.5, end_step=15, frequency=15, rewind_to=4)
    assert fit(model, data, keep, pruning) == [0.5, 0.5]
    for now, then in zip(model.get_weights(), weights["step 4"], strict=True):
        np.testing.assert_array_equal(now[now != 0], then[now != 0])


# --- errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": 1.0}, r"`sparsity` must be a number in \[0, 1\)"),
        ({"end_step": None}, "`end_step` must be an integer"),
        ({"end_step": 5, "begin_step": 5}, "`end_step` must be > begin_step=5"),
        ({"frequency": 0}, "`frequency` must be an integer >= 1"),
        ({"scope": "model"}, "`scope` must be one of"),
        ({"pattern": "4:2"}, "`pattern` must be None"),
        ({"pattern": "2:4", "sparsity": 0.6}, "`sparsity` must be 0.5 with 2:4"),
        ({"schedule": "linear"}, "`schedule` must be"),
        ({"include": 3}, "`include` must be a layer"),
        ({"include": "("}, "`include` must be a regular expression"),
        ({"sparsity": {"a": 0.5}, "scope": "global"}, "`sparsity` must be one number"),
        ({"rewind_to": 50}, "`rewind_to` must be <= "),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        kt.pruning.MagnitudePruning(**{"sparsity": 0.5, "end_step": 9, **options})


def test_an_end_beyond_the_fit_raises_before_it(data):
    model = make_model()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(ValueError, match="`end_step` must be <= 20"):
        fit(model, data, kt.pruning.MagnitudePruning(0.5, end_step=21))
    with pytest.raises(ValueError, match="`include` must be such that it matches"):
        fit(model, data, kt.pruning.MagnitudePruning(0.5, end_step=9, include="x"))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:.*(shuffle=True|ran out of data):UserWarning")
def test_an_end_beyond_a_fit_of_unknown_length_warns(data):
    def batches():
        for start in range(0, 80, 8):
            yield data[0][start : start + 8], data[1][start : start + 8]

    model = make_model()
    pruning = kt.pruning.MagnitudePruning(0.5, end_step=21)
    with pytest.warns(UserWarning, match="before end_step=21"):
        model.fit(batches(), callbacks=[pruning], verbose=0)
