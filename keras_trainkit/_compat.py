"""The only place that reaches past the public `keras` API.

Each entry says why the public API does not do, and on which Keras versions it was
tried.
"""
