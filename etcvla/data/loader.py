"""The loader: a process's rows of each global batch, built ahead by threads or processes."""

from __future__ import annotations

import collections
import math
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from etcvla.data.rows import RowBuilder


class BufferPool:
    """Memory of large arrays that is reused once no array refers to it.

    The kernel clears newly allocated memory, which costs a tenth of decoding images into it.

    Args:
      max_buffers: how many unused buffers are kept.
    """

    def __init__(self, max_buffers: int = 16):
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=max_buffers)

    def __reduce__(self):
        return BufferPool, (self._free.maxlen,)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return uint8[shape] with arbitrary content."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if memory.size != size:
            memory = np.empty(size, np.uint8)
        # A NumPy view refers to the array that owns the memory, not to the views in between. The
        # memoryview ends that chain, so `owner` lives until the last view of it is gone.
        owner = np.frombuffer(memoryview(memory), np.uint8)
        weakref.finalize(owner, self._free.append, memory).atexit = False
        return owner.reshape(shape)


class _BatchSource:
    """Random access to a process's batches: element i has its rows of step i's global batch."""

    def __init__(self, builder: RowBuilder, rows: Sequence[int] | None):
        self.builder = builder
        self.buffers = BufferPool()
        self.batch_size = builder.plan.batch_size
        self.row_numbers = range(self.batch_size) if rows is None else rows

    def __len__(self) -> int:
        return self.builder.plan.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        draws = self.builder.plan.rows(int(step), 0, self.batch_size)
        images = self.buffers.empty(self.builder.image_shape(len(self.row_numbers)))
        return self.builder.rows([draws[row] for row in self.row_numbers], images)


def batches(
    builder: RowBuilder,
    *,
    start: int,
    rows: Sequence[int] | None = None,
    threads: int = 2,
    workers: int = 0,
    prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of steps `start`, `start` + 1, ... as fields of `etcvla.batch.SCHEMA`.

    Args:
      rows: the rows of every global batch that this process builds; None: all.
      threads: how many threads build batches.
      workers: how many processes run these threads; 0: only this process. Image decoding releases
        Python's lock, so threads suffice in most cases. Processes cost memory; use them where many
        cores would wait for the other work on a row.
      prefetch: how many batches are built ahead.
    """
    dataset = grain.MapDataset.source(_BatchSource(builder, rows))[start:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    dataset = dataset.to_iter_dataset(options)
    if workers:
        # Grain reads one of its flags to start processes; outside absl's app they are not parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        )
    return iter(dataset)
