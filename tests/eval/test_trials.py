"""Trials of a grid, wrong instructions, and checks of protocols."""

import pytest

from etcvla.errors import UserError
from etcvla.eval.evaluate import EvaluationSpec
from etcvla.eval.trials import EvalProtocol, wrong_instruction

SPEC = EvaluationSpec(
    tasks=("drawer-open", "drawer-close"),
    scenes=("source", "target"),
    interventions=("right", "wrong_instruction"),
    trials=3,
    intervention_trials=2,
    videos=1,
    questions=1,
    datasets={},
    protocol=EvalProtocol(),
    seed=0,
)


def test_grid_lists_every_trial_once():
    trials = SPEC.grid.trials()
    assert len(trials) == len(set(trials)) == 2 * 2 * (3 + 2)
    assert sum(trial.video for trial in trials) == 2 * 2 * 2


def test_unknown_intervention_is_refused():
    with pytest.raises(UserError, match="unknown intervention"):
        EvaluationSpec(**{**vars(SPEC), "interventions": ("dark",)})


def test_wrong_instruction_is_that_of_the_opposite_task_if_there_is_one():
    tasks = ("reach", "drawer-open", "drawer-close", "window-close")
    assert wrong_instruction("metaworld", "drawer-open", tasks) == "drawer-close"
    assert wrong_instruction("metaworld", "window-close", tasks) == "reach"
    with pytest.raises(UserError, match="only task"):
        wrong_instruction("metaworld", "reach", ("reach",))


@pytest.mark.parametrize(
    "fields", [{"workers": 0}, {"max_steps": 0}, {"replan_steps": -1}, {"ensemble": -0.1}]
)
def test_wrong_protocols_are_refused(fields):
    with pytest.raises(UserError, match="must be positive"):
        EvalProtocol(**fields)
