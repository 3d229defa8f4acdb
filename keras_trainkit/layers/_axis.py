"""The axis of the channels, and empty ones."""

from keras_trainkit._checks import reject


def channels(layer, input_shape) -> int | None:
    """Number of channels along `layer.axis`; None if the shape leaves it open.

    Raises:
        ValueError: If there is no such axis, it is that of the batch, or one is empty.
    """
    rank = len(input_shape)
    if not -rank < layer.axis < rank or layer.axis == 0:
        reject("axis", layer.axis, f"an axis, not the batch's, of shape {input_shape}")
    check_not_empty(input_shape)
    return input_shape[layer.axis]


def check_not_empty(input_shape) -> None:
    """Raise if an axis other than the batch's is empty, most often by mistake."""
    if 0 in tuple(input_shape)[1:]:
        reject("input_shape", tuple(input_shape), "> 0 along each axis but the first")
