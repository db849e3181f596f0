"""Normalisation of state and action vectors: exact statistics of a dataset, the transform, and its inverse."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla.data.episodes import Episodes

# A dimension that spreads less than this is a constant up to rounding: dividing by its spread would blow up noise.
MIN_SPREAD = 1e-6
log = logging.getLogger(__name__)


@dataclasses.dataclass(
    frozen=True, eq=False
)  # by identity, so that what follows from one can be remembered
class NormStats:
    """Statistics of one vector feature over all frames; each float32[A] in the feature's own units.

    q01 and q99 are the exact 1 % and 99 % quantiles: order statistics of all values, linear between neighbours.
    transform: digest of the adapter by which the values were read, "" for values as stored.
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    count: int
    transform: str = ""

    def constant(self, mode: str) -> np.ndarray:
        """bool[A]: the dimensions that `mode` leaves as they are because they do not vary."""
        spread = {
            "quantile": self.q99 - self.q01,
            "zscore": self.std,
            "none": np.full_like(self.mean, np.inf),
        }
        if mode not in spread:
            raise ValueError(f"unknown normalisation {mode!r}: choose from {', '.join(spread)}")
        return spread[mode] < MIN_SPREAD

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; `from_dict` is the inverse, without loss."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> NormStats:
        plain = {"count": int, "transform": str}
        return cls(
            **{
                name: plain[name](value) if name in plain else np.asarray(value, np.float32)
                for name, value in fields.items()
            }
        )


VECTORS = ("action", "observation/state")


def compute_norm_stats(
    dataset: Episodes, names: Sequence[str] = VECTORS, *, horizon: int = 1
) -> dict[str, NormStats]:
    """Exact statistics of the dataset's vector features as they are learnt, by name.

    Dimensions that do not vary are logged. Of a dataset with damaged="skip", episodes with a value that is not finite
    are left out.

    Args:
      horizon: steps of a chunk, for actions that count from the state at its start: all steps of all chunks are taken.

    Raises KeyError for a feature that is not there, ValueError where a value is not finite (naming episode and step).
    """
    adapter = getattr(dataset, "adapter", None)
    for name in names:
        feature = dataset.feature(name)
        if feature.kind != "tensor" or feature.ragged:
            raise ValueError(
                f"{name} of {dataset.directory} is no vector: it has no norm statistics"
            )
    usable, stats = finite_frames(dataset, names), {}
    for name in names:
        if name == "action" and adapter and adapter.relative:
            chunks = (
                dataset.window(frame, name, horizon) for frame in np.flatnonzero(usable).tolist()
            )
            values = np.concatenate([chunk[present] for chunk, present in chunks])
        else:
            values = dataset.column(name).reshape(dataset.num_frames, -1)[usable]
        stats[name] = dataclasses.replace(
            stats_of(values), transform=adapter.digest if adapter else ""
        )
        still = np.flatnonzero(stats[name].constant("quantile")).tolist()
        if still:
            log.warning(
                "%s of %s: dimensions %s do not vary between their 1 %% and 99 %% quantiles and are not scaled",
                name,
                dataset.directory,
                still,
            )
    return stats


def stats_of(values: np.ndarray) -> NormStats:
    """Statistics of float[N, A], a dimension at a time in float64, so that no second copy of all is made."""
    columns = []
    for dimension in range(values.shape[1]):
        x = values[:, dimension].astype(np.float64)
        columns.append(
            (
                x.mean(),
                x.std(),
                x.min(),
                x.max(),
                *np.quantile(x, [0.01, 0.99], overwrite_input=True),
            )
        )
    names = ("mean", "std", "min", "max", "q01", "q99")
    table = np.array(columns, np.float32).reshape(-1, len(names)).T
    return NormStats(**dict(zip(names, table, strict=True)), count=len(values))


def finite_frames(dataset: Episodes, names: Sequence[str] = VECTORS) -> np.ndarray:
    """bool[num_frames]: False throughout an episode with a value that is not finite, if such are to be skipped.

    Raises ValueError, naming dataset, file, episode, step and field, if they are not.
    """
    usable = np.ones(dataset.num_frames, bool)
    for name in names:
        values = dataset.column(name).reshape(dataset.num_frames, -1)
        if np.isfinite(values).all():
            continue
        if dataset.damaged == "raise":
            check_finite(dataset, name, values)
        frames = np.flatnonzero(~np.isfinite(values).all(axis=1))
        for episode in np.unique(dataset.starts.searchsorted(frames, side="right") - 1).tolist():
            dataset.skip("episodes with values that are not finite", f"{name} of episode {episode}")
            usable[dataset.starts[episode] : dataset.starts[episode + 1]] = False
    return usable


def check_finite(dataset: Episodes, name: str, values: np.ndarray) -> None:
    """Raises ValueError, naming dataset, file, episode, step and field, if float[num_frames, A] holds NaN or inf."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        frame, dimension = bad[0].tolist()
        episode, step = dataset.locate(frame)
        file, record, _ = dataset.where(episode)
        raise ValueError(
            f"{name}[{dimension}] is {values[frame, dimension]} at episode {episode}, step {step} of "
            f"{dataset.directory}, split {dataset.split} ({file.name}, record {record}); "
            f"{len({row[0] for row in bad.tolist()})} frames are not finite"
        )


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


@functools.lru_cache(64)
def _affine(stats: NormStats, mode: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale), float32[W] each, of y = (x - shift) / scale."""
    size, constant = len(stats.mean), stats.constant(mode)
    if width < size:
        raise ValueError(
            f"a vector of width {width} cannot be normalised by statistics of width {size}"
        )
    shift, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    if mode != "none":
        centre, half = {
            "quantile": ((stats.q01 + stats.q99) / 2, (stats.q99 - stats.q01) / 2),
            "zscore": (stats.mean, stats.std),
        }[mode]
        shift[:size], scale[:size] = np.where(constant, 0, centre), np.where(constant, 1, half)
    return shift, scale
