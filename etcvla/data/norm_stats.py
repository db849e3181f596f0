"""Normalise state and action vectors: exact statistics of a dataset, the transform, its inverse."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla.data.episodes import Episodes
from etcvla.errors import UserError
from etcvla.names import lookup

# A dimension with a smaller spread is constant up to rounding; dividing by it would amplify noise.
MIN_SPREAD = 1e-6
VECTORS = ("action", "observation/state")
MODES = {
    "quantile": "q01 .. q99 to -1 .. 1, not clipped",
    "zscore": "mean 0, standard deviation 1",
    "none": "unchanged",
}
_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
log = logging.getLogger(__name__)


# Compared and hashed by identity, so that `_shift_scale` can be cached.
@dataclasses.dataclass(frozen=True, eq=False)
class NormStats:
    """Statistics of a vector feature over all frames, float32[A] in the feature's own units.

    q01 and q99 are the exact 1 % and 99 % quantiles of all values, interpolated linearly.

    Attributes:
      count: number of frames.
      transform: digest of the adapter by which the values were read; "" for values as stored.
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
        """Return bool[A]: the dimensions that do not vary, which `mode` leaves unchanged."""
        spreads = {"quantile": self.q99 - self.q01, "zscore": self.std}
        return spreads.get(mode, np.full(self.mean.shape, np.inf)) < MIN_SPREAD

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without loss; `from_dict` is the inverse."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> NormStats:
        """Return the statistics with these fields; the inverse of `to_dict`."""
        arrays = {name: np.asarray(fields[name], np.float32) for name in _STATISTICS}
        transform = str(fields.get("transform", ""))
        return cls(**arrays, count=int(fields["count"]), transform=transform)


def compute_norm_stats(
    dataset: Episodes, names: Sequence[str] = VECTORS, *, horizon: int = 1
) -> dict[str, NormStats]:
    """Compute exact statistics of a dataset's vector features as they are trained on, by name.

    Dimensions that do not vary are logged. With damaged="skip", episodes with a value that is not
    finite are left out.

    Args:
      horizon: steps of a chunk P. Actions that are relative to the state at the chunk's start are
        taken from all steps of all chunks.

    Raises UserError for a feature that is missing or no vector, or a value that is not finite.
    """
    for name in names:
        if not dataset.feature(name).is_tensor:
            raise UserError(
                f"{name} of {dataset.directory} is not a vector: it has no norm statistics"
            )
    adapter = getattr(dataset, "adapter", None)
    usable = finite_frames(dataset, names)
    stats = {}
    for name in names:
        if name == "action" and adapter and adapter.relative_dims:
            values = _chunk_values(dataset, name, usable, horizon)
        else:
            values = dataset.column(name).reshape(dataset.num_frames, -1)[usable]
        transform = adapter.digest if adapter else ""
        stats[name] = dataclasses.replace(stats_of(values), transform=transform)
        constant = np.flatnonzero(stats[name].constant("quantile")).tolist()
        if constant:
            log.warning(
                "%s of %s: dimensions %s do not vary between their 1 %% and 99 %% quantiles "
                "and are not scaled",
                name,
                dataset.directory,
                constant,
            )
    return stats


def _chunk_values(dataset: Episodes, name: str, usable: np.ndarray, horizon: int) -> np.ndarray:
    """Return the values of all steps of the chunks that begin at usable frames, float32[N, A]."""
    values = []
    for frame in np.flatnonzero(usable).tolist():
        chunk, inside = dataset.window(frame, name, horizon)
        values.append(chunk[inside])
    return np.concatenate(values)


def stats_of(values: np.ndarray) -> NormStats:
    """Compute the statistics of values float[N, A].

    It computes one dimension at a time in float64, so that there is no second copy of all values.
    """
    table = np.empty((len(_STATISTICS), values.shape[1]), np.float32)
    for dim in range(values.shape[1]):
        x = values[:, dim].astype(np.float64)
        moments = x.mean(), x.std(), x.min(), x.max()
        quantiles = np.quantile(x, [0.01, 0.99], overwrite_input=True)
        table[:, dim] = [*moments, *quantiles]
    return NormStats(**dict(zip(_STATISTICS, table, strict=True)), count=len(values))


def finite_frames(dataset: Episodes, names: Sequence[str] = VECTORS) -> np.ndarray:
    """Return bool[num_frames]: False throughout an episode with a value that is not finite.

    Raises UserError at such a value unless the dataset skips damaged data.
    """
    usable = np.ones(dataset.num_frames, bool)
    for name in names:
        values = dataset.column(name).reshape(dataset.num_frames, -1)
        if np.isfinite(values).all():
            continue
        frames, dims = np.nonzero(~np.isfinite(values))
        episodes, steps = dataset.locate_all(frames)
        if dataset.damaged == "raise":
            file, record, _ = dataset.where(episodes[0])
            raise UserError(
                f"{name}[{dims[0]}] is {values[frames[0], dims[0]]} at episode {episodes[0]}, step "
                f"{steps[0]} of {dataset.directory}, split {dataset.split} ({file.name}, record "
                f"{record}); {len(set(frames))} frames are not finite"
            )
        for episode in np.unique(episodes).tolist():
            dataset.skip("episodes with values that are not finite", f"{name} of episode {episode}")
            usable[dataset.starts[episode] : dataset.starts[episode + 1]] = False
    return usable


def normalize(x: np.ndarray, stats: NormStats, mode: str) -> np.ndarray:
    """Transform data to model units, float[..., W] of the same width.

    Args:
      x: float[..., W] with W >= A; the dimensions beyond A are padding and stay unchanged.
      mode: a name of `MODES`. Dimensions that do not vary stay unchanged.
    """
    shift, scale = _shift_scale(stats, mode, x.shape[-1])
    return (x - shift) / scale


def unnormalize(x: np.ndarray, stats: NormStats, mode: str) -> np.ndarray:
    """Transform model to data units; the inverse of `normalize`, with the same arguments."""
    shift, scale = _shift_scale(stats, mode, x.shape[-1])
    return x * scale + shift


@functools.lru_cache(64)
def _shift_scale(stats: NormStats, mode: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32[W] shift and scale of y = (x - shift) / scale."""
    lookup(MODES, mode, "normalisation")
    size = len(stats.mean)
    if width < size:
        raise ValueError(f"a vector of width {width} does not fit statistics of width {size}")
    shift = np.zeros(width, np.float32)
    scale = np.ones(width, np.float32)
    varies = np.flatnonzero(~stats.constant(mode))
    if mode == "quantile":
        shift[varies] = ((stats.q01 + stats.q99) / 2)[varies]
        scale[varies] = ((stats.q99 - stats.q01) / 2)[varies]
    elif mode == "zscore":
        shift[varies] = stats.mean[varies]
        scale[varies] = stats.std[varies]
    return shift, scale
