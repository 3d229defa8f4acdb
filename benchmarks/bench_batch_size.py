"""Whether the gradient noise scale predicts the steps that a batch size needs.

python benchmarks/bench_batch_size.py   # some minutes on one core; KERAS_BACKEND=jax

On ten small tasks, batches of 6 sizes train until the loss on all rows is below a
level that the largest of them reaches within some hundred steps, each at the best of
some rates. The prediction is `1 + noise_scale / batch_size` times the same number for
all sizes, which is fitted; the noise scale is the mean of those measured at the first
weights and at those of the middle and the end of a training. A task passes where each
prediction is within a factor 2 of what was measured. The last column is with the noise
scale of the first weights alone.
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_diabetes, load_digits

import keras_trainkit as kt

SIZES = (4, 8, 16, 32, 64, 128)
RATES = np.geomspace(0.01, 1.28, 8)
MOST_STEPS = 600
# data, hidden units, activation, level of the loss as a fraction of the first
TASKS = {
    "digits-softmax": ("digits", (), None, 0.25),
    "digits-mlp": ("digits", (16,), "relu", 0.25),
    "digits-tanh": ("digits", (16,), "tanh", 0.25),
    "digits-deep": ("digits", (16, 16), "relu", 0.25),
    "fashion-softmax": ("fashion_mnist", (), None, 0.4),
    "fashion-mlp": ("fashion_mnist", (16,), "relu", 0.4),
    "linear": ("linear", (), None, 0.3),
    "linear-noise": ("noisy", (), None, 0.7),
    "sine-mlp": ("sine", (16,), "tanh", 0.4),
    "diabetes-mlp": ("diabetes", (16,), "relu", 0.55),
}


def data(kind):
    """Rows and targets, 1024 rows at most."""
    rng = np.random.default_rng(0)
    if kind == "digits":
        x, y = load_digits(return_X_y=True)
        return (x[:1024] / 8 - 1).astype("float32"), y[:1024]
    if kind == "fashion_mnist":
        x, y = (array[:1024] for array in kt.datasets.load(kind).train)
        return x.reshape(len(x), 28, 28)[:, ::2, ::2].reshape(len(x), -1), y
    if kind == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        x, y = x / x.std(0), (y - y.mean()) / y.std()
    elif kind == "sine":
        x = rng.uniform(-2, 2, (1024, 1))
        y = np.sin(3 * x[:, 0]) + 0.1 * rng.normal(size=1024)
    else:
        x = rng.normal(size=(1024, 20))
        noise = 0.1 if kind == "linear" else 1.0
        y = x @ rng.normal(size=20) / np.sqrt(20) + noise * rng.normal(size=1024)
    return x.astype("float32"), y.astype("float32")


class Task:
    """A small model, whose trainings all begin at the same weights."""

    def __init__(self, kind, hidden, activation, level):
        self.x, self.y = data(kind)
        labels = self.y.dtype.kind == "i"
        keras.utils.set_random_seed(0)
        self.model = keras.Sequential([keras.Input(self.x.shape[1:])])
        for units in hidden:
            self.model.add(keras.layers.Dense(units, activation))
        self.model.add(keras.layers.Dense(10 if labels else 1))
        loss = "mse"
        if labels:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.SGD(0.01), loss)
        self.first = self.model.get_weights()
        self.level = level * self.loss()

    def loss(self):
        return float(self.model.evaluate(self.x, self.y, batch_size=1024, verbose=0))

    def steps(self, size, rate, most):
        """Steps to the level, or `most` where that is not reached; and the weights."""
        self.model.set_weights(self.first)
        self.model.optimizer.learning_rate = rate
        rng = np.random.default_rng(1)
        every, done = max(1, min(10, most // 20)), 0
        while done < most:
            rows = rng.integers(0, len(self.x), every * size)
            options = {"batch_size": size, "shuffle": False, "verbose": 0}
            self.model.fit(self.x[rows], self.y[rows], **options)
            done += every
            loss = self.loss()
            if not loss < 1e3:
                return most
            if loss < self.level:
                break
        return done

    def noise_scale(self):
        return kt.batch_size.gradient_noise_scale(
            self.model, self.x, self.y, max_rows=1024
        ).noise_scale

    def measured(self):
        """The fewest steps at each size, and the noise scales on the way."""
        best, rate = {}, {}
        for size in SIZES[::-1]:
            limit = MOST_STEPS
            # Smaller batches want no larger rates.
            for one in RATES[RATES <= 1.01 * rate.get(2 * size, np.inf)][::-1][:4]:
                found = self.steps(size, one, limit)
                if found < limit:
                    limit, rate[size] = found, one
            best[size] = limit
        scales = []
        for share in (0, 0.5, 1):
            self.model.set_weights(self.first)
            if share:
                most = max(1, int(share * best[SIZES[-1]]))
                self.steps(SIZES[-1], rate.get(SIZES[-1], 0.01), most)
            scales.append(self.noise_scale())
        return np.array([best[size] for size in SIZES], float), scales


def prediction(measured, noise_scale):
    """The steps by the noise scale, and the largest factor between them and these."""
    predicted = 1 + noise_scale / np.array(SIZES)
    predicted *= np.exp(np.mean(np.log(measured / predicted)))
    return predicted, np.exp(np.abs(np.log(measured / predicted))).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help="some of the tasks; all by default")
    chosen = parser.parse_args().tasks or TASKS
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    print("| task | noise scale at 0, 1/2, 1 | " + " | ".join(map(str, SIZES)), end="")
    print(" | largest factor | first |\n" + "|---" * (len(SIZES) + 4) + "|")
    passed, passed_first = 0, 0
    for name in chosen:
        measured, scales = Task(*TASKS[name]).measured()
        predicted, factor = prediction(measured, np.nanmean(scales))
        first = prediction(measured, scales[0])[1]
        passed, passed_first = passed + (factor <= 2), passed_first + (first <= 2)
        cells = [
            f"{round(p)} ({int(m)}{'+' if m >= MOST_STEPS else ''})"
            for p, m in zip(predicted, measured, strict=True)
        ]
        scale = ", ".join(f"{value:.3g}" for value in scales)
        print(
            "|", " | ".join([name, scale, *cells, f"{factor:.1f}", f"{first:.1f}"]), "|"
        )
    print(f"\nwithin a factor 2: {passed} and {passed_first} of {len(chosen)}")


if __name__ == "__main__":
    main()
