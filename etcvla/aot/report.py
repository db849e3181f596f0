"""What a compiled step means on a slice: does it fit, how fast can it be at best, what binds it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from etcvla.aot.chips import Chip, Slice
from etcvla.aot.compile import Compiled, DoesNotFitError, compile_step, useful_flops
from etcvla.aot.costs import Costs
from etcvla.aot.hlo import replica_groups
from etcvla.provenance import package_versions
from etcvla.train import sharding
from etcvla.train.usage import GIB


def report(
    config: ml_collections.ConfigDict, target: Slice, *, largest: bool = True
) -> dict[str, Any]:
    """Compiles a stage's step and says what is to be known of it, in plain values; `table` shows it.

    Args:
      largest: also estimate the largest batch that fits, which compiles once more.

    Raises ValueError for a mesh or a batch that does not divide among the chips.
    """
    result = {
        "stage": config.stage,
        "variant": config.variant,
        "topology": str(target),
        "chips": target.chips,
        "batch_size": config.batch_size,
        "hbm_gib": target.chip.hbm_gib,
        "versions": package_versions(("jax", "jaxlib", "libtpu")),
    }
    mesh = sharding.make_mesh(config.mesh, list(target.devices()))
    try:
        compiled = compile_step(config, mesh)
    except DoesNotFitError as error:
        result |= {
            "fits": False,
            "memory_gib_per_chip": error.needed_gib,
            "compiler_says": str(error),
        }
        return result | (largest_batch(config, mesh, target.chip, None) if largest else {})
    result |= describe(compiled, target, useful_flops(config, mesh))
    return result | (largest_batch(config, mesh, target.chip, compiled) if largest else {})


def describe(compiled: Compiled, target: Slice, useful: float) -> dict[str, Any]:
    """The numbers of one compiled step.

    Args:
      useful: FLOPs of the step without rematerialisation.
    """
    memory, costs, rows = compiled.memory, compiled.costs, compiled.batch_size
    total = memory.total / GIB
    seconds = bounds(costs, compiled.mesh, target)
    slowest = max(seconds, key=seconds.get)
    wire = Counter()
    for (kind, _), num_bytes in costs.wire_bytes.items():
        wire[kind] += num_bytes / 1e9
    return {
        "fits": total <= target.chip.hbm_gib,
        "mesh": dict(compiled.mesh.shape),
        "memory_gib_per_chip": total,
        "memory_gib": {
            kind: getattr(memory, kind) / GIB
            for kind in ("arguments", "outputs", "aliased", "temporaries", "code")
        },
        "tflop_per_sample": compiled.traced_flops / rows / 1e12,
        "tflop_per_sample_compiled": costs.flops * target.chips / rows / 1e12,
        "tflop_per_sample_useful": useful / rows / 1e12,
        "hbm_gb_per_step": costs.hbm_bytes / 1e9,
        "wire_gb_per_step": dict(wire),
        "seconds": seconds,
        "bound": slowest,
        "samples_per_second_bound": rows / seconds[slowest],
        "mfu_bound": useful / (seconds[slowest] * target.chips * target.chip.tflops * 1e12),
        "trace_s": compiled.trace_s,
        "compile_s": compiled.compile_s,
        "compile_cpu_s": compiled.compile_cpu_s,
        "unknown_loops": costs.unknown_loops,
    }


def bounds(costs: Costs, mesh: Mesh, target: Slice) -> dict[str, float]:
    """Seconds that one step takes at least, by what it waits for. All three may overlap, so the largest is the bound;
    collectives are taken one after another, each with all the links along its axes."""
    coords = np.array([device.coords[: target.chip.axes] for device in mesh.devices.flat])
    wire = 0.0
    for (_, groups), num_bytes in costs.wire_bytes.items():
        if not groups:  # each chip to one other: one link
            wire += num_bytes / (target.chip.link_gbps * 1e9)
        elif speed := target.bandwidth(coords[replica_groups(groups, mesh.size)[0]]):
            wire += num_bytes / speed
    return {
        "compute": costs.flops / (target.chip.tflops * 1e12),
        "memory": costs.hbm_bytes / (target.chip.hbm_gbps * 1e9),
        "interconnect": wire,
    }


def largest_batch(
    config: ml_collections.ConfigDict, mesh: Mesh, chip: Chip, compiled: Compiled | None
) -> dict[str, Any]:
    """{"largest_batch": rows of the slice, "memory_gib_per_row": of a chip}, by a line through two compiled batches.

    An estimate: the compiler trades memory for time near the limit. Where the config's batch does not fit (`compiled`
    is None) the two are one and two rows a chip (and part of an accumulated batch); 0 if these do not fit either.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.optim.microbatches
    rows = compiled.batch_size // parts if compiled else 1
    try:
        first = compiled or _with_batch(config, mesh, parts)
        other = _with_batch(config, mesh, parts * (rows // 2 if rows > 1 else 2))
    except DoesNotFitError:
        return {"largest_batch": parts * rows if compiled else 0}
    return fit_batch(
        {first.batch_size: first.memory.total / GIB, other.batch_size: other.memory.total / GIB},
        parts,
        chip.hbm_gib,
    )


def fit_batch(memory: dict[int, float], parts: int, hbm_gib: float) -> dict[str, Any]:
    """What `largest_batch` returns, from the memory in GiB at two batch sizes, among `parts` chips that split rows."""
    (low, a), (high, b) = sorted(memory.items())
    slope = (b - a) / (high - low) * parts
    rows = math.floor((hbm_gib - a) / slope + low / parts) if slope > 0 else low // parts
    return {"largest_batch": max(0, rows) * parts, "memory_gib_per_row": slope}


def _with_batch(config: ml_collections.ConfigDict, mesh: Mesh, batch_size: int) -> Compiled:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = batch_size
    return compile_step(config, mesh)


def table(result: dict[str, Any]) -> str:
    """A report for people."""
    lines = [
        f"{result['stage']}:{result['variant']} on {result['topology']} ({result['chips']} chips), global batch "
        f"{result['batch_size']}"
    ]
    if "mesh" in result:
        lines += _details(result)
    else:
        lines.append(
            f"does not fit: {result['memory_gib_per_chip']:.2f} GiB a chip of {result['hbm_gib']:.2f}"
        )
    if "largest_batch" in result:
        lines.append(
            f"largest batch    about {result['largest_batch']} rows"
            if result["largest_batch"]
            else "largest batch    none: one row a chip does not fit"
        )
    return "\n".join(lines)


def _details(result: dict[str, Any]) -> list[str]:
    memory, seconds = result["memory_gib"], result["seconds"]
    wire = (
        ", ".join(f"{kind} {gb:.2f}" for kind, gb in sorted(result["wire_gb_per_step"].items()))
        or "none"
    )
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    loops = result["unknown_loops"]
    return [
        f"mesh             {mesh}",
        f"memory a chip    {result['memory_gib_per_chip']:.2f} GiB of {result['hbm_gib']:.2f}: "
        + ", ".join(f"{kind} {gib:.2f}" for kind, gib in memory.items()),
        f"TFLOP a sample   {result['tflop_per_sample']:.4g} as traced, {result['tflop_per_sample_compiled']:.4g} as "
        f"compiled, {result['tflop_per_sample_useful']:.4g} without rematerialisation",
        f"a chip and step  {result['hbm_gb_per_step']:.1f} GB of HBM (approximate); GB on the wire: {wire}",
        "roofline         "
        + ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
        + f": bound by {result['bound']}",
        f"at best          {result['samples_per_second_bound']:.1f} samples a second, MFU {result['mfu_bound']:.1%}",
        f"compiled in      {result['compile_s']:.0f} s ({result['trace_s']:.0f} of them tracing), "
        f"{result['compile_cpu_s']:.0f} s of processor time",
        *([f"counted once     loops whose turns are unknown: {', '.join(loops)}"] if loops else []),
    ]
