import math

import numpy as np
import pytest

from keras_trainkit import _checks


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", None, True, [1]])
def test_check_positive_refuses(value):
    with pytest.raises(ValueError, match=r"`rate` must be .* > 0. Received: rate="):
        _checks.check_positive("rate", value)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3), 1e-300])
def test_check_positive_returns_a_python_float(value):
    result = _checks.check_positive("rate", value)
    assert type(result) is float
    assert result == value


def test_zero_only_where_it_is_allowed():
    assert _checks.check_positive("rate", 0, allow_zero=True) == 0
    with pytest.raises(ValueError, match=r">= 0. Received: rate=-0.1"):
        _checks.check_positive("rate", -0.1, allow_zero=True)


@pytest.mark.parametrize(
    ("closed", "ends"),
    [
        ("both", (True, True)),
        ("left", (True, False)),
        ("right", (False, True)),
        ("neither", (False, False)),
    ],
)
def test_check_in_range_bounds(closed, ends):
    for bound, allowed in zip((0, 1), ends, strict=True):
        if allowed:
            assert _checks.check_in_range("p", bound, 0, 1, closed=closed) == bound
        else:
            with pytest.raises(ValueError, match=r"in [\[(]0, 1[\])]. Received: p="):
                _checks.check_in_range("p", bound, 0, 1, closed=closed)


@pytest.mark.parametrize("value", [1.0, "2", True, 1, None])
def test_check_integer_refuses(value):
    with pytest.raises(ValueError, match="`steps` must be an integer >= 2"):
        _checks.check_integer("steps", value, minimum=2)


def test_check_integer_takes_numpy_integers():
    assert type(_checks.check_integer("steps", np.int32(5), minimum=1)) is int


def test_check_choice():
    assert _checks.check_choice("mode", "a", ["a", "b"]) == "a"
    with pytest.raises(ValueError, match=r"one of 'a', 'b'\. Received: mode='c'"):
        _checks.check_choice("mode", "c", ["a", "b"])
