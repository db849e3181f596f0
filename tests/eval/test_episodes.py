"""Slots run episodes one after another, and trials of one layout name its objects in turn."""

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.eval.episodes import Slot, advance
from etcvla.eval.trials import EvalProtocol, TrialGrid
from etcvla.sims.environment import PairedEnvironment
from tests.eval import paired_toy
from tests.eval.paired_toy import NAMES, Reader, RowEnvironment

PROTOCOL = EvalProtocol(max_steps=6, replan_steps=2, image_size=8, workers=1, environments=2)


@pytest.fixture(autouse=True)
def row(monkeypatch):
    paired_toy.register(monkeypatch)


def make_trials(count=6, interventions=("right",), **fields):
    counts = dict.fromkeys(interventions, count)
    return TrialGrid("row", ("table",), ("touch",), counts, **fields).trials()


def run(shares, policy, protocol=PROTOCOL):
    """Run the trials of each slot; return their results and the sizes of the batches."""
    slots = [Slot() for _ in shares]
    for slot, trials in zip(slots, shares, strict=True):
        slot.start(protocol, trials)
    results = []
    sizes = []
    chunks = {}
    while True:
        update = advance(slots, chunks)
        results += [result for _, result in update.results]
        if not update.observations:
            return results, sizes
        sizes.append(len(update.observations))
        actions = policy.act(list(update.observations.values()), None)
        chunks = dict(zip(update.observations, actions, strict=True))


def test_next_trial_starts_as_soon_as_one_has_ended():
    trials = make_trials(12)
    results, sizes = run([trials[:6], trials[6:]], Reader())
    assert len(results) == 12
    assert all(result.success and result.steps == 2 for result in results)
    assert sizes == [2] * 6  # one query of each episode, and no batch with an empty row


def test_environments_are_kept_until_a_trial_needs_another_one():
    before = RowEnvironment.made
    trials = make_trials(3, conditions=("", "night"))
    slot = Slot()
    slot.start(PROTOCOL, trials)
    first = slot._environment(trials[0])
    assert slot._environment(trials[2]) is first
    other = slot._environment(trials[3])
    assert (first.closed, other.condition) == (True, "night")
    assert RowEnvironment.made == before + 2


def test_episodes_end_at_the_last_step_if_nothing_is_touched():
    class Idle(Reader):
        def act(self, observations, seeds):
            return np.zeros((len(observations), 2, 2), np.float32)

    results, sizes = run([make_trials(3)], Idle())
    assert [(result.success, result.steps, result.touched) for result in results] == [
        (False, 6, "")
    ] * 3
    assert len(sizes) == 3 * 3


def rows_by_intervention(policy):
    interventions = ("right", "no_instruction", "wrong_instruction", "blank_image")
    results, _ = run([make_trials(6, interventions)], policy)
    rows = {name: [] for name in interventions}
    for result in results:
        rows[result.trial.intervention].append(result.to_row())
    return rows


def test_rows_say_what_was_named_and_touched():
    rows = rows_by_intervention(Reader())
    for group in rows.values():
        assert [row["layout"] for row in group] == ["0"] * 3 + ["1"] * 3
        assert sorted(row["named"] for row in group[:3]) == sorted(NAMES)
        assert {row["novelty"] for row in group} == {"none", "noun", "color"}
    for row in rows["right"]:
        assert row["named"] == row["touched"] == row["instruction_of"]
        assert row["instruction"] == f"touch the {row['named']}"
    for row in rows["no_instruction"]:
        assert (row["instruction"], row["instruction_of"]) == ("", "")
    assert len({row["touched"] for row in rows["no_instruction"][:3]}) == 1


def test_wrong_instructions_name_each_other_object_once():
    rows = rows_by_intervention(Reader())["wrong_instruction"]
    for row in rows:
        assert row["instruction_of"] != row["named"]
        assert row["touched"] == row["instruction_of"]
        assert row["success"] == row["intention"] == "0"
    assert sorted(row["instruction_of"] for row in rows[:3]) == sorted(NAMES)
    shifts = set()
    for row in rows:
        shifts.add((NAMES.index(row["instruction_of"]) - NAMES.index(row["named"])) % 3)
    assert shifts == {1, 2}  # layouts differ in which object the wrong instruction names


def test_incomplete_layouts_and_unknown_conditions_are_refused():
    with pytest.raises(UserError, match="4 trials with right: a layout of row has 3 trials"):
        make_trials(4)
    with pytest.raises(UserError, match="unknown condition of touch in row 'nigth'.*'night'"):
        make_trials(3, conditions=("nigth",))


def test_trials_of_a_tabletop_layout_differ_in_the_named_object_alone():
    pytest.importorskip("mujoco")
    grid = TrialGrid("tabletop", ("C0",), ("touch",), {"right": 5, "wrong_instruction": 5})
    trials = grid.trials()
    slot = Slot()
    slot.start(EvalProtocol(max_steps=1, image_size=32), trials)
    queries = []
    chunk = None
    while (answer := slot.advance(chunk))[1] is not None:
        queries.append(answer[1])
        chunk = np.zeros((5, 4), np.float32)
    env = slot._environment(trials[0])
    assert isinstance(env, PairedEnvironment)
    names = [own.name for own in env.objects]
    for start in (0, 5):
        named = [query["instruction"] for query in queries[start : start + 5]]
        assert [sum(name in text for text in named) for name in names] == [1] * 5
    for right, wrong in zip(queries[:5], queries[5:], strict=True):
        assert right["instruction"] != wrong["instruction"]
    assert len({query["images"]["front"].tobytes() for query in queries}) == 1
