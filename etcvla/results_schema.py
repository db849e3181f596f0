"""Names in the files that an evaluation writes and the report pages read.

Simulator workers import this module, so it must not import JAX.
"""

from __future__ import annotations

import dataclasses
import re

from etcvla.sims.perturbations import AXES

VIDEO_CAMERA = "front"  # camera whose images become the video of an episode

# What the policy is given in an episode: identifier -> label on pages.
INTERVENTIONS = {
    "right": "right instruction",
    "wrong_instruction": "wrong instruction",
    "blank_image": "blank image",
}

# Columns of episodes.csv, see docs/evaluate.md.
EPISODE_COLUMNS = (
    "simulator",
    "scene",
    "task",
    "trial",
    "intervention",
    "instruction_of",
    "perturbation",
    "seed",
    "initial_state",
    "instruction",
    "success",
    "steps",
    "progress",
    "intention",
    "seconds",
)


# The columns of EPISODE_COLUMNS that identify a trial of an evaluation.
TRIAL_COLUMNS = ("simulator", "scene", "task", "trial", "intervention", "perturbation")


@dataclasses.dataclass(frozen=True)
class VideoName:
    """File name of an episode's video, which says what the video shows."""

    intervention: str
    scene: str
    task: str  # with "_" for "/"
    trial: int
    success: bool
    perturbation: str = ""  # "axis:strength", or "" for none

    @property
    def stem(self) -> str:
        """Name without extension, as "right_source_drawer-open_camera2_0_success"."""
        fields = [
            self.intervention,
            self.scene,
            self.task.replace("/", "_"),
            self.perturbation.replace(":", ""),
            str(self.trial),
            "success" if self.success else "failure",
        ]
        return "_".join(field for field in fields if field)

    @classmethod
    def parse(cls, stem: str) -> VideoName | None:
        """Read a name that `stem` wrote; None for any other name."""
        match = _VIDEO_STEM.fullmatch(stem)
        if match is None:
            return None
        axis = match["axis"]
        return cls(
            intervention=match["intervention"],
            scene=match["scene"],
            task=match["task"],
            trial=int(match["trial"]),
            success=match["outcome"] == "success",
            perturbation=f"{axis}:{match['strength']}" if axis else "",
        )


_VIDEO_STEM = re.compile(
    rf"(?P<intervention>{'|'.join(INTERVENTIONS)})_(?P<scene>[^_]+)_(?P<task>.+?)"
    rf"(_(?P<axis>{'|'.join(AXES)})(?P<strength>\d))?_(?P<trial>\d+)_(?P<outcome>success|failure)"
)
