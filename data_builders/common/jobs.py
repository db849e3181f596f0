"""An episode to be made, and one that was made: what builders and their workers exchange. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections import Counter

from etcvla.etc.items import Item
from etcvla.sims.rollout import Episode


@dataclasses.dataclass(frozen=True)
class EpisodeJob:
    """One demonstration to make; a builder's own adds what else it depends on, and `episode_id`."""

    task: str
    scene: str
    split: str
    index: int  # of the task's episodes; with the attempt it fixes the layout
    image_size: int
    noise: tuple[float, float]
    locations: str = "loc"  # how coordinates are written

    @property
    def look(self) -> str:
        """The named look of the scene."""
        return self.scene


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """What a worker sends back."""

    job: EpisodeJob
    episode: Episode | None  # None: the recorded demonstration does not end in success
    items: list[list[Item]]  # T lists
    dropped: Counter  # items left out, by reason
    attempts: int  # layouts tried until the expert succeeded
