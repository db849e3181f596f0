"""The whole recipe in small, by the commands that a user types, run twice."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest

from etcvla.train.checkpoint import open_checkpoint

ROOT = pathlib.Path(__file__).parent.parent
pytest.importorskip("metaworld")
pytest.importorskip("tensorflow_datasets")


def run(*arguments, cwd=ROOT, fails=False):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def build_few_pictures(root):
    """Build the base data of the recipe with few pictures; the default size takes minutes."""
    size = ("--episodes=40", "--val_episodes=10")
    run("-m", "data_builders.tabletop_vqa", f"--out={root}", "--workers=1", *size)
    (built,) = (root / "tabletop_vqa").iterdir()
    built.rename(root / "tabletop_vqa/default")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Run a recipe of two steps per stage on two tasks.

    Returns: its arguments, its folder and its output.
    """
    folder = tmp_path_factory.mktemp("recipe")
    build_few_pictures(folder / "data")
    steps = [
        f"--config.steps.{stage}=2"
        for stage in ("vlm_pretrain", "distribution_bridge", "objective_bridge", "retentive_adapt")
    ]
    arguments = [
        "launch/recipe.py",
        "--config=configs/recipe.py",
        f"--config.workdir={folder}/run",
        f"--config.data_root={folder}/data",
        "--config.tasks=('drawer-open','drawer-close')",
        "--config.source_episodes=2",
        "--config.target_episodes=2",
        "--config.eval.trials=1",
        "--config.eval.intervention_trials=1",
        "--config.eval.max_steps=20",
        "--config.eval.workers=2",
        "--config.eval.questions=4",
        *steps,
    ]
    return arguments, folder, run(*arguments)


def test_every_stage_is_trained_evaluated_and_reported(recipe):
    _, folder, printed = recipe
    assert "is missing, building it" in printed
    summary = json.loads((folder / "run/summary.json").read_text())
    stages = summary["stages"]
    assert list(stages) == [
        "vlm_pretrain",
        "distribution_bridge",
        "objective_bridge",
        "retentive_adapt",
    ]
    assert all(stage["steps"] == 2 and stage["seconds"] > 0 for stage in stages.values())
    assert set(stages["distribution_bridge"]["etc"]) == {
        "spatial_understanding",
        "goal_description",
        "affordance",
        "task_planning",
        "trajectory",
    }
    assert stages["vlm_pretrain"]["success"] == {} and 0 <= stages["vlm_pretrain"]["mm"] <= 1
    for name in ("objective_bridge", "retentive_adapt"):
        success = stages[name]["success"]
        assert set(success) == {"source", "target"}
        assert all(trials == 1 for tasks in success.values() for _, trials in tasks.values())
    assert set(stages["objective_bridge"]["interventions"]) == {
        "right",
        "wrong_instruction",
        "blank_image",
    }
    assert summary["versions"]["jax"] and summary["commit"] and summary["peak_memory_gib"] > 0
    report = (folder / "run/report.html").read_text()
    assert "drawer-open" in report and 'src="http' not in report


def test_the_csv_has_one_line_per_episode(recipe):
    _, folder, _ = recipe
    path = folder / "run/objective_bridge/evaluation/episodes.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3  # tasks x scenes x interventions
    wrong = [row for row in rows if row["intervention"] == "wrong_instruction"]
    assert [row["instruction_of"] for row in wrong].count("drawer-close") == 2


def test_a_second_run_repeats_nothing(recipe):
    arguments, folder, _ = recipe
    before = (folder / "run/objective_bridge/evaluation/scores.json").stat().st_mtime_ns
    printed = run(*arguments)
    assert printed.count("nothing to do") == 8 and "building" not in printed
    assert (folder / "run/objective_bridge/evaluation/scores.json").stat().st_mtime_ns == before


def test_a_checkpoint_lists_its_parents(recipe):
    _, folder, _ = recipe
    meta = open_checkpoint(str(folder / "run/retentive_adapt")).meta()
    assert [pathlib.Path(parent["workdir"]).name for parent in meta["lineage"]] == [
        "vlm_pretrain",
        "distribution_bridge",
        "objective_bridge",
    ]
    action_spec = meta["assets"]["action_spec"]
    assert action_spec["action_dim"] == 4
    assert "gripper" in action_spec["action"]


def test_full_size_prints_its_plan_and_names_missing_files(tmp_path):
    printed = run(
        "launch/train.py", "--config=configs/objective_bridge.py:paligemma_3b", fails=True
    )
    assert "100,000 steps x 256 rows" in printed and "Traceback" not in printed
    for field in ("datasets.source.path", "init_from", "data.tokenizer"):
        assert f"{field} = " in printed.partition("error:")[2]
    png = tmp_path / "plan.png"
    printed = run(
        "launch/plan.py", "--config=configs/distribution_bridge.py:paligemma_3b", f"--out={png}"
    )
    assert "missing: init_from" in printed and png.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.optim.lrr=1", 'Did you mean "lr"'),
        ("--config.streams.action.wieght=1", 'Did you mean "weight"'),
        ("--config.optimm.lr=1", "unknown config field 'optimm'; Did you mean \"optim\""),
        ("--config.steps=many", "config.steps=many"),
    ],
)
def test_a_typo_in_a_flag_is_one_line_with_a_hint(flag, message):
    printed = run("launch/train.py", "--config=configs/objective_bridge.py", flag, fails=True)
    assert message in printed and "Traceback" not in printed


def test_an_unknown_variant_lists_the_known_ones():
    printed = run("launch/train.py", "--config=configs/objective_bridge.py:huge", fails=True)
    assert "choose from tiny, tabletop, paligemma_3b" in printed and "Traceback" not in printed
