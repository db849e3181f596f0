"""The Meta-World builder: a small dataset is built once by the command line and read back by our own reader."""

import errno
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_builders.common import worker_pool
from data_builders.common.build import prepare
from data_builders.metaworld_etc import episodes
from data_builders.metaworld_etc.metaworld_etc_dataset_builder import Builder, MetaWorldConfig
from data_builders.tools.gallery import read_annotation
from data_builders.tools.report import dataset_report, table
from etcvla.data.rlds import RLDSDataset
from etcvla.etc import make_items
from etcvla.etc.items import ETC_KINDS, Item
from etcvla.etc.verify import check
from etcvla.sims.metaworld.tasks import NUM_OBJECTS, TASKS
from etcvla.sims.seeds import demo_seed
from etcvla.train.stage import Stage
from tests.train.nano import nano_config

BUILD = (
    "--tasks=drawer-open,drawer-close",
    "--episodes=2",
    "--held_out=0.5",
    "--image_size=48",
    "--workers=1",
)


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command_line = [sys.executable, "-m", "data_builders.metaworld_etc", *arguments]
    return subprocess.run(command_line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("datasets")
    run = _run(f"--out={out}", *BUILD, f"--gallery={out}/gallery.html")
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.strip()), run.stderr


@pytest.fixture(scope="module")
def splits(built):
    return {split: RLDSDataset(built[0], split) for split in ("train", "val")}


def test_the_command_prints_the_path_and_says_how_far_it_is(built):
    path, log = built
    assert path.parts[-3:] == (
        "metaworld_etc",
        "source_drawer-open+drawer-close_2ep_1val_48px",
        "1.0.0",
    )
    assert "6/6" in log
    assert " s left" in log
    assert "drawer-open: 3 episodes from 3 tries" in log
    page = (path.parents[2] / "gallery.html").read_text()
    assert page.count("data:image/") >= 20
    assert "metaworld/source/drawer-close/" in page


def test_splits_are_exact_and_share_no_episode(splits):
    found = {}
    for split, dataset in splits.items():
        about = [dataset.metadata(episode) for episode in range(dataset.num_episodes)]
        assert Counter(row["task"] for row in about) == dict.fromkeys(
            ["drawer-open", "drawer-close"], {"train": 2, "val": 1}[split]
        )
        assert {row["scene"] for row in about} == {"source"}
        assert all(row["success"] for row in about)
        found[split] = {row["episode_id"] for row in about}
    assert not found["train"] & found["val"]


def test_an_episode_is_well_formed(splits):
    dataset = splits["train"]
    for episode in range(dataset.num_episodes):
        about, start, length = (
            dataset.metadata(episode),
            int(dataset.starts[episode]),
            int(dataset.lengths[episode]),
        )
        names = [
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
        ]
        frames = [dataset.frame(start + step, names) for step in range(length)]
        assert 15 < length <= 200
        assert (
            frames[0]["observation/front"].shape
            == frames[0]["observation/wrist"].shape
            == (48, 48, 3)
        )
        assert frames[0]["observation/front"].std() > 20
        assert frames[0]["observation/state"].shape == frames[0]["action"].shape == (4,)
        assert np.abs([frame["action"] for frame in frames]).max() <= 1
        assert frames[0]["annotation/box"].shape == (2, NUM_OBJECTS, 4)
        marked = {
            field: np.flatnonzero([frame[field] for frame in frames]).tolist()
            for field in ("is_first", "is_last", "is_terminal", "reward")
        }
        assert marked == {"is_first": [0]} | dict.fromkeys(
            ("is_last", "is_terminal", "reward"), [length - 1]
        )
        assert {frame["language_instruction"] for frame in frames} <= set(
            TASKS[about["task"]].instructions
        )


def test_items_of_every_kind_follow_from_the_annotation_on_disk(splits):
    kinds = Counter()
    for dataset in splits.values():
        for episode in range(dataset.num_episodes):
            annotation, start = read_annotation(dataset, episode), int(dataset.starts[episode])
            assert len(annotation) == dataset.lengths[episode]
            assert annotation.objects == tuple(spec.name for spec in TASKS["drawer-open"].objects)
            job = episodes.MetaWorldJob(
                dataset.metadata(episode)["task"], "source", "", 0, 48, (0, 0)
            )
            assert dataset.metadata(episode)["episode_id"].startswith(job.episode_id[:-5])
            made, _ = make_items(annotation, 0)
            for step, items in enumerate(made):
                assert not [error for item in items if (error := check(item, annotation, step))]
                kinds.update(dataset.frame(start + step, ["etc/kind"])["etc/kind"])
    assert set(kinds) == set(ETC_KINDS)


def test_the_report_tells_what_was_built(built):
    path, _ = built
    report = dataset_report(path)
    assert report["unbalanced"] == []
    assert set(report["by_split"]) == {"train", "val"}
    assert set(report["by_task"]) == {"drawer-open", "drawer-close"}
    assert sum(report["by_kind"].values()) == sum(report["by_question_type"].values())
    assert report["build"]["tasks"]["drawer-open"] == {"episodes": 3, "tries": 3, "success": 1.0}
    assert report["build"]["dropped"]["gripper_side: ambiguous"] > 0
    assert all(share > 0.6 for share in report["contact_agreement"]["plan"].values())
    text = table(report)
    assert "scene_grounding" in text and "drawer-close" in text and "UNBALANCED" not in text
    with pytest.raises(FileNotFoundError, match="no dataset_info.json"):
        dataset_report(path.parent)


def test_a_build_says_which_answers_can_be_guessed(tmp_path, monkeypatch, capsys):
    item = Item(
        "spatial_understanding", "gripper_height", "is the gripper above or below the mug?", "above"
    )

    def fake(roll, jobs, workers):
        for job in jobs[:1]:
            yield episodes.EpisodeResult(job, None, [[item]] * 200, Counter(), 1)

    monkeypatch.setattr(worker_pool, "run", fake)
    config = MetaWorldConfig(tasks=("reach",))
    assert len(list(Builder(config=config, data_dir=tmp_path)._run(config.jobs()))) == 1
    assert "warning: answers can be guessed: gripper_height: 100% of 200" in capsys.readouterr().err


def test_a_condition_makes_a_dataset_without_actions(tmp_path):
    run = _run(
        f"--out={tmp_path}",
        "--tasks=reach",
        "--episodes=1",
        "--held_out=0",
        "--image_size=32",
        "--workers=1",
        "--condition=clutter,cube_for_it",
    )
    assert run.returncode == 0, run.stderr
    dataset = RLDSDataset(run.stdout.strip(), "train")
    assert "action" not in dataset.features
    assert {dataset.metadata(episode)["scene"] for episode in range(2)} == {
        "source+clutter",
        "source+cube_for_it",
    }
    assert "source_reach_1ep_0val_32px_ood_clutter+cube_for_it" in run.stdout


def test_held_out_looks_cannot_be_trained_on(tmp_path):
    config = MetaWorldConfig(
        tasks=("reach",), episodes=4, held_out=0.5, conditions=("night", "high_camera")
    )
    assert [(job.condition, job.split) for job in config.jobs()] == [
        (condition, "val") for condition in ("night", "high_camera") for _ in range(2)
    ]
    shown = {job.index for job in config.jobs()}
    learnt = {
        job.index
        for job in MetaWorldConfig(tasks=("reach",), episodes=4, held_out=0.5).jobs()
        if job.split == "train"
    }
    assert shown and not shown & learnt
    run = _run(
        f"--out={tmp_path}",
        "--tasks=reach",
        "--episodes=1",
        "--held_out=1",
        "--image_size=32",
        "--workers=1",
        "--condition=night",
    )
    assert run.returncode == 0, run.stderr
    stage = nano_config(run.stdout.strip(), tmp_path / "run")
    with pytest.raises(
        FileNotFoundError,
        match="source_reach_1ep_1val_32px_ood_night.* no split 'train' .*it has val",
    ):
        Stage.open(stage)


def test_building_again_keeps_what_is_there(built):
    before = {file: file.stat().st_mtime_ns for file in built[0].glob("*") if file.is_file()}
    run = _run(f"--out={built[0].parents[2]}", *BUILD)
    assert run.returncode == 0
    assert "already built" in run.stderr
    assert {
        file: file.stat().st_mtime_ns for file in built[0].glob("*") if file.is_file()
    } == before


def test_a_wrong_argument_ends_in_one_line(tmp_path):
    run = _run(f"--out={tmp_path}", "--tasks=drawer-opne")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last == "error: unknown task 'drawer-opne', did you mean 'drawer-open'?"
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scene": "taget"}, "unknown scene 'taget', did you mean 'target'"),
        ({"episodes": -1}, "episodes -1 must be at least 1"),
        ({"image_size": 8}, "image_size 8 at least 16"),
        ({"noise": (0.3, 0.1)}, "noise .* an ascending range"),
        ({"locations": "pixels"}, "unknown locations 'pixels'"),
        ({"conditions": ("evening", "night")}, "cannot mix train and held_out in one dataset"),
        (
            {"conditions": ("night",), "held_out": 0.0},
            "night are shown of validation episodes alone",
        ),
    ],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldConfig(**setting)


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def fail(roll, jobs, workers):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(worker_pool, "run", fail)
    with pytest.raises(OSError, match="No space left on device") as raised:
        prepare(Builder, MetaWorldConfig(tasks=("reach",)), str(tmp_path))
    assert str(tmp_path) in str(raised.value)
    assert not list(tmp_path.rglob("*.tfrecord*"))
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_the_name_says_what_differs_from_the_default():
    assert MetaWorldConfig().name == "source"
    assert MetaWorldConfig(scene="target").name == "target"
    assert MetaWorldConfig(scene="target", episodes=10).name == "target"
    assert MetaWorldConfig(tasks=tuple(TASKS), noise=(0.0, 0.1)).name == "source_mt50_noise0.0to0.1"
    names = {
        MetaWorldConfig(image_size=size, episodes=episodes).name
        for size in (64, 96)
        for episodes in (30, 50)
    }
    assert len(names) == 4


@pytest.mark.parametrize(
    ("episodes", "held_out", "val"), [(30, 0.12, 4), (10, 0.12, 2), (5, 0, 0), (1, 1, 1)]
)
def test_held_out_episodes_are_counted_exactly_and_spread(episodes, held_out, val):
    config = MetaWorldConfig(episodes=episodes, held_out=held_out)
    splits = [job.split for job in config.jobs() if job.task == "reach"]
    assert Counter(splits) == Counter({"train": episodes, "val": val})
    held = np.flatnonzero(np.array(splits) == "val")
    assert len(held) < 2 or np.ptp(np.diff(held)) <= 1


def test_a_worker_starts_without_tensorflow():
    code = "import sys; import data_builders.metaworld_etc.episodes; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class _Stub:
    """An expert that fails in the first layouts of an episode."""

    def __init__(self, failures):
        self.failures, self.seeds = failures, []

    def __call__(self, env, seed, noise):
        self.seeds.append(seed)
        return (
            None if len(self.seeds) <= self.failures else type("Episode", (), {"annotation": None})
        )


@pytest.mark.parametrize("failures", [0, 3])
def test_a_failed_layout_is_replaced_by_the_next(monkeypatch, failures):
    stub = _Stub(failures)
    monkeypatch.setattr(episodes, "_environment", lambda *key: None)
    monkeypatch.setattr(episodes, "rollout_expert", stub)
    monkeypatch.setattr(episodes, "_layouts", lambda *key: None)
    monkeypatch.setattr(episodes, "make_items", lambda annotation, seed, **kwargs: ([], Counter()))
    result = episodes.roll(episodes.MetaWorldJob("reach", "source", "train", 7, 96, (0, 0)))
    assert result.attempts == failures + 1
    assert stub.seeds == [demo_seed(7, attempt) for attempt in range(failures + 1)]


def test_an_expert_that_never_succeeds_is_an_error(monkeypatch):
    monkeypatch.setattr(episodes, "_environment", lambda *key: None)
    monkeypatch.setattr(episodes, "rollout_expert", _Stub(1000))
    with pytest.raises(
        RuntimeError, match="metaworld/source/reach/00007: the expert failed in 20 layouts"
    ):
        episodes.roll(episodes.MetaWorldJob("reach", "source", "train", 7, 96, (0, 0)))


def test_workers_do_not_run_the_main_script_again(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "print('main runs')\n"
        "from data_builders.metaworld_etc.episodes import MetaWorldJob, roll\n"
        "from data_builders.common.worker_pool import run\n"
        "results = run(roll, [MetaWorldJob('drawer-close', 'source', 'train', i, 32, (0, 0)) for i in range(2)], 1)\n"
        "print([result.job.index for result in results], __import__('sys').modules['__main__'].__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.splitlines() == ["main runs", f"[0, 1] {script}"]
