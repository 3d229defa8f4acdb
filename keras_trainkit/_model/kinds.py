"""Kinds of Keras's layers, where their channels lie, and the labels of an einsum.

Only Keras's own classes are listed: what a user's class computes is not known,
whatever it derives from.
"""

from typing import Any, NamedTuple

from keras import layers

CONVS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
CONVOLUTIONS = (*CONVS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE)
CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell)
PADDINGS = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
DROPOUTS = (
    layers.Dropout, layers.GaussianDropout, layers.GaussianNoise, layers.AlphaDropout,
    layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
)  # fmt: skip
# What does nothing at inference.
ONLY_IN_TRAINING = (*DROPOUTS, layers.ActivityRegularization, layers.Identity)


def channels_first(layer: Any) -> bool:
    """Whether a layer's channels are on axis 1 rather than on the last axis."""
    return getattr(layer, "data_format", None) == "channels_first"


def channel_axis(layer: Any, rank: int) -> int:
    """The axis of a layer's channels in a tensor of this rank, batch axis included."""
    return 1 if channels_first(layer) else rank - 1


class Labels(NamedTuple):
    """The labels of an `EinsumDense`, an ellipsis left out.

    Attributes:
        taken: Those of its input.
        kernel: Those of its kernel.
        output: Those of its output.
    """

    taken: str
    kernel: str
    output: str


def einsum_labels(layer: layers.EinsumDense) -> Labels:
    """The labels of an `EinsumDense`.

    >>> einsum_labels(layers.EinsumDense("...x,xy->...y", 4))
    Labels(taken='x', kernel='xy', output='y')
    """
    operands, output = layer.equation.replace(" ", "").replace(".", "").split("->")
    taken, kernel = operands.split(",")
    return Labels(taken, kernel, output)
