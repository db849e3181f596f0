"""TFDS builder of Meta-World demonstrations: scripted experts, exact annotation, checked items."""

from __future__ import annotations

import dataclasses

import tensorflow_datasets as tfds

from data_builders.common.config import assign_split, changed_parts, count_held_out
from data_builders.common.rlds_schema import RobotSchema, robot_features
from data_builders.common.simulated_builder import SimulatedBuilder, SimulatedConfig
from data_builders.metaworld_etc.episodes import MetaWorldJob, make_episode
from data_builders.metaworld_etc.task_sets import TASK_SETS
from etcvla.errors import UserError
from etcvla.etc.scene import ABSENT
from etcvla.names import lookup
from etcvla.sims.conditions import CONDITIONS, HELD_OUT, conditions_for, shared_side
from etcvla.sims.metaworld import environment as metaworld
from etcvla.sims.metaworld.tasks import DEMO_TASKS, NUM_OBJECTS, TASKS

EPISODES = {"source": 30, "target": 10}  # training episodes per task of a scene
CITATION = """@inproceedings{yu2019meta,
  title={Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning},
  author={Yu, Tianhe and Quillen, Deirdre and He, Zhanpeng and Julian, Ryan and Hausman, Karol and
          Finn, Chelsea and Levine, Sergey},
  booktitle={Conference on Robot Learning}, year={2019}}"""


@dataclasses.dataclass
class MetaWorldConfig(SimulatedConfig):
    """Tasks, scene and episodes of a dataset.

    The name states what differs from the scene's default, so that different configs are built in
    different folders. Raises UserError for unknown names and for numbers out of range.
    """

    scene: str = "source"
    tasks: tuple[str, ...] = DEMO_TASKS
    image_size: int = 96
    noise: tuple[float, float] = (0.1, 0.3)
    # Appearances in which the recorded states are rendered again, without actions. All of them are
    # for training, or all are held out. Held-out ones are rendered for validation episodes only:
    # their dataset has no split "train", so that no stage can train on it.
    conditions: tuple[str, ...] = ()

    def __post_init__(self):
        self.validate(metaworld.SCENES)
        for task in self.tasks:
            lookup(TASKS, task, "task")
        self.episodes = self.episodes or EPISODES[self.scene]
        self.only_val = bool(self.conditions) and shared_side(self.conditions) == HELD_OUT
        if self.only_val and not self.num_val:
            raise UserError(
                f"the held-out conditions {', '.join(self.conditions)} are rendered for validation "
                "episodes only, and there are none: raise --held_out"
            )
        set_names = {tasks: name for name, tasks in TASK_SETS.items()}
        parts = {
            "tasks": set_names.get(self.tasks, "+".join(self.tasks)),
            **self.name_parts(),
            "held_out": f"{self.num_val}val",
            "conditions": "ood_" + "+".join(self.conditions),
        }
        defaults = {"episodes": EPISODES[self.scene]}
        self.name = "_".join([self.scene, *changed_parts(self, parts, defaults)])

    @property
    def num_val(self) -> int:
        """Number of validation episodes per task."""
        return count_held_out(self.episodes, self.held_out)

    def jobs(self) -> list[MetaWorldJob]:
        """Return the job of every episode, task by task."""
        absent = self._absent_nouns()
        jobs = []
        for task in self.tasks:
            for condition in self._conditions_for(task):
                for index in range(self.episodes + self.num_val):
                    split = assign_split(index, self.episodes + self.num_val, self.num_val)
                    if self.only_val and split != "val":
                        continue
                    job = MetaWorldJob(
                        task=task,
                        scene=self.scene,
                        split=split,
                        index=index,
                        image_size=self.image_size,
                        noise=self.noise,
                        locations=self.locations,
                        absent=absent,
                        condition=condition,
                    )
                    jobs.append(job)
        return jobs

    def _absent_nouns(self) -> tuple[str, ...]:
        """Return the nouns of all tasks' objects, for questions about objects that are absent."""
        if len(self.tasks) <= 2:
            return ABSENT
        nouns = []
        for task in self.tasks:
            nouns += [spec.name for spec in TASKS[task].objects]
        return tuple(dict.fromkeys(nouns))

    def _conditions_for(self, task: str) -> list[str]:
        """Return the conditions that apply to a task, [""] if the dataset has none.

        A condition that swaps an object does not apply to a task without a swappable object.
        """
        if not self.conditions:
            return [""]
        fitting = conditions_for([spec.name for spec in TASKS[task].objects])
        return [name for name in self.conditions if name in fitting]


class Builder(SimulatedBuilder):
    """Successful demonstrations of Meta-World's scripted experts, split by episode."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [MetaWorldConfig(scene=scene) for scene in metaworld.SCENES]
    make_episode = staticmethod(make_episode)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        schema = RobotSchema(
            cameras=metaworld.CAMERAS,
            image_size=config.image_size,
            num_objects=self.num_objects,
            state_size=metaworld.STATE_SIZE,
            state_doc=metaworld.STATE_DOC,
            action_size=0 if config.conditions else metaworld.ACTION_SIZE,
            action_doc=metaworld.ACTION_DOC,
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=_description(config),
            homepage="https://metaworld.farama.org",
            citation=CITATION,
            license="Apache-2.0",
            metadata=self.provenance(
                ("metaworld", "mujoco", "numpy"),
                seeding="layouts: demo_seed(episode, attempt); items: crc32 of episode_id",
            ),
            features=robot_features(schema),
        )

    @property
    def num_objects(self) -> int:
        """Object slots of the annotation: those of any task, plus what the conditions add."""
        added = [len(CONDITIONS[name].added) for name in self.builder_config.conditions]
        return NUM_OBJECTS + max(added, default=0)


def _description(config: MetaWorldConfig) -> str:
    if not config.conditions:
        return f"{Builder.__doc__} With exact annotation, and ETC items checked against it."
    return (
        "States of demonstrations of Meta-World's scripted experts, rendered again in other "
        f"appearances ({', '.join(config.conditions)}). Annotation and ETC items describe the new "
        "images. There are no actions, because none were recorded in these appearances."
    )
