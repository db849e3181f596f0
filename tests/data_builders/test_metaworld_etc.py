"""The Meta-World builder: a small dataset is built once by the command, and read back."""

import errno
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_builders.common import worker_pool
from data_builders.common.build import prepare
from data_builders.common.jobs import EpisodeResult
from data_builders.common.read_dataset import read_annotation, read_items
from data_builders.metaworld_etc import episodes
from data_builders.metaworld_etc.episodes import MetaWorldJob, make_episode
from data_builders.metaworld_etc.metaworld_etc_dataset_builder import Builder, MetaWorldConfig
from data_builders.tools.report import dataset_report, format_report
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from etcvla.etc import make_items
from etcvla.etc.items import ETC_KINDS, Item
from etcvla.etc.verify import check
from etcvla.sims.metaworld.tasks import NUM_OBJECTS, TASKS
from etcvla.sims.seeds import demo_seed
from etcvla.train.stage import Stage
from tests.train.nano import nano_config

FLAGS = (
    "--tasks=drawer-open,drawer-close",
    "--episodes=2",
    "--held_out=0.5",
    "--image_size=48",
    "--workers=1",
)
ONE_EPISODE = ("--tasks=reach", "--episodes=1", "--image_size=32", "--workers=1")
FEATURES = (
    "observation/front",
    "observation/wrist",
    "observation/state",
    "action",
    "reward",
    "is_first",
    "is_last",
    "is_terminal",
    "language_instruction",
    "annotation/box",
)


def run(*arguments):
    command = [sys.executable, "-m", "data_builders.metaworld_etc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(version folder, log)."""
    out = tmp_path_factory.mktemp("datasets")
    done = run(f"--out={out}", *FLAGS, f"--gallery={out}/gallery.html")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()), done.stderr


@pytest.fixture(scope="module")
def splits(built):
    return {split: RLDSDataset(built[0], split) for split in ("train", "val")}


def all_metadata(dataset):
    return [dataset.metadata(episode) for episode in range(dataset.num_episodes)]


def test_command_shows_progress_and_writes_the_gallery(built):
    path, log = built
    name = "source_drawer-open+drawer-close_2ep_1val_48px"
    assert path.parts[-3:] == ("metaworld_etc", name, "1.0.0")
    assert "6/6" in log
    assert " s left" in log
    assert "drawer-open: 3 episodes from 3 attempts" in log
    page = (path.parents[2] / "gallery.html").read_text()
    assert page.count("data:image/") >= 20
    assert "metaworld/source/drawer-close/" in page


def test_splits_have_exact_sizes_and_share_no_episode(splits):
    names = {}
    for split, count in {"train": 2, "val": 1}.items():
        metadata = all_metadata(splits[split])
        tasks = Counter(row["task"] for row in metadata)
        assert tasks == {"drawer-open": count, "drawer-close": count}
        assert {row["scene"] for row in metadata} == {"source"}
        assert all(row["success"] for row in metadata)
        names[split] = {row["episode_id"] for row in metadata}
    assert not names["train"] & names["val"]


@pytest.mark.parametrize("episode", range(4))
def test_episode_is_well_formed(splits, episode):
    dataset = splits["train"]
    start = int(dataset.starts[episode])
    length = int(dataset.lengths[episode])
    frames = [dataset.frame(start + step, FEATURES) for step in range(length)]
    assert 15 < length <= 200
    first = frames[0]
    assert first["observation/front"].shape == (48, 48, 3)
    assert first["observation/wrist"].shape == (48, 48, 3)
    assert first["observation/front"].std() > 20
    assert first["observation/state"].shape == (4,)
    assert first["action"].shape == (4,)
    assert first["annotation/box"].shape == (2, NUM_OBJECTS, 4)
    assert np.abs([frame["action"] for frame in frames]).max() <= 1

    def _steps_with(field):
        return np.flatnonzero([frame[field] for frame in frames]).tolist()

    assert _steps_with("is_first") == [0]
    for field in ("is_last", "is_terminal", "reward"):
        assert _steps_with(field) == [length - 1]
    instructions = {frame["language_instruction"] for frame in frames}
    assert instructions <= set(TASKS[dataset.metadata(episode)["task"]].instructions)


def test_items_of_every_kind_follow_from_the_annotation_on_disk(splits):
    kinds = set()
    object_names = tuple(spec.name for spec in TASKS["drawer-open"].objects)
    for dataset in splits.values():
        for episode, metadata in enumerate(all_metadata(dataset)):
            annotation = read_annotation(dataset, episode)
            assert len(annotation) == dataset.lengths[episode]
            assert annotation.objects == object_names
            assert metadata["episode_id"].startswith(f"metaworld/source/{metadata['task']}/000")
            items, _ = make_items(annotation, 0)
            for step in range(len(annotation)):
                assert not any(check(item, annotation, step) for item in items[step])
                stored = read_items(dataset, int(dataset.starts[episode]) + step)
                kinds.update(item.kind for item in stored)
    assert kinds == set(ETC_KINDS)


def test_report_describes_the_dataset(built):
    path, _ = built
    report = dataset_report(path)
    assert report["unbalanced"] == []
    assert set(report["by_split"]) == {"train", "val"}
    assert set(report["by_task"]) == {"drawer-open", "drawer-close"}
    assert sum(report["by_kind"].values()) == sum(report["by_question_type"].values())
    expert = report["build"]["tasks"]["drawer-open"]
    assert expert == {"episodes": 3, "attempts": 3, "success_rate": 1.0}
    assert report["build"]["dropped_items"]["gripper_side: ambiguous"] > 0
    assert all(share > 0.6 for share in report["contact_agreement"]["plan"].values())
    text = format_report(report)
    assert "scene_grounding" in text
    assert "drawer-close" in text
    assert "UNBALANCED" not in text


def test_report_needs_a_version_folder(built):
    with pytest.raises(UserError, match="dataset_info.json is missing"):
        dataset_report(built[0].parent)


def test_build_warns_about_answers_that_can_be_guessed(tmp_path, monkeypatch, capsys):
    question = "is the gripper above or below the mug?"
    item = Item("spatial_understanding", "gripper_height", question, "above")

    def _run_jobs(function, jobs, workers):
        yield EpisodeResult(jobs[0], None, [[item]] * 200, Counter(), 1)

    monkeypatch.setattr(worker_pool, "run_jobs", _run_jobs)
    config = MetaWorldConfig(tasks=("reach",))
    builder = Builder(config=config, data_dir=tmp_path)
    assert len(list(builder._run(config.jobs()))) == 1
    log = capsys.readouterr().err
    assert "warning: answers can be guessed: gripper_height: 100% of 200" in log


def test_dataset_of_conditions_has_no_actions(tmp_path):
    done = run(
        f"--out={tmp_path}", *ONE_EPISODE, "--held_out=0", "--conditions=clutter,cube_for_it"
    )
    assert done.returncode == 0, done.stderr
    assert "source_reach_1ep_0val_32px_ood_clutter+cube_for_it" in done.stdout
    dataset = RLDSDataset(done.stdout.strip(), "train")
    assert "action" not in dataset.features
    scenes = {row["scene"] for row in all_metadata(dataset)}
    assert scenes == {"source+clutter", "source+cube_for_it"}


def test_held_out_conditions_are_rendered_for_validation_episodes_only():
    fields = {"tasks": ("reach",), "episodes": 4, "held_out": 0.5}
    held_out = MetaWorldConfig(**fields, conditions=("night", "high_camera")).jobs()
    assert [(job.condition, job.split) for job in held_out] == [
        ("night", "val"),
        ("night", "val"),
        ("high_camera", "val"),
        ("high_camera", "val"),
    ]
    train = {job.index for job in MetaWorldConfig(**fields).jobs() if job.split == "train"}
    assert not train & {job.index for job in held_out}


def test_no_stage_trains_on_held_out_conditions(tmp_path):
    done = run(f"--out={tmp_path}", *ONE_EPISODE, "--held_out=1", "--conditions=night")
    assert done.returncode == 0, done.stderr
    config = nano_config(done.stdout.strip(), tmp_path / "run")
    message = "source_reach_1ep_1val_32px_ood_night.* no split 'train' .*it has val"
    with pytest.raises(UserError, match=message):
        Stage.open(config)


def modification_times(path):
    return {file: file.stat().st_mtime_ns for file in path.glob("*") if file.is_file()}


def test_second_build_keeps_the_dataset(built):
    before = modification_times(built[0])
    done = run(f"--out={built[0].parents[2]}", *FLAGS)
    assert done.returncode == 0
    assert "already built" in done.stderr
    assert modification_times(built[0]) == before


def test_wrong_flag_is_reported_in_one_line(tmp_path):
    done = run(f"--out={tmp_path}", "--tasks=drawer-opne")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "error: unknown task 'drawer-opne', did you mean 'drawer-open'?"
    assert "Traceback" not in done.stderr


def test_wrong_noise_is_reported_in_one_line(tmp_path):
    done = run(f"--out={tmp_path}", "--noise=0.1")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("error: --noise=0.1: expected two numbers LOW,HIGH")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scene": "taget"}, "unknown scene 'taget', did you mean 'target'"),
        ({"episodes": -1}, "episodes must be at least 0, got -1"),
        ({"image_size": 8}, "image_size must be at least 16, got 8"),
        ({"noise": (0.3, 0.1)}, "noise .* ascending range"),
        ({"locations": "pixels"}, "unknown locations 'pixels'"),
        ({"conditions": ("evening", "night")}, "condition"),
        ({"conditions": ("night",), "held_out": 0.0}, "held-out conditions night are rendered"),
    ],
)
def test_wrong_config_fields_are_errors(fields, message):
    with pytest.raises(UserError, match=message):
        MetaWorldConfig(**fields)


def test_full_disk_leaves_no_dataset(tmp_path, monkeypatch):
    def _fail(function, jobs, workers):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(worker_pool, "run_jobs", _fail)
    with pytest.raises(UserError, match="No space left on device") as raised:
        prepare(Builder, MetaWorldConfig(tasks=("reach",)), str(tmp_path))
    assert str(tmp_path) in str(raised.value)
    assert not list(tmp_path.rglob("*.tfrecord*"))
    assert not list(tmp_path.rglob("dataset_info.json"))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "source"),
        ({"scene": "target"}, "target"),
        ({"scene": "target", "episodes": 10}, "target"),
        ({"tasks": tuple(TASKS), "noise": (0.0, 0.1)}, "source_mt50_noise0.0to0.1"),
        ({"image_size": 64}, "source_64px"),
        ({"image_size": 64, "episodes": 50}, "source_50ep_64px"),
    ],
)
def test_name_states_what_differs_from_the_default(fields, name):
    assert MetaWorldConfig(**fields).name == name


@pytest.mark.parametrize(
    ("episodes", "held_out", "num_val"), [(30, 0.12, 4), (10, 0.12, 2), (5, 0, 0), (1, 1, 1)]
)
def test_validation_episodes_are_exact_and_evenly_spread(episodes, held_out, num_val):
    config = MetaWorldConfig(episodes=episodes, held_out=held_out)
    splits = [job.split for job in config.jobs() if job.task == "reach"]
    assert Counter(splits) == Counter({"train": episodes, "val": num_val})
    indices = np.flatnonzero(np.array(splits) == "val")
    assert len(indices) < 2 or np.ptp(np.diff(indices)) <= 1


@pytest.mark.parametrize("command", ["episodes", "__main__"])
def test_workers_and_help_do_not_import_tensorflow(command):
    code = f"import sys, data_builders.metaworld_etc.{command}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class FailingExpert:
    """Stands in for `rollout_expert`; fails in the first layouts of an episode."""

    def __init__(self, failures):
        self.failures = failures
        self.seeds = []

    def __call__(self, environment, seed, noise):
        self.seeds.append(seed)
        if len(self.seeds) <= self.failures:
            return None
        return SimpleNamespace(annotation=None)


@pytest.fixture
def without_simulator(monkeypatch):
    monkeypatch.setattr(episodes, "get_environment", lambda key: None)
    monkeypatch.setattr(episodes, "get_initial_frames", lambda *arguments: None)
    monkeypatch.setattr(episodes, "make_items", lambda annotation, seed, **options: ([], Counter()))


JOB = MetaWorldJob("reach", "source", "train", 7, 96, (0, 0))


@pytest.mark.parametrize("failures", [0, 3])
def test_next_layout_follows_a_failed_one(without_simulator, monkeypatch, failures):
    expert = FailingExpert(failures)
    monkeypatch.setattr(episodes, "rollout_expert", expert)
    assert make_episode(JOB).attempts == failures + 1
    assert expert.seeds == [demo_seed(7, attempt) for attempt in range(failures + 1)]


def test_expert_that_never_succeeds_is_an_error(without_simulator, monkeypatch):
    monkeypatch.setattr(episodes, "rollout_expert", FailingExpert(1000))
    message = "metaworld/source/reach/00007: the expert fails in 20 layouts"
    with pytest.raises(UserError, match=message):
        make_episode(JOB)


def test_workers_do_not_run_the_main_script(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        """
import sys
from data_builders.common.worker_pool import run_jobs
from data_builders.metaworld_etc.episodes import MetaWorldJob, make_episode

print("main runs")
jobs = [MetaWorldJob("drawer-close", "source", "train", i, 32, (0, 0)) for i in range(2)]
results = run_jobs(make_episode, jobs, 1)
print([result.job.index for result in results], sys.modules["__main__"].__file__)
"""
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.splitlines() == ["main runs", f"[0, 1] {script}"]
