"""Fixtures shared by the suite; the backend is the one in KERAS_BACKEND."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _fresh_state():
    """Every test starts from the same seeds, names and float type."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def rng():
    """A seeded NumPy generator."""
    return np.random.default_rng(0)
