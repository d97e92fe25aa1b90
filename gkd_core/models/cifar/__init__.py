"""The families of the CIFAR distillation benchmark, under the layer names of its published checkpoints."""
