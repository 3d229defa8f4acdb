"""Wrap functions of `keras.ops` as layers, so that they can be quantized."""

import json
from typing import Any

import keras
from keras import ops

from keras_trainkit._types import Tensor

_TENSOR = "a tensor"


@keras.saving.register_keras_serializable(package="keras_trainkit")
class Operation(keras.layers.Layer):
    """A function of `keras.ops` between the layers of a Functional model, as a layer.

    Args:
        operation: Keras's object for the function.
        arguments: The JSON of its positional and its keyword arguments, as Keras
            serializes them, with a mark in place of each tensor.
    """

    def __init__(self, operation: Any, arguments: str, **kwargs: Any):
        kwargs.setdefault("name", operation.name)
        super().__init__(autocast=False, **kwargs)
        # Inputs may carry masks; the output never does.
        self.supports_masking = True
        self.operation = operation
        # A string, since Keras replaces list and dict attributes by its own types.
        self.arguments = arguments

    @classmethod
    def of(cls, operation: Any, args: tuple, kwargs: dict) -> "Operation":
        """Make the layer for a call with symbolic tensors."""

        def mark(value):
            if isinstance(value, keras.KerasTensor):
                return _TENSOR
            return (
                ops.convert_to_numpy(value).item() if hasattr(value, "shape") else value
            )

        marked = keras.tree.map_structure(mark, [list(args), dict(kwargs)])
        saved = keras.saving.serialize_keras_object(marked)
        return cls(operation, json.dumps(saved))

    def compute_output_spec(self, inputs):
        return self.apply(inputs)

    def compute_mask(self, inputs, previous_mask=None):
        return None

    def call(self, inputs):
        return self.apply(inputs)

    def apply(self, inputs: Any) -> Tensor:
        """Apply the function to one tensor, or to a list of tensors."""
        saved = json.loads(self.arguments)
        tensors = iter(keras.tree.flatten(inputs))
        args, kwargs = keras.tree.map_structure(
            lambda v: next(tensors) if isinstance(v, str) and v == _TENSOR else v,
            keras.saving.deserialize_keras_object(saved),
        )
        return self.operation(*args, **kwargs)

    def get_config(self):
        return {
            **super().get_config(),
            "operation": keras.saving.serialize_keras_object(self.operation),
            "arguments": self.arguments,
        }

    @classmethod
    def from_config(cls, config):
        operation = keras.saving.deserialize_keras_object(config["operation"])
        return cls(**{**config, "operation": operation})


def tensors_in(arguments: Any) -> list[Any]:
    """The symbolic tensors in the arguments of a call, in order."""
    flat = keras.tree.flatten(arguments)
    return [value for value in flat if isinstance(value, keras.KerasTensor)]
