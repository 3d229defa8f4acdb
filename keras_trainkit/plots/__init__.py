"""Figures: each function takes a result and returns matplotlib Axes."""
