"""Jobs and results that builders exchange with their worker processes. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

from etcvla.errors import UserError
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


def first_success(
    job: EpisodeJob,
    record: Callable[[int], Episode | None],
    max_attempts: int,
    reason: str = "the expert fails",
) -> tuple[Episode, int]:
    """Return the episode of the first layout in which the expert succeeds, and its attempt from 1.

    Args:
      record: returns the episode of an attempt 0, 1, ..., or None if the expert fails.
      reason: why `record` returns None, for the error.

    Raises UserError if no attempt succeeds.
    """
    for attempt in range(max_attempts):
        episode = record(attempt)
        if episode is not None:
            return episode, attempt + 1
    raise UserError(
        f"{job.episode_id}: {reason} in {max_attempts} layouts with noise {job.noise}; "
        "lower --noise"
    )
