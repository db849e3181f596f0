"""Apply the rlds library to a dataset that we built, and compare the results with our reader's.

This script does not import etcvla: its environment (requirements.txt) has TensorFlow 2.15, rlds
and dm-reverb.

python rlds_transformations.py FILE.npz, a file of `expected.py`. It exits with 1 if a check fails.
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
    """The dataset as TFDS reads it, and the columns that our reader read.

    Attributes:
      expected: content of the file.
      episodes: the dataset.
      vector_episodes: the dataset without items and images, because transformations that batch
        cannot handle ragged items.
    """

    def __init__(self, file: str):
        with np.load(file) as loaded:
            self.expected = dict(loaded)
        directory = str(self.expected["directory"])
        self.episodes = tfds.builder_from_directory(directory).as_dataset("train")
        self.vector_episodes = self.episodes.map(
            lambda episode: {**episode, "steps": episode["steps"].map(self._keep_vectors)}
        )

    @staticmethod
    def _keep_vectors(step):
        names = ("action", "reward", "is_first", "is_last", "is_terminal")
        vectors = {name: step[name] for name in names}
        return {"observation": {"state": step["observation"]["state"]}, **vectors}

    def columns(self, name):
        """Return our reader's values of a feature, one array per episode."""
        ends = np.cumsum(self.expected["lengths"])
        return np.split(self.expected[name], ends[:-1])

    def windows(self):
        """Return all windows of HORIZON actions within an episode."""
        windows = []
        for actions in self.columns("action"):
            for start in range(len(actions) - HORIZON + 1):
                windows.append(actions[start : start + HORIZON])
        return windows


def assert_same(values, expected, tolerance=0.0):
    """Raise AssertionError if the values differ by more than the tolerance."""
    values = np.asarray(values, np.float64)
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance)


def stack_actions(steps):
    """Return the actions of a dataset of steps as an array."""
    return np.stack([step["action"] for step in steps.as_numpy_iterator()])


def check_builder_from_directory(data):
    """Episodes, texts and items are equal; images differ by the rounding of two JPEG decoders."""
    values = {"episode_ids": [], "instructions": [], "answers": [], "items": []}
    brightness = []
    for episode in data.episodes:
        values["episode_ids"].append(episode["episode_metadata"]["episode_id"].numpy().decode())
        for step in episode["steps"].as_numpy_iterator():
            answers = [answer.decode() for answer in step["etc"]["answer"]]
            values["answers"] += answers
            values["items"].append(len(answers))
            values["instructions"].append(step["language_instruction"].decode())
            brightness.append(step["observation"]["front"].mean((0, 1)))
    for name, value in values.items():
        assert value == data.expected[name].tolist(), name
    # Of 255. TensorFlow decodes JPEG with its fast transform.
    assert_same(brightness, data.expected["brightness"], 2.0)


def check_episode_length(data):
    lengths = [rt.episode_length(episode["steps"]) for episode in data.episodes]
    assert_same(lengths, data.expected["lengths"])


def check_final_step(data):
    for episode, actions in zip(data.vector_episodes, data.columns("action"), strict=True):
        final = rt.final_step(episode[rlds.STEPS])
        assert bool(final[rlds.IS_LAST])
        assert_same(final[rlds.ACTION], actions[-1])


def check_batch(data):
    windows = []
    for episode in data.vector_episodes:
        batches = rt.batch(episode["steps"], size=HORIZON, shift=1, drop_remainder=True)
        windows += [batch["action"] for batch in batches.as_numpy_iterator()]
    assert_same(windows, data.windows())


def check_pattern_map(data):
    patterns = rt.pattern_map_from_transform(
        data.vector_episodes, lambda step: {"action": step[rlds.ACTION][-HORIZON:]}
    )
    windows = [pattern["action"] for pattern in patterns.as_numpy_iterator()]
    assert_same(windows, data.windows())


def check_map_nested_steps(data):
    mapped = rt.map_nested_steps(data.vector_episodes, lambda step: {"action": -step[rlds.ACTION]})
    for episode, actions in zip(mapped, data.columns("action"), strict=True):
        assert_same(stack_actions(episode["steps"]), -actions)


def check_truncate_after_condition(data):
    """The steps up to the first step of the second subtask, inclusive."""
    phases = data.columns("annotation/phase")
    actions = data.columns("action")
    for i, episode in enumerate(data.episodes):
        truncated = rt.truncate_after_condition(
            episode["steps"], lambda step: step["annotation"]["phase"] >= 1
        )
        in_second = phases[i] >= 1
        stop = int(np.argmax(in_second)) + 1 if in_second.any() else len(in_second)
        assert 1 < stop < len(in_second)
        assert_same(stack_actions(truncated), actions[i][:stop])


def check_concatenate(data):
    first, second = (episode["steps"] for episode in data.vector_episodes.take(2))
    expected = np.concatenate(data.columns("action")[:2])
    assert_same(stack_actions(rt.concatenate(first, second)), expected)


def check_concat_if_terminal(data):
    terminal = data.columns("is_terminal")
    actions = data.columns("action")
    for i, episode in enumerate(data.vector_episodes):
        extended = rt.concat_if_terminal(episode["steps"], make_absorbing_step)
        assert terminal[i][-1]
        expected = np.concatenate([actions[i], np.zeros_like(actions[i][:1])])
        assert_same(stack_actions(extended), expected)


def make_absorbing_step(step):
    """Return a dataset with a step of zeros."""
    return rt.zero_dataset_like(tf.data.Dataset.from_tensors(step))


def check_shift_keys(data):
    for episode, actions in zip(data.vector_episodes, data.columns("action"), strict=True):
        shifted = rt.shift_keys(episode["steps"], [rlds.ACTION], 1)
        assert_same(stack_actions(shifted), actions[1:])


def check_sum_nested_steps(data):
    total = rt.sum_nested_steps(data.vector_episodes, lambda step: step[rlds.REWARD])
    assert_same(total, data.expected["reward"].sum())


def check_mean_and_std(data):
    def _select_fields(step):
        fields = {"action": step[rlds.ACTION], "state": step[rlds.OBSERVATION]["state"]}
        return fields, {"action": True, "state": True}

    mean, std = rt.mean_and_std(data.vector_episodes, _select_fields)
    count = data.expected["lengths"].sum()
    # rlds divides by count - 1, our statistics by count.
    correction = np.sqrt(count / (count - 1))
    for ours, theirs in {"action": "action", "observation/state": "state"}.items():
        assert_same(mean[theirs], data.expected[f"mean {ours}"], 1e-5)
        assert_same(std[theirs], data.expected[f"std {ours}"] * correction, 1e-5)


def main() -> int:
    """Run all checks and return the exit code."""
    data = Comparison(sys.argv[1])
    lengths = data.expected["lengths"]
    print(f"{data.expected['directory']}: {len(lengths)} episodes, {lengths.sum()} steps")
    failed = 0
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    for check in checks:
        name = check.__name__.removeprefix("check_")
        try:
            check(data)
            print(f"  same  {name}")
        except Exception as error:  # the other checks must run too
            failed += 1
            print(f"  DIFFERS  {name}: {type(error).__name__}: {error}")
    print(f"interop: {len(checks) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
