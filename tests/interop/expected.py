"""Write what our reader reads from a dataset's training split, for `rlds_transformations.py`.

python -m tests.interop.expected DATASET FILE.npz
"""

import argparse

import numpy as np

from etcvla.data.norm_stats import compute_norm_stats
from etcvla.data.rlds import RLDSDataset

COLUMNS = ("action", "observation/state", "reward", "is_last", "is_terminal", "annotation/phase")


def main() -> None:
    """Read the dataset and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("file")
    arguments = parser.parse_args()
    dataset = RLDSDataset(arguments.dataset)
    expected = {name: dataset.column(name) for name in COLUMNS}
    for name, stats in compute_norm_stats(dataset).items():
        expected[f"mean {name}"] = stats.mean
        expected[f"std {name}"] = stats.std
    answers = []
    items = []
    for step_answers in dataset.column("etc/answer"):
        answers += list(step_answers)
        items.append(len(step_answers))
    brightness = []
    for frame in range(dataset.num_frames):
        image = dataset.frame(frame, ["observation/front"])["observation/front"]
        brightness.append(image.mean((0, 1)))
    episodes = range(dataset.num_episodes)
    expected |= {
        "lengths": dataset.lengths,
        "directory": str(dataset.directory),
        "items": items,
        "answers": answers,
        "brightness": brightness,
        "instructions": dataset.column("language_instruction"),
        "episode_ids": [dataset.metadata(episode)["episode_id"] for episode in episodes],
    }
    np.savez(arguments.file, **{name: np.asarray(value) for name, value in expected.items()})


if __name__ == "__main__":
    main()
