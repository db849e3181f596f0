"""Boxes and paths in the image: overlap, arc-length resampling, distance."""

from __future__ import annotations

import numpy as np

NUM_RESAMPLED = 16  # number of points at which two paths are compared


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of boxes float[..., 4] (ymin, xmin, ymax, xmax).

    The result is 0 if both boxes are empty.
    """
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    intersection = _area(low, high)
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - intersection
    return intersection / np.maximum(union, 1e-12)


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(high - low, 0), axis=-1)


def resample(path: np.ndarray, num: int = NUM_RESAMPLED) -> np.ndarray:
    """Return `num` points at equal arc length along a polyline.

    Args:
      path: float[n, 2]. A path of zero length repeats its point.

    Returns:
      float64[num, 2].
    """
    # One complex number per point halves the number of calls, which dominate for such small arrays.
    z = path[:, 0] + 1j * path[:, 1]
    length = np.concatenate([[0], np.cumsum(np.abs(z[1:] - z[:-1]))])
    z = np.interp(length[-1] * np.arange(num) / (num - 1), length, z)
    return np.stack([z.real, z.imag], axis=-1)


def path_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the mean distance of two paths at equal fractions of their own arc length.

    Args:
      a: float[n, 2].
      b: float[m, 2].
    """
    y, x = (resample(a) - resample(b)).T
    return float(np.hypot(y, x).mean())
