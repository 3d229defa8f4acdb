"""Clear errors for invalid arguments of the plot functions."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def names_arguments(function: Function) -> Function:
    """Turn an error from inside a plot function into one that names its arguments.

    A plot function accepts anything that Matplotlib and NumPy accept, so it cannot
    check all of its arguments in advance.
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
