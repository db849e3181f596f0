"""Where held-out questions come from, and what a blind guesser may have learnt."""

import pytest

from etcvla.eval.evaluate import open_splits
from tests.data.handmade_rlds import robot_episode, robot_steps, write_rlds


def _write(directory, split, numbers):
    write_rlds(
        directory, [robot_episode(number) for number in numbers], steps=robot_steps(), split=split
    )


def test_questions_are_of_the_split_that_was_not_learnt(tmp_path):
    _write(tmp_path, "train", (0, 1))
    _write(tmp_path, "val", (2,))
    held_out, training = open_splits(str(tmp_path), ("front",))
    assert (held_out.dataset.split, training.dataset.split) == ("val", "train")
    _write(tmp_path / "gradient_scale", "train", (0, 1))
    _write(tmp_path / "gradient_scale", "val", (1,))
    with pytest.raises(ValueError, match="1 episodes are both learnt from"):
        open_splits(str(tmp_path / "gradient_scale"), ("front",))


def test_a_set_of_held_out_looks_has_nothing_to_learn(tmp_path):
    _write(tmp_path, "val", (0, 1))
    held_out, training = open_splits(str(tmp_path), ("front",))
    assert training is held_out
    with pytest.raises(ValueError, match="no split 'val' .*it has train"):
        _write(tmp_path / "other", "train", (0,))
        open_splits(str(tmp_path / "other"), ("front",))
