"""Checks and small models that more than one test file uses."""

import json

import keras
import numpy as np
import pytest

# torch.compile takes minutes for what XLA does in seconds; PyTorch runs eagerly here.
JIT_OPTIONS = (False,) if keras.backend.backend() == "torch" else (False, True)
DTYPE_POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
# What is slow, and hardly depends on the backend.
once = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="one backend is enough"
)


@keras.saving.register_keras_serializable(package="tests")
def mean_output(y_true, y_pred):
    """A loss that is the mean of the outputs, whatever the targets."""
    return keras.ops.mean(y_pred)


def one_weight_model(optimizer, **compile_options):
    """`w x` with the loss `w x`: the gradient of a batch is the mean of its x."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )
    model.compile(optimizer, loss=mean_output, **compile_options)
    return model


def to_numpy(x):
    """Any tensor as a NumPy array, bfloat16 as float32."""
    if keras.backend.is_keras_tensor(x):
        raise TypeError("a symbolic tensor has no value")
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = keras.ops.cast(x, "float32")
    return keras.ops.convert_to_numpy(x)


def save_and_load(model, directory):
    """The model after a trip through a `.keras` file, with no `custom_objects`."""
    path = directory / "model.keras"
    model.save(path)
    return keras.saving.load_model(path)


def check_config(obj):
    """`from_config(get_config())` gives the same config, which JSON can carry.

    Returns the copy.
    """
    config = obj.get_config()
    json.dumps(keras.saving.serialize_keras_object(obj))
    # `keras.layers.Wrapper.from_config` takes an entry out.
    copy = type(obj).from_config(dict(config))
    assert copy.get_config() == config
    through_registry = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(obj)
    )
    assert type(through_registry) is type(obj)
    return copy


def check_layer(
    make, input_shape, output_shape, directory, *, training_only=None, masking=True
):
    """Checks that a layer is a full Keras citizen.

    Args:
        make: Callable that returns a new layer; it takes the layer's keyword
            arguments `dtype` and `name`.
        input_shape: Shape of the input, with the batch axis.
        output_shape: The expected output shape.
        directory: A directory for files (`tmp_path`).
        training_only: True if the layer does something in training and nothing at
            inference; False if `training` must not matter; None to leave it open.
        masking: Whether the layer must pass an input mask on.
    """
    x = np.random.default_rng(1).normal(size=input_shape).astype("float32")

    for policy in DTYPE_POLICIES:
        layer = make(dtype=policy)
        y = layer(x)
        assert tuple(y.shape) == output_shape
        assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
        assert np.isfinite(to_numpy(y)).all()
        assert all(w.dtype == layer.variable_dtype for w in layer.trainable_weights)

    empty = make()(keras.ops.zeros((0, *input_shape[1:])))
    assert tuple(empty.shape) == (0, *output_shape[1:])

    layer = check_config(make(name="checked"))
    inputs = keras.Input(input_shape[1:])
    outputs = layer(inputs)
    assert tuple(outputs.shape) == (None, *output_shape[1:])
    assert layer.compute_output_shape((None, *input_shape[1:])) == outputs.shape

    model = keras.Model(inputs, outputs)
    loaded = save_and_load(model, directory)
    # A file has lists for tuples.
    configs = loaded.get_layer("checked").get_config(), layer.get_config()
    assert json.dumps(configs[0]) == json.dumps(configs[1])
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    for jit in JIT_OPTIONS:
        model.compile(loss="mse", jit_compile=jit)
        # 3 rows in batches of 2: the last batch is short.
        many = np.concatenate([x, x, x])[:3]
        assert model.predict(many, batch_size=2, verbose=0).shape == (
            3,
            *output_shape[1:],
        )
        if model.trainable_weights:
            model.train_on_batch(x, np.zeros(output_shape, "float32"))

    if training_only is not None:
        quiet = to_numpy(layer(x, training=False))
        loud = to_numpy(layer(x, training=True))
        if training_only:
            np.testing.assert_array_equal(quiet, x)
            assert not np.array_equal(quiet, loud)
        else:
            np.testing.assert_array_equal(quiet, loud)

    if masking:
        assert layer.supports_masking


def randomize_norms(model):
    """Give every BatchNorm statistics of its own, and gammas of both signs."""
    rng = np.random.default_rng(1)
    for variable in model.variables:
        name = variable.path.split("/")[-1]
        if name == "moving_variance":
            variable.assign(rng.uniform(0.3, 2, variable.shape))
        elif name in ("gamma", "beta", "moving_mean"):
            variable.assign(rng.normal(size=variable.shape))
    return model
