"""Which channels go: importances, and a ratio for each layer."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainkit as kt

prune = kt.pruning.prune_channels


def chain(units=(10, 8)):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units[0], name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(units[1], name="second"),
            layers.Dense(2, name="last"),
        ]
    )


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def test_group_l2_is_the_norm_of_all_weights_that_go_with_a_channel():
    model = chain()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    first, norm, second = model.layers[:3]
    # As Torch-Pruning's GroupMagnitudeImportance: no biases and shifts.
    first.bias.assign(100 * rng.uniform(size=10))
    norm.beta.assign(100 * rng.uniform(size=10))
    with_it = [array(first.kernel).T, array(norm.gamma)[:, None], array(second.kernel)]
    norms = np.linalg.norm(np.concatenate(with_it, axis=1), axis=1)
    result = prune(model, 0.5, importance="group_l2")
    np.testing.assert_array_equal(
        result.channels["first"], np.sort(np.argsort(norms)[5:])
    )
    # Not by chance what the layer's own weights say.
    assert (
        result.channels["first"].tolist()
        != prune(model, 0.5).channels["first"].tolist()
    )


def test_a_function_says_how_much_units_matter():
    model = chain()

    def importance(layer):
        if layer.name == "second":
            return None
        return np.arange(layer.units)[::-1]

    result = prune(model, 0.5, importance=importance)
    assert result.channels["first"].tolist() == [0, 1, 2, 3, 4]
    assert len(result.channels["second"]) == 8
    with pytest.raises(ValueError, match="each of the 10 units of 'first'"):
        prune(model, 0.5, importance=lambda layer: np.ones(3))


def test_a_ratio_for_each_layer():
    ratio = {"first": 0.2, layers.Dense: 0.5}
    kept = prune(chain(), ratio).channels
    assert [len(k) for k in kept.values()] == [8, 4, 2]
    kept = prune(chain(), {"second": 0.25}).channels
    assert [len(k) for k in kept.values()] == [10, 6, 2]


def test_layers_whose_channels_go_together_take_the_smallest_ratio():
    inputs = keras.Input((4,))
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Add()([x, layers.Dense(8, name="second")(x)])
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    kept = prune(model, {"first": 0.5, "second": 0.25}).channels
    assert len(kept["first"]) == len(kept["second"]) == 6
    kept = prune(model, {"second": 0.5}).channels
    assert len(kept["first"]) == len(kept["second"]) == 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": {}}, "`ratio` must be one number"),
        ({"ratio": {"first": 1.0}}, r"`ratio` must be a number in \[0, 1\)"),
        ({"ratio": {"none": 0.5}}, "`ratio` must be such that"),
        ({"ratio": {"first": 0.5}, "target": "flops"}, "`ratio` must be one number"),
        ({"ratio": {"first": 0.5}, "scope": "global"}, "`ratio` must be one number"),
    ],
)
def test_bad_ratios(options, match):
    with pytest.raises(ValueError, match=match):
        prune(chain(), **options)


def test_in_steps_with_training_between():
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    model, steps = chain((16, 16)), 2
    for _ in range(steps):
        model = prune(model, 1 - 0.25 ** (1 / steps), importance="group_l2").model
        model.compile("sgd", "mse")
        model.fit(x, x[:, :2], epochs=1, verbose=0)
    assert [layer.units for layer in model.layers if hasattr(layer, "units")] == [
        4, 4, 2,
    ]  # fmt: skip


def test_the_layer_that_stands_in_the_way_is_named():
    class Own(layers.Layer):
        def call(self, x):
            return keras.ops.flip(x, -1)

    model = keras.Sequential([keras.Input((4,)), layers.Dense(6, name="first"), Own()])
    with pytest.raises(
        ValueError, match="'first' feeds Own 'own', which is left whole"
    ):
        prune(model, 0.5)


def test_lora_is_left_whole_with_a_reason():
    model = chain()
    model.layers[0].enable_lora(2)
    result = prune(model, 0.5)
    assert "first" not in result.channels
    assert len(result.channels["second"]) == 4


def test_two_of_four_of_a_depthwise_kernel_along_its_channels():
    model = keras.Sequential([keras.Input((5, 5, 8)), layers.DepthwiseConv2D(3)])
    pruned = kt.pruning.prune_once(model, 0.5, pattern="2:4")
    kernel = array(model.layers[0].kernel).reshape(3, 3, 2, 4)
    ranks = np.argsort(np.argsort(np.abs(kernel), axis=-1), axis=-1)
    expected = np.where(ranks >= 2, kernel, 0).reshape(3, 3, 8, 1)
    np.testing.assert_array_equal(array(pruned.layers[0].kernel), expected)
    assert kt.pruning.sparsity_report(pruned, "2:4").layers[0].pattern
    # Two of the three along the width are no such pattern.
    value = np.ones((3, 3, 8, 1))
    value[:, 0] = 0
    pruned.layers[0].kernel.assign(value)
    assert not kt.pruning.sparsity_report(pruned, "2:4").layers[0].pattern


def test_blocks_by_their_largest_entry():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4)])
    kernel = array(model.layers[0].kernel)
    pruned = kt.pruning.prune_once(model, 0.5, pattern="2x2", block_pooling="max")
    # Five rows: the blocks of the last one are half as high.
    largest = {
        (i, j): np.abs(kernel[i : i + 2, j : j + 2]).max()
        for i in (0, 2, 4)
        for j in (0, 2)
    }
    expected = np.zeros_like(kernel)
    for i, j in sorted(largest, key=largest.__getitem__)[3:]:
        expected[i : i + 2, j : j + 2] = kernel[i : i + 2, j : j + 2]
    np.testing.assert_array_equal(array(pruned.layers[0].kernel), expected)
    with pytest.raises(ValueError, match="`block_pooling` must be one of"):
        kt.pruning.prune_once(model, 0.5, block_pooling="mean")


def test_lora_is_refused_by_name_or_excluded():
    model = chain()
    model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match="exclude 'first', which has LoRA"):
        kt.pruning.prune_once(model, 0.5)
    pruned = kt.pruning.prune_once(model, 0.5, exclude="first")
    report = kt.pruning.sparsity_report(pruned)
    assert list(report.skipped) == ["first"]
    assert "first: not listed, has LoRA" in report.summary()
    assert [layer.sparsity for layer in report.layers] == [0.5, 0.5]
