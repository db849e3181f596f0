"""Environments of one worker process. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import gc

from etcvla import sims
from etcvla.etc.annotation import Annotation
from etcvla.sims.rollout import initial_frames
from etcvla.sims.seeds import EVAL_SEED_BASE

LAYOUT_SEED = EVAL_SEED_BASE // 2  # far from the seeds of demonstrations and of evaluations


@dataclasses.dataclass(frozen=True)
class EnvironmentKey:
    """Arguments of `etcvla.sims.make`."""

    simulator: str
    task: str
    scene: str
    image_size: int
    condition: str = ""


_environments: dict[EnvironmentKey, sims.Environment] = {}
_initial_frames: dict[EnvironmentKey, Annotation] = {}


def get_environment(key: EnvironmentKey) -> sims.Environment:
    """Return this process's environment of `key`.

    Jobs are sorted by task, so the environments of one task are kept at a time.
    """
    if key not in _environments:
        for other in list(_environments):
            if other.task != key.task:
                _environments.pop(other).close()
                _initial_frames.pop(other, None)
        # The objects of robosuite form reference cycles, which hold about a gigabyte per task.
        gc.collect()
        _environments[key] = sims.make(**dataclasses.asdict(key))
    return _environments[key]


def get_initial_frames(key: EnvironmentKey, num_layouts: int) -> Annotation:
    """Return an annotation of the first frames of `num_layouts` other episodes.

    `make_items` drops questions whose answer is the same in nearly all of them.
    """
    if key not in _initial_frames:
        seeds = range(LAYOUT_SEED, LAYOUT_SEED + num_layouts)
        _initial_frames[key] = initial_frames(get_environment(key), seeds)
    return _initial_frames[key]
