"""The loader: the plan's rows, built ahead of the trainer by threads or processes; of each global batch those that a
process wants."""

from __future__ import annotations

import collections
import math
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from etcvla.data.rows import RowBuilder


class Recycled:
    """Memory of large arrays, used again once nobody looks at it.

    The kernel clears fresh memory, which costs a tenth of decoding images into it.
    """

    def __init__(self, most: int = 16):
        self._free: collections.deque[np.ndarray] = collections.deque(maxlen=most)

    def __reduce__(self):
        return Recycled, (self._free.maxlen,)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8[shape] with any content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        size = math.prod(shape)
        if memory.size != size:
            memory = np.empty(size, np.uint8)
        # NumPy lets a view hold the array that its memory is, not the views between: a memoryview ends that chain here,
        # so that `root` is gone only when all views are.
        root = np.frombuffer(memoryview(memory), np.uint8)
        weakref.finalize(root, self._free.append, memory).atexit = False
        return root.reshape(shape)


class _Batches:
    """Random access to a process's batches: index i is its rows of step i's global batch."""

    def __init__(self, builder: RowBuilder, rows: Sequence[int] | None):
        self.builder, self.memory = builder, Recycled()
        self.size = builder.plan.batch_size
        self.wanted = range(self.size) if rows is None else rows

    def __len__(self) -> int:
        return self.builder.plan.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        draws = self.builder.plan.rows(int(step), 0, self.size)
        memory = self.memory.empty(self.builder.image_shape(len(self.wanted)))
        return self.builder.rows([draws[row] for row in self.wanted], memory)


def batches(
    builder: RowBuilder,
    *,
    start: int,
    rows: Sequence[int] | None = None,
    threads: int = 2,
    workers: int = 0,
    prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of steps `start`, `start` + 1, ... as fields of `etcvla.batch.SCHEMA`.

    Args:
      rows: which of every global batch are this process's; None: all.
      threads, prefetch: how many build batches, and how many lie ready.
      workers: processes that have these threads each; 0: this one. Decoding frees Python's lock, so that threads do
        for most; processes are worth their memory where many cores would wait for the rest of a row.
    """
    dataset = grain.MapDataset.source(_Batches(builder, rows))[start:]
    ahead = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    )
    if workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # outside of absl's app; grain reads a flag of its own to start processes
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        )
    return iter(ahead)
