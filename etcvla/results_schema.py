"""Names in the files that an evaluation writes and the report pages read.

Simulator workers import this module, so it must not import JAX.
"""

from __future__ import annotations

from collections.abc import Mapping

VIDEO_CAMERA = "front"  # camera whose images become the video of an episode

# What the policy is given in an episode: identifier -> label on pages.
INTERVENTIONS = {
    "right": "right instruction",
    "no_instruction": "no instruction",
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
    "condition",
    "perturbation",
    "instruction_of",
    "seed",
    "initial_state",
    "layout",
    "named",
    "novelty",
    "instruction",
    "success",
    "steps",
    "progress",
    "intention",
    "touched",
    "seconds",
)

# The columns of EPISODE_COLUMNS that identify a trial of an evaluation.
TRIAL_COLUMNS = (
    "simulator",
    "scene",
    "task",
    "trial",
    "intervention",
    "condition",
    "perturbation",
)

# The dataset of the tiny base model's training. Its held-out questions measure retention.
BASE_DATA = "tabletop_vqa"

# The columns of TRIAL_COLUMNS that identify a group of episodes with one score.
GROUP_FIELDS = ("scene", "intervention", "condition", "perturbation")


def setting_of(group: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the condition and perturbation of a group or row, without empty ones.

    Files of versions without conditions are read as well.
    """
    names = (group.get("condition", ""), group["perturbation"])
    return tuple(name for name in names if name)


def video_stem(row: Mapping[str, str]) -> str:
    """Return the file name, without extension, of the video of a line of episodes.csv.

    For example "right_source_drawer-open_camera2_0_success".
    """
    outcome = "success" if int(row["success"]) else "failure"
    fields = [row["intervention"], row["scene"], row["task"], *setting_of(row), row["trial"]]
    stem = "_".join([*fields, outcome])
    return stem.replace("/", "_").replace(":", "")
