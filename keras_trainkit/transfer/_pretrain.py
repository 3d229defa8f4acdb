"""Unsupervised pretraining with an autoencoder."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.layers import Layer

from keras_trainkit._checks import check_in_range, check_integer, reject
from keras_trainkit._training.state import weights_back_on_error


def pretrain_autoencoder(
    encoder: keras.Model,
    x: np.ndarray,
    *,
    decoder: keras.Model | Layer | None = None,
    noise: float | Layer = 0.0,
    greedy: bool = False,
    epochs: int = 10,
    optimizer: str | keras.optimizers.Optimizer = "nadam",
    loss: Any = "mse",
    **kwargs: Any,
) -> keras.Model:
    """Pretrain an encoder on unlabelled data as part of an autoencoder.

    The encoder becomes the first half of an autoencoder that is trained to reproduce
    its input. Then add a head, `keras.Sequential([encoder, Dense(...)])`, and call
    `fine_tune` with the labels that you have.

    Args:
        encoder: The model to train, in place; built, with an input of a fixed shape. It
            may be compiled or not, and stays so.
        x: The inputs, `(rows, ...)`.
        decoder: The second half, from the encoder's output to the shape of its input;
            by default the encoder's Dense layers in reverse, the last one linear, for a
            Sequential encoder that has no others.
        noise: Denoising: the fraction of the input's entries to drop, in `[0, 1)`, as
            `Dropout` does, or a layer such as `keras.layers.GaussianNoise(0.2)`. The
            target is the input without the noise.
        greedy: Train the Dense layers of a Sequential encoder one after another, each
            with a single-layer decoder on the outputs of those before it, instead of
            all at once.
        epochs: Epochs, of each layer if `greedy`.
        optimizer: Name or optimizer; if `greedy`, each layer gets a copy.
        loss: The loss between input and output.
        **kwargs: Passed to `fit`: `batch_size`, `validation_split`, `callbacks`, ….

    Returns:
        The encoder, the same object, with the weights that it has learned.

    Raises:
        ValueError: If an argument is wrong. After any error the encoder is unchanged.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> encoder = keras.Sequential([
        ...     keras.Input((8, 8, 1)), keras.layers.Flatten(),
        ...     keras.layers.Dense(32, "elu"), keras.layers.Dense(8, "elu"),
        ... ])
        >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
        >>> encoder = kt.transfer.pretrain_autoencoder(
        ...     encoder, x, noise=0.3, epochs=1, verbose=0
        ... )
        >>> classifier = keras.Sequential(
        ...     [encoder, keras.layers.Dense(3, "softmax", name="head")]
        ... )

    References:
        G. Hinton and R. Salakhutdinov, Reducing the dimensionality of data with neural
        networks (2006). Y. Bengio et al., Greedy layer-wise training of deep networks
        (2007). P. Vincent et al., Stacked denoising autoencoders (2010).
    """
    if not isinstance(encoder, keras.Model) or not encoder.built:
        reject("encoder", getattr(encoder, "name", encoder), "a built model")
    check_integer("epochs", epochs, minimum=1)
    x = np.asarray(x)
    shape = tuple(encoder.input_shape[1:])
    if len(encoder.inputs) != 1 or None in shape or x.shape[1:] != shape:
        reject("x", x.shape, f"an array of shape (rows, {', '.join(map(str, shape))})")
    if greedy and decoder is not None:
        reject("decoder", decoder, "None with `greedy`, which makes its own")
    noise_layers = _noise(noise)
    parts = _dense_parts(encoder) if greedy or decoder is None else []
    config = keras.optimizers.serialize(keras.optimizers.get(optimizer))

    def train(encoding: list[Layer], decoding: list[Layer], rows: np.ndarray) -> None:
        layers_in_a_row = [*noise_layers, *encoding, *decoding]
        model = keras.Sequential([keras.Input(rows.shape[1:]), *layers_in_a_row])
        model.compile(keras.optimizers.deserialize(config), loss=loss)
        model.fit(rows, rows, epochs=epochs, **kwargs)

    with weights_back_on_error(encoder):
        if not greedy:
            decoding = [decoder] if decoder is not None else _mirror(parts, shape)
            train([encoder], decoding, x)
            return encoder
        for part in parts:
            width = math.prod(x.shape[1:])
            train(part, [layers.Dense(width), layers.Reshape(x.shape[1:])], x)
            if part is not parts[-1]:
                step = keras.Sequential([keras.Input(x.shape[1:]), *part])
                x = step.predict(x, batch_size=kwargs.get("batch_size"), verbose=0)
    return encoder


def _noise(noise: float | Layer) -> list[Layer]:
    if isinstance(noise, Layer):
        return [noise]
    rate = check_in_range("noise", noise, 0, 1, closed="left")
    return [layers.Dropout(rate)] if rate else []


def _dense_parts(encoder: keras.Model) -> list[list[Layer]]:
    """The layers of a Sequential encoder, split before each Dense but the first."""
    expected = (
        "a Sequential model whose only layers with kernels are Dense, or pass `decoder`"
    )
    if not isinstance(encoder, keras.Sequential):
        reject("encoder", encoder.name, expected)
    parts: list[list[Layer]] = [[]]
    for layer in encoder.layers:
        is_dense = isinstance(layer, layers.Dense)
        plain = layers.BatchNormalization | layers.LayerNormalization | layers.PReLU
        if layer.weights and not is_dense and not isinstance(layer, plain):
            reject("encoder", layer.name, expected)
        if is_dense and _dense_of(parts[-1]):
            parts.append([])
        parts[-1].append(layer)
    if not _dense_of(parts[0]):
        reject("encoder", encoder.name, expected)
    return parts


def _dense_of(part: list[Layer]) -> Layer | None:
    return next((layer for layer in part if isinstance(layer, layers.Dense)), None)


def _mirror(parts: list[list[Layer]], shape: tuple) -> list[Layer]:
    """The decoder: the widths in reverse with their activations, then the input's."""
    decoder: list[Layer] = []
    for part in reversed(parts[:-1]):
        dense = _dense_of(part)
        assert dense is not None
        decoder.append(
            layers.Dense(
                dense.units,
                activation=_activation(part, dense),
                kernel_initializer=dense.kernel_initializer.clone(),
            )
        )
    return [*decoder, layers.Dense(math.prod(shape)), layers.Reshape(shape)]


def _activation(part: list[Layer], dense: Any) -> Any:
    """The activation of a Dense layer, its own or that of a layer behind it."""
    for layer in part:
        if isinstance(layer, layers.Activation):
            return layer.activation
    return dense.activation
