"""Annotation and items of one episode, from its state, a calibration, a detector and an endpoint.

Axes: T steps, C cameras, N objects, A width of a vector.
"""

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

from data_builders.add_etc.adapter import OBSERVATION
from data_builders.add_etc.options import AddEtcOptions
from etcvla.data.adapters import Adapter
from etcvla.data.rlds import RLDSDataset
from etcvla.etc import make_items
from etcvla.etc.annotation import INT_FIELDS, STEP_FIELDS, Annotation, project
from etcvla.etc.annotators import semantics, tracks
from etcvla.etc.annotators.projection import Calibrations
from etcvla.etc.annotators.semantics import Semantics
from etcvla.etc.annotators.tracks import GripperPhases
from etcvla.etc.facts import in_image
from etcvla.etc.items import Item

GRIPPER_NOUN = "robot gripper"
ENDPOINT_FRAMES = 8  # frames of an episode that the endpoint gets
ENDPOINT_IMAGE_SIZE = 512  # pixels of their longer side
MAX_SPEED = 0.1  # image sizes per step; a faster detected gripper is another object
ORACLE = "oracle"
# Groups of facts that the items of a question type are made of; other types use all groups.
FACT_GROUPS = {
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
_PLACE_NOUNS = frozenset(
    {"left", "right", "top", "bottom", "middle", "center", "front", "back", "side", "end", "edge"}
)
_NOUN = re.compile(
    r"\b(?:the|a|an)\s+((?:[a-z]+[ -]?){1,3}?)"
    r"(?=\s*(?:$|[.,]|\b(?:and|to|from|in|into|inside|on|onto|of|off|at|by|with|near|next|left|"
    r"right|under|over|above|below|behind|between|towards?|it|then|up|down|open|closed|upright)\b))"
)


@dataclasses.dataclass(frozen=True)
class LabelledEpisode:
    """The annotation of an episode of T steps, and its items."""

    episode_id: str
    rotated_cameras: tuple[str, ...]  # cameras whose images are stored upside down
    annotation: Annotation
    items: list[list[Item]]  # T lists
    dropped: Counter[str]  # reason -> number of dropped items


def find_nouns(instruction: str) -> tuple[str, ...]:
    """Return the nouns that follow an article in an instruction.

    >>> find_nouns("Put the black bowl on the plate.")
    ('black bowl', 'plate')
    """
    nouns = [noun.strip() for noun in _NOUN.findall(instruction.lower())]
    return tuple(dict.fromkeys(noun for noun in nouns if noun not in _PLACE_NOUNS))


@dataclasses.dataclass(frozen=True)
class EpisodeAnnotator:
    """Annotates the episodes of one split. Threads may share it.

    Args:
      adapter: as `match_adapter` returns it.
    """

    dataset: RLDSDataset
    adapter: Adapter
    options: AddEtcOptions
    calibrations: Calibrations | None = None

    def __call__(self, episode: int) -> LabelledEpisode:
        """Annotate an episode and make its items.

        Raises RecordError if the episode's data are damaged, EndpointError if the endpoint fails.
        """
        dropped: Counter[str] = Counter()
        episode_id = self._episode_id(episode)
        instruction = self._instruction(episode)
        facts = self._read_state(episode)
        gripper_phases = tracks.detect_phases(facts["gripper_open"], facts["gripper_position"])
        reply = self._query_endpoint(episode, instruction, gripper_phases, dropped)
        scene = self._choose_objects(reply, instruction)
        facts |= self._project_gripper(episode_id, facts["gripper_position"])
        if self.options.detector:
            facts |= self._detect(episode, scene.objects, facts["gripper_pixel"], dropped)
        steps = len(facts["gripper_open"])
        facts["phase"], phases = _choose_phases(gripper_phases, scene, steps)
        facts = unknown_facts(steps, len(self.cameras), len(scene.objects)) | facts
        set_grasp_pixel(facts, gripper_phases, scene.target)
        annotation = Annotation(
            instruction=instruction,
            cameras=self.cameras,
            objects=scene.objects,
            colors=scene.colors,
            phases=phases,
            target=scene.target,
            success=self._success(episode),
            rate=self.adapter.rate or math.nan,
            **facts,
        )
        items, dropped_items = self._make_items(annotation, episode_id, reply)
        return LabelledEpisode(
            episode_id, self._rotated_cameras, annotation, items, dropped + dropped_items
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """The dataset's own names of the cameras, which the result keeps."""
        features = self.adapter.cameras.values()
        return tuple(feature.removeprefix(OBSERVATION) for feature in features)

    @property
    def _rotated_cameras(self) -> tuple[str, ...]:
        names = zip(self.adapter.cameras, self.cameras, strict=True)
        return tuple(
            dataset_name
            for adapter_name, dataset_name in names
            if adapter_name in self.adapter.rotated_cameras
        )

    def _make_items(
        self, annotation: Annotation, episode_id: str, reply: Semantics
    ) -> tuple[list[list[Item]], Counter[str]]:
        # The annotation does not name all visible objects, so no object is known to be absent.
        items, dropped = make_items(annotation, zlib.crc32(episode_id.encode()), absent=())
        sources = self._fact_sources(annotation, reply)
        for step_items in items:
            step_items[:] = [set_source(item, sources) for item in step_items]
        return items, dropped

    def _episode_id(self, episode: int) -> str:
        name = self.dataset.metadata(episode).get(self.adapter.annotation.episode_id, "")
        return str(name) or f"{self.dataset.split}/{episode:06d}"

    def _column(self, episode: int, name: str) -> np.ndarray:
        """Return a tensor feature of an episode, float32[T, A]."""
        start = int(self.dataset.starts[episode])
        return self.dataset.window(start, name, int(self.dataset.lengths[episode]))[0]

    def _value(self, episode: int, step: int, name: str) -> str | np.ndarray:
        """Return a feature of one step."""
        return self.dataset.frame(int(self.dataset.starts[episode]) + step, [name])[name]

    def _instruction(self, episode: int) -> str:
        """Return the adapter's first instruction that is not empty."""
        for name in self.adapter.instruction:
            instruction = self._value(episode, 0, name)
            if instruction:
                return instruction
        return ""

    def _success(self, episode: int) -> bool | None:
        """Return True if the last reward is positive, else None.

        A reward of zero says nothing, because many datasets have no other.
        """
        if "reward" in self.dataset.features and self._column(episode, "reward")[-1] > 0:
            return True
        return None

    def _image(self, episode: int, step: int) -> np.ndarray:
        """Return the upright image of the first camera, uint8[H, W, 3]."""
        camera, feature = next(iter(self.adapter.cameras.items()))
        return self.adapter.rotate(camera, self._value(episode, step, feature))

    def _read_state(self, episode: int) -> dict[str, np.ndarray]:
        """Return gripper_position float[T, 3] and gripper_open float[T]; NaN unknown."""
        sources = self.adapter.annotation
        steps = int(self.dataset.lengths[episode])
        position = np.full((steps, 3), np.nan, np.float32)
        opening = np.full(steps, np.nan, np.float32)
        feature, first = sources.position
        if feature:
            position = self._column(episode, feature)[:, first : first + 3]
        feature, dim = sources.opening
        if feature:
            stored = self._column(episode, feature)[:, dim]
            opening = np.clip((stored - sources.closed) / (sources.open - sources.closed), 0, 1)
        return {"gripper_position": position, "gripper_open": opening}

    def _project_gripper(self, episode_id: str, position: np.ndarray) -> dict[str, np.ndarray]:
        """Return the camera matrices and the gripper's path in the images; NaN unknown."""
        matrix = np.full((len(position), len(self.cameras), 3, 4), np.nan, np.float32)
        if self.calibrations is not None:
            for number, camera in enumerate(self.cameras):
                calibration = self.calibrations.get(episode_id, camera)
                if calibration is not None:
                    is_rotated = camera in self._rotated_cameras
                    matrix[:, number] = calibration.matrix(rotated=is_rotated)
        return {"camera_matrix": matrix, "gripper_pixel": project(matrix, position[:, None])}

    def _query_endpoint(
        self,
        episode: int,
        instruction: str,
        gripper_phases: GripperPhases,
        dropped: Counter[str],
    ) -> Semantics:
        endpoint = self.options.endpoint
        if endpoint is None:
            return Semantics()
        steps = int(self.dataset.lengths[episode])
        frames = semantics.frames_to_show(steps, ENDPOINT_FRAMES)
        images = [encode_jpeg(self._image(episode, step), ENDPOINT_IMAGE_SIZE) for step in frames]
        prompt = semantics.build_prompt(instruction, frames, gripper_phases)
        return semantics.parse_reply(
            endpoint.complete(prompt, images),
            steps=steps,
            frames=frames,
            gripper_phases=gripper_phases,
            dropped=dropped,
        )

    def _detect(
        self,
        episode: int,
        objects: tuple[str, ...],
        gripper_pixel: np.ndarray,
        dropped: Counter[str],
    ) -> dict[str, np.ndarray]:
        """Return boxes of the objects at every `stride`-th step and the gripper's path.

        The detected path fills `gripper_pixel` if no calibration did.
        """
        steps, cameras = gripper_pixel.shape[:2]
        box = np.full((steps, cameras, len(objects), 4), np.nan)
        track = np.full((steps, 2), np.nan)
        stride = self.options.stride
        detected_steps = sorted({*range(0, steps, stride), steps - 1})
        for step in detected_steps:
            boxes = self.options.detector(self._image(episode, step), (*objects, GRIPPER_NOUN))
            gripper_box = boxes[-1]
            box[step, 0] = boxes[:-1]
            track[step] = (gripper_box[:2] + gripper_box[2:]) / 2
        num_missing = int(np.isnan(box[detected_steps, 0, :, 0]).sum())
        dropped["detector: object not found, or found twice"] += num_missing
        if not np.isfinite(gripper_pixel[:, 0]).any():
            gripper_pixel[:, 0] = tracks.interpolate_track(
                track, max_gap=2 * stride, max_speed=MAX_SPEED
            )
        return {"box": box, "gripper_pixel": gripper_pixel}

    def _choose_objects(self, reply: Semantics, instruction: str) -> Semantics:
        """Return the reply with the nouns to detect, at most as many as there are object slots."""
        objects = reply.objects
        if not objects and self.options.detector:
            objects = self.options.objects or find_nouns(instruction)
        objects = objects[: self.options.num_objects]
        return dataclasses.replace(
            reply,
            objects=objects,
            colors=reply.colors[: len(objects)] or ("",) * len(objects),
            target=reply.target if reply.target < len(objects) else -1,
        )

    def _fact_sources(self, annotation: Annotation, reply: Semantics) -> dict[str, str]:
        """Return group of facts -> its source: "oracle" for measured facts, or a model's name."""
        is_calibrated = np.isfinite(annotation.camera_matrix[:, 0]).all()
        detector = self.options.detector.name if self.options.detector else ORACLE
        endpoint = self.options.endpoint.model if self.options.endpoint else ORACLE
        names_phases = reply.phases or reply.target >= 0
        return {
            "gripper": ORACLE if is_calibrated else detector,
            "boxes": detector,
            "names": endpoint if reply.objects else detector,
            "phases": endpoint if names_phases else ORACLE,
        }


def _choose_phases(
    gripper_phases: GripperPhases, scene: Semantics, steps: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (int32[T] phase, phase texts).

    The endpoint's phases come first, then its texts for the state's phases, then the state's texts.
    """
    if scene.phases and scene.phase is not None:
        return scene.phase, scene.phases
    target = scene.objects[scene.target] if scene.target >= 0 else "object"
    return gripper_phases.phase(steps), scene.phases or gripper_phases.texts(target)


def set_grasp_pixel(
    facts: dict[str, np.ndarray], gripper_phases: GripperPhases, target: int
) -> None:
    """Set the target's grasp point until the grasp to the image point where the gripper grasps it.

    The target does not move before the grasp. The point is right in fixed cameras only, and only
    calibrated cameras are known to be fixed.
    """
    step = tracks.grasp_step(gripper_phases)
    if target < 0 or step is None:
        return
    is_fixed = np.isfinite(facts["camera_matrix"][0]).all((-1, -2))
    facts["grasp_pixel"][: step + 1, is_fixed, target] = facts["gripper_pixel"][step, is_fixed]


def set_source(item: Item, sources: Mapping[str, str]) -> Item:
    """Return the item with its source: "oracle", or "model:" and the models behind its facts."""
    groups = FACT_GROUPS.get(item.question_type, tuple(sources))
    models = sorted({sources[group] for group in groups} - {ORACLE})
    source = f"model:{'+'.join(models)}" if models else ORACLE
    return dataclasses.replace(item, source=source)


def unknown_facts(steps: int, cameras: int, objects: int) -> dict[str, np.ndarray]:
    """Return all step fields of an annotation with unknown values, NaN or -1."""
    sizes = {"C": cameras, "N": objects}
    facts = {}
    for name, axes in STEP_FIELDS.items():
        shape = (steps, *(sizes.get(axis, axis) for axis in axes))
        if name in INT_FIELDS:
            facts[name] = np.full(shape, -1, np.int32)
        else:
            facts[name] = np.full(shape, np.nan, np.float32)
    return facts


def gripper_visible_share(annotation: Annotation) -> float:
    """Return the share of steps with the projected gripper in the first image; NaN unknown."""
    is_known = np.isfinite(annotation.gripper_pixel[:, 0]).all(-1)
    if not is_known.any():
        return math.nan
    return float(in_image(annotation.gripper_pixel[is_known, 0]).mean())


def encode_jpeg(image: np.ndarray, max_side: int) -> bytes:
    """Return uint8[H, W, 3] as a JPEG file whose longer side is at most `max_side` pixels."""
    scaled = Image.fromarray(image)
    scaled.thumbnail((max_side, max_side))
    file = io.BytesIO()
    scaled.save(file, "JPEG", quality=90)
    return file.getvalue()
