"""The science of gkd: data, models, losses, the training loop, evaluation and export.

This floor knows torch, numpy and onnx, and nothing of kfp, dvc or mlflow. Importing it imports nothing heavy.
"""

__version__ = "0.1.0"
