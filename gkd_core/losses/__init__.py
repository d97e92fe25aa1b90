"""One idea a file: each loss is a function, or an nn.Module when it owns parameters."""
