"""Measure the peak memory of running a file, in a separate process."""

import subprocess
import sys
from pathlib import Path

# Measures from just before the file is loaded to the end of a forward pass over zeros.
# Only Linux lets a process reset its high-water mark.
_MEASURE = """
import sys, numpy as np
path, rows = sys.argv[1], int(sys.argv[2])
if path.endswith(".tflite"):
    from ai_edge_litert.interpreter import Interpreter
else:
    import onnxruntime

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(s.split()[1]) for s in status if s.startswith(name))

def run():
    if path.endswith(".tflite"):
        interpreter = Interpreter(model_path=path)
        for given in interpreter.get_input_details():
            interpreter.resize_tensor_input(given["index"], [rows, *given["shape"][1:]])
        interpreter.allocate_tensors()
        # Memory that nobody has set may hold tokens beyond the embedding.
        for given in interpreter.get_input_details():
            zeros = np.zeros([rows, *given["shape"][1:]], given["dtype"])
            interpreter.set_tensor(given["index"], zeros)
        interpreter.invoke()
        return interpreter
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    zeros = {}
    for given in session.get_inputs():
        name = given.type[7:-1]
        kind = {"float": "float32", "double": "float64"}.get(name, name)
        sizes = [s if isinstance(s, int) else 1 for s in given.shape[1:]]
        zeros[given.name] = np.zeros([rows, *sizes], kind)
    return session, session.run(None, zeros)

with open("/proc/self/clear_refs", "w") as marks:
    marks.write("5")
before = kilobytes("VmRSS")
kept = run()
print(1024 * max(kilobytes("VmHWM") - before, 0))
"""


def peak_memory(path: Path, rows: int) -> int | None:
    """Return the peak memory of loading a file and running one forward pass.

    Args:
        path: A `.tflite` or `.onnx` file.
        rows: Batch size of the pass.

    Returns:
        The bytes, in whole pages; None if the system does not report them.
    """
    finished = subprocess.run(
        [sys.executable, "-c", _MEASURE, path, str(rows)],
        capture_output=True,
        text=True,
    )
    return int(finished.stdout) if finished.returncode == 0 else None
