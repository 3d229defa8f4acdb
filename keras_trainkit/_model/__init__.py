"""What a model is: its graph, its layers and their kernels, and what it costs."""
