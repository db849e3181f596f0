"""The task table: complete, consistent, and unambiguous in words."""

from collections import Counter

import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from etcvla.sims.metaworld.tasks import DEMO_TASKS, MT10, NUM_OBJECTS, TASKS
from etcvla.sims.phases import PHASE_CONDITIONS


def test_the_table_holds_all_of_meta_world():
    assert set(TASKS) == {name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS}
    assert len(TASKS) == 50
    assert set(DEMO_TASKS) <= set(TASKS)
    assert set(MT10) <= set(TASKS)
    assert len(MT10) == 10


@pytest.mark.parametrize("name", TASKS)
def test_a_row_is_consistent(name):
    task = TASKS[name]
    names = [spec.name for spec in task.objects]
    assert next(spec for spec in task.objects if spec.name == task.target).touch is not None
    assert len(set(names)) == len(names) <= NUM_OBJECTS
    assert len(set(task.instructions)) >= 4
    assert len(task.phases) >= 2
    assert all(phase.until in PHASE_CONDITIONS for phase in task.phases)
    assert [phase.until == "never" for phase in task.phases] == [False] * (len(task.phases) - 1) + [
        True
    ]
    assert all(bool(spec.body) != bool(spec.site) for spec in task.objects)


def test_every_instruction_names_one_task():
    counts = Counter(text for task in TASKS.values() for text in task.instructions)
    assert [text for text, count in counts.items() if count > 1] == []


def test_an_instruction_that_speaks_of_the_marker_has_one():
    for task in TASKS.values():
        spoken = any("marker" in text for text in task.instructions)
        assert not spoken or any(spec.site for spec in task.objects), task.instructions
