"""A real study in small: two cells and two seeds, trained, stopped, resumed, evaluated."""

import pathlib

import pytest

from configs import common
from etcvla.study import collect, execute, worker
from etcvla.study.config import parse
from etcvla.study.runs import make_graph
from etcvla.train.hosts import Preempted
from etcvla.train.loop import train
from tests.data.handmade_rlds import robot_episode, robot_steps, write_rlds
from tests.study.made_study import study_config
from tests.train.nano import nano_config

pytest.importorskip("mujoco")
SIZES = {"state": 4, "action": 4}  # of the tabletop


def load_stage(path, variant, changes):
    """Return a stage of two steps on the camera that the tabletop has."""
    fields = {"stage": pathlib.Path(path).stem, "model__action_dim": 4, "data__num_cameras": 1}
    c = nano_config("nowhere", "nowhere", steps=2, **fields)
    common.override(c, dict(changes))
    return c


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        episodes = [robot_episode(number, **SIZES) for number in numbers]
        write_rlds(folder / "robot", episodes, steps=robot_steps(**SIZES), split=split)
    config = study_config(folder / "work")
    config.datasets.robot = (common.dataset(str(folder / "robot"), ("front",)),)
    config.cells = config.cells[:2]
    config.eval.max_steps = 2
    return parse(config)


def train_one_step(config):
    """Train one step, then stop as a preempted run does."""
    train(config, until=1)
    raise Preempted


def test_a_study_is_trained_and_evaluated(study, capsys):
    graph = make_graph(study, load_stage)
    collect.save_graph(graph)
    with pytest.raises(Preempted):
        worker.work(graph, lambda made: execute.execute(made, study, train_one_step))
    states = worker.work(graph, lambda made: execute.execute(made, study, train))
    assert set(states.values()) == {"done"}
    assert "resumed at step 1 of 2" in capsys.readouterr().out

    results = list(collect.run_results(study.workdir))
    assert [(result["cell"], result["seed"], result["position"]) for result in results] == [
        ("plain", 0, -1),
        ("bridged", 0, 0),
        ("bridged", 0, -1),
        ("plain", 1, -1),
        ("bridged", 1, 0),
        ("bridged", 1, -1),
    ]
    plain, first, *_ = results
    assert plain["flops"] > 0 and plain["action_rows"] == 10 and plain["metrics"]["step"] == 2
    assert first["scores"]["success"] == {}
    assert plain["scores"]["success"]["right"]["A0"]["touch"] == [0, 5]

    rows = list(collect.episode_rows(study.workdir))
    assert len(rows) == 2 * 2 * 5
    named = {row["named"] for row in rows if row["cell"] == "plain" and row["seed"] == "0"}
    assert len(named) == 5 and {row["layout"] for row in rows[:5]} == {rows[0]["layout"]}
