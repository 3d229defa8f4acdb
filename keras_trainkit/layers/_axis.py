"""Checks of the channel axis and of empty axes."""

from keras_trainkit._checks import reject


def channels(layer, input_shape) -> int | None:
    """Return the number of channels along `layer.axis`; None if it is not known.

    Raises:
        ValueError: If there is no such axis, it is the batch axis, or an axis is empty.
    """
    rank = len(input_shape)
    if not -rank < layer.axis < rank or layer.axis == 0:
        reject(
            "axis",
            layer.axis,
            f"an axis other than the batch axis of shape {input_shape}",
        )
    check_not_empty(input_shape)
    return input_shape[layer.axis]


def check_not_empty(input_shape) -> None:
    """Raise if an axis other than the batch axis is empty, usually a mistake."""
    if 0 in tuple(input_shape)[1:]:
        reject("input_shape", tuple(input_shape), "> 0 along each axis but the first")
