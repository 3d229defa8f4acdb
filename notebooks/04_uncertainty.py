# %% [markdown]
# # How sure is the model?
#
# Calibration, Monte Carlo dropout, and out-of-distribution inputs, on
# Fashion-MNIST with a perceptron that has dropout after each hidden layer. Everything
# is measured on the 10,000 test images, for three seeds; the temperature is chosen on
# 5,000 validation images.
#
# To run it: `python notebooks/build.py 04`.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import matplotlib.pyplot as plt
import numpy as np
from experiments import conditions, epochs, load, train

import keras_trainkit as kt

data = load("fashion_mnist", validation=5000)
preset = kt.models.PRESETS["risk_sensitive"]
print(data)


# %%
def make():
    """The preset for when errors are dear: MC dropout behind each hidden layer."""
    model = kt.models.build_mlp(
        data.input_shape, data.num_classes, dropout="dropout", dropout_rate=0.2
    )
    return preset.compile(model, rate, steps_per_execution=8)


rate = preset.learning_rate
keras.utils.set_random_seed(0)
peak = kt.find_lr(make(), *data.train, batch_size=128).one_cycle
runs = train(
    make, data, epochs=epochs(10), callbacks=lambda: [kt.callbacks.OneCycle(peak)]
)

# %% [markdown]
# ## Calibration
#
# Of the images that a calibrated model calls shirts with a probability of 0.7, seven of
# ten are shirts. The expected calibration error (ECE) measures the deviation. Dividing
# the logits by the temperature with the lowest validation loss corrects it, and
# does not change the accuracy. The mean of Monte Carlo samples is less confident than
# the softmax. This one is overconfident by about as much, so here the mean calibrates
# as well as the temperature. If the softmax is not overconfident, the mean is less
# confident than it should be: see the guide, `docs/uncertainty.md`.

# %%
u = kt.uncertainty


def measures(p):
    """Accuracy, likelihood, calibration, and accuracy without the least certain."""
    rejected, accuracy = u.rejection_curve(data.y_test, p)
    return (
        np.mean(p.argmax(axis=-1) == data.y_test),
        u.nll(data.y_test, p),
        u.expected_calibration_error(data.y_test, p),
        np.interp(0.1, rejected, accuracy),
    )


rows, probabilities, samples = {}, [], []
for run in runs:
    plain = run.model.predict(data.x_test, verbose=0)
    held_out = run.model.predict(data.x_val, verbose=0)
    scaling = u.TemperatureScaling().fit(np.log(held_out + 1e-12), data.y_val)
    mc = u.mc_predict(run.model, data.x_test, num_samples=100, batch_size=500, seed=0)
    mc_val = u.mc_predict(
        run.model, data.x_val, num_samples=100, batch_size=500, seed=0
    )
    mc_scaling = u.TemperatureScaling().fit(np.log(mc_val.mean + 1e-12), data.y_val)
    for name, p in {
        "softmax": plain,
        "temperature": scaling.predict_proba(np.log(plain + 1e-12)),
        "MC dropout": mc.mean,
        "MC dropout, temperature": mc_scaling.predict_proba(np.log(mc.mean + 1e-12)),
    }.items():
        rows.setdefault(name, []).append(measures(p))
    probabilities.append(plain)
    samples.append(mc)


# %%
class Measures:
    """The means and standard deviations as a table."""

    def _repr_markdown_(self):
        lines = [
            "| | accuracy | NLL | ECE | accuracy, 10% rejected |",
            "|---|---|---|---|---|",
        ]
        for name, values in rows.items():
            mean, std = np.mean(values, axis=0), np.std(values, axis=0)
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, std, strict=True)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", conditions()])


Measures()

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
for axis, (name, p) in zip(
    axes,
    {"softmax": probabilities[0], "MC dropout": samples[0].mean}.items(),
    strict=True,
):
    kt.plots.reliability(u.reliability_curve(data.y_test, p), ax=axis)
    axis.set_title(name)
figure.tight_layout()

# %% [markdown]
# ## Out-of-distribution inputs
#
# The predictive entropy is the total uncertainty; the mutual information is the part
# due to the model's lack of knowledge. Resized handwritten digits are not clothes: how
# well does each measure separate them from the test images? (Area under the ROC curve;
# 0.5 is chance.)

# %%
digits = kt.datasets.load("digits", validation=0, standardize=False)
foreign = keras.ops.image.resize(digits.x_train[:1000], data.input_shape[:2])
foreign = (keras.ops.convert_to_numpy(foreign) - data.mean) / data.std

found = {"softmax, entropy": [], "MC, entropy": [], "MC, mutual information": []}
for run, p, mc in zip(runs, probabilities, samples, strict=True):
    q = run.model.predict(foreign, verbose=0)
    mc_foreign = u.mc_predict(
        run.model, foreign, num_samples=100, batch_size=500, seed=0
    )
    entropies = [-(r * np.log(r + 1e-12)).sum(axis=-1) for r in (p, q)]
    found["softmax, entropy"].append(u.ood_auroc(*entropies))
    for name, attribute in (
        ("MC, entropy", "predictive_entropy"),
        ("MC, mutual information", "mutual_information"),
    ):
        inside, outside = getattr(mc, attribute), getattr(mc_foreign, attribute)
        found[name].append(u.ood_auroc(inside, outside))
for name, values in found.items():
    print(f"{name:24s} AUROC {np.mean(values):.3f} ± {np.std(values):.3f}")

# %% [markdown]
# The images that the first network is least certain of, with the three likeliest
# classes: green is the label, red the prediction.

# %%
mc = samples[0]
worst = mc.predictive_entropy.argsort()[::-1][:6]
figure = kt.plots.uncertain_images(
    data.images(data.x_test[worst]),
    mc.mean[worst],
    data.y_test[worst],
    data.class_names,
)

# %% [markdown]
# ## Rejecting the hard images

# %%
figure, axis = plt.subplots(figsize=(6, 3))
for name, p in {"softmax": probabilities[0], "MC dropout": mc.mean}.items():
    rejected, accuracy = u.rejection_curve(data.y_test, p)
    axis.plot(rejected, accuracy, label=name)
axis.set(xlabel="fraction rejected", ylabel="accuracy of the rest", xlim=(0, 0.6))
axis.legend()
figure.tight_layout()
