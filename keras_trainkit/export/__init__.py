"""Export models for deployment, and report size, latency and accuracy."""

from keras_trainkit.export._c_array import to_c_array as to_c_array
from keras_trainkit.export._litert import load_litert as load_litert
from keras_trainkit.export._litert import predict_litert as predict_litert
from keras_trainkit.export._litert import to_litert as to_litert
from keras_trainkit.export._onnx import to_onnx as to_onnx
from keras_trainkit.export._optimize import (
    optimize_for_inference as optimize_for_inference,
)
from keras_trainkit.export._quantization_report import LayerCost as LayerCost
from keras_trainkit.export._quantization_report import (
    QuantizationReport as QuantizationReport,
)
from keras_trainkit.export._quantization_report import (
    quantization_report as quantization_report,
)
from keras_trainkit.export._report import DeploymentReport as DeploymentReport
from keras_trainkit.export._report import Latency as Latency
from keras_trainkit.export._report import Variant as Variant
from keras_trainkit.export._report import deployment_report as deployment_report
