"""The plan: what every step of a stage draws, settled before training starts.

Streams (a dataset and a kind of supervision) have weights as points over the stage's progress. The plan turns them into
whole rows a step by carrying the rounding on, so that after any number of steps a stream's drawn rows are its
scheduled rows to within one. The n-th draw of a stream is a frame by an index shuffle per epoch. So the batch at step t
is a function of (config, seed, t): nothing has to be remembered to resume, and hosts cut the same batch into slices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle

from etcvla import schedule


@dataclasses.dataclass(frozen=True)
class Stream:
    """One source of rows."""

    name: str
    dataset: str
    kind: str  # "action", one of the ETC kinds, or "any" (every item of the dataset)
    weight: schedule.Schedule  # share of the batch's rows, relative to the other streams
    extra_segments: int  # further items of the same frame that ride along as segments of their own


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows drawn per step and stream."""

    streams: tuple[Stream, ...]
    batch_size: int
    seed: int
    weights: np.ndarray  # float64[steps, streams], rows of each step sum to 1
    counts: np.ndarray  # int64[steps, streams], rows of each step sum to batch_size
    before: np.ndarray  # int64[steps, streams], draws made before the step

    @classmethod
    def make(cls, streams: Sequence[Stream], *, batch_size: int, steps: int, seed: int) -> Plan:
        """Raises ValueError if a schedule is malformed or all weights vanish somewhere."""
        for stream in streams:
            schedule.check_schedule(stream.weight, f"streams.{stream.name}.weight")
        progress = np.arange(steps) / max(steps - 1, 1)
        weights = np.stack(
            [schedule.value_at(s.weight, progress, np) for s in streams], axis=1
        ).astype(np.float64)
        total = weights.sum(axis=1, keepdims=True)
        if not (total > 0).all():
            raise ValueError(f"streams: all weights are 0 at step {int(np.argmin(total > 0))}")
        weights /= total
        counts = apportion(weights, batch_size)
        return cls(
            tuple(streams), batch_size, seed, weights, counts, np.cumsum(counts, axis=0) - counts
        )

    @property
    def steps(self) -> int:
        return len(self.counts)

    def row(self, step: int, row: int) -> tuple[int, int]:
        """(stream index, how many draws that stream has made before) of one row of one step's global batch."""
        return self.rows(step, row, row + 1)[0]

    def rows(self, step: int, start: int, stop: int) -> list[tuple[int, int]]:
        """`row` of rows start .. stop."""
        ends = np.cumsum(self.counts[step])
        rows = np.arange(start, stop)
        streams = ends.searchsorted(rows, side="right")
        draws = rows + (self.before[step] + self.counts[step] - ends)[streams]
        return list(zip(streams.tolist(), draws.tolist(), strict=True))

    def draw(self, stream: int, n: int, size: int, together: int = 1) -> int:
        """The n-th draw of a stream among `size` candidates: each once an epoch, in another order every epoch.

        Args:
          together: so many draws in a row are neighbours among the candidates, for files that are read in large
            pieces; which ones are neighbours in a draw differs between epochs.
        """
        epoch, index = divmod(n, size)
        block, inside = divmod(index, together)
        blocks = size // together
        if block < blocks:  # what is left at the end makes no whole block and keeps its place
            seed = _shuffle_seed(self.seed, stream, epoch)
            block = int(index_shuffle(block, max_index=blocks - 1, seed=seed, rounds=4))
        return (block * together + inside + epoch * (together > 1)) % size


_WHOLE = 1e-9  # so far from a whole number, a quota is whole


@functools.lru_cache(1024)  # it costs more than a draw
def _shuffle_seed(seed: int, stream: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, stream, epoch)).generate_state(1)[0])


def apportion(weights: np.ndarray, batch_size: int) -> np.ndarray:
    """Whole rows a step whose running sums follow the running sums of `batch_size * weights`.

    Each running sum is its quota rounded down or up. Who gets the rows that rounding down leaves is decided by
    deadline: the stream whose quota is whole again soonest. As rows cut into fractions could follow the quotas exactly,
    whole ones, earliest deadline first, never miss a deadline. (The largest remainder, the obvious choice, lets many
    light streams take their rows early and then leaves heavy ones behind by more than one.)

    Args:
      weights: float[steps, streams], rows sum to 1.
    Returns: int64[steps, streams], rows sum to batch_size.
    """
    rate = weights.astype(
        np.longdouble
    )  # sums over a run of many steps must still tell a whole number
    rate *= batch_size / rate.sum(axis=1, keepdims=True)
    quota = np.cumsum(rate, axis=0)
    floor = np.floor(quota + _WHOLE).astype(
        np.int64
    )  # sums of shares that should be whole must not fall short
    deadline = np.stack(list(map(_whole_again, quota.T, rate.T, floor.T)), axis=1)
    drawn = floor.copy()
    # Where quotas are whole, all have drawn theirs: only the steps between need one after another.
    for step in np.flatnonzero(
        floor.sum(axis=1) != batch_size * np.arange(1, len(floor) + 1)
    ).tolist():
        before = drawn[step - 1] if step else np.zeros_like(drawn[0])
        drawn[step] = np.maximum(floor[step], before)
        extra = batch_size - int((drawn[step] - before).sum())
        closed = (drawn[step] > floor[step]) | (
            quota[step] < floor[step] + _WHOLE
        )  # rounded up, or nothing to round
        drawn[step, np.lexsort((deadline[step], closed))[:extra]] += 1
    return np.diff(drawn, axis=0, prepend=0)


def _whole_again(quota: np.ndarray, rate: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """float[steps]: the step at which a stream's quota is `floor` + 1; after the last one it grows as in that."""
    step = np.searchsorted(quota, floor + 1 - _WHOLE)
    last = np.minimum(step, len(quota) - 1)
    with np.errstate(divide="ignore"):
        return last + (floor + 1 - quota[last]) / rate[last]
