"""Training steps as tensors, exact even where float32 is not."""

from typing import Any

from keras import ops

from keras_trainkit._types import Tensor


def as_step(step: Any) -> Tensor:
    """Return the step as a tensor, of an integer type if it was an integer.

    float32 cannot distinguish 2**24 from 2**24 + 1, so sums and differences of steps
    are computed on integers.
    """
    if isinstance(step, int):
        return ops.convert_to_tensor(step, "int32")
    return ops.convert_to_tensor(step)
