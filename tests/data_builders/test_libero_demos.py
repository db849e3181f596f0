"""LIBERO's HDF5 files: what is read, and what is refused; and the builder's jobs. No simulator."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("h5py")
import h5py  # noqa: E402

from data_builders.libero_etc import demos  # noqa: E402
from data_builders.libero_etc.libero_etc_dataset_builder import LiberoConfig  # noqa: E402
from etcvla.sims.libero import files as libero_files  # noqa: E402
from tests.data_builders.libero_demo_file import write_demo_file  # noqa: E402

SUITES = {"libero_object": ("soup", "milk"), "libero_spatial": ("bowl",)}


def _demo(steps=4, width=5):
    rng = np.random.default_rng(steps)
    return {
        "states": rng.normal(size=(steps, width)),
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "model_xml": f"<mujoco model='{steps}'/>",
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(libero_files, "suites", lambda: SUITES)
    write_demo_file(
        tmp_path / "libero_object" / "milk_demo.hdf5",
        "libero_object",
        "milk",
        [_demo(4 + i) for i in range(12)],
    )
    write_demo_file(
        tmp_path / "libero_object" / "soup_demo.hdf5", "libero_object", "soup", [_demo()]
    )
    return tmp_path


def test_files_are_found_by_the_task_that_they_name(folder):
    found = demos.find_demos(folder)
    assert {task: file.name for task, file in found.items()} == {
        "libero_object/milk": "milk_demo.hdf5",
        "libero_object/soup": "soup_demo.hdf5",
    }
    file = folder / "libero_object" / "milk_demo.hdf5"
    assert demos.find_demos(file) == {"libero_object/milk": file}


def test_a_demonstration_is_read_as_it_was_written(folder):
    file = folder / "libero_object" / "milk_demo.hdf5"
    assert demos.demo_names(file) == [f"demo_{i}" for i in range(12)]  # not 0, 1, 10, 11, 2
    demo, written = demos.read_demo(file, "demo_10"), _demo(14)
    np.testing.assert_array_equal(demo.states, written["states"])
    np.testing.assert_array_equal(demo.actions, written["actions"])
    assert demo.model_xml == written["model_xml"]


def test_what_is_not_there_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file, or no \*.hdf5 below it"):
        demos.find_demos(folder / "nowhere")
    with pytest.raises(ValueError, match="no group 'data/demo_99'"):
        demos.read_demo(folder / "libero_object" / "milk_demo.hdf5", "demo_99")


def test_the_same_task_twice_is_refused(folder):
    write_demo_file(folder / "again.hdf5", "libero_object", "milk", [_demo()])
    with pytest.raises(ValueError, match="both hold libero_object/milk"):
        demos.find_demos(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda group: group.__delitem__("states"), "data/demo_0 has no 'states', only actions"),
        (
            lambda group: group["actions"].__setitem__((2, 3), np.nan),
            "data/demo_0/actions: not finite at step 2",
        ),
        (
            lambda group: group["states"].__setitem__((1, 0), np.inf),
            "data/demo_0/states: not finite at step 1",
        ),
        (
            lambda group: group.attrs.__delitem__("model_file"),
            "data/demo_0: attribute model_file is no MuJoCo model",
        ),
        (
            lambda group: group.attrs.__setitem__("model_file", "<mujoco>"),
            "data/demo_0: attribute model_file is no MuJ",
        ),
    ],
)
def test_a_damaged_demonstration_is_named(folder, damage, message):
    file = folder / "libero_object" / "soup_demo.hdf5"
    with h5py.File(file, "r+") as opened:
        damage(opened["data/demo_0"])
    with pytest.raises(ValueError, match=message) as raised:
        demos.read_demo(file, "demo_0")
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    "demo",
    [
        {"states": np.zeros((4, 5)), "actions": np.zeros((3, 7))},
        {"states": np.zeros((4, 5)), "actions": np.zeros((4, 6))},
    ],
)
def test_a_demonstration_of_another_shape_is_refused(tmp_path, demo):
    write_demo_file(tmp_path / "a.hdf5", "libero_object", "milk", [demo])
    with pytest.raises(ValueError, match=r"expected \[T, D\] and \[T, 7\]"):
        demos.read_demo(tmp_path / "a.hdf5", "demo_0")


def test_other_files_are_refused(folder):
    (folder / "cut.hdf5").write_bytes(
        (folder / "libero_object" / "milk_demo.hdf5").read_bytes()[:2000]
    )
    with pytest.raises(ValueError, match=r"cut.hdf5: not a whole HDF5 file"):
        demos.find_demos(folder / "cut.hdf5")
    with h5py.File(folder / "else.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match="bddl_file_name is '', expected <suite>/<task>.bddl"):
        demos.find_demos(folder / "else.hdf5")


def test_jobs_of_recorded_demonstrations(folder):
    jobs = LiberoConfig(tasks=("libero_object",), data=str(folder), held_out=0.2).jobs()
    assert Counter((job.task, job.split) for job in jobs) == {
        ("libero_object/soup", "train"): 1,
        ("libero_object/milk", "train"): 10,
        ("libero_object/milk", "val"): 2,
    }
    assert [job.demo for job in jobs[1:]] == [f"demo_{i}" for i in range(12)]
    assert jobs[1].episode_id == "libero/rlds/libero_object/milk/demo_0"
    few = LiberoConfig(tasks=("libero_object/milk",), data=str(folder), episodes=3).jobs()
    assert Counter(job.split for job in few) == {"train": 3, "val": 1}
    with pytest.raises(
        FileNotFoundError, match="no demonstrations of libero_spatial/bowl; there are libero_obj"
    ):
        LiberoConfig(tasks=("libero_spatial",), data=str(folder)).jobs()


def test_jobs_of_the_expert(folder):
    jobs = LiberoConfig(
        tasks=("libero_spatial", "libero_object/1"), episodes=10, held_out=0.12
    ).jobs()
    assert Counter((job.task, job.split) for job in jobs) == {
        (task, split): count
        for task in ("libero_spatial/bowl", "libero_object/milk")
        for split, count in (("train", 10), ("val", 2))
    }
    assert len({job.episode_id for job in jobs}) == len(jobs)
    assert not any(job.file for job in jobs)


def test_names_tell_configs_apart():
    assert LiberoConfig().name == "libero_object_rlds"
    assert LiberoConfig(
        tasks=("libero_object/3",), scene="upright", image_size=96, data="x"
    ).name == ("libero_object-3_upright_replayed_96px")
    assert (
        LiberoConfig(locations="integers", noise=[0, 0.2]).name
        == "libero_object_rlds_noise0to0.2_integers"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scene": "upright_"}, "unknown scene 'upright_', did you mean 'upright'"),
        ({"image_size": 8}, "image_size 8 at least 16"),
        ({"locations": "integer"}, "unknown locations 'integer', did you mean 'integers'"),
        ({"noise": (0.3, 0.1)}, "noise .* an ascending range"),
        ({"episodes": -1}, "episodes -1 .* at least 0"),
    ],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        LiberoConfig(**setting)


def test_a_worker_starts_without_libero_and_without_tensorflow():
    """It is the first job that needs LIBERO; reading the files never does."""
    code = "import sys, data_builders.libero_etc.episodes; print({'robosuite', 'tensorflow', 'h5py'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'h5py'}"
