"""Plot of activations and gradients by layer."""

from typing import Any

import numpy as np

from keras_trainkit.diagnostics import SignalReport
from keras_trainkit.plots._arguments import names_arguments


@names_arguments
def signal(report: SignalReport, axes: Any = None) -> Any:
    """Plot activations, dead and saturated units, and gradients by layer.

    Args:
        report: From `kt.diagnostics.signal_report`.
        axes: Three matplotlib Axes to draw on; new ones by default.

    Returns:
        The Axes, an array of 3.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> axes = kt.plots.signal(kt.diagnostics.signal_report(model, x))
        >>> len(axes)
        3
    """
    from matplotlib import pyplot

    layers = report.layers
    if axes is None:
        _, axes = pyplot.subplots(
            3, 1, figsize=(8, 8), sharex=True, layout="constrained"
        )
    outputs, units, gradients = axes
    place = np.arange(len(layers))
    mean = np.array([layer.mean for layer in layers])
    std = np.array([layer.std for layer in layers])
    outputs.fill_between(place, mean - std, mean + std, alpha=0.25, label="mean ± std")
    outputs.plot(place, mean, ".-", label="mean")
    outputs.set_ylabel("outputs")

    units.plot(place, [100 * layer.dead for layer in layers], ".-", label="dead units")
    _draw(units, layers, "saturated", "saturated outputs", 100)
    units.set_ylabel("%")
    units.set_ylim(-4, 104)

    _draw(gradients, layers, "gradient_norm", "gradient norm")
    _draw(gradients, layers, "update_ratio", "update / weights")
    if gradients.lines:
        gradients.set_yscale("log")
    gradients.set_ylabel("norm")
    gradients.set_xlabel("layer")
    # Show only as many layer names as fit.
    shown = place[:: max(1, len(layers) // 25)]
    gradients.set_xticks(shown, [layers[i].name for i in shown], rotation=90)
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    return axes


def _draw(ax, layers, name: str, label: str, factor: float = 1.0) -> None:
    """Plot a value for the layers that have it."""
    points = [
        (place, factor * getattr(layer, name))
        for place, layer in enumerate(layers)
        if getattr(layer, name) is not None
    ]
    if points:
        ax.plot(*zip(*points, strict=True), ".-", label=label)
