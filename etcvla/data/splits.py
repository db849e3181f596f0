"""Episodes that two sets share: what is evaluated must not have been learnt."""

from __future__ import annotations

import hashlib

import numpy as np

from etcvla.data.episodes import Episodes

_IDS = ("episode_id", "file_path")  # what episode_metadata may call an episode


def episode_keys(dataset: Episodes) -> list[str]:
    """A key an episode: its id, else the path of the file that it came from, else a digest of its vectors."""
    return [_key(dataset, episode) for episode in range(dataset.num_episodes)]


def _key(dataset: Episodes, episode: int) -> str:
    metadata = dataset.metadata(episode)
    for name in _IDS:
        if isinstance(metadata.get(name), str) and metadata[name]:
            return f"{name} {metadata[name]}"
    vectors = [
        name
        for name, f in dataset.features.items()
        if f.kind == "tensor" and f.dtype.kind == "f" and not f.ragged
    ]
    values = dataset.steps(episode, 0, int(dataset.lengths[episode]), sorted(vectors))
    digest = hashlib.sha256(
        b"".join(np.ascontiguousarray(value).tobytes() for value in values.values())
    )
    return f"content {digest.hexdigest()[:16]}"


def check_disjoint(training: Episodes, held_out: Episodes) -> None:
    """Raises ValueError naming both datasets and the first episode that is in both."""
    learnt = {key: episode for episode, key in enumerate(episode_keys(training))}
    shared = [
        (learnt[key], episode, key)
        for episode, key in enumerate(episode_keys(held_out))
        if key in learnt
    ]
    if shared:
        first, second, key = shared[0]
        (file, record, _), (other, number, _) = training.where(first), held_out.where(second)
        raise ValueError(
            f"{len(shared)} episodes are both learnt from ({training.directory}, split {training.split}) "
            f"and evaluated on ({held_out.directory}, split {held_out.split}); the first: {key}, "
            f"{file.name} record {record} and {other.name} record {number}. Split by episode, and keep "
            "ETC items with the split of their episode"
        )
