"""Measurement of the LIBERO expert, with a function in place of the simulator."""

import dataclasses

import pytest

from data_builders.libero_etc.episodes import ExpertTrial
from data_builders.tools import measure_libero_expert as measure
from etcvla.errors import UserError


@pytest.fixture
def trials_run(monkeypatch):
    """List of the (task, state) that ran. States with even numbers succeed."""
    trials_run = []

    def run_jobs(function, trials, workers):
        assert function is measure.run_expert_trial
        for trial in trials:
            trials_run.append((trial.task, trial.state))
            success = 1 - trial.state % 2
            yield dataclasses.replace(trial, success=success, steps=100 + trial.state, grasps=1)

    monkeypatch.setattr(measure.worker_pool, "run_jobs", run_jobs)
    return trials_run


def keys(trials):
    return [(trial.task, trial.state) for trial in trials]


def test_measurement_resumes_after_an_interruption(tmp_path, trials_run):
    path = tmp_path / "expert.csv"
    trials = [ExpertTrial("suite/a", state) for state in range(4)]
    trials += [ExpertTrial("suite/b", state) for state in range(4)]
    measurement = measure.measure(trials, path, 1)
    for _ in range(3):
        next(measurement)
    measurement.close()
    results = [(trial.state, trial.success) for trial in measure.read_trials(path)]
    assert results == [(0, 1), (1, 0), (2, 1)]
    trials_run.clear()
    assert len(list(measure.measure(trials, path, 1))) == 5
    assert trials_run == keys(trials)[3:]
    assert not list(measure.measure(trials, path, 1))
    assert keys(measure.read_trials(path)) == keys(trials)


def test_table_has_tasks_and_suites_with_intervals():
    trials = [ExpertTrial("suite/a", 0, success=1, steps=100, grasps=2)]
    for state in range(1, 10):
        trials.append(ExpertTrial("suite/a", state, int(state < 9), steps=100 + state, grasps=1))
    trials.append(ExpertTrial("other/b", 0))
    lines = measure.format_table(trials).splitlines()
    assert lines[2:] == [
        "| suite/a | 9/10 | 90% | 60% to 98% | 104 | 8 |",
        "| other/b | 0/1 | 0% | 0% to 79% |  | 0 |",
        "| suite | 9/10 | 90% | 60% to 98% | 104 | 8 |",
        "| other | 0/1 | 0% | 0% to 79% |  | 0 |",
    ]


def test_another_table_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("task,score\nx,1\n")
    message = r"a.csv: columns \['task', 'score'\], expected \['task', 'state', 'success'"
    with pytest.raises(UserError, match=message):
        measure.read_trials(tmp_path / "a.csv")


def test_states_are_a_number_or_a_range():
    assert measure.parse_states("3") == range(3, 4)
    assert measure.parse_states("0-9") == range(10)
    with pytest.raises(UserError, match="--states=a-3: expected a number, or first-last"):
        measure.parse_states("a-3")
