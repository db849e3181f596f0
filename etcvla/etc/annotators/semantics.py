"""Query a vision-language model about an episode, and validate its reply.

There is one request per episode, with a few frames, the instruction, and the phases that the
robot's state shows. The reply is JSON. Each part is compared with the known facts. A part that is
malformed or contradicts them stays unknown and is counted.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla.etc.annotators.tracks import GripperPhases

COLORS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "silver",
)
MAX_OBJECTS = 8
MAX_WORDS = 4  # of an object's name
MAX_SUBTASKS = 8
MAX_TEXT_WORDS = 14  # of a subtask
_NOUN = re.compile(r"[a-z][a-z0-9' -]*")


@dataclasses.dataclass(frozen=True)
class Semantics:
    """The validated part of a reply. Empty and -1 mean unknown."""

    objects: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    target: int = -1
    phases: tuple[str, ...] = ()
    # int32[T]. None if `phases` are texts for the phases of the robot's state, or if there are
    # none.
    phase: np.ndarray | None = None


def frames_to_show(steps: int, count: int) -> list[int]:
    """Return at most `count` evenly spaced steps, with both ends."""
    return sorted({round(i) for i in np.linspace(0, steps - 1, min(count, steps)).tolist()})


def build_prompt(instruction: str, frames: Sequence[int], gripper_phases: GripperPhases) -> str:
    """Return the prompt.

    With gripper phases it asks for their texts, otherwise for the subtasks and where they begin.
    """
    if gripper_phases.kinds:
        numbered = enumerate(gripper_phases.texts(), start=1)
        phases = "; ".join(f"{number}. {text}" for number, text in numbered)
        subtasks = (
            f'"subtasks": exactly {len(gripper_phases.kinds)} short imperatives, one for each of '
            f"the phases that the gripper shows, in this order: {phases}"
        )
    else:
        subtasks = (
            '"subtasks": a list of {"text": a short imperative, "start": the number of the first '
            f"frame of this subtask}}, at most {MAX_SUBTASKS}, in order, the first from frame "
            f"{frames[0]}"
        )
    return (
        f"A robot was told: {instruction or 'nothing that is known'}.\n"
        f"The images are frames {', '.join(map(str, frames))} of the episode, in order.\n"
        "Answer with one JSON object and nothing else:\n"
        f'"objects": a list of {{"name": a noun of at most {MAX_WORDS} words without article, '
        f'"color": one of {", ".join(COLORS)}, or ""}}, of what the task is about and what stands '
        f"beside it, at most {MAX_OBJECTS}, no name twice, not the robot;\n"
        '"target": the name of the object that the robot takes hold of or touches first, or "";\n'
        f"{subtasks}.\nLeave out what you cannot see."
    )


def parse_reply(
    answer: str,
    *,
    steps: int,
    frames: Sequence[int],
    gripper_phases: GripperPhases,
    dropped: Counter,
) -> Semantics:
    """Return the valid parts of a reply; count the others in `dropped` by reason.

    Args:
      answer: text of the reply.
      steps: length T of the episode.
      frames: the steps whose frames the model has seen.
      gripper_phases: the phases that were in the prompt.
      dropped: counts of reasons.
    """
    reply = _json_object(answer)
    if reply is None:
        dropped["endpoint: no JSON"] += 1
        return Semantics()
    colors = _objects(reply.get("objects"), dropped)
    objects = tuple(colors)
    target = -1
    if reply.get("target"):
        name = _clean(reply["target"])
        if name in objects:
            target = objects.index(name)
        else:
            dropped["endpoint: target is not among the objects"] += 1
    entries = reply.get("subtasks")
    entries = entries if isinstance(entries, list) else []
    phases = _subtask_texts(entries, gripper_phases, dropped)
    phase = None
    if phases and not gripper_phases.kinds:
        phase = _subtask_steps(entries, frames, steps, dropped)
    return Semantics(objects, tuple(colors.values()), target, phases, phase)


def _json_object(answer: str) -> dict[str, Any] | None:
    """Parse the outermost {...}. Models put words and code fences around their JSON."""
    first = answer.find("{")
    last = answer.rfind("}")
    try:
        value = json.loads(answer[first : last + 1])
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _clean(value: Any) -> str:
    return " ".join(value.lower().split()).rstrip(".") if isinstance(value, str) else ""


def _objects(entries: Any, dropped: Counter) -> dict[str, str]:
    """Return the valid names with their colours, "" for unknown colours."""
    colors: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        name = _clean(entry.get("name"))
        color = _clean(entry.get("color"))
        if not _is_object_name(name):
            dropped["endpoint: no object's name"] += 1
        elif name in colors:
            dropped["endpoint: object named twice"] += 1
            colors[name] = ""  # the colour may be that of the other object
        elif len(colors) < MAX_OBJECTS:
            colors[name] = color if color in COLORS else ""
    return colors


def _is_object_name(name: str) -> bool:
    if not _NOUN.fullmatch(name) or len(name.split()) > MAX_WORDS:
        return False
    return "gripper" not in name and "robot" not in name


def _subtask_texts(
    entries: list, gripper_phases: GripperPhases, dropped: Counter
) -> tuple[str, ...]:
    """Return the texts of the subtasks, () if they are not valid."""
    texts = []
    for entry in entries:
        texts.append(_clean(entry.get("text") if isinstance(entry, dict) else entry))
    if not texts:
        return ()
    is_distinct = len(set(texts)) == len(texts) <= MAX_SUBTASKS
    if not is_distinct or not all(_is_imperative(text) for text in texts):
        dropped["endpoint: subtasks are no list of distinct imperatives"] += 1
        return ()
    if gripper_phases.kinds and len(texts) != len(gripper_phases.kinds):
        dropped["endpoint: other phases than the gripper's"] += 1
        return ()
    return tuple(texts)


def _is_imperative(text: str) -> bool:
    has_letters = re.search("[a-z]", text) is not None
    return has_letters and len(text.split()) <= MAX_TEXT_WORDS and ";" not in text


def _subtask_steps(
    entries: list, frames: Sequence[int], steps: int, dropped: Counter
) -> np.ndarray:
    """Return the index of the subtask of each step, int32[T]; -1 unknown.

    The border between two subtasks is between the last shown frame of one and the first shown
    frame of the other, so the steps between these frames are unknown.
    """
    starts = [entry.get("start") if isinstance(entry, dict) else None for entry in entries]
    are_frames = all(isinstance(start, int) and start in frames for start in starts)
    # Frames are in order, so the starts are in order if sorting does not change them.
    if not are_frames or starts[0] != frames[0] or starts != sorted(set(starts)):
        dropped["endpoint: subtasks do not begin in order at frames shown"] += 1
        return np.full(steps, -1, np.int32)
    phase = (np.searchsorted(starts, np.arange(steps), side="right") - 1).astype(np.int32)
    for start in starts[1:]:
        last_shown = frames[list(frames).index(start) - 1]
        phase[last_shown + 1 : start] = -1
    return phase
