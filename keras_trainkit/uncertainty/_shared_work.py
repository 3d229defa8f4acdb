"""How the devices of a `keras.distribution` share the work of a batch."""

from collections.abc import Iterable
from typing import Any

import keras


def distribution_of(layers: Iterable[keras.layers.Layer]) -> Any:
    """The distribution whose devices share a batch of some layers; None without one.

    A model made before the distribution was set is on one device, and stays there.
    With several processes each predicts alone, since each returns a whole result.
    """
    if keras.backend.backend() != "jax":
        return None
    import jax

    distribution = keras.distribution.distribution()
    if distribution is None or jax.process_count() > 1:
        return None
    size = distribution.device_mesh.devices.size
    variables = (variable for layer in layers for variable in layer.variables)
    first = next(variables, None)
    apart = first is not None and len(first.value.sharding.device_set) != size
    return None if apart else distribution


def num_devices(distribution: Any) -> int:
    """The number of parts that a batch is divided into."""
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    return int(mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)])


def divided(x: Any, distribution: Any) -> Any:
    """A tensor whose first axis is divided among the devices."""
    layout = distribution.get_data_layout(tuple(x.shape))
    return keras.distribution.distribute_tensor(x, layout)


def on_each(x: Any, distribution: Any) -> Any:
    """A tensor that each device has in full."""
    layout = keras.distribution.TensorLayout(
        [None] * len(x.shape), distribution.device_mesh
    )
    return keras.distribution.distribute_tensor(x, layout)
