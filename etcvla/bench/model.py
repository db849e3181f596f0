"""The model against openpi's: training step, acting, FLOPs per sample, segments per TFLOP."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from etcvla import batch as batch_lib
from etcvla.bench import ours
from etcvla.bench.worker import JobResult, Worker
from etcvla.errors import UserError
from etcvla.models import variants
from etcvla.models.flops import count
from etcvla.models.vla import VLA, init_params
from etcvla.provenance import run_versions
from etcvla.train.step import StepSettings

PALIGEMMA_VOCAB = 257_152
# Tokens of a segment, and how many of them are predicted. ETC: the longest item of the embedded
# robot data has 41 tokens, the mean is 20. Action: an instruction, eight state values as text and
# the FAST tokens of a chunk, 20 to 30 for 10 x 7 values.
ETC_TOKENS = 40
ETC_TARGETS = 16
ACTION_TOKENS = 96
ACTION_TARGETS = 40
PAPER_ACTION_ROWS = 32  # rows of the two passes of one step in the paper
PAPER_ETC_ROWS = 8
# Largest difference between the sides: one evaluation, and ten Euler steps.
TOLERANCE = {"velocity": 1e-4, "sample": 1e-3}
JOBS = {"train": "train step", "sample": "sample"}
# Cameras -> largest ratio ours / openpi. openpi computes three cameras in both cases.
FLOORS = {3: 1.0, 2: 0.75}
GAIN_FLOOR = 2.5


def step_tflop(model: VLA, rows: Mapping[str, np.ndarray], settings: StepSettings) -> float:
    """Return the TFLOP of our training step on `rows`, from its trace; nothing is computed."""
    params = jax.eval_shape(functools.partial(init_params, model))
    step, initial_state = ours.make_step(model, params, settings)
    return count(step, jax.eval_shape(initial_state, params), rows).total() / 1e12


def full_size() -> ours.Workload:
    """Return one training sample of pi0 as released."""
    return ours.Workload("paligemma_3b", PALIGEMMA_VOCAB, rows=1, dtype="bfloat16")


def pi0_tflop(cameras: int) -> float:
    """Return the TFLOP of our training step on one sample of pi0 at full size."""
    workload = full_size()
    return step_tflop(VLA(workload.config), workload.batch(1, cameras), ours.make_settings())


def count_openpi(folder: Path) -> dict[str, float]:
    """Return the TFLOP of openpi's training step on one sample; it always has three cameras."""
    fields = dataclasses.asdict(full_size())
    with Worker("etcvla.bench.openpi:Counter", folder=str(folder), **fields) as counter:
        return {"openpi_tflop_per_sample": counter("tflop").result}


@dataclasses.dataclass(frozen=True)
class SegmentCount:
    """Cost of rows that carry the same segments packed into one row and in separate rows.

    Packed rows have the config's text length, separate rows the length of their text.
    """

    extra_segments: int
    text_len: int  # of a packed row
    tflop_packed: float  # per packed row
    tflop_action: float  # per row with the action segment alone
    tflop_etc: float  # per row with one ETC segment alone

    @property
    def packed(self) -> float:
        """Segments per TFLOP of packed rows. Rows drawn for ETC hold as many and cost no more."""
        return (1 + self.extra_segments) / self.tflop_packed

    @property
    def separate(self) -> float:
        """Segments per TFLOP of the paper's step: one pass over action rows, one over ETC rows."""
        tflop = PAPER_ACTION_ROWS * self.tflop_action + PAPER_ETC_ROWS * self.tflop_etc
        return (PAPER_ACTION_ROWS + PAPER_ETC_ROWS) / tflop


def count_segments(config: ml_collections.ConfigDict) -> SegmentCount:
    """Count one row of a stage: FAST and flow on the action segment, answers on the others.

    Raises UserError if these segments do not fit the stage's rows.
    """
    data = config.data
    extra = config.streams.action.extra_segments
    tokens = ACTION_TOKENS + extra * ETC_TOKENS
    targets = ACTION_TARGETS + extra * ETC_TARGETS
    if tokens > data.text_len or targets > data.max_targets:
        raise UserError(
            f"an action and {extra} extra segments take {tokens} tokens and {targets} targets; "
            f"data.text_len {data.text_len} or data.max_targets {data.max_targets} is too small"
        )
    model = VLA(variants.make_config(vocab_size=PALIGEMMA_VOCAB, **config.model))

    def _row_tflop(text_len: int, max_targets: int, losses: tuple[str, ...]) -> float:
        size = model.config.siglip.image_size
        row = batch_lib.zeros(
            B=1,
            C=data.num_cameras,
            H=size,
            W=size,
            L=text_len,
            Q=config.model.state_dim,
            K=data.actions_per_row,
            P=config.model.horizon,
            A=config.model.action_dim,
        )
        return step_tflop(model, row, ours.make_settings(losses=losses, max_targets=max_targets))

    return SegmentCount(
        extra_segments=extra,
        text_len=data.text_len,
        tflop_packed=_row_tflop(data.text_len, data.max_targets, ("text", "fast", "flow")),
        tflop_action=_row_tflop(ACTION_TOKENS, ACTION_TARGETS, ("fast", "flow")),
        tflop_etc=_row_tflop(ETC_TOKENS, ETC_TARGETS, ("text",)),
    )


def count_flops(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return all counts by name."""
    segments = count_segments(config)
    packed_rows = dataclasses.asdict(segments)
    packed_rows["cameras"] = config.data.num_cameras
    return {
        "tflop_per_sample_3cam": pi0_tflop(3),
        "tflop_per_sample_2cam": pi0_tflop(2),
        "segments_per_tflop_gain": segments.packed / segments.separate,
        "segments_per_tflop_packed": segments.packed,
        "segments_per_tflop_separate": segments.separate,
        "packed_rows": packed_rows,
    }


def compare(workload: ours.Workload, folder: Path, rounds: int) -> dict[str, Any]:
    """Time both sides in turns, after checking that velocities and sampled actions agree.

    Raises RuntimeError if they do not agree.
    """
    fields = dataclasses.asdict(workload)
    result: dict[str, Any] = {"workload": describe(workload)}
    millions = result["workload"]["parameters"] / 1e6
    print(f"pi0 at size {workload.size}: {millions:.0f} M parameters, {workload.dtype}", flush=True)
    with (
        Worker("etcvla.bench.ours:OurModel", **fields) as our_side,
        Worker("etcvla.bench.openpi:OpenPI", folder=str(folder), **fields) as openpi_side,
    ):
        sides = {"ours": our_side, "openpi": openpi_side}
        for job, cameras in itertools.product(TOLERANCE, FLOORS):
            largest = difference(sides, job, cameras, TOLERANCE[job])
            result[f"{job}_difference_{cameras}cam"] = largest
        for name, side in sides.items():
            run = side("train", cameras=3)
            result[f"{name}_first_train_step_seconds"] = run.wall
            result[f"{name}_train_step_peak_gib"] = run.peak_gib
            print(
                f"{name}: first training step {run.wall:.0f} s, mostly compilation; "
                f"peak memory {run.peak_gib:.2f} GiB",
                flush=True,
            )
        our_side("train", cameras=2)  # another shape, so it compiles again
        runs = take_turns(sides, rounds)
    return result | summarize(runs)


def difference(sides: Mapping[str, Worker], job: str, cameras: int, tolerance: float) -> float:
    """Return the largest difference between the sides' results.

    Raises RuntimeError if it is above the tolerance.
    """
    our_result = np.array(sides["ours"](job, cameras=cameras).result)
    openpi_result = np.array(sides["openpi"](job, cameras=cameras).result)
    largest = float(np.abs(our_result - openpi_result).max())
    print(f"{job}, {cameras} cameras: the sides differ by at most {largest:.1e}", flush=True)
    if not largest <= tolerance:
        raise RuntimeError(
            f"the sides' {job} with {cameras} cameras differs by {largest:.1e}, above "
            f"{tolerance:.0e}: they compute different things, so their times cannot be compared"
        )
    return largest


def take_turns(
    sides: Mapping[str, Worker], rounds: int
) -> dict[tuple[str, str, int], list[JobResult]]:
    """Run all jobs; return (side, job, cameras) -> one run per round.

    One side computes while the other waits. The first side alternates between rounds.
    """
    runs: dict[tuple[str, str, int], list[JobResult]] = {}
    for i, job, cameras in itertools.product(range(rounds), JOBS, FLOORS):
        for name in sorted(sides, reverse=i % 2 == 0):
            run = sides[name](job, cameras=cameras)
            runs.setdefault((name, job, cameras), []).append(run)
        our_wall = runs["ours", job, cameras][-1].wall
        openpi_wall = runs["openpi", job, cameras][-1].wall
        print(
            f"round {i + 1} of {rounds}: {JOBS[job]}, {cameras} cameras: "
            f"openpi {openpi_wall:.2f} s, ours {our_wall:.2f} s, {our_wall / openpi_wall:.3f}x",
            flush=True,
        )
    return runs


def summarize(runs: Mapping[tuple[str, str, int], list[JobResult]]) -> dict[str, Any]:
    """Return quartiles (lower, median, upper) of the ratio ours / openpi and of the seconds.

    Ratios are taken within a round, where other work on the machine disturbs them least. Wall time
    and CPU time are reported.
    """
    out: dict[str, Any] = {}
    for (job, label), cameras, clock in itertools.product(JOBS.items(), FLOORS, ("wall", "cpu")):
        prefix = label.replace(" ", "_")
        suffix = f"{cameras}cam"
        seconds = {}
        for name in ("ours", "openpi"):
            seconds[name] = np.array([getattr(run, clock) for run in runs[name, job, cameras]])
            out[f"{prefix}_{name}_{clock}_seconds_{suffix}"] = _quartiles(seconds[name])
        ratio = _quartiles(seconds["ours"] / seconds["openpi"])
        key = "ratio" if clock == "wall" else "cpu_ratio"
        out[f"{prefix}_{key}_{suffix}"] = ratio[1]
        out[f"{prefix}_{key}_{suffix}_quartiles"] = ratio
    return out


def _quartiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist()


def machine() -> dict[str, Any]:
    """Return the CPU, the number of threads and the software versions."""
    return {
        "cpu": _cpu_name(),
        "threads": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **run_versions(),
    }


def describe(workload: ours.Workload) -> dict[str, Any]:
    """Return the workload's sizes as JSON values."""
    config = workload.config
    params = jax.eval_shape(functools.partial(init_params, VLA(config)))
    return {
        **dataclasses.asdict(workload),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "text_len": ours.TEXT_LEN,
        "euler_steps": ours.EULER_STEPS,
        "model": variants.config_to_dict(config),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def time_table(result: Mapping[str, Any]) -> str:
    """Return the times as a table."""
    lines = [f"{'':24}{'openpi':>10}{'ours':>10}{'ratio':>9}  {'quartiles':16}{'CPU time':>9}"]
    for label, (cameras, floor) in itertools.product(JOBS.values(), FLOORS.items()):
        prefix = label.replace(" ", "_")
        suffix = f"{cameras}cam"
        openpi_seconds = result[f"{prefix}_openpi_wall_seconds_{suffix}"][1]
        our_seconds = result[f"{prefix}_ours_wall_seconds_{suffix}"][1]
        low, ratio, high = result[f"{prefix}_ratio_{suffix}_quartiles"]
        cpu_ratio = result[f"{prefix}_cpu_ratio_{suffix}"]
        name = f"{label}, {cameras} cameras"
        lines.append(
            f"{name:24}{openpi_seconds:8.2f} s{our_seconds:8.2f} s{ratio:8.3f}x  "
            f"[{low:.3f}, {high:.3f}]  {cpu_ratio:8.3f}x  floor {floor:.2f}x"
        )
    return "\n".join(lines)


def flops_table(result: Mapping[str, Any]) -> str:
    """Return the counts as text."""
    rows = result["packed_rows"]
    return (
        f"pi0 at full size: {result['tflop_per_sample_3cam']:.2f} TFLOP per training sample with "
        f"three cameras, {result['tflop_per_sample_2cam']:.2f} with two\n"
        f"packed rows ({rows['cameras']} cameras, {rows['text_len']} text tokens, one action and "
        f"{rows['extra_segments']} ETC segments): {result['segments_per_tflop_packed']:.3f} "
        "segments per TFLOP\n"
        f"the same segments in separate rows ({PAPER_ACTION_ROWS} action and {PAPER_ETC_ROWS} ETC "
        f"rows per step): {result['segments_per_tflop_separate']:.3f}; gain "
        f"{result['segments_per_tflop_gain']:.2f}x, floor {GAIN_FLOOR}x"
    )
