"""The steps' Kubeflow faces: typed, documented, and thin; a body imports a step and calls its `run()`."""
