"""The whole recipe in small, by the commands that a user types, run twice."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest

from etcvla.etc.items import ETC_KINDS
from etcvla.results_schema import INTERVENTIONS
from etcvla.train.base_model import find_base
from etcvla.train.checkpoint import open_checkpoint

ROOT = pathlib.Path(__file__).parent.parent
pytest.importorskip("mujoco")
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


STAGES = ["distribution_bridge", "objective_bridge", "retentive_adapt"]
CONTROLS = [f"{name}_action_only" for name in STAGES[1:]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Run the demo's recipe with two steps per stage.

    Returns: its arguments, its folder and its output.
    """
    folder = tmp_path_factory.mktemp("recipe")
    sizes = {"tabletop_vqa": 20, "demos": 6, "etc": 6, "target": 4, "ood": 4}
    arguments = [
        "launch/recipe.py",
        "--config=configs/recipe.py",
        f"--config.workdir={folder}/run",
        f"--config.data_root={folder}/data",
        "--config.eval.trials=5",
        "--config.eval.intervention_trials=5",
        "--config.eval.max_steps=5",
        "--config.eval.workers=2",
        "--config.eval.questions=4",
        *[f"--config.episodes.{name}={count}" for name, count in sizes.items()],
        *[f"--config.steps.{stage}=2" for stage in STAGES],
    ]
    return arguments, folder, run(*arguments)


def test_every_run_is_trained_evaluated_and_reported(recipe):
    _, folder, printed = recipe
    assert "is missing, building it" in printed
    summary = json.loads((folder / "run/summary.json").read_text())
    stages = summary["stages"]
    assert summary["runs"] == list(stages) == STAGES + CONTROLS
    assert all(stages[name]["steps"] == 2 for name in STAGES)
    assert [name for name in stages if stages[name]["control"]] == CONTROLS
    for stage in stages.values():
        assert stage["seconds"] > 0 and 0 <= stage["mm"] <= 1
        assert set(stage["etc"]) <= set(ETC_KINDS)
    assert stages[STAGES[0]]["success"] == {}
    for name in (*STAGES[1:], *CONTROLS):
        success = stages[name]["success"]
        assert list(success) == ["A0", "P0", "B0", "C0", "N0"]
        assert all(tasks["touch"][1] == 5 for tasks in success.values())
    for name in (STAGES[-1], CONTROLS[-1]):
        assert set(stages[name]["interventions"]) == set(INTERVENTIONS)
    assert summary["versions"]["jax"] and summary["commit"] and summary["peak_memory_gib"] > 0
    report = (folder / "run/report.html").read_text()
    assert "Language control" in report and "Success, N0 scene" in report
    assert 'src="http' not in report


def test_the_csv_has_one_line_per_episode(recipe):
    _, folder, _ = recipe
    path = folder / "run/retentive_adapt/evaluation/episodes.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 5 * 4  # trials x scenes x interventions
    wrong = [row for row in rows if row["intervention"] == "wrong_instruction"]
    assert len(wrong) == 25 and all(row["instruction_of"] != row["named"] for row in wrong)


def test_a_second_run_repeats_nothing(recipe):
    arguments, folder, _ = recipe
    before = (folder / "run/objective_bridge/evaluation/scores.json").stat().st_mtime_ns
    printed = run(*arguments)
    assert "===" not in printed and "building" not in printed and "report:" in printed
    assert (folder / "run/objective_bridge/evaluation/scores.json").stat().st_mtime_ns == before


def test_a_checkpoint_lists_what_it_starts_from(recipe):
    _, folder, _ = recipe
    meta = open_checkpoint(str(folder / "run/retentive_adapt")).meta()
    base, *parents = meta["lineage"]
    assert base["sha256"] == find_base("base").meta["sha256"]
    assert [pathlib.Path(parent["workdir"]).name for parent in parents] == STAGES[:2]
    assert meta["assets"]["action_spec"]["action_dim"] == 4


def test_the_control_arm_has_as_many_flops():
    printed = run("launch/recipe.py", "--config=configs/recipe.py", "--dry")
    flops = {}
    for line in printed.splitlines():
        cells = line.split()
        if cells and cells[0] in (*STAGES, *CONTROLS):
            flops[cells[0]] = float(cells[1].replace(",", ""))
    for name in STAGES[1:]:
        assert flops[f"{name}_action_only"] == pytest.approx(flops[name], rel=0.01)


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
