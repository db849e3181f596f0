"""Damaged data raises an error with file, record and field, or is left out and counted."""

import logging
import re

import numpy as np
import pytest

from etcvla.data.norm_stats import compute_norm_stats
from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from tests.data.handmade_rlds import robot_episode, robot_steps, write_rlds
from tests.data.made_rows import make_builder, stream, where


def write(folder, change):
    """Four episodes of seven steps; `change` damages the third."""
    episodes = [robot_episode(number) for number in range(4)]
    change(episodes[2])
    return write_rlds(folder, episodes, steps=robot_steps())


def damage_image(episode):
    episode["observation/wrist"][3] = b"\x89PNG, but no image"


def damage_action(episode):
    episode["action"] = episode["action"].copy()
    episode["action"][5] = np.nan


def test_damaged_image_raises(tmp_path):
    path = write(tmp_path, damage_image)
    builder = make_builder(tmp_path, stream("action", "action"))
    with pytest.raises(
        ValueError, match=re.escape(f"{path}, record 2 ") + ".*observation/wrist, value 3"
    ):
        [builder(0, n) for n in range(28)]


def test_damaged_frames_are_skipped_counted_and_replaced(tmp_path, caplog):
    write(tmp_path, damage_image)
    with caplog.at_level(logging.WARNING):
        one = make_builder(tmp_path, stream("action", "action"), damaged="skip")
        two = make_builder(tmp_path, stream("action", "action"), damaged="skip")
        rows = [one(0, n) for n in range(28)]
    frames = [where(row) for row in rows]
    assert (2, 3) not in frames and len(set(frames)) == 27  # the frame after it is used twice
    assert one.datasets["robot"].dataset.skipped == {"frames that cannot be read": 1}
    assert "observation/wrist, value 3" in caplog.text
    for n, row in enumerate(rows):
        for name, value in two(0, n).items():
            np.testing.assert_array_equal(value, row[name])


def test_nonfinite_value_raises_or_drops_its_episode(tmp_path):
    path = write(tmp_path, damage_action)
    with pytest.raises(
        ValueError, match=rf"action\[1\] is nan at episode 2, step 2 of .*\({path.name}, record 2\)"
    ):
        StageDataset(RLDSDataset(tmp_path), ("front",)).candidates("action")
    dataset = RLDSDataset(tmp_path, damaged="skip")
    assert StageDataset(dataset, ("front",)).candidates("action").tolist() == [
        *range(14),
        *range(21, 28),
    ]
    stats = compute_norm_stats(dataset, ["action"])["action"]
    # The episode was met twice and counted once.
    assert dataset.skipped == {"episodes with values that are not finite": 1}
    assert stats.count == 21 and np.isfinite(stats.mean).all()
    # Its images and items can be used.
    assert len(StageDataset(dataset, ("front",)).candidates("any")) == 28


def test_action_stream_without_usable_frames_raises(tmp_path):
    episode = robot_episode(0)
    damage_action(episode)
    write_rlds(tmp_path, [episode], steps=robot_steps())
    with pytest.raises(ValueError, match="no frames from which an action stream may draw"):
        StageDataset(RLDSDataset(tmp_path, damaged="skip"), ("front",)).candidates("action")


def test_action_stream_of_dataset_without_actions_raises(tmp_path):
    steps = {name: feature for name, feature in robot_steps().items() if name != "action"}
    write_rlds(
        tmp_path,
        [{name: values for name, values in robot_episode(0).items() if name != "action"}],
        steps=steps,
    )
    with pytest.raises(
        ValueError, match=f"{tmp_path} has no actions, but an action stream draws from it"
    ):
        StageDataset(RLDSDataset(tmp_path), ("front",)).candidates("action")


def test_record_without_actions_raises(tmp_path):
    path = write(tmp_path, lambda episode: episode.pop("action"))
    with pytest.raises(
        ValueError, match=re.escape(f"{path}, record 2 ") + ".*steps/action is missing"
    ):
        StageDataset(RLDSDataset(tmp_path), ("front",)).candidates("action")
