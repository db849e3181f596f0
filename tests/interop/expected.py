"""Writes what our own reader finds in a dataset's training split, for `rlds_transformations.py` to compare with.

python -m tests.interop.expected DATASET FILE.npz
"""

import argparse

import numpy as np

from etcvla.data.norm_stats import compute_norm_stats
from etcvla.data.rlds import RLDSDataset

NUMBERS = ("action", "observation/state", "reward", "is_last", "is_terminal", "annotation/phase")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("file")
    arguments = parser.parse_args()
    dataset = RLDSDataset(arguments.dataset)
    found = {name: dataset.column(name) for name in NUMBERS}
    for name, stats in compute_norm_stats(dataset).items():
        found |= {f"mean {name}": stats.mean, f"std {name}": stats.std}
    answers = dataset.column("etc/answer")
    found |= {
        "lengths": dataset.lengths,
        "directory": str(dataset.directory),
        "items": [len(step) for step in answers],
        "answers": [answer for step in answers for answer in step],
        "brightness": [
            dataset.frame(frame, ["observation/front"])["observation/front"].mean((0, 1))
            for frame in range(dataset.num_frames)
        ],
        "instructions": dataset.column("language_instruction"),
        "episode_ids": [
            dataset.metadata(episode)["episode_id"] for episode in range(dataset.num_episodes)
        ],
    }
    np.savez(arguments.file, **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
    main()
