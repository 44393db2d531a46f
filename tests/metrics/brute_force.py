"""Slow and obvious: whole float64 matrices of distances, every ball looked at."""

import torch


def squared_distances(a, b):
    """float64 [N, M] from differences, one row at a time."""
    return torch.stack([(row - b.double()).square().sum(1) for row in a.double()])


def squared_radii(features, k):
    """float64 [N], to the k-th neighbour, the row itself left out by its position."""
    distances = squared_distances(features, features)
    distances.fill_diagonal_(torch.inf)
    return distances.sort(dim=1).values[:, k - 1]


def precision_recall(samples, real, k):
    distances = squared_distances(samples, real)
    precision = (distances <= squared_radii(real, k)).any(1).double().mean().item()
    recall = (distances <= squared_radii(samples, k)[:, None]).any(0).double().mean().item()
    return precision, recall


def density_coverage(samples, real, k):
    within = squared_distances(samples, real) < squared_radii(real, k)
    return within.sum().item() / (k * len(samples)), within.any(0).double().mean().item()


def nearest(queries, images, k):
    """Distances and indices [Q, k]; of equal distances the lower index first."""
    distances = squared_distances(queries, images)
    order = distances.argsort(dim=1, stable=True)[:, :k]
    return distances.gather(1, order).sqrt(), order
