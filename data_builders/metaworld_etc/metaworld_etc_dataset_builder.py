"""TFDS builder of Meta-World demonstrations: scripted experts, exact annotation, checked ETC items."""

from __future__ import annotations

import dataclasses
import math

import tensorflow_datasets as tfds

from data_builders.common.build import provenance
from data_builders.common.rlds_schema import robot_features
from data_builders.common.simulated_builder import SimulatedBuilder
from data_builders.metaworld_etc import episodes
from etcvla.etc.items import LOCATIONS
from etcvla.etc.scene import ABSENT
from etcvla.names import lookup
from etcvla.sims.conditions import CONDITIONS, HELD_OUT, SWAPPABLE, shared_side
from etcvla.sims.metaworld import environment as metaworld
from etcvla.sims.metaworld.tasks import DEMO_TASKS, MT10, NUM_OBJECTS, TASKS

TASK_SETS = {"demo": DEMO_TASKS, "mt10": MT10, "mt50": tuple(TASKS)}
EPISODES = {"source": 30, "target": 10}
CITATION = """@inproceedings{yu2019meta,
  title={Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning},
  author={Yu, Tianhe and Quillen, Deirdre and He, Zhanpeng and Julian, Ryan and Hausman, Karol and Finn, Chelsea and
          Levine, Sergey},
  booktitle={Conference on Robot Learning}, year={2019}}"""


@dataclasses.dataclass
class MetaWorldConfig(tfds.core.BuilderConfig):
    """What is rolled out. The name says what differs from the scene's default, so that it is another directory.

    Raises ValueError for an unknown scene or task and for numbers out of range.
    """

    name: str = ""  # made of the others
    scene: str = "source"
    tasks: tuple[str, ...] = DEMO_TASKS
    episodes: int = 0  # training episodes a task; 0: the scene's default
    held_out: float = 0.12  # validation episodes for each training episode, rounded up
    image_size: int = 96  # pixels
    noise: tuple[float, float] = (
        0.1,
        0.3,
    )  # range of an episode's action noise (standard deviation)
    locations: str = "loc"  # how coordinates are written: "loc" tokens, or "integers"
    # Looks that the recorded states are rendered again in; without actions then, for nobody acted there. All of them
    # for training or all held out. Held-out looks are shown of validation episodes alone: there is no split "train"
    # that a stage could learn them from.
    conditions: tuple[str, ...] = ()

    def __post_init__(self):
        self.tasks, self.noise = (
            tuple(self.tasks),
            tuple(self.noise),
        )  # lists where `tfds build --config` reads JSON
        lookup(metaworld.SCENES, self.scene, "scene")
        for task in self.tasks:
            lookup(TASKS, task, "task")
        lookup(dict.fromkeys(LOCATIONS), self.locations, "locations")
        self.looks_held_out = bool(self.conditions) and shared_side(self.conditions) == HELD_OUT
        self.episodes = self.episodes or EPISODES[self.scene]
        if (
            self.episodes < 1
            or self.held_out < 0
            or self.image_size < 16
            or not 0 <= self.noise[0] <= self.noise[1]
        ):
            raise ValueError(
                f"metaworld_etc: episodes {self.episodes} must be at least 1, held_out {self.held_out} "
                f"at least 0, image_size {self.image_size} at least 16, noise {self.noise} an ascending "
                f"range from 0"
            )
        if self.looks_held_out and not self.val:
            raise ValueError(
                f"metaworld_etc: the held-out looks {', '.join(self.conditions)} are shown of validation "
                f"episodes alone, and there are none: raise held_out"
            )
        self.name = self._name()

    def _name(self) -> str:
        sets = {tasks: name for name, tasks in TASK_SETS.items()}
        parts = {
            "tasks": sets.get(self.tasks, "+".join(self.tasks)),
            "episodes": f"{self.episodes}ep",
            "held_out": f"{self.val}val",
            "image_size": f"{self.image_size}px",
            "noise": "noise{}to{}".format(*self.noise),
            "locations": self.locations,
            "conditions": "ood_" + "+".join(self.conditions),
        }
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | {
            "episodes": EPISODES[self.scene]
        }
        return "_".join(
            [
                self.scene,
                *(part for field, part in parts.items() if getattr(self, field) != defaults[field]),
            ]
        )

    @property
    def val(self) -> int:
        """Validation episodes a task."""
        return math.ceil(self.episodes * self.held_out)

    def split(self, index: int) -> str:
        """The split of a task's episode: exactly `val` of them, evenly spread."""
        total = self.episodes + self.val
        return "val" if (index + 1) * self.val // total > index * self.val // total else "train"

    def jobs(self) -> list[episodes.MetaWorldJob]:
        """Every episode that is made, task by task."""
        nouns = tuple(
            dict.fromkeys(spec.name for task in self.tasks for spec in TASKS[task].objects)
        )
        absent = nouns if len(self.tasks) > 2 else ABSENT
        return [
            episodes.MetaWorldJob(
                task,
                self.scene,
                self.split(index),
                index,
                self.image_size,
                self.noise,
                self.locations,
                absent=absent,
                condition=condition,
            )
            for task in self.tasks
            for condition in self._looks(task)
            for index in range(self.episodes + self.val)
            if not self.looks_held_out or self.split(index) == "val"
        ]

    def _looks(self, task: str) -> tuple[str, ...]:
        """The conditions that the task has something for; ("",) without any."""
        swappable = any(spec.name in SWAPPABLE for spec in TASKS[task].objects)
        return tuple(
            name for name in self.conditions if swappable or not CONDITIONS[name].swapped
        ) or (() if self.conditions else ("",))


class Builder(SimulatedBuilder):
    """Successful demonstrations of Meta-World's scripted experts, split by episode."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [MetaWorldConfig(scene=scene) for scene in metaworld.SCENES]
    roll = staticmethod(episodes.roll)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_description(self.builder_config),
            homepage="https://metaworld.farama.org",
            citation=CITATION,
            license="Apache-2.0",
            metadata=provenance(
                self.builder_config,
                ("metaworld", "mujoco", "numpy"),
                seeds="layouts: demo_seed(episode, attempt); items: crc32 of episode_id",
            ),
            features=robot_features(
                cameras=metaworld.CAMERAS,
                image_size=self.builder_config.image_size,
                state_doc=metaworld.STATE_DOC,
                state_size=metaworld.STATE_SIZE,
                action_doc=metaworld.ACTION_DOC,
                num_objects=self.num_objects,
                action_size=0 if self.builder_config.conditions else metaworld.ACTION_SIZE,
            ),
        )

    @property
    def num_objects(self) -> int:
        """Object slots: those of any task, and what the conditions add."""
        return NUM_OBJECTS + max(
            (len(CONDITIONS[name].added) for name in self.builder_config.conditions), default=0
        )


def _description(config: MetaWorldConfig) -> str:
    if not config.conditions:
        return f"{Builder.__doc__} With exact annotation, and ETC items checked against it."
    return (
        f"Demonstrations of Meta-World's scripted experts as they would have looked otherwise "
        f"({', '.join(config.conditions)}): their states rendered again. Annotation and ETC items speak of what is "
        f"seen; nobody acted there, so there are no actions."
    )
