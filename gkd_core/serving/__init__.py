"""The server: Open Inference Protocol v2 over HTTP, by onnxruntime. Imports neither torch nor mlflow."""
