from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

import keras_trainkit as kt


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


def marked(ax):
    """The rates of the vertical lines behind the two curves."""
    return {line.get_xdata()[0] for line in ax.get_lines()[2:]}


def test_lr_finder_says_one_thing():
    lrs = np.logspace(-5, 1, 80)
    losses = 2 - np.tanh(np.log10(lrs) + 3) + np.maximum(np.log10(lrs), 0) * 20
    result = kt.lr_finder.analyse(lrs, losses)
    ax = kt.plots.lr_finder(result)
    assert ax.get_xscale() == "log"
    curves = ax.get_lines()
    np.testing.assert_array_equal(curves[0].get_ydata(), losses)
    np.testing.assert_array_equal(curves[1].get_ydata(), result.smoothed)
    assert marked(ax) == {result.suggestion, result.one_cycle}
    assert ax.get_title() == f"Learning rate {result.suggestion:.2g}"
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "diverged"
    every = kt.plots.lr_finder(result, show_all=True)
    assert marked(every) == set(result.suggestions.values())


def test_lr_finder_without_a_descent_marks_nothing(rng):
    lrs = np.logspace(-5, 1, 80)
    for losses in (rng.normal(1, 0.01, size=80), np.full(80, np.nan)):
        result = kt.lr_finder.analyse(lrs, losses)
        assert result.suggestion is result.one_cycle is None
        ax = kt.plots.lr_finder(result, show_all=True)
        assert not marked(ax)
        assert ax.get_title() in (
            "No descent at any learning rate",
            "Diverges from the beginning: lower min_lr",
        )


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


def test_schedule_takes_a_schedule_or_a_callback():
    rate = kt.schedules.OneCycle(0.1, 20)
    ax = kt.plots.schedule(rate, kt.schedules.OneCycleMomentum(20))
    expected = [float(rate(step)) for step in range(20)]
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), expected)
    ax = kt.plots.schedule(kt.callbacks.OneCycle(0.1), steps=20)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), expected)
    right = next(other for other in ax.figure.axes if other is not ax)
    momentum = kt.schedules.OneCycleMomentum(20, 0.95, 0.85)
    expected = [float(momentum(step)) for step in range(20)]
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), expected)
    # In epochs: a tenth after one of 5 batches, in 10.
    ax = kt.plots.schedule(
        kt.callbacks.ExponentialSchedule(1.0, 1), steps=10, steps_per_epoch=5
    )
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[[0, 5]], [1.0, 0.1])


def test_schedule_takes_every_schedule_callback():
    step = kt.schedules.Step(1.0, 4, 0.5)
    calls = kt.callbacks
    for callback in (
        calls.ApplySchedule(step),
        calls.PlateauSchedule(step),
        calls.PowerSchedule(1.0, 1),
        calls.PiecewiseConstantSchedule([1], [1.0, 0.5]),
    ):
        ax = kt.plots.schedule(callback, steps=8, steps_per_epoch=4)
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[[0, 4]], [1.0, 0.5])
        assert callback.params is None
    # The length that its schedule knows.
    cycle = calls.ApplySchedule(kt.schedules.OneCycle(0.1, 20))
    assert len(kt.plots.schedule(cycle).get_lines()[0].get_ydata()) == 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kt.plots.schedule(kt.callbacks.OneCycle("auto"), steps=9), "found"),
        (lambda: kt.plots.schedule(kt.callbacks.PlateauSchedule(), steps=9), "own"),
        (lambda: kt.plots.schedule("cycle"), "`learning_rates` must be"),
        (lambda: kt.plots.schedule(kt.schedules.Constant(0.1)), "steps=None"),
        (lambda: kt.plots.schedule(kt.callbacks.OneCycle(0.1)), "steps=None"),
        (lambda: kt.plots.schedule(None), "`learning_rates` must be"),
        (lambda: kt.plots.schedule([]), "`learning_rates` must be"),
        (lambda: kt.plots.compare({}), "at least one history"),
        (lambda: kt.plots.compare({"a": {"loss": [1]}}), "metric='val_loss'"),
        (lambda: kt.plots.confusion_matrix([0], [[1, 0]], ["a"]), "at least 2 names"),
        (lambda: kt.plots.confusion_matrix([0, 1], [[1, 0]]), "each of the 2 rows"),
        (lambda: kt.plots.confusion_matrix([0.5], [0]), "`y_true` must be integer"),
        (lambda: kt.plots.top_losses(np.ones((2, 2, 2, 1)), [[1, 0]], [0]), "2 rows"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_compare_draws_the_mean_of_seeds():
    seeds = [{"val_loss": [3.0, 2.0, 1.0]}, {"val_loss": [5.0, 4.0]}]
    ax = kt.plots.compare({"seeds": seeds, "one": {"val_loss": [1.0]}})
    first, second = ax.get_lines()
    np.testing.assert_array_equal(first.get_ydata(), [4, 3])
    np.testing.assert_array_equal(first.get_xdata(), [1, 2])
    np.testing.assert_array_equal(second.get_ydata(), [1])
    assert len(ax.collections) == 1


def test_confusion_matrix_is_that_of_scikit_learn(rng):
    from sklearn import metrics

    true, p = rng.integers(0, 3, 50), rng.random((50, 3))
    ax = kt.plots.confusion_matrix(np.eye(3)[true], p)
    counts = metrics.confusion_matrix(true, p.argmax(1))
    shown = [int(text.get_text() or 0) for text in ax.texts]
    np.testing.assert_array_equal(shown, counts.ravel())
    share = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(ax.images[0].get_array(), share)


def test_top_losses_shows_the_least_likely_true_classes():
    images = np.arange(4)[:, None, None, None] / 4 * np.ones((4, 2, 2, 1))
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    axes = kt.plots.top_losses(images, p, [0, 0, 1, 0], count=2, columns=2)
    shown = [ax.images[0].get_array()[0, 0] for ax in axes[0]]
    np.testing.assert_allclose(shown, [0.25, 0.5])


def test_regression_band_shows_the_true_values():
    from keras_trainkit.uncertainty import MCPrediction

    mean = np.zeros((3, 1))
    mc = MCPrediction(mean, mean + 1, None, None, None, 5)
    ax = kt.plots.regression_band([0.0, 2.0, 1.0], mc, y=[1.0, 2.0, 3.0])
    assert ax.get_legend_handles_labels()[1][-1] == "true, 33.3% covered"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")


def test_regression_band_along_one_of_several_features(rng):
    from keras_trainkit.uncertainty import MCPrediction

    x, mean = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    mc = MCPrediction(mean, np.abs(mean), None, None, None, 5)
    ax = kt.plots.regression_band(x, mc, feature=2, groups=3)
    (line,) = ax.get_lines()
    order = np.argsort(x[:, 2])
    np.testing.assert_allclose(line.get_xdata(), x[order, 2].reshape(3, 2).mean(1))
    np.testing.assert_allclose(line.get_ydata(), mean[order, 0].reshape(3, 2).mean(1))
    # With the others held fixed there is nothing to average.
    x[:, :2] = 1.0
    (line,) = kt.plots.regression_band(x, mc, feature=2).get_lines()
    np.testing.assert_array_equal(line.get_ydata(), mean[order, 0])
    for wrong, match in (
        ({"feature": 3}, "`feature` must be a column of x, from 0 to 2"),
        ({"groups": 1}, "`groups` must be an integer >= 2"),
    ):
        with pytest.raises(ValueError, match=match):
            kt.plots.regression_band(x, mc, **wrong)


def test_front_has_its_labels_inside():
    def candidate(size, metric):
        return SimpleNamespace(bytes=size, metric=metric)

    original, first, last = map(candidate, (99_600, 31_800, 17_000), (0.9, 0.91, 0.88))
    result = SimpleNamespace(front=[first, last], original=original, chosen=last)
    ax = kt.plots.front(result)
    ax.figure.canvas.draw()
    assert {text.get_text() for text in ax.texts} == {"original, float32", "chosen"}
    box = ax.get_window_extent()
    for text in ax.texts:
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0
        assert extent.x1 <= box.x1
