"""What a training run shows: its numbers against the plan and the batches, its pictures, profile and evaluations."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import common
from etcvla.etc import question_types as question_types
from etcvla.eval.held_out import HeldOutEvaluation
from etcvla.pages.first_batch import draw_batch
from etcvla.train import sharding
from etcvla.train.loop import train
from etcvla.train.monitor import MonitorOptions, evaluation_steps
from etcvla.train.profiler import Profiler, parse_window
from etcvla.train.stage import Stage, make_plan
from tests.data.handmade_rlds import robot_episode, robot_steps, write_rlds, write_robot_set
from tests.train.nano import nano_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """With a held-out split of other episodes."""
    folder = write_robot_set(tmp_path_factory.mktemp("robot"))
    write_rlds(
        folder, [robot_episode(number) for number in (7, 8)], steps=robot_steps(), split="val"
    )
    return folder


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A run with everything on."""
    config = nano_config(
        dataset,
        tmp_path_factory.mktemp("run"),
        eval__at_progress=(0.34, 1.0),
        eval__batches=2,
        eval__questions=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            question_types.GENERAL_QUESTION_TYPES, "where", question_types.POINT
        )  # of the handmade items
        train(
            config,
            options=MonitorOptions(profile="2:3", evaluation=HeldOutEvaluation, draw_first_batch=draw_batch),
        )
    return config


def lines(config, name="metrics"):
    with open(f"{config.workdir}/{name}.jsonl") as file:
        return [json.loads(line) for line in file]


def test_every_line_has_the_new_numbers(run):
    assert {f"flow_error/time_{i}" for i in range(5)} <= set().union(
        *lines(run)
    )  # a batch may have none of a time
    for line in lines(run):
        assert {
            "flow_error/dim_0",
            "flow_error/dim_1",
            "grad_norm/expert",
            "grad_norm/language_model",
            "grad_norm/embeddings",
            "run/resident_gib",
        } <= line.keys()
        assert "flow_error/dim_2" not in line  # the robot has two widths of three
        assert (
            line["run/tokens_per_second"] > 0
            and line["run/tflop_per_second"] > 0
            and "run/mfu" not in line
        )
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]


def test_groups_norms_make_up_the_whole(run):
    for line in lines(run):
        groups = [value for name, value in line.items() if name.startswith("grad_norm/")]
        np.testing.assert_allclose(np.sqrt(np.sum(np.square(groups))), line["grad_norm"], rtol=1e-5)


def test_held_out_numbers_at_their_knots(run):
    found = lines(run, "held_out")
    assert [line["step"] for line in found] == [2, 6]
    for line in found:
        assert {
            "loss/text",
            "loss/fast",
            "loss/flow",
            "action/loss",
            "etc/accuracy",
            "flow_error/dim_1",
        } <= line.keys()
        kinds = [
            name for name in line if name.startswith("etc/robot/") and name.endswith("accuracy")
        ]
        assert len(kinds) == 3 and all(0 <= line[name] <= 1 for name in kinds)
    assert found[0]["loss/text"] > found[1]["loss/text"]


def test_watching_changes_no_bit(run, dataset, tmp_path):
    plain = nano_config(dataset, tmp_path)
    train(plain)
    shown = [
        {name: value for name, value in line.items() if name.startswith(("loss", "grad_norm"))}
        for line in lines(run)
    ]
    assert shown == [
        {name: value for name, value in line.items() if name.startswith(("loss", "grad_norm"))}
        for line in lines(plain)
    ]


def test_pictures_and_a_trace_lie_in_the_workdir(run):
    with Image.open(f"{run.workdir}/first_batch.png") as picture:
        assert picture.width > 900 and picture.height > 1500
    assert list(pathlib.Path(run.workdir).glob("profile/plugins/profile/*/*.xplane.pb"))


def test_the_mixture_is_the_plans(run):
    plan = make_plan(run)
    for line in lines(run):
        drawn = plan.counts[: line["step"]].sum(axis=0)
        planned = plan.batch_size * plan.weights[: line["step"]].sum(axis=0)
        for stream, real, ideal in zip(("action", "etc"), drawn, planned, strict=True):
            np.testing.assert_allclose(line[f"mixture/{stream}/row_share"], real / drawn.sum())
            np.testing.assert_allclose(
                line[f"mixture/{stream}/planned_row_share"], ideal / drawn.sum()
            )
        np.testing.assert_allclose(line["mixture/max_row_error"], np.abs(drawn - planned).max())
        assert line["mixture/max_row_error"] <= 1


def test_tokens_and_flops_go_with_the_rate(run):
    stage = Stage.open(run)
    batch = next(stage.batches(5))
    line = lines(run)[5]
    tokens = (batch["segment"] > 0).sum() + batch[
        "image_mask"
    ].sum() * stage.model.config.siglip.tokens
    np.testing.assert_allclose(line["run/tokens_per_second"], tokens * line["steps_per_second"])
    flops = [row["run/tflop_per_second"] / row["steps_per_second"] for row in lines(run)]
    np.testing.assert_allclose(flops, flops[0])


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ((0.0,), "eval.at_progress is"),
        ((0.5, 2), "eval.at_progress is"),
        (("half",), "eval.at_progress is"),
        ((0.5,), "there is no evaluation"),
    ],
)
def test_knots_that_cannot_be(dataset, tmp_path, points, problem):
    with pytest.raises(ValueError, match=problem):
        train(nano_config(dataset, tmp_path, eval__at_progress=points))
    assert not (tmp_path / "tensorboard").exists()


def test_data_without_a_held_out_split_is_an_error_before_training(tmp_path):
    config = nano_config(
        write_robot_set(tmp_path / "robot"), tmp_path / "run", eval__at_progress=(1.0,)
    )
    with pytest.raises(
        ValueError, match="no dataset has a split 'val'.*robot; build.*eval.at_progress"
    ):
        train(config, options=MonitorOptions(evaluation=HeldOutEvaluation))


def test_what_was_learnt_is_not_held_out(tmp_path):
    folder = write_robot_set(tmp_path / "robot")
    write_rlds(folder, [robot_episode(2)], steps=robot_steps(), split="val")
    config = nano_config(folder, tmp_path / "run", eval__at_progress=(1.0,))
    with pytest.raises(ValueError, match="both in the training data"):
        train(config, options=MonitorOptions(evaluation=HeldOutEvaluation))


def test_a_dataset_without_a_held_out_split_is_left_out(dataset, tmp_path):
    """And the other streams keep their names."""
    config = nano_config(dataset, tmp_path / "run", eval__batches=2)
    with config.unlocked():
        config.datasets.aside = common.dataset(str(write_robot_set(tmp_path / "aside")), ("front",))
        config.streams.before = common.stream(
            "aside", "any", 1.0, extra_segments=0
        )  # between "action" and "etc"
    held_out = HeldOutEvaluation(Stage.open(config), sharding.make_mesh(config.mesh))
    batches = list(held_out._stage.batches(0))
    assert len(batches) == 2 and set(
        np.concatenate([batch["stream"][:, 0] for batch in batches])
    ) == {0, 2}
    episodes = {int(image[0, 0, 0]) for batch in batches for image in batch["images"][:, 0]}
    assert episodes <= {7, 8}


def test_knots_are_steps():
    assert evaluation_steps((), 10) == set()
    assert evaluation_steps((0.001, 0.5, 1), 10) == {1, 5, 10}


@pytest.mark.parametrize("text", ["5", "3:2", "0:4", "a:b", "1:2:3"])
def test_a_window_that_cannot_be(text):
    with pytest.raises(ValueError, match="expected START:STOP"):
        parse_window(text)
    assert parse_window("3:3") == (3, 3) and parse_window("") is None


def test_a_window_is_traced_once_and_closed(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: done.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: done.append("stop"))

    def run(start, end):
        done.clear()
        profiler = Profiler(str(tmp_path), (3, 5), start)
        for step in range(start + 1, end + 1):
            done.append(step)
            profiler.step(step, ())
        profiler.close()
        return done

    assert run(0, 6) == [1, 2, "start", 3, 4, 5, "stop", 6]
    assert run(3, 4) == ["start", 4, "stop"]  # resumed inside, stopped inside
    assert run(5, 7) == [6, 7]
