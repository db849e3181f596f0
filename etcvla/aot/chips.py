"""TPU chips and slices: what the roofline needs to know of them, and the devices that the compiler compiles for.

Numbers are Google's (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: "peak compute per chip (bf16)", "HBM bandwidth", "ICI
bandwidth"; v4's links: arXiv 2304.01433). Google states interconnect bandwidth of all links in both directions; here it
is that of one link in one direction. `hbm_gib` is what libtpu 0.0.52 lets a program have, a little less than the chip
holds: its own "available HBM" when a program does not fit.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import topologies

from etcvla.names import lookup

MAX_CHIPS = 256


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; a device of JAX (v4's and v5p's two cores work as one)."""

    tflops: float  # peak in bf16, 1e12 multiplications and additions a second
    hbm_gib: float  # that a program may have
    hbm_gbps: float  # 1e9 bytes a second
    link_gbps: (
        float  # 1e9 bytes a second, one link in one direction; two links an axis of the slice
    )
    wraps: int  # an axis of so many chips, or of a multiple of it, is a ring
    axes: int  # of its network
    compiler: tuple[tuple[str, str], ...] = ()  # options of the compiler


CHIPS = {
    "v4": Chip(275, 30.75, 1228, 50, 4, 3, (("chip_config_name", "megacore"),)),
    "v5e": Chip(197, 15.75, 819, 50, 16, 2),
    "v5p": Chip(459, 95.73, 2765, 100, 4, 3),
    "v6e": Chip(918, 31.24, 1640, 100, 16, 2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a pod, such as v5e:4x4."""

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, name: str) -> Slice:
        """From "v5e:4x4". Raises ValueError saying what is wrong with a name."""
        kind, _, shape = name.partition(":")
        chip = lookup(CHIPS, kind, "TPU in --topology")
        example = f"{kind}:{'x'.join('4' * chip.axes)}"
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or len(shape.split("x")) != chip.axes:
            raise ValueError(
                f"--topology={name}: expected {chip.axes} sizes, as in {example}; names like v5e-16 count "
                "chips (v4-16 and v5p-16 cores), which leaves the shape open"
            )
        found = cls(kind, tuple(map(int, shape.split("x"))))
        if found.chips > MAX_CHIPS:
            raise ValueError(
                f"--topology={name} has {found.chips} chips, at most {MAX_CHIPS} are covered"
            )
        return found

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    def devices(self) -> Sequence[jax.Device]:
        """Devices to compile for; nothing can run on them.

        Raises ValueError for a shape that its chip does not come in, RuntimeError without libtpu or if another process
        of this machine is compiling.
        """
        # Else libtpu asks the network, at length, which TPU this machine has.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        if importlib.util.find_spec("libtpu") is None:
            raise RuntimeError("compiling for TPUs needs libtpu: pip install 'etcvla[aot]'")
        try:
            return topologies.get_topology_desc(
                str(self), "tpu", **dict(self.chip.compiler)
            ).devices
        except jax.errors.JaxRuntimeError as error:
            if "lockfile" in str(error):
                raise RuntimeError(
                    "libtpu serves one process at a time; wait for the other one, or remove "
                    "/tmp/libtpu_lockfile if there is none"
                ) from error
            raise ValueError(f"--topology={self}: {error}") from error

    def ring(self, axis: int) -> bool:
        """Whether the chips along an axis are closed to a ring."""
        wraps = self.chip.wraps
        full = self.chip.axes == 2 or all(
            size % wraps == 0 for size in self.shape
        )  # 3-D: whole cubes or nothing
        return full and self.shape[axis] % wraps == 0

    def bandwidth(self, coords: np.ndarray) -> float:
        """Bytes a second into each chip of a group that takes part in one collective.

        Along every axis that the group spans, both links of a ring are at work; on a line, or a part of a ring, the
        last chip has but one.

        Args:
          coords: int[n, axes], where the group's chips stand.
        """
        places = [len(set(coords[:, axis].tolist())) for axis in range(self.chip.axes)]
        links = sum(
            2 if self.ring(axis) and count == self.shape[axis] else 1
            for axis, count in enumerate(places)
            if count > 1
        )
        return self.chip.link_gbps * 1e9 * links
