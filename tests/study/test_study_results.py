"""Tables and contrasts of a study, from synthetic results."""

import csv
import json

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.study import results
from etcvla.study.episode_table import EpisodeTable
from etcvla.study.execute import last_metrics
from tests.study.made_results import contrast, gate, write_made_study


def episode(cell="AN", seed=0, tier="C", layout=0, **fields):
    """Return a line of study.csv."""
    return {
        "cell": cell,
        "seed": str(seed),
        "tier": tier,
        "rotation": "0",
        "task": "touch",
        "layout": str(layout),
        "named": "red cube",
        "instruction_of": "red cube",
        "novelty": "both",
        "touched": "red cube",
        "success": "1",
        "progress": "1.0",
        "intention": "1",
        "intervention": "right",
        "condition": "",
        "run": "0123",
        **fields,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_made_study(folder, seeds=(0, 1), layouts=3, unfinished={("AY", 1)})
    results.write_results(str(folder))
    return folder


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_have_a_line_per_episode_and_per_run(made):
    episodes = read_csv(made / "study.csv")
    assert len(episodes) == 11 * 4 * 4 * 15  # runs, tiers, interventions, trials
    runs = read_csv(made / "runs.csv")
    assert len(runs) == 11 + 5  # last runs and first runs, without those of AY 1
    by_run = {(row["cell"], row["seed"], row["position"]): row for row in runs}
    last = by_run["RY", "1", "-1"]
    assert (last["naming"], last["embedding_drift"], last["steps"]) == ("0.99", "0.02", "4000")
    touched = []
    for row in episodes:
        if (row["run"], row["tier"], row["intervention"]) == ("RY1", "C", "right"):
            touched.append(int(row["intention"]))
    assert float(last["intention_C"]) == pytest.approx(np.mean(touched), abs=1e-4)


def test_the_summary_is_json_with_the_promised_keys(made):
    summary = json.loads((made / "summary.json").read_text())
    assert summary["cells"]["AY"] == {"planned": [0, 1], "finished": [0]}
    for result in summary["contrasts"]:
        assert {"name", "a", "b", "metric", "tier", "estimate", "low", "high"} <= set(result)
        assert {"p", "seeds", "verdict"} <= set(result)
    known = [score for score in summary["scores"] if score["cell"] == "AN" and score["tier"] == "A"]
    assert {score["metric"] for score in known} == {"intention", "success", "progress", "language"}
    assert len(summary["gates"]) == 3


def test_a_contrast_pairs_seeds_and_layouts():
    rows = []
    for seed in range(2):
        rows += [episode(seed=seed, layout=layout, intention="0") for layout in range(4)]
        # Layout 9 has no partner, and the first one has half of the effect.
        rows += [episode("RY", seed, layout=layout) for layout in (0, 1, 9)]
        rows.append(episode("RY", seed, layout=0, intention="0"))
    result = results.contrast(
        contrast("c", "RY", "AN", "intention", "C:both"), [0, 1], EpisodeTable(rows)
    )
    assert result["estimate"] == 75 and result["seeds"] == {0: 75, 1: 75}
    assert result["layouts"] == 2
    assert result["p"] == 0.5  # the smallest one with two seeds
    assert result["detectable"] == 0


def test_tiers_are_pooled_and_restricted_by_novelty():
    rows = [episode(tier="B"), episode(tier="C", intention="0")]
    rows.append(episode(tier="C", intention="0", novelty="noun"))
    rows.append(episode(tier="C", condition="dark"))  # does not count
    table = EpisodeTable(rows)
    assert list(table.layout_values("AN", 0, "intention", "B+C").values()) == [1, 0]
    assert list(table.layout_values("AN", 0, "intention", "C:noun").values()) == [0]
    assert table.layout_values("AN", 0, "intention", "A") == {}
    assert table.tiers == ["B", "B:both", "C", "C:both"]


def test_language_is_the_effect_of_naming_an_object():
    objects = ("red cube", "blue ball")
    follows = [episode(named=name, instruction_of=name, touched=name) for name in objects]
    ignores = [episode(named=name, instruction_of=name, layout=1) for name in objects]
    values = EpisodeTable(follows + ignores).layout_values("AN", 0, "language", "C")
    assert list(values.values()) == [1, 0]


def test_a_contrast_without_results_is_inconclusive():
    result = results.contrast(contrast("c", "RY", "AN", "intention", "C"), [0], EpisodeTable([]))
    assert result["estimate"] is None and result["p"] == 1
    results._judge([result])
    assert result["verdict"] == "inconclusive"


def test_confirmatory_contrasts_wait_for_those_before_them():
    def judged(block):
        contrasts = []
        for p_value in (0.2, 0.01):
            fields = contrast("c", "RY", "AN", "intention", "C", block=block)
            contrasts.append({**fields, "p": p_value, "low": 9, "high": 20})
        results._judge(contrasts)
        return [result["verdict"] for result in contrasts]

    assert judged("confirmatory") == ["inconclusive", "inconclusive"]
    assert judged("schedules") == ["inconclusive", "supported"]


def test_a_gate_compares_a_score_or_a_difference():
    table = EpisodeTable([episode(tier="A"), episode(tier="C", intention="0")])
    above = gate("G1", "AN", "A", "", "right", 0.7, 1.0)
    assert results.gate(above, [0, 1], table)["holds"]
    gap = gate("G2", "AN", "A", "C", "right", 0.15, 0.5)
    assert results.gate(gap, [0, 1], table)["value"] == 1
    assert not results.gate(gap, [0, 1], table)["holds"]
    missing = gate("G2", "RY", "A", "C", "right", 0.15, 0.5)
    assert results.gate(missing, [0], table)["value"] is None


def test_an_interval_needs_two_seeds():
    fields = results.score(EpisodeTable([episode()]), "AN", [0], "intention", "C")
    assert (fields["value"], fields["low"], fields["high"]) == (1, None, None)


def test_a_missing_column_is_named():
    table = EpisodeTable([episode(intention="")])
    with pytest.raises(UserError, match="run 0123: .* no value of 'intention'"):
        table.layout_values("AN", 0, "intention", "C")


def test_each_metric_has_its_last_value(tmp_path):
    assert last_metrics(tmp_path) == {}
    lines = ['{"step": 1, "loss/flow": 2.0}', '{"step": 2, "embedding/cosine_others": 0.9}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert last_metrics(tmp_path) == {"step": 2, "loss/flow": 2.0, "embedding/cosine_others": 0.9}
