"""Fixtures shared by the suite; the backend is the one in KERAS_BACKEND."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

import tempfile

import keras
import numpy as np
import pytest

if keras.backend.backend() == "jax":
    import jax

    # Test after test compiles the same small programs. A folder for each process, since
    # JAX reads what another is still writing.
    _CACHE = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", _CACHE.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
