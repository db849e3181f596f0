"""What a training run logs and shows: metrics, pictures, a profile and held-out evaluations."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import common
from etcvla.errors import UserError
from etcvla.etc import question_types
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
    """A dataset whose held-out split has other episodes."""
    folder = write_robot_set(tmp_path_factory.mktemp("robot"))
    episodes = [robot_episode(7), robot_episode(8)]
    write_rlds(folder, episodes, steps=robot_steps(), split="val")
    return folder


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """The config of a run that shows everything."""
    config = nano_config(
        dataset,
        tmp_path_factory.mktemp("run"),
        eval__at_progress=(0.34, 1.0),
        eval__batches=2,
        eval__questions=2,
    )
    options = MonitorOptions(
        profile="2:3", evaluation=HeldOutEvaluation, draw_first_batch=draw_batch
    )
    with pytest.MonkeyPatch.context() as patch:
        # The handmade items have this question type.
        patch.setitem(question_types.ANSWER_TYPES, "where", question_types.POINT)
        train(config, options=options)
    return config


def read_lines(config, name="metrics"):
    with open(f"{config.workdir}/{name}.jsonl") as file:
        return [json.loads(line) for line in file]


def test_every_line_has_metrics_by_group_dimension_and_time(run):
    lines = read_lines(run)
    names = set().union(*lines)
    assert {f"flow_error/time_{i}" for i in range(5)} <= names  # a batch may lack one of them
    for line in lines:
        assert {
            "flow_error/dim_0",
            "flow_error/dim_1",
            "grad_norm/expert",
            "grad_norm/language_model",
            "grad_norm/embeddings",
            "run/resident_gib",
        } <= line.keys()
        assert "flow_error/dim_2" not in line  # padding: the robot has two of three dimensions
        assert line["run/tokens_per_second"] > 0
        assert line["run/tflop_per_second"] > 0
        assert "run/mfu" not in line  # the peak of a CPU is unknown
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_gradient_norms_of_groups_add_up_to_the_whole(run):
    for line in read_lines(run):
        groups = [value for name, value in line.items() if name.startswith("grad_norm/")]
        np.testing.assert_allclose(np.sqrt(np.sum(np.square(groups))), line["grad_norm"], rtol=1e-5)


def test_held_out_results_are_logged_at_progress(run):
    lines = read_lines(run, "held_out")
    assert [line["step"] for line in lines] == [2, 6]
    for line in lines:
        assert {
            "loss/text",
            "loss/fast",
            "loss/flow",
            "action/loss",
            "etc/accuracy",
            "flow_error/dim_1",
        } <= line.keys()
        accuracies = [
            value
            for name, value in line.items()
            if name.startswith("etc/robot/") and name.endswith("accuracy")
        ]
        assert len(accuracies) == 3
        assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert lines[0]["loss/text"] > lines[1]["loss/text"]


def select_losses(lines):
    selected = []
    for line in lines:
        selected.append(
            {name: value for name, value in line.items() if name.startswith(("loss", "grad_norm"))}
        )
    return selected


def test_monitoring_changes_no_loss(run, dataset, tmp_path):
    plain = nano_config(dataset, tmp_path)
    train(plain)
    assert select_losses(read_lines(run)) == select_losses(read_lines(plain))


def test_workdir_has_the_first_batch_and_a_trace(run):
    with Image.open(f"{run.workdir}/first_batch.png") as picture:
        assert picture.width > 900 and picture.height > 1500
    assert list(pathlib.Path(run.workdir).glob("profile/plugins/profile/*/*.xplane.pb"))


def test_mixture_metrics_agree_with_the_plan(run):
    plan = make_plan(run)
    for line in read_lines(run):
        drawn = plan.counts[: line["step"]].sum(axis=0)
        planned = plan.batch_size * plan.row_shares[: line["step"]].sum(axis=0)
        for i, stream in enumerate(("action", "etc")):
            share = line[f"mixture/{stream}/row_share"]
            planned_share = line[f"mixture/{stream}/planned_row_share"]
            np.testing.assert_allclose(share, drawn[i] / drawn.sum())
            np.testing.assert_allclose(planned_share, planned[i] / drawn.sum())
        error = line["mixture/max_row_error"]
        np.testing.assert_allclose(error, np.abs(drawn - planned).max())
        assert error <= 1


def test_token_and_flop_rates_follow_the_step_rate(run):
    stage = Stage.open(run)
    batch = next(stage.batches(5))
    lines = read_lines(run)
    text_tokens = (batch["segment"] > 0).sum()
    image_tokens = batch["image_mask"].sum() * stage.model.config.siglip.tokens
    tokens_per_second = (text_tokens + image_tokens) * lines[5]["steps_per_second"]
    np.testing.assert_allclose(lines[5]["run/tokens_per_second"], tokens_per_second)
    flops = [line["run/tflop_per_second"] / line["steps_per_second"] for line in lines]
    np.testing.assert_allclose(flops, flops[0])


@pytest.mark.parametrize(
    ("at_progress", "message"),
    [
        ((0.0,), "eval.at_progress is"),
        ((0.5, 2), "eval.at_progress is"),
        (("half",), "eval.at_progress is"),
        ((0.5,), "there is no evaluation"),
    ],
)
def test_wrong_evaluation_settings_are_errors_before_training(
    dataset, tmp_path, at_progress, message
):
    with pytest.raises(UserError, match=message):
        train(nano_config(dataset, tmp_path, eval__at_progress=at_progress))
    assert not (tmp_path / "tensorboard").exists()


def test_a_missing_held_out_split_is_an_error_before_training(tmp_path):
    dataset = write_robot_set(tmp_path / "robot")
    config = nano_config(dataset, tmp_path / "run", eval__at_progress=(1.0,))
    message = "no dataset has a split 'val'.*robot; build.*eval.at_progress"
    with pytest.raises(ValueError, match=message):
        train(config, options=MonitorOptions(evaluation=HeldOutEvaluation))


def test_a_held_out_episode_that_is_also_trained_on_is_an_error(tmp_path):
    folder = write_robot_set(tmp_path / "robot")
    write_rlds(folder, [robot_episode(2)], steps=robot_steps(), split="val")
    config = nano_config(folder, tmp_path / "run", eval__at_progress=(1.0,))
    with pytest.raises(UserError, match="both in the training data"):
        train(config, options=MonitorOptions(evaluation=HeldOutEvaluation))


def test_streams_without_a_held_out_split_are_left_out(dataset, tmp_path):
    """The other streams keep their indices."""
    config = nano_config(dataset, tmp_path / "run", eval__batches=2)
    with config.unlocked():
        config.datasets.aside = common.dataset(str(write_robot_set(tmp_path / "aside")), ("front",))
        # By name, this stream comes between "action" and "etc".
        config.streams.before = common.stream("aside", "any", 1.0, extra_segments=0)
    held_out = HeldOutEvaluation(Stage.open(config), sharding.make_mesh(config.mesh))
    batches = list(held_out._stage.batches(0))
    assert len(batches) == 2
    streams = np.concatenate([batch["stream"][:, 0] for batch in batches])
    assert set(streams) == {0, 2}
    images = np.concatenate([batch["images"][:, 0] for batch in batches])
    assert set(images[:, 0, 0, 0].tolist()) <= {7, 8}  # the episode's number is a pixel value


def test_progress_is_converted_to_steps():
    assert evaluation_steps((), 10) == set()
    assert evaluation_steps((0.001, 0.5, 1), 10) == {1, 5, 10}


@pytest.mark.parametrize("text", ["5", "3:2", "0:4", "a:b", "1:2:3"])
def test_malformed_profile_windows_are_errors(text):
    with pytest.raises(UserError, match="expected START:STOP"):
        parse_window(text)


def test_profile_windows_are_parsed():
    assert parse_window("3:3") == (3, 3)
    assert parse_window("") is None


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 6, [1, 2, "start", 3, 4, 5, "stop", 6]),
        (3, 4, ["start", 4, "stop"]),  # resumed and stopped inside the window
        (5, 7, [6, 7]),
    ],
)
def test_the_profiler_traces_its_window_once(tmp_path, monkeypatch, start, end, expected):
    events = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: events.append("stop"))
    profiler = Profiler(str(tmp_path), (3, 5), start)
    for step in range(start + 1, end + 1):
        events.append(step)
        profiler.step(step, ())
    profiler.close()
    assert events == expected
