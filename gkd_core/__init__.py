"""The science of gkd: data, models, losses, the training loop, evaluation and export.

This floor knows torch, numpy and onnx, and nothing of kfp, dvc or mlflow. Importing it imports nothing heavy.
"""

import os

# onnxruntime's packages report their use to their makers since 1.29, on Linux and macOS too, unless this is set before
# its first import. Who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
