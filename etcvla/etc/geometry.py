"""Boxes and paths in the image: overlap, arc-length resampling, distance."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLED = 16  # points at which two paths are compared


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes float[..., 4] (ymin, xmin, ymax, xmax); 0 where both are empty."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=-1)
    area_a, area_b = (
        np.prod(np.maximum(box[..., 2:] - box[..., :2], 0), axis=-1) for box in (a, b)
    )
    return inter / np.maximum(area_a + area_b - inter, 1e-12)


def resample(path: np.ndarray, num: int = NUM_RESAMPLED) -> np.ndarray:
    """`num` points at equal arc length along a polyline float[n, 2]; a path without length repeats its point."""
    z = (
        path[:, 0] + 1j * path[:, 1]
    )  # one complex number a point: half the calls on arrays this small
    length = np.concatenate([[0], np.cumsum(np.abs(z[1:] - z[:-1]))])
    z = np.interp(length[-1] * np.arange(num) / (num - 1), length, z)
    return np.stack([z.real, z.imag], axis=-1)


def path_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of two paths float[n, 2], float[m, 2], compared at equal shares of their own arc length."""
    y, x = (resample(a) - resample(b)).T
    return float(np.hypot(y, x).mean())
