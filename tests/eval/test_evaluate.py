"""Held-out questions come from the split that was not trained on."""

import pytest

from etcvla.errors import UserError
from etcvla.eval.evaluate import open_splits
from tests.data.handmade_rlds import robot_episode, robot_steps, write_rlds


def write_split(directory, split, numbers):
    episodes = [robot_episode(number) for number in numbers]
    write_rlds(directory, episodes, steps=robot_steps(), split=split)


def test_questions_are_of_the_validation_split(tmp_path):
    write_split(tmp_path, "train", (0, 1))
    write_split(tmp_path, "val", (2,))
    held_out, training = open_splits(str(tmp_path), ("front",))
    assert held_out.dataset.split == "val"
    assert training.dataset.split == "train"


def test_splits_that_share_an_episode_are_refused(tmp_path):
    write_split(tmp_path, "train", (0, 1))
    write_split(tmp_path, "val", (1,))
    with pytest.raises(UserError, match="1 episodes are both"):
        open_splits(str(tmp_path), ("front",))


def test_dataset_without_training_split_is_its_own_training_split(tmp_path):
    write_split(tmp_path, "val", (0, 1))
    held_out, training = open_splits(str(tmp_path), ("front",))
    assert training is held_out


def test_dataset_without_validation_split_is_refused(tmp_path):
    write_split(tmp_path, "train", (0,))
    with pytest.raises(UserError, match="no split 'val' .*it has train"):
        open_splits(str(tmp_path), ("front",))
