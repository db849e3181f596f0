"""The plan: which row of the dataset every step of a stage draws, fixed before training starts.

Streams (a dataset and a kind of targets) have weights that are schedules over the stage's
progress: their shares of the objective. The rows follow them, or schedules of their own. The plan
turns the rows' shares into whole rows per step and carries the rounding over, so that after any
number of steps a stream's drawn rows differ from its scheduled rows by less than one. A row's
coefficient in the objective is its stream's share divided by the stream's scheduled rows.
The n-th draw of a stream is a frame by an index shuffle per epoch. So the batch at step t is a
function of (config, seed, t): resuming needs no saved state, and each host takes its slice of the
same batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle

from etcvla import schedule
from etcvla.errors import UserError
from etcvla.loss_forms import EXTRA_WEIGHT

_TOLERANCE = 1e-9  # a quota this close to an integer counts as whole


@dataclasses.dataclass(frozen=True)
class Stream:
    """A stream of the mixture.

    Attributes:
      name: name in the config.
      dataset: name of the dataset.
      kind: "action", one of the ETC kinds, or "any" (all ETC items of the dataset).
      weight: share of the objective, relative to the other streams.
      extra_segments: number of further ETC items of the same frame in a row.
      rows: share of the batch's rows, relative to the other streams. (): the weight.
      loss_weight: factor on the stream's share of the objective.
      extra_weight: coefficient of the mean loss of an action row's extra segments, relative to the
        row's.
    """

    name: str
    dataset: str
    kind: str
    weight: schedule.Schedule
    extra_segments: int
    rows: schedule.Schedule = ()
    loss_weight: schedule.Schedule = ((0.0, 1.0),)
    extra_weight: float = EXTRA_WEIGHT


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows that each step draws from each stream.

    Attributes:
      row_shares: float64[steps, streams], shares of the batch's rows; each step sums to 1.
      coefficients: float64[steps, streams], coefficient of each stream's mean loss in the
        objective: its share (each step's sum to 1) times its loss weight.
      counts: int64[steps, streams], rows; each step sums to batch_size.
      before: int64[steps, streams], draws made before the step.
    """

    streams: tuple[Stream, ...]
    batch_size: int
    seed: int
    row_shares: np.ndarray
    coefficients: np.ndarray
    counts: np.ndarray
    before: np.ndarray

    @classmethod
    def make(cls, streams: Sequence[Stream], *, batch_size: int, steps: int, seed: int) -> Plan:
        """Make the plan of a stage.

        Raises UserError if a schedule is malformed, all weights are 0 at a step, or a stream has
          a weight but no rows.
        """
        shares = _normalize(_values(streams, "weight", steps))
        row_shares = shares
        if any(stream.rows for stream in streams):
            row_streams = []
            for stream in streams:
                row_streams.append(dataclasses.replace(stream, rows=stream.rows or stream.weight))
            row_shares = _normalize(_values(row_streams, "rows", steps))
            _check_rows(streams, shares, row_shares)
        coefficients = shares * _values(streams, "loss_weight", steps)
        counts = apportion(row_shares, batch_size)
        # In Fortran order, since `row_coefficient` searches a column for each row.
        before = np.asfortranarray(np.cumsum(counts, axis=0) - counts)
        return cls(tuple(streams), batch_size, seed, row_shares, coefficients, counts, before)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.counts)

    def rows(self, step: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Return (stream index, n) of the rows start .. stop - 1 of a step's global batch.

        Such a row is the stream's n-th draw.
        """
        ends = np.cumsum(self.counts[step])
        rows = np.arange(start, stop)
        streams = ends.searchsorted(rows, side="right")
        first_draws = self.before[step] + self.counts[step] - ends
        draws = rows + first_draws[streams]
        return list(zip(streams.tolist(), draws.tolist(), strict=True))

    def row_coefficient(self, stream: int, n: int) -> float:
        """Return the coefficient of the loss of a stream's n-th draw in the objective.

        It is the stream's coefficient divided by its scheduled rows at the step of the draw, so
        the drawn rows have the stream's coefficient together. A draw that comes one step late,
        when its stream has no rows any more, has coefficient 0.
        """
        step = int(self.before[:, stream].searchsorted(n, side="right")) - 1
        scheduled_rows = self.batch_size * self.row_shares[step, stream]
        if not scheduled_rows:
            return 0.0
        return float(self.coefficients[step, stream] / scheduled_rows)

    def draw(self, stream: int, n: int, size: int, together: int = 1) -> int:
        """Return the position of a stream's n-th draw among its `size` candidates.

        Each candidate is drawn once per epoch, in another order every epoch.

        Args:
          together: this many consecutive draws are neighbours among the candidates, for files that
            are read in large pieces. The blocks of neighbours differ between epochs.
        """
        epoch, index = divmod(n, size)
        block, offset = divmod(index, together)
        num_blocks = size // together
        if block < num_blocks:  # the candidates after the last whole block keep their position
            seed = _shuffle_seed(self.seed, stream, epoch)
            block = int(index_shuffle(block, max_index=num_blocks - 1, seed=seed, rounds=4))
        shift = epoch if together > 1 else 0
        return (block * together + offset + shift) % size


def _values(streams: Sequence[Stream], field: str, steps: int) -> np.ndarray:
    """Return the values of a schedule of each stream, float64[steps, streams].

    Raises UserError if a schedule is malformed.
    """
    progress = np.arange(steps) / max(steps - 1, 1)
    columns = []
    for stream in streams:
        points = getattr(stream, field)
        schedule.check_schedule(points, f"streams.{stream.name}.{field}")
        columns.append(schedule.value_at(points, progress, np))
    return np.stack(columns, axis=1).astype(np.float64)


def _normalize(weights: np.ndarray) -> np.ndarray:
    """Divide the weights [steps, streams] by their sum at each step; it must not be 0."""
    total = weights.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise UserError(
            f"streams: all weights are 0 at step {int(np.argmin(total > 0))}; "
            "raise the weight of a stream there"
        )
    return weights / total


def _check_rows(streams: Sequence[Stream], shares: np.ndarray, row_shares: np.ndarray) -> None:
    """Raise UserError if a stream has a share of the objective, but no rows."""
    without_rows = (shares > 0) & (row_shares == 0)
    if without_rows.any():
        step, index = np.argwhere(without_rows)[0]
        name = streams[index].name
        raise UserError(
            f"streams.{name}.rows is 0 at step {step}, where its weight is not; raise "
            f"streams.{name}.rows there, or set its weight to 0"
        )


@functools.lru_cache(1024)  # computing the seed takes longer than the draw
def _shuffle_seed(seed: int, stream: int, epoch: int) -> int:
    sequence = np.random.SeedSequence((seed, stream, epoch))
    return int(sequence.generate_state(1)[0])


def apportion(weights: np.ndarray, batch_size: int) -> np.ndarray:
    """Return whole rows per step whose running sums follow those of `batch_size * weights`.

    Each running sum is its quota rounded down or up. The rows that are left after rounding down go
    to the streams with the earliest deadline: the step at which a stream's quota reaches the next
    whole number. Fractional rows could follow the quotas exactly, so whole rows that are assigned
    by the earliest deadline first never miss a deadline. (Giving them to the largest remainders
    instead lets many light streams take their rows early and leaves heavy streams more than one
    row behind.)

    Args:
      weights: float[steps, streams]; each step sums to 1.

    Returns: int64[steps, streams]; each step sums to batch_size.
    """
    # Extended precision: sums over a long run must still show that a number is whole.
    rate = weights.astype(np.longdouble)
    rate *= batch_size / rate.sum(axis=1, keepdims=True)
    quota = np.cumsum(rate, axis=0)
    floor = np.floor(quota + _TOLERANCE).astype(np.int64)
    deadline = np.empty_like(rate)
    for stream in range(rate.shape[1]):
        deadline[:, stream] = _deadlines(quota[:, stream], rate[:, stream], floor[:, stream])
    drawn = floor.copy()
    # At steps where all quotas are whole, `drawn` equals them; only the others need the loop.
    planned = batch_size * np.arange(1, len(floor) + 1)
    for step in np.flatnonzero(floor.sum(axis=1) != planned).tolist():
        before = drawn[step - 1] if step else np.zeros_like(drawn[0])
        drawn[step] = np.maximum(floor[step], before)
        rows_left = batch_size - int((drawn[step] - before).sum())
        is_rounded_up = drawn[step] > floor[step]
        is_whole = quota[step] < floor[step] + _TOLERANCE
        order = np.lexsort((deadline[step], is_rounded_up | is_whole))
        drawn[step, order[:rows_left]] += 1
    return np.diff(drawn, axis=0, prepend=0)


def _deadlines(quota: np.ndarray, rate: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return the step at which a stream's quota reaches floor + 1, float[steps].

    After the last step the quota is assumed to grow as in the last step.
    """
    step = np.searchsorted(quota, floor + 1 - _TOLERANCE)
    last = np.minimum(step, len(quota) - 1)
    with np.errstate(divide="ignore"):
        return last + (floor + 1 - quota[last]) / rate[last]
