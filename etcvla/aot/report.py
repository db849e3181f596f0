"""Report whether a compiled step fits on a slice, its best speed, and what limits it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from etcvla.aot.chips import Chip, Slice
from etcvla.aot.compile import CompiledStep, DoesNotFitError, compile_step, useful_flops
from etcvla.aot.costs import Costs
from etcvla.aot.hlo import replica_groups
from etcvla.provenance import package_versions
from etcvla.train import sharding
from etcvla.train.usage import GIB

VERSIONED_PACKAGES = ("jax", "jaxlib", "libtpu")


def report(
    config: ml_collections.ConfigDict, target: Slice, *, largest: bool = True
) -> dict[str, Any]:
    """Compile a stage's step and return its numbers as plain values; `table` formats them.

    Args:
      largest: also estimate the largest batch that fits, which compiles once more.

    Raises UserError if the mesh or the batch does not divide among the chips.
    """
    result = {
        "stage": config.stage,
        "variant": config.variant,
        "topology": str(target),
        "chips": target.chips,
        "batch_size": config.batch_size,
        "hbm_gib": target.chip.hbm_gib,
        "versions": package_versions(VERSIONED_PACKAGES),
    }
    mesh = sharding.make_mesh(config.mesh, list(target.devices()))
    try:
        step = compile_step(config, mesh)
    except DoesNotFitError as error:
        step = None
        result["fits"] = False
        result["memory_gib_per_chip"] = error.needed_gib
        result["compiler_says"] = str(error)
    else:
        result |= describe(step, target, useful_flops(config, mesh))
    if largest:
        result |= largest_batch(config, mesh, target.chip, step)
    return result


def describe(step: CompiledStep, target: Slice, useful: float) -> dict[str, Any]:
    """Return the numbers of one compiled step.

    Args:
      useful: FLOPs of the step without rematerialization.
    """
    rows = step.batch_size
    total_gib = step.memory.total / GIB
    memory = dataclasses.asdict(step.memory)
    seconds = lower_bounds(step.costs, step.mesh, target)
    limit = max(seconds, key=seconds.get)
    peak_flops = target.chips * target.chip.tflops * 1e12
    wire_gb = Counter()
    for collective, num_bytes in step.costs.wire_bytes.items():
        wire_gb[collective.kind] += num_bytes / 1e9
    return {
        "fits": total_gib <= target.chip.hbm_gib,
        "mesh": dict(step.mesh.shape),
        "memory_gib_per_chip": total_gib,
        "memory_gib": {kind: num_bytes / GIB for kind, num_bytes in memory.items()},
        "tflop_per_sample": step.traced_flops / rows / 1e12,
        "tflop_per_sample_compiled": step.costs.flops * target.chips / rows / 1e12,
        "tflop_per_sample_useful": useful / rows / 1e12,
        "hbm_gb_per_step": step.costs.hbm_bytes / 1e9,
        "wire_gb_per_step": dict(wire_gb),
        "seconds": seconds,
        "bound": limit,
        "samples_per_second_bound": rows / seconds[limit],
        "mfu_bound": useful / (seconds[limit] * peak_flops),
        "trace_s": step.trace_s,
        "compile_s": step.compile_s,
        "compile_cpu_s": step.compile_cpu_s,
        "unknown_loops": step.costs.unknown_loops,
    }


def lower_bounds(costs: Costs, mesh: Mesh, target: Slice) -> dict[str, float]:
    """Return the least seconds of a step by resource: compute, memory and interconnect.

    All three may overlap, so the largest is the step's bound. Collectives run one after another,
    each with all links along its axes.
    """
    chip = target.chip
    coords = np.array([device.coords[: chip.axes] for device in mesh.devices.flat])
    interconnect = 0.0
    for collective, num_bytes in costs.wire_bytes.items():
        if collective.groups:
            group = replica_groups(collective.groups, mesh.size)[0]
            bandwidth = target.bandwidth(coords[group])
        else:  # each chip sends to one other, over one link
            bandwidth = chip.link_gbps * 1e9
        if bandwidth:
            interconnect += num_bytes / bandwidth
    return {
        "compute": costs.flops / (chip.tflops * 1e12),
        "memory": costs.hbm_bytes / (chip.hbm_gbps * 1e9),
        "interconnect": interconnect,
    }


def largest_batch(
    config: ml_collections.ConfigDict, mesh: Mesh, chip: Chip, step: CompiledStep | None
) -> dict[str, Any]:
    """Estimate the largest batch that fits, by a line through the memory of two batch sizes.

    It is an estimate: near the limit, the compiler trades memory for time.

    Args:
      step: the step with the config's batch; None if that does not fit. Then the two batches have
        one and two rows per chip (and microbatch).

    Returns: {"largest_batch": rows on the slice, 0 if none fits, "memory_gib_per_row": of a chip}.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * config.optim.microbatches
    try:
        first = step or _compile_with_batch(config, mesh, shards)
        rows = first.batch_size // shards
        other_rows = rows // 2 if rows > 1 else 2
        other = _compile_with_batch(config, mesh, shards * other_rows)
    except DoesNotFitError:
        return {"largest_batch": step.batch_size if step else 0}
    memory_gib = {
        first.batch_size: first.memory.total / GIB,
        other.batch_size: other.memory.total / GIB,
    }
    return fit_batch(memory_gib, shards, chip.hbm_gib)


def fit_batch(memory_gib: dict[int, float], shards: int, hbm_gib: float) -> dict[str, Any]:
    """Return the result of `largest_batch` from the memory per chip at two batch sizes.

    Args:
      shards: the batch must be a multiple of this.
    """
    small, large = sorted(memory_gib)
    growth = memory_gib[large] - memory_gib[small]
    gib_per_row = growth / (large - small) * shards
    rows = small / shards
    if gib_per_row > 0:
        rows += (hbm_gib - memory_gib[small]) / gib_per_row
    return {
        "largest_batch": max(0, math.floor(rows)) * shards,
        "memory_gib_per_row": gib_per_row,
    }


def _compile_with_batch(
    config: ml_collections.ConfigDict, mesh: Mesh, batch_size: int
) -> CompiledStep:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = batch_size
    return compile_step(config, mesh)


def table(result: dict[str, Any]) -> str:
    """Format a report."""
    name = f"{result['stage']}:{result['variant']}"
    lines = [
        f"{name} on {result['topology']} ({result['chips']} chips), "
        f"global batch {result['batch_size']}"
    ]
    if "mesh" in result:
        lines += _details(result)
    else:
        needed = result["memory_gib_per_chip"]
        lines.append(f"does not fit: {needed:.2f} GiB per chip of {result['hbm_gib']:.2f}")
    if "largest_batch" in result:
        largest = result["largest_batch"]
        estimate = f"about {largest} rows" if largest else "none: one row per chip does not fit"
        lines.append(f"largest batch    {estimate}")
    return "\n".join(lines)


def _details(result: dict[str, Any]) -> list[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    memory = ", ".join(f"{kind} {gib:.2f}" for kind, gib in result["memory_gib"].items())
    wire_gb = sorted(result["wire_gb_per_step"].items())
    wire = ", ".join(f"{kind} {gb:.2f}" for kind, gb in wire_gb) or "none"
    seconds = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in result["seconds"].items())
    lines = [
        f"mesh             {mesh}",
        f"memory per chip  {result['memory_gib_per_chip']:.2f} GiB of {result['hbm_gib']:.2f}: "
        f"{memory}",
        f"TFLOP per sample {result['tflop_per_sample']:.4g} as traced, "
        f"{result['tflop_per_sample_compiled']:.4g} as compiled, "
        f"{result['tflop_per_sample_useful']:.4g} without rematerialization",
        f"per chip, step   {result['hbm_gb_per_step']:.1f} GB of HBM traffic (approximate); GB on "
        f"the wire: {wire}",
        f"roofline         {seconds}: bound by {result['bound']}",
        f"at best          {result['samples_per_second_bound']:.1f} samples per second, MFU "
        f"{result['mfu_bound']:.1%}",
        f"compiled in      {result['compile_s']:.0f} s ({result['trace_s']:.0f} of them tracing), "
        f"{result['compile_cpu_s']:.0f} s of processor time",
    ]
    loops = result["unknown_loops"]
    if loops:
        lines.append(f"counted once     loops of unknown length: {', '.join(loops)}")
    return lines
