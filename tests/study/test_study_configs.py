"""The studies of configs/study.py can be run: arms match, data follow the rotation."""

import dataclasses

import pytest

from configs import study as study_configs
from etcvla.errors import UserError
from etcvla.study import costs, runs
from etcvla.study.config import parse
from launch import common

WEIGHTS = "0123"


@pytest.fixture(params=study_configs.STUDIES)
def graph(request, monkeypatch):
    monkeypatch.setattr(runs, "weights_fingerprint", lambda path: WEIGHTS)  # the base may be absent
    return runs.make_graph(parse(study_configs.get_config(request.param)), common.load_stage)


def test_arms_have_the_same_action_rows(graph, monkeypatch):
    monkeypatch.setattr(costs, "_step_flops", lambda config: 1)  # tracing takes seconds
    study = graph.study
    contrasts = tuple(contrast for contrast in study.contrasts if not contrast.matched)
    study = dataclasses.replace(study, contrasts=contrasts)
    by_cell = costs.cell_costs(graph)
    costs.check_matched(study, by_cell)
    assert by_cell["AN"].etc_segments == 0 < by_cell["RY"].etc_segments
    with pytest.raises(UserError, match="differ by more than 1%; multiply the steps of AN by"):
        costs.check_matched(dataclasses.replace(study, matched="flops"), by_cell)


def test_data_and_scenes_have_the_rotation_of_the_seed(graph):
    for (_, seed), chain in graph.cells.items():
        rotation = seed % study_configs.ROTATIONS
        last = chain[-1]
        assert last.evaluation.scenes == tuple(f"{tier}{rotation}" for tier in "APBCN")
        assert last.config.datasets["demos" + _suffix(last)].path.endswith(f"demos_r{rotation}")
        assert last.config.seed == last.evaluation.seed == seed


def _suffix(run):
    return "_renamed" if "demos_renamed" in run.config.datasets else ""


def test_arms_share_their_first_stage(graph):
    names = [(run.spec.name, run.seed) for run in graph.runs.values()]
    assert len(names) == len(set(names))
    assert graph.cells["RY", 0][0].spec.name == "R1"
    assert len(graph.cells["AN", 1]) == 1


def test_renamed_words_are_a_permutation_without_words_of_tier_c():
    entry = study_configs.datasets()["etc_renamed"][1]
    words = dict(entry["rename"])
    assert sorted(words) == sorted(words.values()) and len(words) == 5 + 6
    unknown = study_configs.tier_words("C", 1)
    assert not set(words) & {*unknown.nouns, *unknown.colors}


def test_shares_of_schedules_are_means():
    assert study_configs.mean_share(0.3) == pytest.approx(0.3)
    assert study_configs.mean_share(((0.0, 0.2), (0.5, 0.6))) == pytest.approx(0.5)


def test_unknown_studies_are_named():
    with pytest.raises(UserError, match="unknown study 'pilott'; choose from pilot, bridges"):
        study_configs.get_config("pilott")
