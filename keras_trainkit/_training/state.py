"""Save and restore everything that training changes in a model."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from keras_trainkit._keras import sync_state, torch_rng_state, unbuilt_as_before
from keras_trainkit._training.fit_scope import end_if_over, own_steps


@contextlib.contextmanager
def as_it_was(model: keras.Model, for_fit: bool = False) -> Iterator[None]:
    """Restore the state of a model at the end, also if the code inside raises.

    The state comprises weights, BatchNorm statistics, seed generators, metrics, the
    compiled training step, and the reference to the optimizer. The optimizer's own
    state is not saved: code that takes steps inside must use a copy of the optimizer.

    Args:
        model: The model.
        for_fit: Whether to undo a whole running `fit`.
    """
    end_if_over(model)
    kept = {
        name: getattr(model, name, None)
        for name in ("optimizer", "steps_per_execution")
    }
    variables = [*model.variables, *getattr(model, "metrics_variables", ())]
    values = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    rng_state = torch_rng_state()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(own_steps(model))
            if model.compiled:
                stack.enter_context(unbuilt_as_before(model, for_fit))
            yield
    finally:
        sync_state(model)
        torch_rng_state(rng_state)
        for name, value in kept.items():
            if getattr(model, name, None) is not value:
                setattr(model, name, value)
        if model.compiled:
            # Metrics created inside are not in `variables`; the others are set below.
            model.reset_metrics()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def weights_back_on_error(model: keras.Model) -> Iterator[None]:
    """Restore a model's weights if the code inside raises."""
    # Copies, because JAX donates the old buffers to the compiled step.
    weights = [np.array(weight) for weight in model.get_weights()]
    try:
        yield
    except BaseException:
        sync_state(model)
        model.set_weights(weights)
        raise
