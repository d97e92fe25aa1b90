"""From a trained network to one file that needs no torch: the graph, its check against torch, its manifest."""
