"""Held-out questions come from the split that was not trained on."""

import json

import pytest

from etcvla.errors import UserError
from etcvla.eval.evaluate import EvaluationSpec, evaluate, open_splits
from etcvla.eval.trials import EvalProtocol
from tests.data.handmade_rlds import robot_episode, robot_steps, write_rlds
from tests.interop.serving import write_checkpoint


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


def test_evaluation_writes_scores_and_is_not_repeated(tmp_path, capsys):
    stage = write_checkpoint(tmp_path)
    spec = EvaluationSpec(
        tasks=(),
        scenes=(),
        interventions=("right",),
        trials=1,
        intervention_trials=1,
        videos=0,
        questions=2,
        datasets={},
        protocol=EvalProtocol(),
        seed=0,
    )
    scores = evaluate(stage.config.workdir, spec)
    assert scores["step"] == 1
    assert scores["etc"] == {}
    folder = tmp_path / "run/evaluation"
    assert json.loads((folder / "scores.json").read_text()) == scores
    assert "is evaluated, nothing to do" not in capsys.readouterr().out
    assert evaluate(stage.config.workdir, spec) == scores
    assert "is evaluated, nothing to do" in capsys.readouterr().out
