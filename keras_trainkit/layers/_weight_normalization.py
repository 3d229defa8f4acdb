"""Weight normalization."""

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import reject
from keras_trainkit._model.kernels import Kernel, kernels
from keras_trainkit._model.kinds import channel_axis
from keras_trainkit.layers._axis import channels

_ADAPTABLE = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


@keras.saving.register_keras_serializable(package="keras_trainkit")
class WeightNormalization(keras.layers.Wrapper):
    """Wrapper that learns the length and direction of each unit's weights separately.

    The wrapped layer computes with `w = g v / ||v||`, where the direction `v` is its
    own kernel and the length `g`, one number per unit, is a weight of this wrapper.
    Initially `g = ||v||`, so wrapping changes no output; `adapt` sets `g` from data.
    Every kernel of the layer is normalized, including those of RNNs, over the inputs of
    each unit as `kt.constraints.MaxNorm` defines them.

    `keras.layers.SpectralNormalization` bounds the largest singular value instead.

    Args:
        layer: A layer with a kernel, such as Dense, a convolution or an LSTM.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        inputs: As for the layer.
        **kwargs: As for the layer.

    Output shape:
        Same as the wrapped layer.

    Raises:
        ValueError: If the layer has no kernel, or the input has no features.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> layer = kt.layers.WeightNormalization(keras.layers.Dense(2))
        >>> x = np.ones((1, 3), "float32")
        >>> y, plain = layer(x), layer.strip()
        >>> bool(keras.ops.all(keras.ops.isclose(y, plain(x)))), type(plain).__name__
        (True, 'Dense')

    Reference:
        T. Salimans and D. Kingma, Weight Normalization (2016), arXiv:1602.07868,
        equation 2; section 3 for the initialization.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs):
        if not isinstance(layer, keras.layers.Layer):
            reject("layer", layer, "a Keras layer")
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking
        self._lengths: list[keras.Variable] = []

    def build(self, input_shape=None):
        """Build the wrapped layer, and a length for each of its units."""
        if input_shape is not None and isinstance(input_shape[-1], int):
            self.axis = -1
            channels(self, input_shape)
        super().build(input_shape)
        found = list(kernels(self.layer))
        if not found:
            reject("layer", self.layer.name, "a layer with a kernel")
        for kernel in found:
            shape = [
                1 if axis in kernel.inputs else size
                for axis, size in enumerate(kernel.variable.shape)
            ]
            length = self.add_weight(
                name=f"{kernel.variable.name}_length",
                shape=shape,
                initializer=lambda shape, dtype, k=kernel: ops.cast(_norm(k), dtype),
            )
            self._lengths.append(length)

    def call(self, inputs, **kwargs):
        # All of the layer's variables, because an inner scope hides the outer one, in
        # which JAX's training step keeps their values.
        state = [(v, v.value) for v in self.layer.variables]
        weights = [(k.variable, w) for k, w in self._normalized()]
        with keras.StatelessScope([*state, *weights], collect_losses=True) as scope:
            outputs = self.layer(inputs, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        for variable in self.layer.non_trainable_variables:
            variable.assign(scope.get_current_value(variable))
        return outputs

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def adapt(self, inputs) -> None:
        """Set lengths and biases from data to standardize the layer's outputs.

        Before the activation function, each unit's output has mean 0 and standard
        deviation 1 over the batch; without a bias only the standard deviation is set.
        `kt.initializers.data_dependent` does this for each layer of a model in turn.

        Args:
            inputs: A batch of the layer's inputs.

        Raises:
            ValueError: If the layer is neither Dense nor a plain convolution.
        """
        if not isinstance(self.layer, _ADAPTABLE):
            reject("layer", type(self.layer).__name__, "Dense or a convolution")
        layer, activation = self.layer, self.layer.activation
        layer.activation = keras.activations.linear
        try:
            outputs = ops.convert_to_numpy(ops.cast(self(inputs), "float32"))
        finally:
            layer.activation = activation
        units = np.moveaxis(outputs, channel_axis(layer, outputs.ndim), -1)
        units = units.reshape(-1, units.shape[-1])
        # A unit with the same output for all rows has no deviation to divide by.
        mean, std = units.mean(0), np.where(units.std(0) > 0, units.std(0), 1)
        (length,) = self._lengths
        length.assign(ops.convert_to_numpy(length) / std.reshape(length.shape))
        if layer.use_bias:
            layer.bias.assign((ops.convert_to_numpy(layer.bias) - mean) / std)

    def strip(self) -> keras.layers.Layer:
        """Return a plain layer with the normalized weights, to replace this wrapper.

        Raises:
            ValueError: If the wrapper is not built.
        """
        if not self.built:
            reject("layer", self.name, "built")
        plain = type(self.layer).from_config(self.layer.get_config())
        plain.build_from_config(self.layer.get_build_config())
        plain.set_weights(self.layer.get_weights())
        for target, (_, weights) in zip(
            kernels(plain), self._normalized(), strict=True
        ):
            target.variable.assign(weights)
        return plain

    def _normalized(self):
        for kernel, length in zip(kernels(self.layer), self._lengths, strict=True):
            direction = ops.cast(kernel.variable.value, "float32")
            norm = ops.maximum(_norm(kernel), keras.config.epsilon())
            yield kernel, ops.cast(length, "float32") * direction / norm


def _norm(kernel: Kernel):
    value = ops.cast(kernel.variable.value, "float32")
    return ops.sqrt(ops.sum(ops.square(value), axis=kernel.inputs, keepdims=True))
