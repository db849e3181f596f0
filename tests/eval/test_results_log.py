"""Results of an interrupted evaluation are kept, and those of another protocol are not mixed in."""

import csv
import json

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.eval.results_log import ResultsLog
from etcvla.eval.trials import Trial, TrialResult
from etcvla.results_schema import EPISODE_COLUMNS

PROTOCOL = {"trials": 3, "tasks": ("reach",), "replan_steps": 5}
TRIALS = [Trial("metaworld", "source", "reach", i) for i in range(3)]


def make_result(trial, *, success=True, intention=False, frames=None):
    return TrialResult(
        trial,
        success=success,
        steps=30,
        progress=0.5,
        intention=intention,
        instruction="Reach the marker, please.",
        seconds=1.25,
        frames=frames,
    )


def read_lines(folder):
    return list(csv.DictReader((folder / "episodes.csv").open()))


def test_finished_trials_are_read_back(tmp_path):
    results_log = ResultsLog(tmp_path, PROTOCOL)
    assert results_log.results(TRIALS) == {}
    first = make_result(TRIALS[0], success=False, intention=True)
    third = make_result(TRIALS[2])
    results_log.add(third)
    results_log.add(first)
    resumed = ResultsLog(tmp_path, PROTOCOL)
    assert resumed.results(TRIALS) == {TRIALS[0]: first, TRIALS[2]: third}


def test_finish_sorts_the_lines(tmp_path):
    results_log = ResultsLog(tmp_path, PROTOCOL)
    for trial in reversed(TRIALS):
        results_log.add(make_result(trial, success=trial.trial > 0))
    results_log.finish([make_result(trial) for trial in TRIALS])
    lines = read_lines(tmp_path)
    assert [line["trial"] for line in lines] == ["0", "1", "2"]
    assert tuple(lines[0]) == EPISODE_COLUMNS
    assert lines[0]["success"] == "0"
    assert lines[0]["seed"] == "1000000000"
    assert lines[0]["initial_state"] == ""


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_incomplete_last_line_is_removed(tmp_path, cut):
    results_log = ResultsLog(tmp_path, PROTOCOL)
    for trial in TRIALS[:2]:
        results_log.add(make_result(trial))
    path = tmp_path / "episodes.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    resumed = ResultsLog(tmp_path, PROTOCOL)
    assert list(resumed.results(TRIALS)) == TRIALS[:1]
    resumed.add(make_result(TRIALS[1]))
    assert [line["trial"] for line in read_lines(tmp_path)] == ["0", "1"]


def test_another_protocol_is_refused_or_replaces_the_results(tmp_path):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    ResultsLog(tmp_path, PROTOCOL).add(make_result(TRIALS[0], frames=frames))
    videos = [path.name for path in (tmp_path / "videos").iterdir()]
    assert videos == ["right_source_reach_0_success.gif"]
    other_protocol = PROTOCOL | {"replan_steps": 6}
    with pytest.raises(
        UserError,
        match="has another protocol: replan_steps is 5, but now 6; write to another folder",
    ):
        ResultsLog(tmp_path, other_protocol)
    assert len(read_lines(tmp_path)) == 1
    assert ResultsLog(tmp_path, other_protocol, replace=True).results(TRIALS) == {}
    assert json.loads((tmp_path / "protocol.json").read_text())["replan_steps"] == 6
    assert not (tmp_path / "videos").exists()


def test_other_columns_are_refused(tmp_path):
    ResultsLog(tmp_path, PROTOCOL)
    (tmp_path / "episodes.csv").write_text("task,success\nreach,1\n")
    with pytest.raises(UserError, match="columns task,success, expected simulator,scene,task"):
        ResultsLog(tmp_path, PROTOCOL)
