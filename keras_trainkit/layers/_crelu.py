"""Concatenated ReLU."""

import keras
from keras import ops

from keras_trainkit._checks import check_integer
from keras_trainkit.layers._axis import channels


@keras.saving.register_keras_serializable(package="keras_trainkit")
class CReLU(keras.layers.Layer):
    """Concatenated ReLU: the positive and the negative part of the input.

    `concatenate([relu(x), relu(-x)])`: twice the channels, and no information is lost.

    Args:
        axis: Axis of the channels; 1 for `channels_first`.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of any rank.

    Output shape:
        Same as the input, but twice the size along `axis`.

    Raises:
        ValueError: If the input has no axis `axis`, or that axis is empty.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> y = kt.layers.CReLU()(np.array([[1.0, -2.0]], "float32"))
        >>> keras.ops.convert_to_numpy(y).tolist()
        [[1.0, 0.0, 0.0, 2.0]]

    Reference:
        W. Shang et al., Understanding and Improving Convolutional Neural Networks via
        Concatenated Rectified Linear Units (2016), arXiv:1603.05201, definition 2.1.
    """

    def __init__(self, axis: int = -1, **kwargs):
        super().__init__(**kwargs)
        self.axis = check_integer("axis", axis, minimum=-8)
        self.supports_masking = True

    def build(self, input_shape):
        channels(self, input_shape)

    def call(self, inputs):
        return ops.concatenate([ops.relu(inputs), ops.relu(-inputs)], axis=self.axis)

    def compute_output_shape(self, input_shape):
        shape = list(input_shape)
        if shape[self.axis] is not None:
            shape[self.axis] *= 2
        return tuple(shape)

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}
