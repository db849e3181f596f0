"""Check that training and evaluation data have no episodes in common."""

from __future__ import annotations

import hashlib

import numpy as np

from etcvla.data.episodes import Episodes
from etcvla.errors import UserError

_ID_NAMES = ("episode_id", "file_path")  # names in episode_metadata that identify an episode


def episode_keys(dataset: Episodes) -> list[str]:
    """Return a key per episode: its id, the path of its source file, or a digest of its vectors."""
    return [_episode_key(dataset, episode) for episode in range(dataset.num_episodes)]


def _episode_key(dataset: Episodes, episode: int) -> str:
    metadata = dataset.metadata(episode)
    for name in _ID_NAMES:
        if isinstance(metadata.get(name), str) and metadata[name]:
            return f"{name} {metadata[name]}"
    vectors = []
    for name, feature in sorted(dataset.features.items()):
        if feature.is_tensor and feature.dtype.kind == "f":
            vectors.append(name)
    values = dataset.steps(episode, 0, int(dataset.lengths[episode]), vectors)
    digest = hashlib.sha256()
    for value in values.values():
        digest.update(np.ascontiguousarray(value).tobytes())
    return f"content {digest.hexdigest()[:16]}"


def check_disjoint(training: Episodes, held_out: Episodes) -> None:
    """Raise UserError, naming both datasets and the first common episode, if there is one."""
    training_episodes = {key: episode for episode, key in enumerate(episode_keys(training))}
    shared = {}
    for episode, key in enumerate(episode_keys(held_out)):
        if key in training_episodes:
            shared.setdefault(key, episode)
    if not shared:
        return
    key, episode = next(iter(shared.items()))
    training_file, training_record, _ = training.where(training_episodes[key])
    held_out_file, held_out_record, _ = held_out.where(episode)
    raise UserError(
        f"{len(shared)} episodes are both in the training data ({training.directory}, split "
        f"{training.split}) and in the evaluation data ({held_out.directory}, split "
        f"{held_out.split}); the first: {key}, {training_file.name} record {training_record} and "
        f"{held_out_file.name} record {held_out_record}. Split by episode, and keep ETC items in "
        "the split of their episode"
    )
