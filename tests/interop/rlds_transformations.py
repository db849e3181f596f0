"""Runs the rlds library over a dataset that we built, and holds every result against what our reader found.

Stands alone: its environment (requirements.txt) has TensorFlow 2.15, rlds and dm-reverb, and none of our code.
python rlds_transformations.py FILE.npz, as `expected.py` wrote it. Exits with 1 if a check failed.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import rlds  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from rlds import transformations as rt  # noqa: E402

HORIZON = 3


class Comparison:
    """The dataset as TFDS reads it, beside the columns of our reader."""

    def __init__(self, file: str):
        with np.load(file) as loaded:
            self.want = dict(loaded)
        self.episodes = tfds.builder_from_directory(str(self.want["directory"])).as_dataset("train")
        ends = np.cumsum(self.want["lengths"])
        self.spans = list(zip(ends - self.want["lengths"], ends, strict=True))
        # Batches cannot hold the ragged items, so transformations that batch are given the vectors.
        self.vectors = self.episodes.map(
            lambda episode: {**episode, "steps": episode["steps"].map(self.pick)}
        )

    @staticmethod
    def pick(step):
        return {
            "observation": {"state": step["observation"]["state"]},
            **{
                key: step[key] for key in ("action", "reward", "is_first", "is_last", "is_terminal")
            },
        }

    def columns(self, name):
        return [self.want[name][start:stop] for start, stop in self.spans]

    def windows(self):
        return [
            column[i : i + HORIZON]
            for column in self.columns("action")
            for i in range(len(column) - HORIZON + 1)
        ]


def same(found, want, tolerance=0.0):
    np.testing.assert_allclose(
        np.asarray(found, np.float64), np.asarray(want, np.float64), rtol=0, atol=tolerance
    )


def actions(steps):
    return np.stack([step["action"] for step in steps.as_numpy_iterator()])


def check_builder_from_directory(data):
    """Episodes, texts and items are what our reader reads; images to the rounding of two JPEG decoders."""
    ids, instructions, answers, items, brightness = [], [], [], [], []
    for episode in data.episodes:
        ids.append(episode["episode_metadata"]["episode_id"].numpy().decode())
        for step in episode["steps"].as_numpy_iterator():
            instructions.append(step["language_instruction"].decode())
            items.append(len(step["etc"]["answer"]))
            answers += [answer.decode() for answer in step["etc"]["answer"]]
            brightness.append(step["observation"]["front"].mean((0, 1)))
    for name, found in {
        "episode_ids": ids,
        "instructions": instructions,
        "answers": answers,
        "items": items,
    }.items():
        assert found == data.want[name].tolist(), name
    same(
        brightness, data.want["brightness"], 2.0
    )  # of 255: TensorFlow decodes JPEG by its fast transform


def check_episode_length(data):
    same([rt.episode_length(episode["steps"]) for episode in data.episodes], data.want["lengths"])


def check_final_step(data):
    for episode, column in zip(data.vectors, data.columns("action"), strict=True):
        final = rt.final_step(episode[rlds.STEPS])
        assert bool(final[rlds.IS_LAST])
        same(final[rlds.ACTION], column[-1])


def check_batch(data):
    found = [
        batch["action"]
        for episode in data.vectors
        for batch in rt.batch(
            episode["steps"], size=HORIZON, shift=1, drop_remainder=True
        ).as_numpy_iterator()
    ]
    same(found, data.windows())


def check_pattern_map(data):
    patterns = rt.pattern_map_from_transform(
        data.vectors, lambda step: {"action": step[rlds.ACTION][-HORIZON:]}
    )
    same([pattern["action"] for pattern in patterns.as_numpy_iterator()], data.windows())


def check_map_nested_steps(data):
    mapped = rt.map_nested_steps(data.vectors, lambda step: {"action": -step[rlds.ACTION]})
    for episode, column in zip(mapped, data.columns("action"), strict=True):
        same(actions(episode["steps"]), -column)


def check_truncate_after_condition(data):
    """Up to and with the first step of the second subtask."""
    for episode, phase, column in zip(
        data.episodes, data.columns("annotation/phase"), data.columns("action"), strict=True
    ):
        cut = rt.truncate_after_condition(
            episode["steps"], lambda step: step["annotation"]["phase"] >= 1
        )
        kept = actions(cut)
        stop = int(np.argmax(phase >= 1)) + 1 if (phase >= 1).any() else len(phase)
        assert 1 < stop < len(phase)
        same(kept, column[:stop])


def check_concatenate(data):
    first, second = (episode["steps"] for episode in data.vectors.take(2))
    same(actions(rt.concatenate(first, second)), np.concatenate(data.columns("action")[:2]))


def check_concat_if_terminal(data):
    for episode, terminal, column in zip(
        data.vectors, data.columns("is_terminal"), data.columns("action"), strict=True
    ):
        longer = rt.concat_if_terminal(episode["steps"], rt_absorbing)
        assert terminal[-1]
        same(actions(longer), np.concatenate([column, np.zeros_like(column[:1])]))


def rt_absorbing(step):
    return rt.zero_dataset_like(tf.data.Dataset.from_tensors(step))


def check_shift_keys(data):
    for episode, column in zip(data.vectors, data.columns("action"), strict=True):
        same(actions(rt.shift_keys(episode["steps"], [rlds.ACTION], 1)), column[1:])


def check_sum_nested_steps(data):
    same(
        rt.sum_nested_steps(data.vectors, lambda step: step[rlds.REWARD]), data.want["reward"].sum()
    )


def check_mean_and_std(data):
    def fields(step):
        return (
            {"action": step[rlds.ACTION], "state": step[rlds.OBSERVATION]["state"]},
            {"action": True, "state": True},
        )

    mean, std = rt.mean_and_std(data.vectors, fields)
    count = data.want["lengths"].sum()
    sample = np.sqrt(
        count / (count - 1)
    )  # theirs is a sample's standard deviation, ours that of all frames
    for ours, theirs in {"action": "action", "observation/state": "state"}.items():
        same(mean[theirs], data.want[f"mean {ours}"], 1e-5)
        same(std[theirs], data.want[f"std {ours}"] * sample, 1e-5)


def main() -> int:
    data, failed = Comparison(sys.argv[1]), 0
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    print(
        f"{data.want['directory']}: {len(data.spans)} episodes, {data.want['lengths'].sum()} steps"
    )
    for check in checks:
        try:
            check(data)
            print(f"  same  {check.__name__.removeprefix('check_')}")
        except Exception as error:  # a check that breaks off must not hide the others
            failed += 1
            print(
                f"  DIFFERS  {check.__name__.removeprefix('check_')}: {type(error).__name__}: {error}"
            )
    print(f"interop: {len(checks) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
