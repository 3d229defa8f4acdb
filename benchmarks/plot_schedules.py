"""Draw docs/figures/schedules.png: every schedule, Keras's own included.

python benchmarks/plot_schedules.py
"""

from pathlib import Path

from keras import ops
from keras.optimizers import schedules as keras_schedules
from matplotlib import pyplot

from keras_trainkit import schedules

STEPS = 100
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "schedules.png"


def triangle(step):
    """A function of the step, for Lambda."""
    return ops.abs(ops.cast(step, "float32") / 50 - 1)


SHOWN = {
    "Power": schedules.Power(1.0, 20),
    "ExponentialDecay (Keras)": keras_schedules.ExponentialDecay(1.0, 50, 0.1),
    "NaturalExponential": schedules.NaturalExponential(1.0, 50, 1.5),
    "InverseTimeDecay (Keras)": keras_schedules.InverseTimeDecay(1.0, 20, 1.0),
    "PolynomialDecay (Keras)": keras_schedules.PolynomialDecay(1.0, 80, 0.0, 2),
    "PolynomialDecay, cycle (Keras)": keras_schedules.PolynomialDecay(
        1.0, 30, 0.0, cycle=True
    ),
    "CosineDecay (Keras)": keras_schedules.CosineDecay(1.0, 80),
    "CosineDecayRestarts (Keras)": keras_schedules.CosineDecayRestarts(
        1.0, 20, t_mul=1.6, m_mul=0.8
    ),
    "LinearCosine": schedules.LinearCosine(1.0, 80),
    "NoisyLinearCosine": schedules.NoisyLinearCosine(1.0, 80, 0.02, seed=1),
    "PiecewiseConstantDecay (Keras)": keras_schedules.PiecewiseConstantDecay(
        [30, 60], [1.0, 0.5, 0.2]
    ),
    "Step": schedules.Step(1.0, 20, 0.6),
    "MultiStep": schedules.MultiStep(1.0, [40, 60, 90], 0.5),
    "Linear": schedules.Linear(1.0, 0.1, 80),
    "Constant": schedules.Constant(0.5),
    "Cyclic, triangular": schedules.Cyclic(0.1, 1.0, 10, 15),
    "Cyclic, triangular2": schedules.Cyclic(0.1, 1.0, 10, 15, "triangular2"),
    "Cyclic, exp_range": schedules.Cyclic(0.1, 1.0, 10, 15, "exp_range", 0.98),
    "OneCycle, cos": schedules.OneCycle(1.0, STEPS),
    "OneCycle, linear": schedules.OneCycle(1.0, STEPS, anneal="linear"),
    "OneCycle, three_phase": schedules.OneCycle(
        1.0, STEPS, 0.4, anneal="linear", three_phase=True
    ),
    "OneCycleMomentum": schedules.OneCycleMomentum(STEPS),
    "Warmup": schedules.Warmup(schedules.Power(1.0, 30), 20),
    "Lambda": schedules.Lambda(triangle),
    "Sequential": schedules.Sequential(
        [schedules.Constant(0.8), schedules.Linear(0.8, 0.1, 40)], [50]
    ),
    "Chained": schedules.Chained(
        [schedules.Linear(1.0, 0.2, 80), schedules.Cyclic(0.5, 1.0, 8)]
    ),
    "Delay": schedules.Delay(schedules.OneCycle(1.0, 60), 30),
    "Reducible": schedules.Reducible(
        schedules.Warmup(schedules.Constant(1.0), 20), (0.5, 1.0, 0, 0)
    ),
}


def main():
    columns = 4
    rows = -(-len(SHOWN) // columns)
    _, axes = pyplot.subplots(
        rows, columns, figsize=(11, 1.55 * rows), sharex=True, layout="constrained"
    )
    for ax, (name, schedule) in zip(axes.flat, SHOWN.items(), strict=True):
        ax.plot([float(schedule(step)) for step in range(STEPS)])
        ax.set_title(name, fontsize=9)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    axes.flat[0].figure.savefig(FIGURE, dpi=90)


if __name__ == "__main__":
    main()
