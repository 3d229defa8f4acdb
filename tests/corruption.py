"""Damage to files, for test_reliability.py and benchmarks/stress.py."""

from collections.abc import Iterator

import numpy as np

KINDS = ("truncated", "one bit", "eight bits", "64 bytes")


def corruptions(content: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damaged copies of `content`, each with the kind of damage."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        kind = KINDS[seed % len(KINDS)]
        yield f"{kind}, seed {seed}", _damage(content, kind, rng)


def _damage(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    damaged = np.frombuffer(content, np.uint8).copy()
    if kind == "truncated":
        return content[: rng.integers(len(content))]
    if kind == "64 bytes":
        start = rng.integers(len(content))
        part = damaged[start : start + 64]
        part[:] = rng.integers(0, 256, part.size)
    else:
        places = rng.integers(len(content), size=1 if kind == "one bit" else 8)
        damaged[places] ^= np.uint8(1) << rng.integers(0, 8, places.size, np.uint8)
    return damaged.tobytes()
