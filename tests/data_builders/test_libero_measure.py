"""The table of the expert's successes, with a function in place of the simulator."""

import dataclasses

import pytest

from data_builders.libero_etc.episodes import ExpertTrial
from data_builders.tools import measure_libero_expert as measure


@pytest.fixture
def run(monkeypatch):
    """Every even state succeeds; the trials that were run."""
    tried = []

    def one_by_one(function, trials, workers):
        assert function is measure.run_expert_trial
        for trial in trials:
            tried.append((trial.task, trial.state))
            yield dataclasses.replace(
                trial, success=1 - trial.state % 2, steps=100 + trial.state, grasps=1
            )

    monkeypatch.setattr(measure.worker_pool, "run_jobs", one_by_one)
    return tried


def _trials(*tasks, states=4):
    return [ExpertTrial(task, state) for task in tasks for state in range(states)]


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path, run):
    path, trials = tmp_path / "expert.csv", _trials("suite/a", "suite/b")
    started = measure.measure(trials, path, 1)
    for _ in range(3):
        next(started)
    started.close()
    assert [(trial.state, trial.success) for trial in measure.read_trials(path)] == [
        (0, 1),
        (1, 0),
        (2, 1),
    ]
    run.clear()
    assert len(list(measure.measure(trials, path, 1))) == 5
    assert run == [("suite/a", 3)] + [("suite/b", state) for state in range(4)]
    assert not list(measure.measure(trials, path, 1))
    assert [(trial.task, trial.state) for trial in measure.read_trials(path)] == [
        (trial.task, trial.state) for trial in trials
    ]


def test_the_table_has_tasks_and_suites_with_intervals():
    trials = [
        ExpertTrial(
            "suite/a", state, success=int(state < 9), steps=100 + state, grasps=1 + (state == 0)
        )
        for state in range(10)
    ] + [ExpertTrial("other/b", 0)]
    rows = {
        line.split()[0]: line.split()[1:] for line in measure.format_table(trials).splitlines()[1:]
    }
    assert list(rows) == ["suite/a", "other/b", "suite", "other"]
    assert rows["suite/a"] == rows["suite"] == ["9/10", "90%", "[", "60%,", "98%]", "104", "8"]
    assert rows["other/b"] == ["0/1", "0%", "[", "0%,", "79%]", "0"]


def test_another_table_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("task,score\nx,1\n")
    with pytest.raises(
        ValueError,
        match=r"a.csv: columns \['task', 'score'\], expected \['task', 'state', 'success'",
    ):
        measure.read_trials(tmp_path / "a.csv")


def test_states_are_a_number_or_a_range():
    assert measure.parse_states("3") == range(3, 4)
    assert measure.parse_states("0-9") == range(10)
    with pytest.raises(ValueError, match="--states=a-3: expected a number, or first-last"):
        measure.parse_states("a-3")
