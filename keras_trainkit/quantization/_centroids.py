"""Cluster the entries of a weight: one-dimensional k-means."""

import numpy as np

INITIALIZATIONS = ("k-means++", "linear", "density")
_MAX_ITERATIONS = 300


def cluster(
    values: np.ndarray, num_clusters: int, initialization: str, seed: int
) -> np.ndarray:
    """Assign numbers to clusters by Lloyd's algorithm.

    Args:
        values: Numbers, of shape `(size,)`.
        num_clusters: The number of clusters; some may stay empty.
        initialization: Where the centroids start.
        seed: Random seed for `"k-means++"`.

    Returns:
        The cluster of each number. Numbers with at most `num_clusters` distinct values
        have a cluster for each value.

    Reference:
        D. Arthur and S. Vassilvitskii, k-means++: The Advantages of Careful Seeding
        (2007).
    """
    distinct, inverse, counts = np.unique(
        values.astype("float64"), return_inverse=True, return_counts=True
    )
    if len(distinct) <= num_clusters:
        return inverse
    if initialization == "linear":
        centroids = np.linspace(distinct[0], distinct[-1], num_clusters)
    elif initialization == "density":
        centroids = np.quantile(values, np.linspace(0, 1, num_clusters))
    else:
        centroids = _plus_plus(distinct, counts, num_clusters, seed)
    return _lloyd(distinct, counts, np.sort(centroids))[inverse]


def _plus_plus(
    values: np.ndarray, counts: np.ndarray, num_clusters: int, seed: int
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centroids = [rng.choice(values, p=counts / counts.sum())]
    nearest = np.full(len(values), np.inf)
    while len(centroids) < num_clusters:
        nearest = np.minimum(nearest, (values - centroids[-1]) ** 2)
        weights = counts * nearest
        centroids.append(rng.choice(values, p=weights / weights.sum()))
    return np.array(centroids)


def _lloyd(values: np.ndarray, counts: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The cluster of each of the sorted, distinct values."""
    labels = np.full(len(values), -1)
    for _ in range(_MAX_ITERATIONS):
        # In one dimension, clusters meet halfway between their centroids.
        found = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
        if (found == labels).all():
            break
        labels = found
        members = np.bincount(labels, counts, len(centroids))
        sums = np.bincount(labels, counts * values, len(centroids))
        means = sums / np.maximum(members, 1)
        # An empty cluster keeps its place.
        centroids = np.sort(np.where(members > 0, means, centroids))
    return labels
