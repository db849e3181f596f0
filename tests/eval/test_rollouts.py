"""Rollouts with a policy made of rules, so that what is tested is the harness."""

import csv
import types

import numpy as np
import pytest

from etcvla.eval.evaluate import Spec, trials, wrong_instruction
from etcvla.eval.rollouts import GREY, Protocol, Trial, evaluate, table, write_csv

pytest.importorskip("metaworld")


class Rules:
    """Moves straight up, or towards a point that its noise seed gives; remembers what it was shown."""

    config = types.SimpleNamespace(horizon=10)

    def __init__(self, noisy=False):
        self.noisy, self.seen = noisy, []

    def act(self, observations, seeds):
        self.seen += observations
        actions = [np.random.default_rng(seed).uniform(-1, 1, 4) if self.noisy else [0, 0, 1, 0] for seed in seeds]
        return np.tile(np.array(actions, np.float32)[:, None], (1, 10, 1))


PROTOCOL = Protocol(max_steps=20, replan=5, image_size=32, workers=2)
TWO = [Trial("source", "drawer-close", 0), Trial("source", "drawer-close", 1)]


def test_the_number_of_workers_changes_nothing():
    steps = []
    for workers in (1, 2):
        policy = Rules(noisy=True)
        results = evaluate(policy, TWO, Protocol(max_steps=20, replan=5, image_size=32, workers=workers), what="test")
        assert [r.trial for r in results] == TWO and all(r.steps == 20 and not r.success for r in results)
        shown = sorted((o["seed"], o["state"].tobytes(), o["images"]["front"].tobytes()) for o in policy.seen)
        steps.append(list(dict.fromkeys(shown)))
    assert steps[0] == steps[1] and len(steps[0]) == 2 * 20 // 5


def test_conditions_change_what_the_policy_is_shown_and_nothing_else(tmp_path):
    policy = Rules()
    shown = [Trial("source", "drawer-close", 0, film=True),
             Trial("source", "drawer-close", 0, "wrong_instruction", "drawer-open"),
             Trial("source", "drawer-close", 0, "blank_image")]
    results = evaluate(policy, shown, PROTOCOL, what="test")
    words = {o["instruction"] for o in policy.seen}
    assert len(words) == 2 and any("close" in w for w in words) and any("open" in w for w in words)
    blank = [o for o in policy.seen if (o["images"]["front"] == GREY).all()]
    assert len({o["seed"] for o in blank}) == 4 and (blank[0]["images"]["wrist"] == GREY).all()
    assert results[0].frames.shape == (5, 32, 32, 3) and results[1].frames is None
    assert table(results)["blank_image"] == {"source": {"drawer-close": [0, 1]}}
    write_csv(tmp_path / "episodes.csv", results)
    lines = list(csv.DictReader((tmp_path / "episodes.csv").open()))
    assert [line["instruction_of"] for line in lines] == ["drawer-close", "drawer-open", "drawer-close"]


def test_a_workers_error_reaches_the_caller():
    with pytest.raises(ValueError, match="drawer-close"):
        evaluate(Rules(), [Trial("source", "drawer-clos", 0)], PROTOCOL, what="test")


def test_bad_protocols_are_refused():
    with pytest.raises(ValueError, match="chunk of 10"):
        evaluate(Rules(), TWO, Protocol(replan=11), what="test")
    with pytest.raises(ValueError, match="positive"):
        Protocol(workers=0)


def test_the_wrong_instruction_is_the_opposite_where_there_is_one():
    tasks = ("reach", "drawer-open", "drawer-close", "window-close")
    assert wrong_instruction("drawer-open", tasks) == "drawer-close"
    assert wrong_instruction("window-close", tasks) == "reach"
    with pytest.raises(ValueError, match="only task"):
        wrong_instruction("reach", ("reach",))


def test_a_spec_lists_every_trial_once():
    spec = Spec(tasks=("drawer-open", "drawer-close"), domains=("source", "target"),
                conditions=("right", "wrong_instruction"), trials=3, control_trials=2, films=1, questions=1,
                datasets={}, protocol=PROTOCOL, seed=0)
    listed = trials(spec)
    assert len(listed) == len(set(listed)) == 2 * 2 * (3 + 2)
    assert sum(t.film for t in listed) == 2 * 2 * 2
    with pytest.raises(ValueError, match="unknown condition"):
        Spec(**{**vars(spec), "conditions": ("dark",)})
