"""Normalisation of state and action vectors: exact statistics of a dataset, the transform, and its inverse."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla.data.rlds import RLDSDataset

# A dimension that spreads less than this is a constant up to rounding: dividing by its spread would blow up noise.
MIN_SPREAD = 1e-6
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class NormStats:
    """Statistics of one vector feature over all frames; each float32[A] in the feature's own units.

    q01 and q99 are the exact 1 % and 99 % quantiles (linear between neighbours).
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    count: int

    def constant(self, mode: str) -> np.ndarray:
        """bool[A]: the dimensions that `mode` leaves as they are because they do not vary."""
        spread = {"quantile": self.q99 - self.q01, "zscore": self.std, "none": np.full_like(self.mean, np.inf)}
        if mode not in spread:
            raise ValueError(f"unknown normalisation {mode!r}: choose from {', '.join(spread)}")
        return spread[mode] < MIN_SPREAD

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; `from_dict` is the inverse, without loss."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> NormStats:
        return cls(**{name: int(value) if name == "count" else np.asarray(value, np.float32)
                      for name, value in fields.items()})


def compute_norm_stats(dataset: RLDSDataset, names: Sequence[str] = ("action", "observation/state")
                       ) -> dict[str, NormStats]:
    """Exact statistics of the dataset's vector features, by name. Dimensions that do not vary are logged.

    Raises KeyError for a feature that is not there, ValueError where a value is not finite (naming episode and step).
    """
    stats = {}
    for name in names:
        feature = dataset.feature(name)
        if feature.kind != "tensor" or feature.ragged:
            raise ValueError(f"{name} of {dataset.directory} is no vector: it has no norm statistics")
        values = dataset.column(name).reshape(dataset.num_frames, -1)
        check_finite(dataset, name, values)
        stats[name] = stats_of(values)
        still = np.flatnonzero(stats[name].constant("quantile")).tolist()
        if still:
            log.warning("%s of %s: dimensions %s do not vary between their 1 %% and 99 %% quantiles and are not scaled",
                        name, dataset.directory, still)
    return stats


def stats_of(values: np.ndarray) -> NormStats:
    """Statistics of float[N, A], accumulated in float64."""
    q01, q99 = np.quantile(values.astype(np.float64), [0.01, 0.99], axis=0)
    moments = {"mean": values.mean(0, np.float64), "std": values.std(0, np.float64), "min": values.min(0),
               "max": values.max(0), "q01": q01, "q99": q99}
    return NormStats(**{name: np.asarray(value, np.float32) for name, value in moments.items()}, count=len(values))


def check_finite(dataset: RLDSDataset, name: str, values: np.ndarray) -> None:
    """Raises ValueError, naming dataset, file, episode, step and field, if float[num_frames, A] holds NaN or inf."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        frame, dimension = bad[0].tolist()
        episode, step = dataset.locate(frame)
        file, record, _ = dataset.where(episode)
        raise ValueError(f"{name}[{dimension}] is {values[frame, dimension]} at episode {episode}, step {step} of "
                         f"{dataset.directory}, split {dataset.split} ({file.name}, record {record}); "
                         f"{len({row[0] for row in bad.tolist()})} frames are not finite")


def normalize(x: np.ndarray, stats: NormStats, mode: str) -> np.ndarray:
    """Data to model units: float[..., W] of the same width.

    Args:
      x: float[..., W] with W >= A; what lies beyond A is padding and stays as it is.
      mode: "quantile" (q01 .. q99 to -1 .. 1, not clipped), "zscore" (mean 0, std 1) or "none". Dimensions that do not
        vary stay as they are.
    """
    shift, scale = _affine(stats, mode, x.shape[-1])
    return (x - shift) / scale


def unnormalize(x: np.ndarray, stats: NormStats, mode: str) -> np.ndarray:
    """Model to data units: the inverse of `normalize`, same arguments."""
    shift, scale = _affine(stats, mode, x.shape[-1])
    return x * scale + shift


def _affine(stats: NormStats, mode: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale), float32[W] each, of y = (x - shift) / scale."""
    size, constant = len(stats.mean), stats.constant(mode)
    if width < size:
        raise ValueError(f"a vector of width {width} cannot be normalised by statistics of width {size}")
    shift, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    if mode != "none":
        centre, half = {"quantile": ((stats.q01 + stats.q99) / 2, (stats.q99 - stats.q01) / 2),
                        "zscore": (stats.mean, stats.std)}[mode]
        shift[:size], scale[:size] = np.where(constant, 0, centre), np.where(constant, 1, half)
    return shift, scale
