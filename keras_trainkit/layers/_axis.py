"""The axis of the channels."""

from keras_trainkit._checks import reject


def channels(layer, input_shape) -> int | None:
    """Number of channels along `layer.axis`; None if the shape leaves it open.

    Raises:
        ValueError: If there is no such axis, it is that of the batch, or it is empty.
    """
    rank = len(input_shape)
    if not -rank < layer.axis < rank or layer.axis == 0:
        reject("axis", layer.axis, f"an axis, not the batch's, of shape {input_shape}")
    if input_shape[layer.axis] == 0:
        reject("input_shape", tuple(input_shape), f"> 0 along axis {layer.axis}")
    return input_shape[layer.axis]
