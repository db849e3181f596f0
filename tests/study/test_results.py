"""What a study writes and reads: hypotheses, results, tables."""

import json

import pytest

from etcvla.errors import UserError
from etcvla.study import collect, protocol, tables, worker
from etcvla.study.config import parse
from tests.study.made_study import FakeTrainer, contrast, small_graph, small_study, study_config


def test_hypotheses_are_fixed_by_the_first_evaluation(tmp_path, capsys):
    study = small_study(tmp_path)
    assert not protocol.is_written(study)
    protocol.write_protocol(study, {"plain": {"flops": 1}})
    assert protocol.is_written(study)
    first = protocol.read_protocol(study)
    assert first["matching"] == {"plain": {"flops": 1}}
    assert first["hypotheses"]["contrasts"][0]["margin"] == 8.0

    changed = small_study(tmp_path, contrasts=(contrast(margin=2.0),))
    assert not protocol.is_written(changed)
    protocol.write_protocol(changed, {})  # nothing is evaluated yet
    second = protocol.read_protocol(study)
    assert second["sha256"] != first["sha256"] and second["changes"] == []

    (tmp_path / "runs/0123/evaluation").mkdir(parents=True)
    protocol.write_protocol(study, {})
    third = protocol.read_protocol(study)
    assert third["sha256"] == second["sha256"]
    assert [change["evaluations"] for change in third["changes"]] == [1]
    assert third["changes"][0]["sha256"] == first["sha256"]
    assert protocol.is_written(study)
    assert "the hypotheses changed after 1 runs were evaluated" in capsys.readouterr().out


def test_settings_that_change_no_result_are_no_hypotheses(tmp_path):
    config = study_config(tmp_path)
    before = protocol.hypotheses(parse(config))
    config.eval.workers = 7
    assert protocol.hypotheses(parse(config)) == before
    config.eval.trials = 10
    assert protocol.hypotheses(parse(config)) != before


def test_a_folder_belongs_to_one_study(tmp_path):
    protocol.write_protocol(small_study(tmp_path), {})
    with pytest.raises(UserError, match="belongs to the study 'small', not 'other'"):
        protocol.read_protocol(small_study(tmp_path, name="other"))


def test_results_of_cells(tmp_path):
    graph = small_graph(tmp_path)
    collect.save_graph(graph)
    assert collect.read_study(tmp_path)["contrasts"][0]["a"] == "bridged"
    worker.work(
        graph.select(small_study(tmp_path).select(["bridged"])), FakeTrainer(tmp_path / "log")
    )
    (run,) = [chain[-1] for cell, chain in graph.cells.items() if cell == ("bridged", 1)]
    (run.folder / "evaluation").mkdir()
    header = "simulator,scene,task,trial,layout,named,novelty,touched,success,progress,intention"
    lines = [header, "tabletop,C1,touch,7,1,red cube,both,red ball,0,0.5,0"]
    (run.folder / "evaluation/episodes.csv").write_text("\n".join(lines) + "\n")
    (row,) = collect.episode_rows(tmp_path)
    assert tuple(row) == collect.EPISODE_COLUMNS
    assert (row["cell"], row["seed"], row["tier"], row["rotation"]) == ("bridged", "1", "C", "1")
    assert (row["named"], row["touched"], row["run"]) == ("red cube", "red ball", run.key)
    assert row["condition"] == ""
    results = list(collect.run_results(tmp_path))
    positions = [(result["cell"], result["seed"], result["position"]) for result in results]
    assert positions == [
        ("bridged", 0, 0),
        ("bridged", 0, -1),
        ("bridged", 1, 0),
        ("bridged", 1, -1),
        ("slow", 0, 0),
        ("slow", 1, 0),
    ]


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(UserError, match="study.json does not exist; start launch/study.py"):
        collect.read_study(tmp_path)


def test_the_table_shows_states_and_the_remaining_time(tmp_path):
    graph = small_graph(tmp_path)
    assert "one worker needs unknown" in tables.state_table(graph)
    trainer = FakeTrainer(tmp_path / "log", fail={"bridged": 100})
    worker.work(graph.select(small_study(tmp_path).select(["plain", "bridged"])), trainer)
    table = tables.state_table(graph).splitlines()
    assert table[0].split() == ["plain", "0", "done,", "1", "done"]
    assert table[1].endswith("0 failed 2/2, 1 failed 2/2")
    assert table[2].endswith("0 waiting 2/2, 1 waiting 2/2")
    # Two failed and two waiting runs, as long as those of the same stage: 4 s + 2 s each.
    assert "4 of 8 runs left; one worker needs 0:24" in table[-1]


def test_the_protocol_is_json(tmp_path):
    protocol.write_protocol(small_study(tmp_path), {})
    written = json.loads((tmp_path / "protocol.json").read_text())
    cells = written["hypotheses"]["cells"]
    assert cells["slow"]["runs"][1]["changes"] == [["optim.clip", "0.5"]]
