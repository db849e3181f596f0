"""What a robot waits for: from a raw observation to physical actions, by openpi's `Policy.infer` and by ours.

Both have the same parameters, sizes and statistics, and the observation of openpi's ALOHA client: images as they come
from the cameras, a state of 14 numbers, words. Both normalise, tokenise, run the prefix and ten Euler steps, and give
the robot's units back. No two observations are the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
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
TOLERANCE = 1e-3  # between the sides' actions, whose units are about as large as normalised ones


def observe(cameras: int, number: int, size: int) -> dict[str, Any]:
    """The `number`-th observation, with this many cameras of size x size pixels."""
    rng = np.random.default_rng(number)
    return {
        "images": {
            name: rng.integers(0, 256, (3, size, size), np.uint8) for name in CAMERAS[:cameras]
        },
        "state": rng.uniform(-1, 1, WIDTH),
        "prompt": PROMPT,
    }


def noise(number: int) -> np.ndarray:
    """float32[P, A] that the `number`-th chunk is integrated from: as a policy of ours makes it from this seed."""
    return np.random.default_rng((0, number)).standard_normal(
        (ours.HORIZON, ours.ACTION_DIM), np.float32
    )


def stats(seed: int) -> dict[str, np.ndarray]:
    """Quantiles and moments, float32[WIDTH] each, of vectors between about -1 and 1."""
    rng = np.random.default_rng(seed)
    low, high = -rng.uniform(0.8, 1.2, WIDTH), rng.uniform(0.8, 1.2, WIDTH)
    return {
        name: value.astype(np.float32)
        for name, value in {
            "mean": (low + high) / 2,
            "std": (high - low) / 4,
            "q01": low,
            "q99": high,
        }.items()
    }


class OurPolicy:
    """Our side: what the server calls for a message."""

    def __init__(self, **fields: Any):
        workload = ours.Workload(**fields)
        params, self.size = workload.params(), workload.config.siglip.image_size
        self._services = {
            n: Service(
                Policy(
                    workload.config,
                    params,
                    _assets(n),
                    n,
                    PolicyOptions(
                        num_steps=ours.EULER_STEPS,
                        text_len=ours.TEXT_LEN,
                        keep_image_cache=True,
                    ),
                )
            )
            for n in model.FLOORS
        }

    def actions(self, cameras: int) -> list:
        """The first chunk, float[P, WIDTH], as nested lists; with this number of cameras it must be the first."""
        return self._services[cameras](observe(cameras, 0, self.size))["actions"].tolist()

    def infer(self, cameras: int, first: int, count: int) -> list[float]:
        """Seconds of each of `count` answers."""
        return timed(
            self._services[cameras], [observe(cameras, first + i, self.size) for i in range(count)]
        )

    def again(self, cameras: int, first: int, count: int) -> list[float]:
        """Seconds of each of `count` answers about images that were seen just before, with other words."""
        look = observe(cameras, first, self.size)
        messages = [look | {"prompt": f"{PROMPT}, try {i}"} for i in range(count + 2)]
        return timed(self._services[cameras], messages)[2:]


def timed(answer: Any, messages: Sequence[Any]) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for message in messages:
        began = time.perf_counter()
        answer(message)
        seconds.append(time.perf_counter() - began)
    return seconds


def _assets(cameras: int) -> Assets:
    def of(seed):
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
    return Assets(Tokenizer.load(), of(0), of(1), action_spec=spec)


def compare(workload: ours.Workload, folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    """Both sides in turns, `calls` answers a round, in one process each; they must first agree on actions.

    Returns: `latency_ratio_3cam` and `_2cam`, the median over rounds of ours / openpi's median latency; for each side
      p50 and p99 in milliseconds over all answers, and actions a second.

    Raises RuntimeError if the sides' actions differ.
    """
    fields = dataclasses.asdict(workload)
    with (
        Worker("etcvla.bench.policy:OurPolicy", **fields) as us,
        Worker("etcvla.bench.openpi:OpenPIPolicy", folder=str(folder), **fields) as them,
    ):
        sides = {"ours": us, "openpi": them}
        result = {"workload": model.describe(workload), "calls": calls}
        for n in model.FLOORS:
            result[f"actions_difference_{n}cam"] = model.difference(sides, "actions", n, TOLERANCE)
        seconds = {(name, n): [] for name in sides for n in model.FLOORS}
        for i in range(rounds + 1):  # the first is for warming up
            for n in model.FLOORS:
                for name in sorted(sides, reverse=i % 2 == 0):
                    seconds[name, n].append(
                        sides[name]("infer", cameras=n, first=1 + i * calls, count=calls).result
                    )
        again = {
            n: us("again", cameras=n, first=0, count=rounds * calls).result for n in model.FLOORS
        }
    return result | summarise({key: np.array(runs[1:]) for key, runs in seconds.items()}, again)


def summarise(
    seconds: Mapping[tuple[str, int], np.ndarray], again: Mapping[int, Sequence[float]]
) -> dict[str, float]:
    """Numbers by name, from seconds float[rounds, calls] of each side and number of cameras."""
    result = {}
    for n in model.FLOORS:
        us, them = (np.median(seconds[name, n], axis=1) for name in ("ours", "openpi"))
        result[f"latency_ratio_{n}cam"] = float(np.median(us / them))
        for name in ("ours", "openpi"):
            p50, p99 = np.quantile(seconds[name, n], (0.5, 0.99))
            result |= {
                f"{name}_p50_ms_{n}cam": 1e3 * p50,
                f"{name}_p99_ms_{n}cam": 1e3 * p99,
                f"{name}_actions_per_second_{n}cam": ours.HORIZON / np.mean(seconds[name, n]),
            }
        result[f"ours_same_images_p50_ms_{n}cam"] = 1e3 * np.median(again[n])
    return {name: float(value) for name, value in result.items()}


def table(result: Mapping[str, Any]) -> str:
    """The comparison, for people."""
    lines = [f"{'':12}{'':10}{'p50':>10}{'p99':>10}{'actions/s':>11}{'ratio':>9}{'floor':>8}"]
    for n, floor in model.FLOORS.items():
        for name in ("openpi", "ours"):
            p50, p99, rate = (
                result[f"{name}_{what}_{n}cam"]
                for what in ("p50_ms", "p99_ms", "actions_per_second")
            )
            line = f"{f'{n} cameras':12}{name:10}{p50:7.1f} ms{p99:7.1f} ms{rate:11.0f}"
            lines.append(
                line
                + (
                    f"{result[f'latency_ratio_{n}cam']:8.3f}x{floor:7.2f}x"
                    if name == "ours"
                    else ""
                )
            )
        lines.append(
            f"{'':12}{'same images, other words':24}{result[f'ours_same_images_p50_ms_{n}cam']:.1f} ms"
        )
    return "\n".join(lines)
