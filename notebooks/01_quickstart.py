# %% [markdown]
# # Quickstart
#
# The whole path on scikit-learn's handwritten digits, in a minute: find the learning
# rate, train on one cycle, see where the model is uncertain, fine-tune it for
# another task, and export it.
#
# To run it: `python notebooks/build.py 01`, on any backend.

# %%
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
from experiments import conditions, epochs, load

import keras_trainkit as kt

keras.utils.set_random_seed(0)
data = load("digits")
print(data)
print(conditions())

# %% [markdown]
# ## A configuration that trains well
#
# A preset is a network configuration together with the way to train it. The models are
# plain Keras models.

# %%
for preset in kt.models.PRESETS.values():
    print(f"{preset.name:16s} {preset.summary}")

# %%
preset = kt.models.PRESETS["default"]
model = kt.models.build_mlp(
    data.input_shape, data.num_classes, normalization="batch", dropout="dropout"
)
preset.compile(model)
model.summary()

# %% [markdown]
# ## Find the learning rate
#
# The range test raises the rate from step to step and reads the loss of each batch. The
# model, its optimizer and the random state are left unchanged.

# %%
found = kt.find_lr(model, *data.train)
print(found)
kt.plots.lr_finder(found).legend(loc="lower left", fontsize=7)
plt.gcf().set_size_inches(7, 3.5)

# %% [markdown]
# ## Train on one cycle
#
# The rate rises to its peak and falls to almost zero, while the momentum goes the other
# way; both change from step to step inside the compiled training step.

# %%
history = model.fit(
    *data.train,
    epochs=epochs(20),
    validation_data=data.validation,
    callbacks=[kt.callbacks.OneCycle(found.one_cycle)],
    verbose=0,
).history
loss, accuracy = model.evaluate(*data.test, verbose=0)
print(f"test loss {loss:.3f}, accuracy {accuracy:.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
kt.plots.learning_curves(history, "accuracy", ax=left)
kt.plots.schedule(history["learning_rate"], history["momentum"], ax=right)
right.set_xlabel("epoch")
figure.tight_layout()

# %% [markdown]
# ## How certain is it?
#
# A hundred predictions with active dropout. If they disagree, the model does not
# know; if all of them are uncertain, the image is ambiguous.

# %%
mc = kt.uncertainty.mc_predict(model, data.x_test, num_samples=100, seed=0)
least_certain = mc.predictive_entropy.argsort()[::-1][:5]
figure = kt.plots.uncertain_images(
    data.images(data.x_test[least_certain]),
    mc.mean[least_certain],
    data.y_test[least_certain],
    data.class_names,
)

# %% [markdown]
# ## Another task
#
# A model for the digits below five, and a new head for whether a digit is even, with
# forty examples: first the head is trained, then everything, at rates that decrease
# from the head down.

# %%
below = data.y_train < 5
model_a = kt.models.build_mlp(data.input_shape, 5, hidden_units=(100, 50))
preset.compile(model_a)
model_a.fit(
    data.x_train[below],
    data.y_train[below],
    epochs=epochs(10),
    callbacks=[kt.callbacks.OneCycle(0.05)],
    verbose=0,
)

model_b = kt.transfer.replace_head(model_a, 1, "sigmoid")
model_b.compile("nadam", "binary_crossentropy", metrics=["accuracy"])
kt.transfer.fine_tune(
    model_b,
    data.x_train[:40],
    data.y_train[:40] % 2 == 0,
    freeze_epochs=epochs(5),
    epochs=epochs(20),
    learning_rate=0.01,
    batch_size=10,
    verbose=0,
)
_, accuracy = model_b.evaluate(data.x_test, data.y_test % 2 == 0, verbose=0)
print(f"even or odd, by forty examples: test accuracy {accuracy:.3f}")

# %% [markdown]
# ## Search
#
# `kt.models.hypermodel` turns a preset into a search space for
# [KerasTuner](https://keras.io/keras_tuner), each trial on one cycle of its own. To
# search with several machines, start the same script on each with KerasTuner's
# environment variables: on the chief `KERASTUNER_TUNER_ID=chief`, on the others
# `tuner0`, `tuner1`, …, and on all of them `KERASTUNER_ORACLE_IP` and
# `KERASTUNER_ORACLE_PORT` of the chief, with a `directory` that all of them share.

# %%
import keras_tuner

space = kt.models.hypermodel(
    "default",
    input_shape=data.input_shape,
    num_classes=data.num_classes,
    num_layers=(1, 3),
    units=(20, 200),
)
tuner = keras_tuner.BayesianOptimization(
    space,
    objective="val_accuracy",
    max_trials=epochs(6),
    directory=tempfile.mkdtemp(),
    seed=0,
)
tuner.search(*data.train, validation_data=data.validation, epochs=epochs(8), verbose=0)
for trial in tuner.oracle.get_best_trials(3):
    values = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in trial.hyperparameters.values.items()
    }
    print(f"{trial.score:.3f}", values)

# %% [markdown]
# ## Ship it
#
# The BatchNorms fold into the layers beside them, and the file is checked against the
# model before it appears.

# %%
folding = kt.folding.fold_batch_norm(model)
print(folding)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "digits.tflite"
    kt.export.to_litert(folding.model, path)
    int8 = Path(folder) / "digits_int8.tflite"
    kt.export.to_litert(
        folding.model, int8, quantization="int8", representative_data=data.x_train[:200]
    )
    report = kt.export.deployment_report(
        {"trained": model, "folded": folding.model, "LiteRT": path, "int8": int8},
        *data.test,
        repetitions=epochs(50),
    )
report
