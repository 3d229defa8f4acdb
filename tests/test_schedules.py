import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from helpers import check_config
from keras import ops

import keras_trainkit as kt
from keras_trainkit import schedules as ks

FAR = [9_999_999, 2**24 + 1]


def values(schedule, steps):
    return np.array([float(schedule(int(step))) for step in steps])


def torch_values(make, steps, lr=1.0, momentum=0.9):
    """(rates, momenta) of one of PyTorch's schedulers at the steps 0, 1, ..."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr, momentum)
    scheduler = make(optimizer)
    rates, momenta = [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    return np.array(rates), np.array(momenta)


@keras.saving.register_keras_serializable(package="test")
def halves(step):
    return 0.5 * ops.cast(step, "float32")


EVERY = [
    ks.OneCycle(0.1, 50),
    ks.OneCycle(0.1, 50, 0.4, 10, 100, "linear", True),
    ks.OneCycleMomentum(50),
    ks.Power(0.1, 10, 2.0),
    ks.NaturalExponential(0.1, 10, 0.5),
    ks.NaturalExponential(0.1, 10, 0.5, staircase=True),
    ks.Cyclic(0.01, 0.1, 5, 7, "exp_range", 0.99),
    ks.CyclicMomentum(0.8, 0.95, 5, 7, "triangular2"),
    ks.WarmupStableDecay(0.1, 50, 5, 10, 0.001),
    ks.WarmupStableDecay(0.1, 50, 0, 10, 0.001, "cos"),
    ks.Multiplicative(0.1, lambda t: 1 - 0.01 * t, 30),
    ks.LinearCosine(0.1, 20),
    ks.NoisyLinearCosine(0.1, 20, seed=3),
    ks.Linear(0.1, 0.01, 20),
    ks.Constant(0.3),
    ks.Step(0.1, 5, 0.5),
    ks.MultiStep(0.1, [5, 9], 0.5),
    ks.Lambda(halves),
    ks.Delay(ks.Step(0.1, 5), -3),
    ks.Warmup(ks.Power(0.1, 10), 5, 0.1),
    ks.Sequential([ks.Constant(0.3), keras.optimizers.schedules.CosineDecay(0.1, 9)],
                  [4]),
    ks.Chained([ks.Constant(0.3), ks.Step(1.0, 5)]),
    ks.Reducible(ks.Step(0.1, 5), (0.5, 1.0, 2, 0)),
]  # fmt: skip
NAMES = [f"{type(schedule).__name__}{i}" for i, schedule in enumerate(EVERY)]


def test_every_public_schedule_is_in_the_family():
    public = {value for name, value in vars(ks).items() if isinstance(value, type)}
    assert public == {type(schedule) for schedule in EVERY}


@pytest.mark.parametrize("schedule", EVERY, ids=NAMES)
class TestFamily:
    def test_config(self, schedule):
        copy = check_config(schedule)
        json.dumps(schedule.get_config())
        steps = [0, 1, 4, 17, 99]
        np.testing.assert_array_equal(values(copy, steps), values(schedule, steps))

    def test_the_kind_of_step_does_not_matter(self, schedule):
        expected = float(schedule(7))
        assert math.isfinite(expected)
        for step in (
            np.int64(7),
            ops.convert_to_tensor(7, "int32"),
            keras.Variable(7, dtype="int32", trainable=False),
            7.0,
        ):
            np.testing.assert_allclose(float(schedule(step)), expected, rtol=1e-6)
        assert keras.backend.standardize_dtype(schedule(7).dtype) == "float32"
        assert tuple(schedule(7).shape) == ()

    def test_in_a_compiled_step(self, schedule, tmp_path):
        if isinstance(schedule, ks.OneCycleMomentum):
            optimizer = kt.optimizers.SGD(0.1, momentum=schedule)
        else:
            optimizer = keras.optimizers.SGD(schedule)
        model = keras.Sequential(
            [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
        )
        model.compile(optimizer, loss=lambda y, p: ops.mean(p))
        # The loss is w, its gradient 1: each step takes the rate off the weight.
        x = np.ones((6, 1), "float32")
        start = float(model.get_weights()[0][0, 0])
        model.fit(x, x, batch_size=1, verbose=0)
        if isinstance(schedule, ks.OneCycleMomentum):
            velocity, moved = 0.0, 0.0
            for momentum in values(schedule, range(6)):
                velocity = momentum * velocity - 0.1
                moved -= velocity
        else:
            moved = values(schedule, range(6)).sum()
        np.testing.assert_allclose(
            start - float(model.get_weights()[0][0, 0]), moved, rtol=1e-4, atol=1e-6
        )


REFERENCE = json.loads((Path(__file__).parent / "data" / "schedules.json").read_text())


def test_published_values():
    case = REFERENCE["onecycle_linear_torch"]
    cycle = ks.OneCycle(25, 10, 0.3, 25, 2, "linear")
    # Those momenta go up to 22; here they are fractions.
    momentum = ks.OneCycleMomentum(10, 22 / 25, 1 / 25, 0.3, "linear")
    np.testing.assert_allclose(values(cycle, range(10)), case["lr"], rtol=1e-6)
    momenta = 25 * values(momentum, range(10))
    np.testing.assert_allclose(momenta, case["momentum"], rtol=1e-6)
    case = REFERENCE["power"]
    schedule = ks.Power(case["initial"], case["steps"], case["power"])
    np.testing.assert_allclose(values(schedule, case["at"]), case["lr"], rtol=1e-6)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize(("total", "pct"), [(100, 0.3), (37, 0.23), (20, 0.45)])
def test_one_cycle_is_pytorchs(anneal, three_phase, total, pct):
    rates, momenta = torch_values(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            0.5,
            total_steps=total + 1,
            pct_start=pct,
            anneal_strategy=anneal,
            three_phase=three_phase,
            div_factor=20,
            final_div_factor=1e3,
        ),
        total + 1,
    )
    cycle = ks.OneCycle(0.5, total + 1, pct, 20, 1e3, anneal, three_phase)
    momentum = ks.OneCycleMomentum(total + 1, 0.95, 0.85, pct, anneal, three_phase)
    steps = range(total + 1)
    np.testing.assert_allclose(values(cycle, steps), rates, rtol=1e-6)
    np.testing.assert_allclose(values(momentum, steps), momenta, rtol=1e-6)
    # Past the end the last value is held.
    np.testing.assert_allclose(values(cycle, [total + 1, 10**6]), rates[-1], rtol=1e-6)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclic_is_pytorchs(mode):
    rates, _ = torch_values(
        lambda optimizer: torch.optim.lr_scheduler.CyclicLR(
            optimizer, 0.1, 0.9, 8, 5, mode=mode, gamma=0.98, cycle_momentum=False
        ),
        60,
    )
    schedule = ks.Cyclic(0.1, 0.9, 8, 5, mode, 0.98)
    np.testing.assert_allclose(values(schedule, range(60)), rates, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "schedule"),
    [
        (
            lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.4),
            ks.Step(1.0, 7, 0.4),
        ),
        (
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4, 11, 30], 0.4),
            ks.MultiStep(1.0, [4, 11, 30], 0.4),
        ),
        (
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 25),
            ks.Linear(1.0, 0.2, 25),
        ),
        (
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.5 * t),
            ks.Lambda(halves),
        ),
        (
            lambda o: torch.optim.lr_scheduler.SequentialLR(
                o,
                [
                    torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 8),
                    torch.optim.lr_scheduler.StepLR(o, 7, 0.4),
                ],
                [8],
            ),
            ks.Warmup(ks.Step(1.0, 7, 0.4), 8, 0.1),
        ),
        (
            lambda o: torch.optim.lr_scheduler.ChainedScheduler(
                [
                    torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 25),
                    torch.optim.lr_scheduler.StepLR(o, 7, 0.4),
                ]
            ),
            ks.Chained([ks.Linear(1.0, 0.2, 25), ks.Step(1.0, 7, 0.4)]),
        ),
    ],
)
def test_pytorchs_family(make, schedule):
    rates, _ = torch_values(make, 40)
    np.testing.assert_allclose(values(schedule, range(40)), rates, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (ks.Power(0.1, 1000, 0.7), lambda t: 0.1 / (1 + t / 1000) ** 0.7),
        (
            ks.NaturalExponential(0.1, 1e6, 0.3),
            lambda t: 0.1 * math.exp(-0.3 * t / 1e6),
        ),
        (ks.Step(0.1, 3_000_000, 0.5), lambda t: 0.1 * 0.5 ** (t // 3_000_000)),
        (ks.MultiStep(0.1, FAR, 0.5), lambda t: 0.1 * 0.5 ** sum(t >= m for m in FAR)),
        (
            ks.Linear(0.1, 0.0, 2**24 + 11),
            lambda t: 0.1 * (1 - t / (2**24 + 11)),
        ),
        (
            ks.Cyclic(0.0, 1.0, 5, 3),
            lambda t: min((t % 8) / 5, (8 - t % 8) / 3),
        ),
        (
            ks.OneCycle(1.0, 2**24 + 12),
            lambda t: one_cycle_float64(t, 2**24 + 12),
        ),
        (
            ks.Delay(ks.Linear(1.0, 0.0, 10), 2**24 - 3),
            lambda t: 1 - min(max(t - (2**24 - 3), 0), 10) / 10,
        ),
        (
            ks.LinearCosine(1.0, 2**24 + 11, beta=0),
            lambda t: (
                (1 - t / (2**24 + 11)) * (1 + math.cos(math.pi * t / (2**24 + 11))) / 2
            ),
        ),
    ],
)
@pytest.mark.parametrize("step", [*FAR, 2**24, 2**24 - 1, 2**24 - 2])
def test_far_steps_lose_no_precision(schedule, formula, step):
    # The ends of the curves are 0, where float32 leaves 1e-12 of the whole.
    np.testing.assert_allclose(
        float(schedule(step)), formula(step), rtol=1e-6, atol=1e-12
    )


def one_cycle_float64(t, total):
    peak = 0.3 * total - 1
    if t <= peak:
        return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * t / peak)) / 2
    p = (t - peak) / (total - 1 - peak)
    last = 1 / 25e4
    return last + (1 - last) * (1 + math.cos(math.pi * p)) / 2


def test_linear_cosine_by_its_formula():
    schedule = ks.LinearCosine(0.5, 40, num_periods=2, alpha=0.1, beta=0.02)
    t = np.minimum(np.arange(50), 40)
    cosine = (1 + np.cos(2 * np.pi * 2 * t / 40)) / 2
    expected = 0.5 * ((0.1 + 1 - t / 40) * cosine + 0.02)
    np.testing.assert_allclose(values(schedule, range(50)), expected, atol=1e-6)


def test_the_noise_is_normal_and_a_function_of_seed_and_step():
    def noise(seed, steps):
        quiet = ks.LinearCosine(1.0, 10**6, num_periods=1e-9, beta=0)
        loud = ks.NoisyLinearCosine(
            1.0, 10**6, num_periods=1e-9, beta=0, variance_decay=0, seed=seed
        )
        return values(loud, steps) - values(quiet, steps)

    first = noise(5, range(600))
    np.testing.assert_array_equal(first[100:110], noise(5, range(100, 110)))
    # Four standard errors of the mean, the variance, and two correlations.
    assert abs(first.mean()) < 4 / math.sqrt(600)
    assert abs(first.var() - 1) < 4 * math.sqrt(2 / 600)
    assert abs(np.mean(first[1:] * first[:-1])) < 4 / math.sqrt(600)
    assert abs(np.mean(first * noise(6, range(600)))) < 4 / math.sqrt(600)


def test_the_noise_is_the_same_on_every_backend():
    def hashed(seed, counter):
        x = np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF) ^ np.uint32(counter)
        x ^= x >> np.uint32(16)
        x = np.uint32(int(x) * 0x7FEB352D & 0xFFFFFFFF)
        x ^= x >> np.uint32(15)
        x = np.uint32(int(x) * 0x846CA68B & 0xFFFFFFFF)
        x ^= x >> np.uint32(16)
        return ((int(x) >> 8) + 0.5) / 2**24

    schedule = ks.NoisyLinearCosine(1.0, 10**9, beta=0, seed=7)
    for t in (0, 1, 1000, FAR[1]):
        normal = math.sqrt(-2 * math.log(hashed(7, 2 * t))) * math.cos(
            2 * math.pi * hashed(7, 2 * t + 1)
        )
        expected = 1 - t / 1e9 + normal * math.sqrt((1 + t) ** -0.55)
        np.testing.assert_allclose(
            float(schedule(t)) / ((1 + math.cos(math.pi * t / 1e9)) / 2),
            expected,
            rtol=1e-4,
        )


def test_a_cycle_of_two_steps_begins_at_its_peak():
    np.testing.assert_allclose(values(ks.OneCycle(1.0, 2), [0, 1]), [1, 4e-6])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ks.OneCycle(-1, 10), "`max_lr` must be a finite number > 0"),
        (lambda: ks.OneCycle(math.nan, 10), "`max_lr` must be a finite number > 0"),
        (lambda: ks.OneCycle(0.1, 0), "`total_steps` must be an integer >= 2"),
        (lambda: ks.OneCycle(0.1, 10.5), "`total_steps` must be an integer >= 2"),
        (lambda: ks.OneCycle(0.1, 10, 0), r"`pct_start` must be a number in \(0, 1\)"),
        (lambda: ks.OneCycle(0.1, 10, 1), r"`pct_start` must be a number in \(0, 1\)"),
        (lambda: ks.OneCycle(0.1, 10, div_factor=0.5), "`div_factor` must be"),
        (lambda: ks.OneCycle(0.1, 10, final_div_factor=0), "`final_div_factor` must"),
        (lambda: ks.OneCycle(0.1, 10, anneal="exp"), "`anneal` must be one of 'cos'"),
        (
            lambda: ks.OneCycle(0.1, 10, 0.6, three_phase=True),
            "`pct_start` must be less than 0.5",
        ),
        (
            lambda: ks.OneCycleMomentum(10, 0.85, 0.95),
            "`base_momentum` must be <= max_momentum=0.85. Received: base_momentum",
        ),
        (lambda: ks.Power(0.1, 0), "`steps` must be a finite number > 0"),
        (lambda: ks.NaturalExponential(0.1, 10, -1), "`decay_rate` must be"),
        (lambda: ks.Cyclic(0.5, 0.1, 5), "`max_lr` must be >= base_lr=0.5"),
        (lambda: ks.Cyclic(0.1, 0.5, 0), "`step_size_up` must be an integer >= 1"),
        (lambda: ks.Cyclic(0.1, 0.5, 5, mode="saw"), "`mode` must be one of"),
        (lambda: ks.Cyclic(0.1, 0.5, 5, gamma=2), r"`gamma` must be a number in \(0,"),
        (lambda: ks.LinearCosine(0.1, 0), "`steps` must be an integer >= 1"),
        (lambda: ks.NoisyLinearCosine(0.1, 5, seed=-1), "`seed` must be an integer"),
        (lambda: ks.Linear(0.1, -0.1, 5), "`final` must be a finite number >= 0"),
        (lambda: ks.Constant(math.inf), "`value` must be a finite number >= 0"),
        (lambda: ks.Step(0.1, 0), "`step_size` must be an integer >= 1"),
        (lambda: ks.MultiStep(0.1, [5, 3]), "`milestones` must be at least one step"),
        (lambda: ks.MultiStep(0.1, []), "`milestones` must be at least one step"),
        (lambda: ks.Lambda(3), "`fn` must be a callable"),
        (lambda: ks.Warmup(0.1, 5), "`schedule` must be a LearningRateSchedule"),
        (lambda: ks.Warmup(ks.Constant(1), 0), "`warmup_steps` must be an integer"),
        (lambda: ks.Sequential([], []), "`schedules` must be at least one schedule"),
        (
            lambda: ks.Sequential([ks.Constant(1)] * 3, [4]),
            "`boundaries` must be one fewer than the 3 schedules",
        ),
        (
            lambda: ks.Sequential([ks.Constant(1)] * 3, [4, 2]),
            "`boundaries` must be at least one step, in increasing order",
        ),
        (lambda: ks.Chained([0.1]), "`schedules` must be a LearningRateSchedule"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_warmup_stable_decay_by_the_formula():
    schedule = ks.WarmupStableDecay(0.2, 101, 10, 20, 0.01)
    # Equation 1 of Hu et al., with the "1-sqrt" decay of Haegele et al.
    expected = [0.2 * t / 10 for t in range(10)] + [0.2] * 70
    expected += [0.01 + 0.19 * (1 - math.sqrt(p / 20)) for p in range(21)]
    np.testing.assert_allclose(values(schedule, range(101)), expected, rtol=1e-5)
    assert float(schedule(1000)) == pytest.approx(0.01)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclic_momentum_is_that_of_pytorch(mode):
    def make(optimizer):
        return torch.optim.lr_scheduler.CyclicLR(
            optimizer, 0.1, 1.0, 5, 7, mode, 0.95, base_momentum=0.8, max_momentum=0.95
        )

    _, expected = torch_values(make, 40)
    schedule = ks.CyclicMomentum(0.8, 0.95, 5, 7, mode, 0.95)
    np.testing.assert_allclose(values(schedule, range(40)), expected, rtol=1e-5)


def test_multiplicative_is_that_of_pytorch():
    def factor(t):
        return 1 - 0.01 * t

    def make(optimizer):
        return torch.optim.lr_scheduler.MultiplicativeLR(optimizer, factor)

    rates, _ = torch_values(make, 30, lr=0.1)
    schedule = ks.Multiplicative(0.1, factor, 30)
    np.testing.assert_allclose(values(schedule, range(30)), rates, rtol=1e-5)


def test_a_milestone_given_twice_counts_twice():
    def make(optimizer):
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5], 0.5)

    rates, _ = torch_values(make, 8)
    schedule = ks.MultiStep(1.0, [3, 3, 5], 0.5)
    np.testing.assert_allclose(values(schedule, range(8)), rates)


def test_natural_exponential_in_stairs():
    schedule = ks.NaturalExponential(1.0, 10, 0.5, staircase=True)
    expected = np.exp(-0.5 * (np.arange(30) // 10))
    np.testing.assert_allclose(values(schedule, range(30)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ks.WarmupStableDecay(0.1, 20, 10, 10), r"decay_steps=10"),
        (lambda: ks.WarmupStableDecay(0.1, 20, 1, 10, 0.2), r"final_lr=0\.2"),
        (lambda: ks.WarmupStableDecay(0.1, 20, 1, 10, decay="exp"), r"decay='exp'"),
        (lambda: ks.CyclicMomentum(0.9, 0.8, 4), r"max_momentum=0\.8"),
        (lambda: ks.CyclicMomentum(0.9, 2.5, 4), r"max_momentum=2\.5"),
        (lambda: ks.Multiplicative(1.0, [0.5], 4), r"3 factors"),
        (lambda: ks.MultiStep(1.0, [5, 3]), r"milestones=\[5, 3\]"),
    ],
)
def test_bad_arguments_of_the_later_schedules(make, message):
    with pytest.raises(ValueError, match=message):
        make()
