"""Jobs and results that builders exchange with their worker processes. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections import Counter

from etcvla.etc.items import Item
from etcvla.sims.rollout import Episode


@dataclasses.dataclass(frozen=True)
class EpisodeJob:
    """One demonstration to make.

    A builder's subclass adds the property `episode_id` and the fields that its episodes depend on.
    """

    task: str
    scene: str
    split: str
    index: int  # of the episode within its task; the layout depends on it and on the attempt
    image_size: int  # pixels
    noise: tuple[float, float]  # range of the action noise's standard deviation
    locations: str = "loc"  # format of coordinates in questions and answers

    @property
    def appearance(self) -> str:
        """Name of the scene's appearance, stored as episode_metadata/scene."""
        return self.scene


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """The result of a job, as a worker process returns it."""

    job: EpisodeJob
    episode: Episode | None  # None: a recorded demonstration that does not end in success
    items: list[list[Item]]  # T lists
    dropped: Counter[str]  # reason -> number of dropped items
    attempts: int  # layouts tried until the expert succeeded
