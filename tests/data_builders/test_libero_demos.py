"""Reader of LIBERO's HDF5 files, and the jobs of the LIBERO builder. No simulator."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("h5py")
import h5py  # noqa: E402

from data_builders.libero_etc import demos  # noqa: E402
from data_builders.libero_etc.libero_etc_dataset_builder import LiberoConfig  # noqa: E402
from etcvla.errors import UserError  # noqa: E402
from etcvla.sims.libero import files as libero_files  # noqa: E402
from tests.data_builders.libero_demo_file import write_demo_file  # noqa: E402

SUITES = {"libero_object": ("soup", "milk"), "libero_spatial": ("bowl",)}


def make_demo(steps=4, width=5):
    rng = np.random.default_rng(steps)
    return {
        "states": rng.normal(size=(steps, width)),
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "model_xml": f"<mujoco model='{steps}'/>",
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Folder with twelve demonstrations of one task and one of another."""
    monkeypatch.setattr(libero_files, "suites", lambda: SUITES)
    suite = tmp_path / "libero_object"
    milk = [make_demo(4 + i) for i in range(12)]
    write_demo_file(suite / "milk_demo.hdf5", "libero_object", "milk", milk)
    write_demo_file(suite / "soup_demo.hdf5", "libero_object", "soup", [make_demo()])
    return tmp_path


def test_files_are_found_by_their_task(folder):
    files = demos.find_demos(folder)
    assert {task: file.name for task, file in files.items()} == {
        "libero_object/milk": "milk_demo.hdf5",
        "libero_object/soup": "soup_demo.hdf5",
    }
    file = folder / "libero_object" / "milk_demo.hdf5"
    assert demos.find_demos(file) == {"libero_object/milk": file}


def test_demonstration_is_read_as_it_was_written(folder):
    file = folder / "libero_object" / "milk_demo.hdf5"
    assert demos.demo_names(file) == [f"demo_{i}" for i in range(12)]  # not 0, 1, 10, 11, 2
    demo = demos.read_demo(file, "demo_10")
    written = make_demo(14)
    np.testing.assert_array_equal(demo.states, written["states"])
    np.testing.assert_array_equal(demo.actions, written["actions"])
    assert demo.model_xml == written["model_xml"]


def test_missing_files_and_demonstrations_are_errors(folder):
    with pytest.raises(UserError, match=r"nowhere: no such file, or no \*.hdf5 file below it"):
        demos.find_demos(folder / "nowhere")
    with pytest.raises(UserError, match="no group 'data/demo_99'"):
        demos.read_demo(folder / "libero_object" / "milk_demo.hdf5", "demo_99")


def test_two_files_of_one_task_are_an_error(folder):
    write_demo_file(folder / "again.hdf5", "libero_object", "milk", [make_demo()])
    with pytest.raises(UserError, match="both hold libero_object/milk"):
        demos.find_demos(folder)


def delete_states(group):
    del group["states"]


def set_nan_action(group):
    group["actions"][2, 3] = np.nan


def set_infinite_state(group):
    group["states"][1, 0] = np.inf


def delete_model(group):
    del group.attrs["model_file"]


def cut_model(group):
    group.attrs["model_file"] = "<mujoco>"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete_states, "data/demo_0 has no 'states', only actions"),
        (set_nan_action, "data/demo_0/actions: not finite at step 2"),
        (set_infinite_state, "data/demo_0/states: not finite at step 1"),
        (delete_model, "data/demo_0: attribute model_file is no MuJoCo model"),
        (cut_model, "data/demo_0: attribute model_file is no MuJoCo model"),
    ],
)
def test_damaged_demonstration_is_an_error(folder, damage, message):
    file = folder / "libero_object" / "soup_demo.hdf5"
    with h5py.File(file, "r+") as opened:
        damage(opened["data/demo_0"])
    with pytest.raises(UserError, match=message) as raised:
        demos.read_demo(file, "demo_0")
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("shape", [(3, 7), (4, 6)])
def test_actions_of_another_shape_are_an_error(tmp_path, shape):
    demo = {"states": np.zeros((4, 5)), "actions": np.zeros(shape)}
    write_demo_file(tmp_path / "a.hdf5", "libero_object", "milk", [demo])
    with pytest.raises(UserError, match=r"expected \[T, D\] and \[T, 7\]"):
        demos.read_demo(tmp_path / "a.hdf5", "demo_0")


def test_other_files_are_errors(folder):
    complete = (folder / "libero_object" / "milk_demo.hdf5").read_bytes()
    (folder / "cut.hdf5").write_bytes(complete[:2000])
    with pytest.raises(UserError, match="cut.hdf5: not a complete HDF5 file"):
        demos.find_demos(folder / "cut.hdf5")
    with h5py.File(folder / "other.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(UserError, match="bddl_file_name is '', expected <suite>/<task>.bddl"):
        demos.find_demos(folder / "other.hdf5")


def test_jobs_of_recorded_demonstrations(folder):
    jobs = LiberoConfig(tasks=("libero_object",), data=str(folder), held_out=0.2).jobs()
    assert Counter((job.task, job.split) for job in jobs) == {
        ("libero_object/soup", "train"): 1,
        ("libero_object/milk", "train"): 10,
        ("libero_object/milk", "val"): 2,
    }
    assert [job.demo for job in jobs[1:]] == [f"demo_{i}" for i in range(12)]
    assert jobs[1].episode_id == "libero/rlds/libero_object/milk/demo_0"


def test_episodes_limit_the_recorded_demonstrations(folder):
    jobs = LiberoConfig(tasks=("libero_object/milk",), data=str(folder), episodes=3).jobs()
    assert Counter(job.split for job in jobs) == {"train": 3, "val": 1}


def test_task_without_demonstrations_is_an_error(folder):
    message = "no demonstrations of libero_spatial/bowl; there are libero_obj"
    with pytest.raises(UserError, match=message):
        LiberoConfig(tasks=("libero_spatial",), data=str(folder)).jobs()


def test_jobs_of_the_expert(folder):
    tasks = ("libero_spatial", "libero_object/1")
    jobs = LiberoConfig(tasks=tasks, episodes=10, held_out=0.12).jobs()
    assert Counter((job.task, job.split) for job in jobs) == {
        ("libero_spatial/bowl", "train"): 10,
        ("libero_spatial/bowl", "val"): 2,
        ("libero_object/milk", "train"): 10,
        ("libero_object/milk", "val"): 2,
    }
    assert len({job.episode_id for job in jobs}) == len(jobs)
    assert not any(job.file for job in jobs)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "libero_object_rlds"),
        (
            {
                "tasks": ("libero_object/3",),
                "scene": "upright",
                "image_size": 96,
                "data": "x",
            },
            "libero_object-3_upright_replayed_96px",
        ),
        (
            {"locations": "integers", "noise": [0, 0.2]},
            "libero_object_rlds_noise0to0.2_integers",
        ),
    ],
)
def test_different_configs_have_different_names(fields, name):
    assert LiberoConfig(**fields).name == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scene": "upright_"}, "unknown scene 'upright_', did you mean 'upright'"),
        ({"image_size": 8}, "image_size must be at least 16, got 8"),
        ({"locations": "integer"}, "unknown locations 'integer', did you mean 'integers'"),
        ({"noise": (0.3, 0.1)}, "noise .* ascending range"),
        ({"episodes": -1}, "episodes must be at least 0, got -1"),
    ],
)
def test_wrong_config_fields_are_errors(fields, message):
    with pytest.raises(UserError, match=message):
        LiberoConfig(**fields)


def test_worker_imports_neither_libero_nor_tensorflow():
    """The first job imports LIBERO; reading demonstration files does not."""
    code = (
        "import sys, data_builders.libero_etc.episodes; "
        "print({'robosuite', 'tensorflow', 'h5py'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'h5py'}"
