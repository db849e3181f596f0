"""What a vision-language model is asked about an episode, and what of its answer is believed.

One request an episode: a few frames, the instruction, and the phases that the robot's state shows. An answer is JSON;
each part is held against what is known, and what is malformed or contradicts it stays unknown and is counted.
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
MAX_WORDS, MAX_OBJECTS, MAX_SUBTASKS = 4, 8, 8
MAX_TEXT_WORDS = 14
_NOUN = re.compile(r"[a-z][a-z0-9' -]*")


@dataclasses.dataclass(frozen=True)
class Semantics:
    """What is believed: empty and -1 are unknown.

    phase: int32[T] or None; None where the model gave texts for phases that the state knows, or nothing.
    """

    objects: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    target: int = -1
    phases: tuple[str, ...] = ()
    phase: np.ndarray | None = None


def frames_to_show(steps: int, count: int) -> list[int]:
    """At most `count` steps, evenly spread, both ends among them."""
    return sorted({round(i) for i in np.linspace(0, steps - 1, min(count, steps)).tolist()})


def build_prompt(instruction: str, frames: Sequence[int], gripper_phases: GripperPhases) -> str:
    """The question. With segments their wording is asked for, else subtasks and where they begin."""
    if gripper_phases.kinds:
        named = "; ".join(f"{i + 1}. {text}" for i, text in enumerate(gripper_phases.texts()))
        subtasks = (
            f'"subtasks": exactly {len(gripper_phases.kinds)} short imperatives, one for each of the phases that the '
            f"gripper shows, in this order: {named}"
        )
    else:
        subtasks = (
            f'"subtasks": a list of {{"text": a short imperative, "start": the number of the first frame of '
            f"this subtask}}, at most {MAX_SUBTASKS}, in order, the first from frame {frames[0]}"
        )
    return (
        f"A robot was told: {instruction or 'nothing that is known'}.\n"
        f"The images are frames {', '.join(map(str, frames))} of the episode, in order.\n"
        "Answer with one JSON object and nothing else:\n"
        f'"objects": a list of {{"name": a noun of at most {MAX_WORDS} words without article, "color": one of '
        f'{", ".join(COLORS)}, or ""}}, of what the task is about and what stands beside it, at most {MAX_OBJECTS}, no '
        f'name twice, not the robot;\n"target": the name of the object that the robot takes hold of or touches first, '
        f'or "";\n{subtasks}.\nLeave out what you cannot see.'
    )


def parse_reply(
    answer: str,
    *,
    steps: int,
    frames: Sequence[int],
    gripper_phases: GripperPhases,
    dropped: Counter,
) -> Semantics:
    """What of `answer` holds; the rest is counted in `dropped` by reason."""
    found = _json_object(answer)
    if found is None:
        dropped["endpoint: no JSON"] += 1
        return Semantics()
    objects, colors = _objects(found.get("objects"), dropped)
    target = found.get("target")
    index = objects.index(_text(target)) if _text(target) in objects else -1
    if target and index < 0:
        dropped["endpoint: target is not among the objects"] += 1
    phases, phase = _phases(found.get("subtasks"), steps, frames, gripper_phases, dropped)
    return Semantics(objects, colors, index, phases, phase)


def _json_object(answer: str) -> dict | None:
    """The outermost {...}: models wrap JSON into words and fences."""
    first, last = answer.find("{"), answer.rfind("}")
    try:
        found = json.loads(answer[first : last + 1])
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _text(value: Any) -> str:
    return " ".join(value.lower().split()).rstrip(".") if isinstance(value, str) else ""


def _objects(found: Any, dropped: Counter) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kept: dict[str, str] = {}
    entries = (
        [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    )
    for name, color in ((_text(entry.get("name")), _text(entry.get("color"))) for entry in entries):
        if (
            not _NOUN.fullmatch(name)
            or len(name.split()) > MAX_WORDS
            or "gripper" in name
            or "robot" in name
        ):
            dropped["endpoint: no object's name"] += 1
        elif name in kept:
            dropped["endpoint: object named twice"] += 1
            kept[name] = ""  # of which of the two is the colour?
        elif len(kept) < MAX_OBJECTS:
            kept[name] = color if color in COLORS else ""
    return tuple(kept), tuple(kept.values())


def _phases(
    found: Any, steps: int, frames: Sequence[int], gripper_phases: GripperPhases, dropped: Counter
) -> tuple[tuple[str, ...], np.ndarray | None]:
    entries = found if isinstance(found, list) else []
    texts = tuple(
        _text(entry.get("text") if isinstance(entry, dict) else entry) for entry in entries
    )
    if not texts:
        return (), None
    sound = all(
        re.search("[a-z]", text) and len(text.split()) <= MAX_TEXT_WORDS and ";" not in text
        for text in texts
    )
    if not sound or len(set(texts)) < len(texts) or len(texts) > MAX_SUBTASKS:
        dropped["endpoint: subtasks are no list of distinct imperatives"] += 1
        return (), None
    if gripper_phases.kinds:
        if len(texts) != len(gripper_phases.kinds):
            dropped["endpoint: other phases than the gripper's"] += 1
            return (), None
        return texts, None
    starts = [entry.get("start") if isinstance(entry, dict) else None for entry in entries]
    if (
        not all(isinstance(start, int) and start in frames for start in starts)
        or starts[0] != frames[0]
        or any(a >= b for a, b in zip(starts, starts[1:], strict=False))
    ):
        dropped["endpoint: subtasks do not begin in order at frames shown"] += 1
        return texts, np.full(steps, -1, np.int32)
    return texts, _between(starts, frames, steps)


def _between(starts: Sequence[int], frames: Sequence[int], steps: int) -> np.ndarray:
    """int32[T]; -1 between the last frame shown of a subtask and the first of the next, where the border lies."""
    phase = (np.searchsorted(starts, np.arange(steps), side="right") - 1).astype(np.int32)
    for start in starts[1:]:
        shown = frames[list(frames).index(start) - 1]
        phase[shown + 1 : start] = -1
    return phase
