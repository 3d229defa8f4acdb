"""Inspect and rewrite models: graphs, layers, kernels, copies and operation counts."""
