"""Test without the network whether the inputs say anything about the targets."""

from collections.abc import Iterator

import keras
import numpy as np

from keras_trainkit.diagnostics._subject import is_numeric

_ROWS, _NEIGHBOURS, _DRAWS = 1000, 10, 200


def neighbours_agree(x, y, held_x, held_y, classes: bool, seed: int) -> float | None:
    """Measure how much better than chance the nearest rows predict held-out targets.

    Args:
        x: Training inputs.
        y: Their targets, one number per row.
        held_x: Held-out inputs.
        held_y: Their targets.
        classes: Whether the targets are classes.
        seed: Seed of the permutations.

    Returns:
        The agreement with the targets, in standard deviations of the agreement with
        permuted targets; None if the inputs cannot be compared.
    """
    train, held = _features(x), _features(held_x)
    if train is None or held is None or train.shape[1:] != held.shape[1:]:
        return None
    both = np.concatenate([train, held])
    mean, scale = both.mean(0), both.std(0)
    # If nothing varies, rounding errors must not count.
    scale = np.where(scale > 1e-5 * np.abs(mean), np.maximum(scale, 1e-30), np.inf)
    train, held = (train - mean) / scale, (held - mean) / scale
    y, held_y = np.asarray(y).ravel(), np.asarray(held_y).ravel()
    guess = _guess(train, y[: len(train)], held, classes)
    rng = np.random.default_rng(seed)
    held_y = held_y[: len(held)]
    chance = [
        _agreement(guess, rng.permutation(held_y), classes) for _ in range(_DRAWS)
    ]
    spread = max(float(np.std(chance)), 1e-9)
    return (_agreement(guess, held_y, classes) - float(np.mean(chance))) / spread


def _features(x) -> np.ndarray | None:
    arrays = keras.tree.flatten(x)
    if not arrays or not all(is_numeric(array) for array in arrays):
        return None
    return np.concatenate(list(_parts(arrays)), 1)


def _parts(arrays: list[np.ndarray]) -> Iterator[np.ndarray]:
    for array in (array[:_ROWS] for array in arrays):
        if array.dtype.kind in "iu" and array.ndim == 2 and array.max() < 50_000:
            yield _counts(array)
        else:
            yield array.reshape(len(array), -1).astype(np.float32)


def _counts(tokens: np.ndarray) -> np.ndarray:
    """Count how often the most frequent numbers occur in a row, in any order."""
    bins = tokens % 512
    found = np.zeros((len(tokens), 512), np.float32)
    for column in bins.T:
        found[np.arange(len(tokens)), column] += 1
    return np.concatenate([found, tokens.astype(np.float32)], 1)


def _guess(train, y, held, classes: bool) -> np.ndarray:
    distances = (
        np.square(held).sum(1)[:, None] - 2 * held @ train.T + np.square(train).sum(1)
    )
    nearest = np.argsort(distances, 1)[:, :_NEIGHBOURS]
    votes = y[nearest]
    if not classes:
        return votes.mean(1)
    known = np.unique(y)
    return known[(votes[..., None] == known).sum(1).argmax(1)]


def _agreement(guess: np.ndarray, y: np.ndarray, classes: bool) -> float:
    if classes:
        return float((guess == y).mean())
    if guess.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(guess, y)[0, 1])
