"""Latency from a raw observation to physical actions: openpi's `Policy.infer` and ours.

Both have the same parameters, sizes and statistics, and the observation of openpi's ALOHA client:
camera images, a state of 14 numbers and an instruction. Both normalise, tokenise, run the prefix
and ten Euler steps, and return the robot's units. No two observations are the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etcvla.bench import model, ours
from etcvla.bench.worker import Worker
from etcvla.data.assets import Assets
from etcvla.data.norm_stats import NormStats
from etcvla.data.tokenizer import Tokenizer
from etcvla.policy import Policy, PolicyOptions
from etcvla.serve.service import Service

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
WIDTH = 14  # of the state and of an action
PROMPT = "pick up the red block and put it into the drawer"
TOLERANCE = 1e-3  # between the sides' actions, in units of about the normalised size


def observe(cameras: int, number: int, size: int) -> dict[str, Any]:
    """Return the `number`-th observation with `cameras` images uint8[3, size, size]."""
    rng = np.random.default_rng(number)
    images = {name: rng.integers(0, 256, (3, size, size), np.uint8) for name in CAMERAS[:cameras]}
    return {"images": images, "state": rng.uniform(-1, 1, WIDTH), "prompt": PROMPT}


def noise(number: int) -> np.ndarray:
    """Return the noise float32[P, A] of the `number`-th chunk, as our policy draws it."""
    rng = np.random.default_rng((0, number))
    return rng.standard_normal((ours.HORIZON, ours.ACTION_DIM), np.float32)


def stats(seed: int) -> dict[str, np.ndarray]:
    """Return quantiles and moments, float32[WIDTH] each, of values between about -1 and 1."""
    rng = np.random.default_rng(seed)
    low = -rng.uniform(0.8, 1.2, WIDTH)
    high = rng.uniform(0.8, 1.2, WIDTH)
    values = {"mean": (low + high) / 2, "std": (high - low) / 4, "q01": low, "q99": high}
    return {name: value.astype(np.float32) for name, value in values.items()}


class OurPolicy:
    """This project's side: what the server calls for one message."""

    def __init__(self, **fields: Any):
        workload = ours.Workload(**fields)
        params = workload.params()
        options = PolicyOptions(
            num_steps=ours.EULER_STEPS, text_len=ours.TEXT_LEN, keep_image_cache=True
        )
        self.size = workload.config.siglip.image_size
        self._services = {}
        for cameras in model.FLOORS:
            policy = Policy(workload.config, params, _make_assets(cameras), cameras, options)
            self._services[cameras] = Service(policy)

    def actions(self, cameras: int) -> list:
        """Return the first chunk, float[P, WIDTH], as nested lists. Call it first."""
        return self._services[cameras](observe(cameras, 0, self.size))["actions"].tolist()

    def infer(self, cameras: int, first: int, count: int) -> list[float]:
        """Return the seconds of each of `count` calls."""
        messages = [observe(cameras, first + i, self.size) for i in range(count)]
        return time_calls(self._services[cameras], messages)

    def infer_same_images(self, cameras: int, first: int, count: int) -> list[float]:
        """Return the seconds of `count` calls with new instructions for the same images."""
        observation = observe(cameras, first, self.size)
        messages = [observation | {"prompt": f"{PROMPT}, try {i}"} for i in range(count + 2)]
        return time_calls(self._services[cameras], messages)[2:]


def time_calls(function: Callable[[Any], Any], arguments: Iterable[Any]) -> list[float]:
    """Return the seconds of each call."""
    seconds = []
    for argument in arguments:
        start = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - start)
    return seconds


def _make_assets(cameras: int) -> Assets:
    def _norm_stats(seed: int) -> NormStats:
        moments = stats(seed)
        return NormStats(**moments, min=moments["q01"], max=moments["q99"], count=1)

    spec = {
        "action": "",
        "action_dim": WIDTH,
        "horizon": ours.HORIZON,
        "state": "",
        "state_dim": WIDTH,
        "rate": 50.0,
        "cameras": list(CAMERAS[:cameras]),
        "prompt": "pi0",
        "mask_padding": False,
    }
    return Assets(Tokenizer.load(), _norm_stats(0), _norm_stats(1), action_spec=spec)


def compare(workload: ours.Workload, folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Time both sides in turns, `calls` calls per round, after checking that their actions agree.

    Returns: `latency_ratio_3cam` and `_2cam`, the median over rounds of ours / openpi's median
      latency; for each side p50 and p99 in milliseconds over all calls, and actions per second.

    Raises RuntimeError if the sides' actions differ.
    """
    fields = dataclasses.asdict(workload)
    result: dict[str, Any] = {"workload": model.describe(workload), "calls": calls}
    seconds: dict[tuple[str, int], list[list[float]]] = {}
    same_images = {}
    with (
        Worker("etcvla.bench.policy:OurPolicy", **fields) as our_side,
        Worker("etcvla.bench.openpi:OpenPIPolicy", folder=str(folder), **fields) as openpi_side,
    ):
        sides = {"ours": our_side, "openpi": openpi_side}
        for cameras in model.FLOORS:
            largest = model.difference(sides, "actions", cameras, TOLERANCE)
            result[f"actions_difference_{cameras}cam"] = largest
        for i in range(rounds + 1):  # round 0 warms up
            for cameras in model.FLOORS:
                for name in sorted(sides, reverse=i % 2 == 0):
                    run = sides[name]("infer", cameras=cameras, first=1 + i * calls, count=calls)
                    seconds.setdefault((name, cameras), []).append(run.result)
        for cameras in model.FLOORS:
            run = our_side("infer_same_images", cameras=cameras, first=0, count=rounds * calls)
            same_images[cameras] = run.result
    measured = {key: np.array(runs[1:]) for key, runs in seconds.items()}
    return result | summarize(measured, same_images)


def summarize(
    seconds: Mapping[tuple[str, int], np.ndarray], same_images: Mapping[int, Sequence[float]]
) -> dict[str, float]:
    """Return the numbers by name.

    Args:
      seconds: (side, cameras) -> float[rounds, calls].
      same_images: cameras -> seconds of our calls with the same images.
    """
    result = {}
    for cameras in model.FLOORS:
        suffix = f"{cameras}cam"
        our_medians = np.median(seconds["ours", cameras], axis=1)
        openpi_medians = np.median(seconds["openpi", cameras], axis=1)
        result[f"latency_ratio_{suffix}"] = float(np.median(our_medians / openpi_medians))
        for name in ("ours", "openpi"):
            values = seconds[name, cameras]
            result[f"{name}_p50_ms_{suffix}"] = float(1e3 * np.quantile(values, 0.5))
            result[f"{name}_p99_ms_{suffix}"] = float(1e3 * np.quantile(values, 0.99))
            rate = float(ours.HORIZON / np.mean(values))
            result[f"{name}_actions_per_second_{suffix}"] = rate
        median = float(1e3 * np.median(same_images[cameras]))
        result[f"ours_same_images_p50_ms_{suffix}"] = median
    return result


def table(result: Mapping[str, Any]) -> str:
    """Return the comparison as a table."""
    lines = [f"{'':12}{'':10}{'p50':>10}{'p99':>10}{'actions/s':>11}{'ratio':>9}{'floor':>8}"]
    for cameras, floor in model.FLOORS.items():
        suffix = f"{cameras}cam"
        for name in ("openpi", "ours"):
            p50 = result[f"{name}_p50_ms_{suffix}"]
            p99 = result[f"{name}_p99_ms_{suffix}"]
            rate = result[f"{name}_actions_per_second_{suffix}"]
            line = f"{cameras} cameras   {name:10}{p50:7.1f} ms{p99:7.1f} ms{rate:11.0f}"
            if name == "ours":
                line += f"{result[f'latency_ratio_{suffix}']:8.3f}x{floor:7.2f}x"
            lines.append(line)
        same_images = result[f"ours_same_images_p50_ms_{suffix}"]
        lines.append(f"{'':12}same images, other words: {same_images:.1f} ms")
    return "\n".join(lines)
