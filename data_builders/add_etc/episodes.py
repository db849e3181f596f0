"""One episode's annotation and items, from what is known of it: state, calibration, a detector, an endpoint."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
from PIL import Image

from data_builders.add_etc.adapter import IMAGES
from etcvla.data.adapters import Adapter
from etcvla.data.rlds import RLDSDataset
from etcvla.etc import make_items
from etcvla.etc.annotation import INT_FIELDS, STEP_FIELDS, Annotation, project
from etcvla.etc.annotators import semantics, tracks
from etcvla.etc.annotators.detector import Detector
from etcvla.etc.annotators.endpoint import Endpoint
from etcvla.etc.annotators.projection import Calibrations
from etcvla.etc.annotators.semantics import Semantics
from etcvla.etc.facts import in_image
from etcvla.etc.items import Item

GRIPPER = "robot gripper"
SHOWN_FRAMES = 8  # of an episode to the endpoint
SHOWN_SIZE = 512  # pixels of their longer side
MAX_SPEED = 0.1  # of the image, a step: a detected gripper that moves faster is another thing
ORACLE = "oracle"
# What an item of each question_type rests on; a question_type that is not listed rests on everything.
RESTS_ON = {
    "gripper_point": ("gripper",),
    "path_task": ("gripper",),
    "path_subtask": ("gripper", "phases"),
    "gripper_side": ("gripper", "boxes", "names"),
    "object_side": ("boxes", "names"),
    "identify": ("boxes", "names"),
    "locate_box": ("boxes", "names"),
    "describe": ("boxes", "names"),
    "grasp_point": ("gripper", "names"),
    "stable_grasp": ("gripper", "names"),
    "decompose": ("phases",),
    "current": ("phases",),
    "next": ("phases",),
    "done": ("phases",),
    "outcome": ("phases",),
}
_PLACES = frozenset(
    {"left", "right", "top", "bottom", "middle", "center", "front", "back", "side", "end", "edge"}
)
_ARTICLE = re.compile(
    r"\b(?:the|a|an)\s+((?:[a-z]+[ -]?){1,3}?)(?=\s*(?:$|[.,]|\b(?:and|to|from|in|into|inside|on|onto"
    r"|of|off|at|by|with|near|next|left|right|under|over|above|below|behind|between|towards?|it|"
    r"then|up|down|open|closed|upright)\b))"
)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An episode's facts, its items by step, and what was left out by reason; `turned` are the cameras whose images
    stand on their heads."""

    episode_id: str
    turned: tuple[str, ...]
    annotation: Annotation
    items: list[list[Item]]
    dropped: Counter


def nouns_of(instruction: str) -> tuple[str, ...]:
    """What an instruction names after an article.

    >>> nouns_of("Put the black bowl on the plate.")
    ('black bowl', 'plate')
    """
    found = (noun.strip() for noun in _ARTICLE.findall(instruction.lower()))
    return tuple(dict.fromkeys(noun for noun in found if noun not in _PLACES))


@dataclasses.dataclass(frozen=True)
class Annotator:
    """Annotates the episodes of one split; safe to call from threads.

    Args:
      adapter: one that `fit` has returned.
      objects: nouns to detect; none: those that the endpoint or else the instruction names.
      stride: steps between two frames that the detector sees.
      num_objects: object slots of the dataset.
    """

    dataset: RLDSDataset
    adapter: Adapter
    num_objects: int
    calibrations: Calibrations | None = None
    detector: Detector | None = None
    endpoint: Endpoint | None = None
    objects: tuple[str, ...] = ()
    stride: int = 5

    def __call__(self, episode: int) -> Labelled:
        """Raises RecordError where the episode's data are damaged, EndpointError where the endpoint gives up."""
        dropped: Counter = Counter()
        episode_id, instruction = self.episode_id(episode), self._instruction(episode)
        known = self._state(episode)
        segments = tracks.detect_phases(known["gripper_open"], known["gripper_position"])
        asked = self._ask(episode, instruction, segments, dropped)
        said = self._name_objects(asked, instruction)
        known |= self._camera(episode_id, known["gripper_position"])
        if self.detector:
            known |= self._detect(episode, said.objects, known["gripper_pixel"], dropped)
        steps = len(known["gripper_open"])
        known["phase"], phases = self._phases(segments, said, steps)
        facts = unknown(steps, len(self.cameras), len(said.objects)) | known
        hindsight(facts, segments, said.target)
        annotation = Annotation(
            instruction=instruction,
            cameras=self.cameras,
            objects=said.objects,
            colors=said.colors,
            phases=phases,
            target=said.target,
            success=self._success(episode),
            rate=self.adapter.rate or math.nan,
            **facts,
        )
        sources = self._sources(facts, asked)
        # Nothing names all there is to see, so nothing can be asked for in vain.
        items, more = make_items(annotation, zlib.crc32(episode_id.encode()), absent=())
        credited = [[credit(item, sources) for item in step] for step in items]
        return Labelled(episode_id, self._turned, annotation, credited, dropped + more)

    def episode_id(self, episode: int) -> str:
        name = self.dataset.metadata(episode).get(self.adapter.annotation.episode_id, "")
        return str(name) or f"{self.dataset.split}/{episode:06d}"

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names that the dataset itself has for them, which the result keeps."""
        return tuple(feature.removeprefix(IMAGES) for feature in self.adapter.cameras.values())

    @property
    def _turned(self) -> tuple[str, ...]:
        return tuple(
            theirs
            for ours, theirs in zip(self.adapter.cameras, self.cameras, strict=True)
            if ours in self.adapter.rotated_cameras
        )

    def _column(self, episode: int, name: str) -> np.ndarray:
        """float32[T, A] of a tensor feature."""
        return self.dataset.window(
            int(self.dataset.starts[episode]), name, int(self.dataset.lengths[episode])
        )[0]

    def _read(self, episode: int, step: int, name: str):
        return self.dataset.frame(int(self.dataset.starts[episode]) + step, [name])[name]

    def _instruction(self, episode: int) -> str:
        """The first that is not empty."""
        return next(
            filter(None, (self._read(episode, 0, name) for name in self.adapter.instruction)), ""
        )

    def _success(self, episode: int) -> bool | None:
        """A reward at the end says so; without one nothing is known, for many sets have no rewards but zero."""
        won = "reward" in self.dataset.features and self._column(episode, "reward")[-1] > 0
        return True if won else None

    def _image(self, episode: int, step: int) -> np.ndarray:
        camera, feature = next(iter(self.adapter.cameras.items()))
        return self.adapter.rotate(camera, self._read(episode, step, feature))

    def _state(self, episode: int) -> dict[str, np.ndarray]:
        """gripper_position float[T, 3] and gripper_open float[T]."""
        facts, steps = self.adapter.annotation, int(self.dataset.lengths[episode])
        position, opening = (
            np.full((steps, 3), np.nan, np.float32),
            np.full(steps, np.nan, np.float32),
        )
        if facts.position[0]:
            name, first = facts.position
            position = self._column(episode, name)[:, first : first + 3]
        if facts.opening[0]:
            name, dim = facts.opening
            opening = np.clip(
                (self._column(episode, name)[:, dim] - facts.closed) / (facts.open - facts.closed),
                0,
                1,
            )
        return {"gripper_position": position, "gripper_open": opening}

    def _camera(self, episode_id: str, position: np.ndarray) -> dict[str, np.ndarray]:
        """Camera matrices and, by them, the gripper's path in the images."""
        matrix = np.full((len(position), len(self.cameras), 3, 4), np.nan, np.float32)
        for c, (ours, theirs) in enumerate(zip(self.adapter.cameras, self.cameras, strict=True)):
            found = self.calibrations.get(episode_id, theirs) if self.calibrations else None
            if found is not None:
                matrix[:, c] = found.matrix(turned=ours in self.adapter.rotated_cameras)
        return {"camera_matrix": matrix, "gripper_pixel": project(matrix, position[:, None])}

    def _ask(
        self, episode: int, instruction: str, segments: tracks.GripperPhases, dropped: Counter
    ) -> Semantics:
        if self.endpoint is None:
            return Semantics()
        steps = int(self.dataset.lengths[episode])
        frames = semantics.frames_to_show(steps, SHOWN_FRAMES)
        answer = self.endpoint.complete(
            semantics.build_prompt(instruction, frames, segments),
            [jpeg(self._image(episode, step), SHOWN_SIZE) for step in frames],
        )
        return semantics.parse_reply(
            answer, steps=steps, frames=frames, gripper_phases=segments, dropped=dropped
        )

    def _detect(
        self, episode: int, objects: tuple[str, ...], gripper_pixel: np.ndarray, dropped: Counter
    ) -> dict[str, np.ndarray]:
        """Boxes of the objects at every `stride`-th step and, without calibration, the gripper's track."""
        steps, cameras = gripper_pixel.shape[:2]
        box, track = np.full((steps, cameras, len(objects), 4), np.nan), np.full((steps, 2), np.nan)
        seen = sorted({*range(0, steps, self.stride), steps - 1})
        for step in seen:
            found = self.detector(self._image(episode, step), (*objects, GRIPPER))
            box[step, 0], track[step] = found[:-1], (found[-1, :2] + found[-1, 2:]) / 2
        dropped["detector: object not found, or found twice"] += int(
            np.isnan(box[seen, 0, :, 0]).sum()
        )
        if not np.isfinite(gripper_pixel[:, 0]).any():
            gripper_pixel[:, 0] = tracks.interpolate_track(
                track, max_gap=2 * self.stride, max_speed=MAX_SPEED
            )
        return {"box": box, "gripper_pixel": gripper_pixel}

    def _name_objects(self, said: Semantics, instruction: str) -> Semantics:
        """The nouns to look for, at most as many as there are slots."""
        objects = said.objects or (self.objects or nouns_of(instruction) if self.detector else ())
        objects = objects[: self.num_objects]
        return dataclasses.replace(
            said,
            objects=objects,
            colors=said.colors[: len(objects)] or ("",) * len(objects),
            target=said.target if said.target < len(objects) else -1,
        )

    @staticmethod
    def _phases(
        segments: tracks.GripperPhases, said: Semantics, steps: int
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """The model's words for the state's phases, or its own phases, or the state's words."""
        if said.phases and said.phase is not None:
            return said.phase, said.phases
        target = said.objects[said.target] if said.target >= 0 else "object"
        return segments.phase(steps), said.phases or segments.texts(target)

    def _sources(self, facts: Mapping[str, np.ndarray], asked: Semantics) -> dict[str, str]:
        """Who stands behind each group of facts: "oracle" for what was measured, else the name of the model."""
        measured = np.isfinite(facts["camera_matrix"][:, 0]).all()
        detector = self.detector.name if self.detector else ORACLE
        endpoint = self.endpoint.model if self.endpoint else ORACLE
        return {
            "gripper": ORACLE if measured else detector,
            "boxes": detector,
            "names": endpoint if asked.objects else detector,
            "phases": endpoint if asked.phases or asked.target >= 0 else ORACLE,
        }


def hindsight(facts: dict[str, np.ndarray], segments: tracks.GripperPhases, target: int) -> None:
    """Until it is held the target rests, so its grasp point in a camera that stands still is where the gripper came to
    hold it. Only calibrated cameras are known to stand still."""
    step = tracks.grasp_step(segments)
    if target >= 0 and step is not None:
        still = np.isfinite(facts["camera_matrix"][0]).all((-1, -2))
        facts["grasp_pixel"][: step + 1, still, target] = facts["gripper_pixel"][step, still]


def credit(item: Item, sources: Mapping[str, str]) -> Item:
    """The item with its source: the models that its facts come from, joined by "+", or the oracle without any."""
    models = sorted(
        {sources[group] for group in RESTS_ON.get(item.question_type, tuple(sources))} - {ORACLE}
    )
    return dataclasses.replace(item, source=f"model:{'+'.join(models)}" if models else ORACLE)


def unknown(steps: int, cameras: int, objects: int) -> dict[str, np.ndarray]:
    """Every step field of an annotation of which nothing is known."""
    sizes = {"C": cameras, "N": objects}
    return {
        name: np.full(
            (steps, *(sizes.get(axis, axis) for axis in axes)),
            -1 if name in INT_FIELDS else np.nan,
            np.int32 if name in INT_FIELDS else np.float32,
        )
        for name, axes in STEP_FIELDS.items()
    }


def seen_share(annotation: Annotation) -> float:
    """The share of steps at which the projected gripper lies on the first image; NaN where it is unknown.

    A calibration of another frame or camera shows here first.
    """
    known = np.isfinite(annotation.gripper_pixel[:, 0]).all(-1)
    return float(in_image(annotation.gripper_pixel[known, 0]).mean()) if known.any() else math.nan


def jpeg(image: np.ndarray, longer: int) -> bytes:
    """uint8[H, W, 3] as a JPEG file, scaled down to `longer` pixels."""
    picture, file = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((longer, longer))
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
