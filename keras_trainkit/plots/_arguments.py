"""The errors of figures whose arguments make no sense."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def names_arguments(function: Function) -> Function:
    """Turn an error from inside a figure into one that names the arguments.

    A figure takes whatever Matplotlib and NumPy do, so its arguments cannot all be
    checked beforehand.
    """
    parameters = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(*args, **kwargs).arguments
        try:
            return function(*args, **kwargs)
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            if "Received: " in str(error):
                raise
            names = ", ".join(f"`{name}`" for name in given)
            received = ", ".join(f"{k}={_short(v)}" for k, v in given.items())
            raise ValueError(
                f"One of {names} must be what `{function.__name__}` documents "
                f"({type(error).__name__}: {str(error)[:200]}). Received: {received}"
            ) from error

    return checked  # type: ignore[return-value]


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array of shape {value.shape}"
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
