import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

import keras_trainkit as kt


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


def test_lr_finder_marks_every_suggestion():
    lrs = np.logspace(-5, 0, 60)
    losses = 2 - np.tanh(np.log10(lrs) + 3)
    result = kt.lr_finder.analyse(lrs, losses)
    ax = kt.plots.lr_finder(result)
    assert ax.get_xscale() == "log"
    curves = ax.get_lines()
    np.testing.assert_array_equal(curves[0].get_ydata(), losses)
    np.testing.assert_array_equal(curves[1].get_ydata(), result.smoothed)
    marked = {line.get_xdata()[0] for line in curves[2:]}
    assert marked == set(result.suggestions.values())
    assert ax.get_title() == result.verdict


def test_schedule_has_the_momentum_on_the_right():
    ax = kt.plots.schedule([0.1, 0.2], [0.9, 0.8])
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [0.1, 0.2])
    right = next(other for other in ax.figure.axes if other is not ax)
    np.testing.assert_array_equal(right.get_lines()[0].get_ydata(), [0.9, 0.8])


def test_learning_curves_count_epochs_from_1():
    history = {"loss": [3, 2], "val_loss": [4, 3], "accuracy": [0.1, 0.2]}
    ax = kt.plots.learning_curves(history)
    assert [line.get_label() for line in ax.get_lines()] == ["training", "validation"]
    np.testing.assert_array_equal(ax.get_lines()[1].get_xdata(), [1, 2])
    assert len(kt.plots.learning_curves(history, "accuracy").get_lines()) == 1
    with pytest.raises(ValueError, match="`metric` must be one of 'loss'"):
        kt.plots.learning_curves(history, "f1")


def test_variants_has_a_panel_for_each_measure():
    table = {"a": {"size": 2.0, "time": 3.0}, "b": {"size": 1.0, "time": 1.0}}
    axes = kt.plots.variants(table)
    assert [ax.get_xlabel() for ax in axes] == ["size", "time"]
    assert [bar.get_width() for bar in axes[0].patches] == [2, 1]


def test_uncertain_images_shows_the_best_three_classes(rng):
    p = np.array([[0.5, 0.3, 0.15, 0.05]] * 3)
    axes = kt.plots.uncertain_images(
        rng.uniform(size=(3, 4, 4, 1)), p, np.array([0, 1, 3]), "abcd", columns=2
    )
    assert axes.shape == (4, 2)
    assert isinstance(axes[0, 0], Axes)
    assert [bar.get_width() for bar in axes[1, 0].patches] == [0.5, 0.3, 0.15]
    assert [text.get_text() for text in axes[1, 0].texts] == ["a 50%", "b 30%", "c 15%"]


def test_axes_that_are_given_are_used():
    _, ax = pyplot.subplots()
    assert kt.plots.schedule([1, 2], ax=ax) is ax
    assert kt.plots.learning_curves({"loss": [1]}, ax=ax) is ax


def test_signal_shows_what_each_layer_has(rng):
    model = kt.models.build_mlp((6,), 3, hidden_units=(5,))
    kt.models.PRESETS["default"].compile(model)
    x, y = rng.normal(size=(16, 6)), rng.integers(0, 3, 16)
    report = kt.diagnostics.signal_report(model, x, y)
    outputs, units, gradients = kt.plots.signal(report)
    np.testing.assert_array_equal(
        outputs.get_lines()[0].get_ydata(), [layer.mean for layer in report.layers]
    )
    # The softmax alone has bounds; the two Dense layers alone have gradients.
    dead, saturated = units.get_lines()
    assert (len(dead.get_xdata()), len(saturated.get_xdata())) == (3, 1)
    assert [len(line.get_xdata()) for line in gradients.get_lines()] == [2, 2]
    assert gradients.get_yscale() == "log"
    kt.plots.signal(kt.diagnostics.signal_report(model, x))


def test_reliability_shows_accuracy_over_confidence():
    p = np.array([[0.7, 0.3], [0.6, 0.4], [0.95, 0.05]])
    curve = kt.uncertainty.reliability_curve(np.array([0, 1, 0]), p, 5)
    ax = kt.plots.reliability(curve)
    _, accuracy = ax.get_lines()
    np.testing.assert_array_equal(accuracy.get_ydata(), curve.accuracy)
    assert [bar.get_height() for bar in ax.patches] == [0, 0, 1 / 3, 1 / 3, 1 / 3]


def band_of(mc, x, level=0.95):
    ax = kt.plots.regression_band(x, mc, level)
    mean = next(line for line in ax.get_lines() if line.get_label() == "mean")
    return ax, mean, [area.get_paths()[0].get_extents() for area in ax.collections]


def test_regression_band_has_the_quantiles_or_the_normal(rng):
    samples = rng.normal(size=(400, 5, 1))
    x = np.array([3.0, 1, 2, 5, 4])
    moments = {"mean": samples.mean(0), "std": samples.std(0)}
    nothing = dict.fromkeys(
        ("predictive_entropy", "mutual_information", "variation_ratio")
    )
    make = kt.uncertainty.MCPrediction
    kept = make(**moments, **nothing, num_samples=400, samples=samples)
    _, mean, (inner,) = band_of(kept, x)
    np.testing.assert_array_equal(mean.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(mean.get_ydata(), moments["mean"][[1, 2, 0, 4, 3], 0])
    np.testing.assert_allclose(inner.y1, np.quantile(samples, 0.975, axis=0).max())
    noisy = make(
        **moments, **nothing, num_samples=400, aleatoric_std=np.full((5, 1), 2.0)
    )
    _, _, (outer, inner) = band_of(noisy, x)
    upper = moments["mean"] + 1.959964 * moments["std"]
    np.testing.assert_allclose(inner.y1, upper.max(), rtol=1e-6)
    wide = moments["mean"] + 1.959964 * np.sqrt(moments["std"] ** 2 + 4)
    np.testing.assert_allclose(outer.y1, wide.max(), rtol=1e-6)
    with pytest.raises(ValueError, match="`prediction` must be of one output and 3"):
        kt.plots.regression_band(x[:3], kept)


def test_intervals_mark_what_is_outside():
    x, y = np.array([2.0, 0.0, 1.0]), np.array([5.0, 0.0, 1.0])
    ax = kt.plots.intervals(x, x - 1, x + 1, y)
    inside, outside = ax.get_lines()
    np.testing.assert_array_equal(inside.get_xdata(), [0, 1])
    np.testing.assert_array_equal(outside.get_xdata(), [2])
    assert outside.get_label() == "outside: 33.3%"
    with pytest.raises(ValueError, match="`lower` must be one bound for each of the 3"):
        kt.plots.intervals(x, x[:2], x)


def test_set_sizes_have_their_coverage():
    sets = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1]], bool)
    ax = kt.plots.set_sizes(sets, np.array([0, 1, 2]))
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, [2 / 3, 0, 1 / 3])
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [1, 3])
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [0.5, 1])
    with pytest.raises(ValueError, match=r"`sets` must be of shape \(rows, classes\)"):
        kt.plots.set_sizes(sets[0])
