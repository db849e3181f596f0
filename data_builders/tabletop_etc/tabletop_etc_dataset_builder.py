"""TFDS builder of tabletop demonstrations: scripted expert, exact annotation, checked items."""

from __future__ import annotations

import dataclasses

import tensorflow_datasets as tfds

from data_builders.common.config import assign_split, changed_parts, check_minimum, count_held_out
from data_builders.common.rlds_schema import RobotSchema, robot_features
from data_builders.common.simulated_builder import SimulatedBuilder, SimulatedConfig
from data_builders.tabletop_etc.episodes import (
    HORIZON,
    ROLES,
    TabletopJob,
    absent_names,
    make_episode,
)
from etcvla.names import lookup
from etcvla.sims.tabletop import environment as tabletop
from etcvla.sims.tabletop.layouts import NUM_OBJECTS
from etcvla.sims.tabletop.tasks import TASKS

EPISODES = {"demos": 1200, "etc": 600, "ood": 400}  # training episodes per task of a role
RELABELED_TASKS = ("touch",)  # the expert's chunk for another object is known in these


@dataclasses.dataclass
class TabletopConfig(SimulatedConfig):
    """Role, rotation, tasks and episodes of a dataset.

    The name states what differs from the role's default. Raises UserError for unknown names and
    for numbers out of range.
    """

    role: str = "demos"  # "demos" (with actions), "etc" or "ood"; a key of `ROLES`
    rotation: int = 0  # of the words of the tiers
    tasks: tuple[str, ...] = ("touch",)
    noise: tuple[float, float] = (0.1, 0.4)

    def __post_init__(self):
        self.validate()
        lookup(ROLES, self.role, "role")
        check_minimum(self, {"rotation": 0})
        for task in self.tasks:
            lookup(TASKS, task, "task of the tabletop")
        self.episodes = self.episodes or EPISODES[self.role]
        parts = {"tasks": "+".join(self.tasks), **self.name_parts()}
        defaults = {"episodes": EPISODES[self.role]}
        parts = changed_parts(self, parts, defaults)
        self.name = "_".join([f"{self.role}_r{self.rotation}", *parts])

    @property
    def has_actions(self) -> bool:
        """Whether the dataset has actions."""
        return self.role == "demos"

    @property
    def has_relabels(self) -> bool:
        """Whether the dataset has actions for other instructions."""
        return self.has_actions and set(self.tasks) <= set(RELABELED_TASKS)

    def jobs(self) -> list[TabletopJob]:
        """Return the job of every episode, task by task. The tiers of the role alternate."""
        num_val = count_held_out(self.episodes, self.held_out)
        total = self.episodes + num_val
        absent = absent_names(self.role, self.rotation)
        tiers = ROLES[self.role]
        jobs = []
        for task in self.tasks:
            for index in range(total):
                job = TabletopJob(
                    task=task,
                    scene=f"{tiers[index % len(tiers)]}{self.rotation}",
                    split=assign_split(index, total, num_val),
                    index=index,
                    image_size=self.image_size,
                    noise=self.noise,
                    locations=self.locations,
                    role=self.role,
                    absent=absent,
                    has_relabels=self.has_relabels,
                )
                jobs.append(job)
        return jobs


class Builder(SimulatedBuilder):
    """Successful demonstrations of the tabletop's scripted expert, split by episode."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [TabletopConfig(role=role) for role in ROLES]
    make_episode = staticmethod(make_episode)
    num_objects = NUM_OBJECTS

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        schema = RobotSchema(
            cameras=tabletop.CAMERAS,
            image_size=config.image_size,
            num_objects=NUM_OBJECTS,
            state_size=tabletop.STATE_SIZE,
            state_doc=tabletop.STATE_DOC,
            action_size=tabletop.ACTION_SIZE if config.has_actions else 0,
            action_doc=tabletop.ACTION_DOC,
            num_relabels=NUM_OBJECTS - 1 if config.has_relabels else 0,
            horizon=HORIZON,
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=_description(config),
            license="Apache-2.0",
            metadata=self.provenance(
                ("mujoco", "numpy"),
                seeding="layouts: demo_seed(episode, attempt); items: crc32 of episode_id",
            ),
            features=robot_features(schema),
        )


def _description(config: TabletopConfig) -> str:
    tiers = " and ".join(ROLES[config.role])
    words = f"Words of the tiers {tiers}, with exact annotation, and ETC items checked against it."
    if config.has_actions:
        return f"{Builder.__doc__} {words}"
    return f"Scenes of the tabletop along demonstrations whose actions are left out. {words}"
