"""The model against openpi's: time of a training step and of acting, FLOPs a sample, segments for a TFLOP."""

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
from etcvla.bench.worker import Run, Worker
from etcvla.models import variants
from etcvla.models.flops import count
from etcvla.models.vla import VLA, init_params
from etcvla.train.checkpoint import versions

PALIGEMMA_VOCAB = 257_152
# Tokens of a segment, and those of them that are predicted. A question with its answer: of the embedded robot data's
# items the longest has 41 tokens, the mean 20. An action segment: an instruction, eight numbers of state as text, and
# FAST tokens, of which a chunk of 10 x 7 makes 20 to 30.
ETC_TOKENS, ETC_TARGETS = 40, 16
ACTION_TOKENS, ACTION_TARGETS = 96, 40
PAPER_STEP = {"action": 32, "etc": 8}  # rows of the two passes of one step
TOLERANCE = {
    "velocity": 1e-4,
    "sample": 1e-3,
}  # between sides: one evaluation, and ten that build on each other
JOBS = {"train": "train step", "sample": "sample"}
FLOORS = {
    3: 1.0,
    2: 0.75,
}  # cameras -> the largest ratio ours / openpi; openpi computes three in either case
GAIN_FLOOR = 2.5


# ---- FLOPs, by tracing full-size models -----------------------------------------------------------------------------


def step_tflop(model: VLA, rows: Mapping[str, np.ndarray], settings: ours.StepSettings) -> float:
    """TFLOP of our training step on `rows`; nothing of the model's size is computed."""
    params = jax.eval_shape(functools.partial(init_params, model))
    step, start = ours.make_step(model, params, settings)
    return count(step, jax.eval_shape(start, params), rows).total() / 1e12


def full_size() -> ours.Workload:
    """pi0 as released: one training sample."""
    return ours.Workload("paligemma_3b", PALIGEMMA_VOCAB, rows=1, dtype="bfloat16")


def pi0_tflop(cameras: int) -> float:
    """TFLOP of our training step on one sample of pi0 at full size."""
    return step_tflop(VLA(full_size().config), full_size().batch(1, cameras), ours.settings())


def count_openpi(folder: Path) -> dict[str, float]:
    """TFLOP of openpi's training step on one sample, whose cameras are always three."""
    with Worker(
        "etcvla.bench.openpi:Counter", folder=str(folder), **dataclasses.asdict(full_size())
    ) as counter:
        return {"openpi_tflop_per_sample": counter("tflop").result}


@dataclasses.dataclass(frozen=True)
class SegmentCount:
    """Rows that carry the same segments, packed and apart. Rows apart are as short as their text, packed ones as long
    as the config has them."""

    extra_segments: int
    text_len: int  # of a packed row
    tflop_packed: float  # a row
    tflop_action: float  # a row with the action segment alone
    tflop_etc: float  # a row with one ETC segment alone

    @property
    def packed(self) -> float:
        """Segments a TFLOP. Rows drawn for ETC hold as many segments, and cost no more."""
        return (1 + self.extra_segments) / self.tflop_packed

    @property
    def apart(self) -> float:
        """Segments a TFLOP in the paper's step: a pass over action rows and one over ETC rows, each with its images."""
        tflop = PAPER_STEP["action"] * self.tflop_action + PAPER_STEP["etc"] * self.tflop_etc
        return sum(PAPER_STEP.values()) / tflop


def count_lessons(config: ml_collections.ConfigDict) -> SegmentCount:
    """Counts one row of a stage with actions and extra_segments: FAST and flow on the action segment, answers on the others.

    Raises ValueError if these segments do not fit the stage's rows.
    """
    extra_segments, data = config.streams.action.extra_segments, config.data
    needs = (
        ACTION_TOKENS + extra_segments * ETC_TOKENS,
        ACTION_TARGETS + extra_segments * ETC_TARGETS,
    )
    if needs[0] > data.text_len or needs[1] > data.max_targets:
        raise ValueError(
            f"an action and {extra_segments} extra_segments take {needs[0]} tokens, {needs[1]} of them targets, more than "
            f"data.text_len {data.text_len} or data.max_targets {data.max_targets}"
        )
    model = VLA(variants.make_config(vocab_size=PALIGEMMA_VOCAB, **config.model))

    def tflop(text_len, targets, losses):
        size, m = model.config.siglip.image_size, config.model
        rows = batch_lib.zeros(
            B=1,
            C=data.num_cameras,
            H=size,
            W=size,
            L=text_len,
            Q=m.state_dim,
            P=m.horizon,
            A=m.action_dim,
        )
        return step_tflop(model, rows, ours.settings(losses=losses, max_targets=targets))

    return SegmentCount(
        extra_segments,
        data.text_len,
        tflop(data.text_len, data.max_targets, ("text", "fast", "flow")),
        tflop(ACTION_TOKENS, ACTION_TARGETS, ("fast", "flow")),
        tflop(ETC_TOKENS, ETC_TARGETS, ("text",)),
    )


def count_flops(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All counts, by name."""
    segments = count_lessons(config)
    return {
        **{f"tflop_per_sample_{n}cam": pi0_tflop(n) for n in (3, 2)},
        "segments_per_tflop_gain": segments.packed / segments.apart,
        "segments_per_tflop_packed": segments.packed,
        "segments_per_tflop_apart": segments.apart,
        "packed_rows": dataclasses.asdict(segments)
        | {
            "cameras": config.data.num_cameras,
            "etc_tokens": ETC_TOKENS,
            "etc_targets": ETC_TARGETS,
            "action_tokens": ACTION_TOKENS,
            "action_targets": ACTION_TARGETS,
        },
    }


# ---- time, in two processes that take turns --------------------------------------------------------------------------


def compare(workload: ours.Workload, folder: Path, rounds: int) -> dict[str, Any]:
    """Runs both sides in turns; both must first agree on velocities and sampled actions.

    Raises RuntimeError if they do not.
    """
    fields, described = dataclasses.asdict(workload), describe(workload)
    print(
        f"pi0 at size {workload.size}, {described['parameters'] / 1e6:.0f} M parameters, {workload.dtype}: two "
        "processes start",
        flush=True,
    )
    with (
        Worker("etcvla.bench.ours:OurModel", **fields) as us,
        Worker("etcvla.bench.openpi:OpenPI", folder=str(folder), **fields) as them,
    ):
        sides = {"ours": us, "openpi": them}
        agreement = {
            f"{job}_difference_{n}cam": difference(sides, job, n, tolerance)
            for job, tolerance in TOLERANCE.items()
            for n in FLOORS
        }
        first = {}
        for name, side in sides.items():
            run = side("train", cameras=3)
            first |= {
                f"{name}_first_train_step_seconds": run.wall,
                f"{name}_train_step_peak_gib": run.peak_gib,
            }
            print(
                f"{name}: first training step {run.wall:.0f} s, most of it compilation; peak memory "
                f"{run.peak_gib:.2f} GiB",
                flush=True,
            )
        us("train", cameras=2)  # another shape, so another compilation
        runs = _take_turns(sides, rounds)
    return {"workload": described, **agreement, **first, **summarise(runs)}


def difference(sides: Mapping[str, Worker], job: str, cameras: int, tolerance: float) -> float:
    """The largest difference between the sides' results; RuntimeError if it is above the tolerance."""
    us, them = (np.array(sides[name](job, cameras=cameras).result) for name in ("ours", "openpi"))
    largest = float(np.abs(us - them).max())
    print(
        f"{job}, {cameras} cameras: sides differ by at most {largest:.1e}, values are about "
        f"{np.abs(them).mean():.1f}",
        flush=True,
    )
    if not largest <= tolerance:
        raise RuntimeError(
            f"the sides' {job} with {cameras} cameras differs by {largest:.1e}, above "
            f"{tolerance:.0e}: they do not compute the same, so their times say nothing"
        )
    return largest


def _take_turns(sides: Mapping[str, Worker], rounds: int) -> dict[tuple[str, str, int], list[Run]]:
    """(side, job, cameras) -> a run a round. One side computes while the other waits; who is first alternates."""
    runs = {(name, job, n): [] for job in JOBS for n in FLOORS for name in sides}
    for i, job, n in itertools.product(range(rounds), JOBS, FLOORS):
        for name in sorted(sides, reverse=i % 2 == 0):
            runs[name, job, n].append(sides[name](job, cameras=n))
        us, them = (runs[name, job, n][-1].wall for name in ("ours", "openpi"))
        print(
            f"round {i + 1} of {rounds}: {JOBS[job]}, {n} cameras: openpi {them:.2f} s, ours {us:.2f} s, "
            f"{us / them:.3f}x",
            flush=True,
        )
    return runs


def summarise(runs: Mapping[tuple[str, str, int], list[Run]]) -> dict[str, Any]:
    """Medians of the ratio ours / openpi within a round, which the machine's other work disturbs least, with
    quartiles; and quartiles (lower, median, upper) of each side's seconds. Of wall time, and of processor time."""
    out = {}
    for (job, label), n, clock in itertools.product(JOBS.items(), FLOORS, ("wall", "cpu")):
        prefix, suffix = label.replace(" ", "_"), f"{n}cam"
        seconds = {
            name: np.array([getattr(run, clock) for run in runs[name, job, n]])
            for name in ("ours", "openpi")
        }
        ratio = _quartiles(seconds["ours"] / seconds["openpi"])
        key = "ratio" if clock == "wall" else "cpu_ratio"
        out |= {
            f"{prefix}_{key}_{suffix}": ratio[1],
            f"{prefix}_{key}_{suffix}_quartiles": ratio,
            **{
                f"{prefix}_{name}_{clock}_seconds_{suffix}": _quartiles(value)
                for name, value in seconds.items()
            },
        }
    return out


def _quartiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist()


# ---- what is said of it ----------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Where it ran."""
    return {
        "cpu": _cpu_name(),
        "threads": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions(),
    }


def describe(workload: ours.Workload) -> dict[str, Any]:
    """What was timed."""
    config = workload.config
    params = jax.eval_shape(functools.partial(init_params, VLA(config)))
    return {
        **dataclasses.asdict(workload),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "text_len": ours.TEXT_LEN,
        "euler_steps": ours.EULER_STEPS,
        "model": variants.describe(config),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def time_table(result: Mapping[str, Any]) -> str:
    """The comparison, for people."""
    lines = [
        f"{'':24}{'openpi':>10}{'ours':>10}{'ratio':>9}  {'quartiles':16}{'CPU time':>9}{'floor':>8}"
    ]
    for label, (n, floor) in itertools.product(JOBS.values(), FLOORS.items()):
        prefix, suffix = label.replace(" ", "_"), f"{n}cam"
        them, us = (
            result[f"{prefix}_{name}_wall_seconds_{suffix}"][1] for name in ("openpi", "ours")
        )
        low, ratio, high = result[f"{prefix}_ratio_{suffix}_quartiles"]
        lines.append(
            f"{f'{label}, {n} cameras':24}{them:8.2f} s{us:8.2f} s{ratio:8.3f}x  "
            f"[{low:.3f}, {high:.3f}]  {result[f'{prefix}_cpu_ratio_{suffix}']:8.3f}x{floor:7.2f}x"
        )
    return "\n".join(lines)


def flops_table(result: Mapping[str, Any]) -> str:
    """The counts, for people."""
    rows = result["packed_rows"]
    return "\n".join(
        [
            f"pi0 at full size: {result['tflop_per_sample_3cam']:.2f} TFLOP a training sample with three cameras, "
            f"{result['tflop_per_sample_2cam']:.2f} with two",
            f"packed rows ({rows['cameras']} cameras, {rows['text_len']} tokens of text, one action and {rows['extra_segments']} "
            f"ETC segments): {result['segments_per_tflop_packed']:.3f} segments a TFLOP",
            f"the same segments in rows of their own ({PAPER_STEP['action']} action and {PAPER_STEP['etc']} ETC rows a "
            f"step): {result['segments_per_tflop_apart']:.3f}; gain {result['segments_per_tflop_gain']:.2f}x, floor "
            f"{GAIN_FLOOR}x",
        ]
    )
