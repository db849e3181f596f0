"""TPU chips and slices: their numbers for the roofline, and the devices to compile for.

The numbers are Google's (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: "peak compute per chip
(bf16)", "HBM bandwidth", "ICI bandwidth"; v4's links: arXiv 2304.01433). Google gives the
interconnect bandwidth of all links in both directions; here it is that of one link in one
direction. `hbm_gib` is what libtpu 0.0.52 gives to a program, slightly less than the chip has: the
"available HBM" of its error message when a program does not fit.
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

from etcvla.errors import UserError
from etcvla.names import lookup

MAX_CHIPS = 256


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, which is one JAX device (the two cores of v4 and v5p work as one)."""

    tflops: float  # peak in bf16, 1e12 multiplications and additions per second
    hbm_gib: float  # available to a program
    hbm_gbps: float  # 1e9 bytes per second
    link_gbps: float  # 1e9 bytes per second of one link in one direction; two links per axis
    ring_size: int  # an axis whose size is a multiple of this is a ring
    axes: int  # number of axes of its network
    compiler_options: tuple[tuple[str, str], ...] = ()


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
        """Parse a name such as "v5e:4x4". Raises UserError if it is malformed."""
        kind, _, text = name.partition(":")
        chip = lookup(CHIPS, kind, "TPU in --topology")
        sizes = text.split("x")
        is_valid = all(re.fullmatch(r"[1-9]\d*", size) for size in sizes)
        if not is_valid or len(sizes) != chip.axes:
            example = "x".join("4" * chip.axes)
            raise UserError(
                f"--topology={name}: expected {chip.axes} sizes, as in {kind}:{example}; names "
                "such as v5e-16 count chips (v4-16 and v5p-16 cores) and do not determine the shape"
            )
        topology = cls(kind, tuple(int(size) for size in sizes))
        if topology.chips > MAX_CHIPS:
            raise UserError(
                f"--topology={name} has {topology.chips} chips; at most {MAX_CHIPS} are supported"
            )
        return topology

    @property
    def chip(self) -> Chip:
        """The kind of chip."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    def devices(self) -> Sequence[jax.Device]:
        """Return devices to compile for; they cannot run anything.

        Raises UserError if slices of this chip do not have the shape, if libtpu is not installed,
        or if another process of this machine uses it.
        """
        # Without these, libtpu asks the network for this machine's TPU, which takes long.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        if importlib.util.find_spec("libtpu") is None:
            raise UserError("compiling for TPUs needs libtpu: pip install 'etcvla[aot]'")
        options = dict(self.chip.compiler_options)
        try:
            return topologies.get_topology_desc(str(self), "tpu", **options).devices
        except jax.errors.JaxRuntimeError as error:
            if "lockfile" in str(error):
                raise UserError(
                    "libtpu serves one process at a time; wait for the other one, or remove "
                    "/tmp/libtpu_lockfile if there is none"
                ) from error
            raise UserError(f"--topology={self}: {error}") from error

    def is_ring(self, axis: int) -> bool:
        """Return whether the chips along an axis form a ring."""
        ring_size = self.chip.ring_size
        if self.chip.axes == 3:  # needs whole cubes
            return all(size % ring_size == 0 for size in self.shape)
        return self.shape[axis] % ring_size == 0

    def bandwidth(self, coords: np.ndarray) -> float:
        """Return the bytes per second into each chip of a group that runs one collective.

        On each axis that the group spans, a ring uses two links per chip. On a line, or a part of a
        ring, the last chip has one link.

        Args:
          coords: int[n, axes], positions of the group's chips.
        """
        links = 0
        for axis in range(self.chip.axes):
            positions = len(np.unique(coords[:, axis]))
            if positions > 1:
                whole_ring = self.is_ring(axis) and positions == self.shape[axis]
                links += 2 if whole_ring else 1
        return self.chip.link_gbps * 1e9 * links
