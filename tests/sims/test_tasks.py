"""The table of Meta-World's tasks is complete, consistent and unambiguous."""

from collections import Counter

import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from etcvla.sims.metaworld.tasks import DEMO_TASKS, MT10, NUM_OBJECTS, TASKS
from etcvla.sims.phases import PHASE_CONDITIONS


def test_table_contains_all_tasks_of_meta_world():
    assert set(TASKS) == {name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS}
    assert len(TASKS) == 50
    assert set(DEMO_TASKS) <= set(TASKS)
    assert set(MT10) <= set(TASKS)
    assert len(MT10) == 10


@pytest.mark.parametrize("name", TASKS)
def test_task_is_consistent(name):
    task = TASKS[name]
    objects = {spec.name: spec for spec in task.objects}
    assert objects[task.target].touch is not None
    assert len(objects) == len(task.objects) <= NUM_OBJECTS
    assert len(set(task.instructions)) >= 4
    assert len(task.phases) >= 2
    *earlier, last = [phase.until for phase in task.phases]
    assert last == "never"
    assert "never" not in earlier
    assert set(earlier) <= set(PHASE_CONDITIONS)
    for spec in task.objects:
        assert bool(spec.body) != bool(spec.site)


def test_opposite_tasks_name_each_other():
    pairs = {name: task.opposite for name, task in TASKS.items() if task.opposite}
    assert pairs["drawer-open"] == "drawer-close"
    assert len(pairs) == 8
    for name, opposite in pairs.items():
        assert pairs[opposite] == name


def test_no_instruction_belongs_to_two_tasks():
    counts = Counter()
    for task in TASKS.values():
        counts.update(task.instructions)
    assert counts.most_common(1)[0][1] == 1


def test_tasks_whose_instruction_names_a_marker_have_one():
    for task in TASKS.values():
        names_marker = any("marker" in text for text in task.instructions)
        has_marker = any(spec.site for spec in task.objects)
        assert has_marker or not names_marker, task.instructions
