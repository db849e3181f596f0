"""Costs of cells, and arms of a contrast that do not match."""

import dataclasses

import pytest

from configs import common
from etcvla.errors import UserError
from etcvla.study import costs, tables
from etcvla.study.config import parse
from etcvla.study.costs import TrainingCosts
from etcvla.study.runs import make_graph
from tests.study.made_study import load_stage, run, small_graph, small_study, study_config


def test_costs_follow_from_the_plan():
    config = load_stage("a.py", "tiny", (("steps", 10),))  # 8 rows: 0.6 actions, 0.4 ETC; 1 extra
    cost = costs.run_costs(config, general=())
    assert cost.action_rows == 48
    assert cost.etc_segments == 48 + 2 * 32
    twice = costs.run_costs(load_stage("a.py", "tiny", (("steps", 20),)), general=())
    assert twice.flops == 2 * cost.flops > 0
    assert costs.run_costs(config, general=("robot",)).etc_segments == 0


def test_a_cell_costs_what_all_its_runs_cost(tmp_path):
    by_cell = costs.cell_costs(small_graph(tmp_path))
    assert by_cell["bridged"].flops == 2 * by_cell["plain"].flops
    assert by_cell["bridged"] == by_cell["slow"]
    table = tables.costs_table(by_cell)
    assert f"{by_cell['bridged'].action_rows:,}" in table and "TFLOP" in table


def test_arms_that_do_not_match_are_refused(tmp_path):
    study = small_study(tmp_path)
    plain = TrainingCosts(flops=1000, action_rows=200, etc_segments=0)
    close = dataclasses.replace(plain, flops=5, action_rows=201)
    costs.check_matched(study, {"plain": plain, "bridged": close})
    costs.check_matched(study, {"plain": plain})
    far = dataclasses.replace(plain, action_rows=100)
    message = (
        "contrast 'bridging': bridged has 100 action_rows and plain 200, which differ by more than "
        "1%; multiply the steps of plain by 0.500"
    )
    with pytest.raises(UserError, match=message):
        costs.check_matched(study, {"plain": plain, "bridged": far})
    by_flops = dataclasses.replace(study, matched="flops")
    costs.check_matched(by_flops, {"plain": plain, "bridged": far})


def test_schedules_count_with_their_mean(tmp_path):
    config = study_config(tmp_path)
    ramp = ((0.0, 0.2), (1.0, 1.0))
    config.runs.plain = run(changes=(("steps", 100), ("streams.action.weight", ramp)))
    (plain, *_) = make_graph(parse(config), load_stage).runs.values()
    shares = [step / 100 * 0.8 + 0.2 for step in range(101)]
    mean = sum(share / (share + 0.4) for share in shares) / len(shares)
    rows = costs.run_costs(plain.config, ()).action_rows
    assert rows == pytest.approx(800 * mean, abs=8)
    assert common.as_schedule(ramp) == ramp
