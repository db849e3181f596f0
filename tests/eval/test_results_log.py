"""The files of an evaluation that is interrupted."""

import csv
import json

import numpy as np
import pytest

from etcvla.eval.results_log import ResultsLog
from etcvla.eval.trials import Trial, TrialResult
from etcvla.results_schema import EPISODE_COLUMNS

PROTOCOL = {"trials": 3, "tasks": ("reach",), "replan_steps": 5}
TRIALS = [Trial("metaworld", "source", "reach", i) for i in range(3)]


def result(trial, **changes):
    return TrialResult(
        trial,
        **{
            "success": True,
            "steps": 30,
            "progress": 0.5,
            "intention": False,
            "instruction": "Reach the marker, please.",
            "seconds": 1.25,
        }
        | changes,
    )


def lines(folder):
    return list(csv.DictReader((folder / "episodes.csv").open()))


def test_what_was_played_is_not_played_again(tmp_path):
    results_log = ResultsLog(tmp_path, PROTOCOL)
    assert results_log.results(TRIALS) == {}
    results_log.add(result(TRIALS[2]))
    results_log.add(result(TRIALS[0], success=False, intention=True))
    again = ResultsLog(tmp_path, PROTOCOL)
    assert again.results(TRIALS) == {
        TRIALS[0]: result(TRIALS[0], success=False, intention=True),
        TRIALS[2]: result(TRIALS[2]),
    }
    again.add(result(TRIALS[1]))
    again.finish([result(trial) for trial in TRIALS])
    assert [line["trial"] for line in lines(tmp_path)] == ["0", "1", "2"]
    assert lines(tmp_path)[0]["success"] == "0" and tuple(lines(tmp_path)[0]) == EPISODE_COLUMNS
    assert lines(tmp_path)[0]["seed"] == "1000000000" and lines(tmp_path)[0]["initial_state"] == ""


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_line_is_taken_off(tmp_path, cut):
    results_log = ResultsLog(tmp_path, PROTOCOL)
    for trial in TRIALS[:2]:
        results_log.add(result(trial))
    path = tmp_path / "episodes.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    again = ResultsLog(tmp_path, PROTOCOL)
    assert list(again.results(TRIALS)) == TRIALS[:1]
    again.add(result(TRIALS[1]))
    assert [line["trial"] for line in lines(tmp_path)] == ["0", "1"]


def test_another_protocol_is_refused_or_replaces(tmp_path):
    ResultsLog(tmp_path, PROTOCOL).add(result(TRIALS[0], frames=np.zeros((2, 8, 8, 3), np.uint8)))
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [
        "right_source_reach_0_success.gif"
    ]
    with pytest.raises(
        ValueError,
        match="is of another protocol: replan_steps is 5, asked is 6; write to another folder",
    ):
        ResultsLog(tmp_path, PROTOCOL | {"replan_steps": 6})
    assert len(lines(tmp_path)) == 1
    assert ResultsLog(tmp_path, PROTOCOL | {"replan_steps": 6}, replace=True).results(TRIALS) == {}
    assert json.loads((tmp_path / "protocol.json").read_text())["replan_steps"] == 6
    assert not (tmp_path / "videos").exists()


def test_other_columns_are_refused(tmp_path):
    ResultsLog(tmp_path, PROTOCOL)
    (tmp_path / "episodes.csv").write_text("task,success\nreach,1\n")
    with pytest.raises(ValueError, match="has the columns task,success, expected simulator,scene,task"):
        ResultsLog(tmp_path, PROTOCOL)
