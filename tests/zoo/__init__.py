"""Architectures not designed for this package, and what each feature does on them.

`python -m tests.zoo` runs the whole; `python -m tests.zoo --help` says how to run a
part.
"""
