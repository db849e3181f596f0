"""LIBERO's own demonstrations: HDF5 files whose recorded simulator states are rendered again.

A file has one task: `data/demo_<i>/{states float64[T, D], actions float64[T, 7], ...}`, the MuJoCo
model of the demonstration in the attribute `model_file`, and the task's problem file in the
attribute `bddl_file_name` of `data`. Images are rendered again, so that size, frame rate and
conventions are the same as in the expert's episodes.
"""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from etcvla.errors import UserError
from etcvla.sims.rollout import Episode, FrameRecorder

if TYPE_CHECKING:  # files can be read without the simulator
    from etcvla.sims.libero.environment import Libero


# Steps for which the last action may be repeated until success: the recorded state does not include
# the gripper command's progress, which takes eight steps.
END_STEPS = 8


@dataclasses.dataclass(frozen=True)
class LiberoDemo:
    """One recorded demonstration of T steps."""

    states: np.ndarray  # float64[T, D], before each action
    actions: np.ndarray  # float64[T, 7]
    model_xml: str  # MuJoCo model with the positions of fixtures


def find_demos(path: str | Path) -> dict[str, Path]:
    """Return {"suite/name": file} for an HDF5 file, or for all files below a folder.

    Raises UserError if there is none, if a file is no LIBERO file, or if two have the same task.
    """
    path = Path(path)
    files = [path] if path.exists() else []
    if path.is_dir():
        files = sorted(path.rglob("*.hdf5"))
    if not files:
        raise UserError(f"--data={path}: no such file, or no *.hdf5 file below it")
    file_of_task: dict[str, Path] = {}
    for file in files:
        task = read_task(file)
        if task in file_of_task:
            raise UserError(f"{file} and {file_of_task[task]} both hold {task}; keep one")
        file_of_task[task] = file
    return file_of_task


def read_task(path: str | Path) -> str:
    """Return the task of a file as "suite/name". Raises UserError if the file does not name one."""
    with _open(path) as file:
        data = _get_group(file, "data", path)
        problem = str(data.attrs.get("bddl_file_name", ""))
    folders = re.split(r"[/\\]", problem)
    if len(folders) < 2 or not folders[-1].endswith(".bddl"):
        raise UserError(
            f"{path}: attribute data.bddl_file_name is {problem!r}, expected <suite>/<task>.bddl"
        )
    suite, name = folders[-2:]
    return f"{suite}/{name.removesuffix('.bddl')}"


def demo_names(path: str | Path) -> list[str]:
    """Return the names of the demonstrations in a file, sorted by number."""
    with _open(path) as file:
        data = _get_group(file, "data", path)
        names = [name for name in data if re.fullmatch(r"demo_\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def read_demo(path: str | Path, name: str) -> LiberoDemo:
    """Read one demonstration.

    Raises UserError that names the field if it is missing, incomplete or not finite.
    """
    where = f"{path}: data/{name}"
    arrays = {}
    with _open(path) as file:
        group = _get_group(file, f"data/{name}", path)
        for field in ("states", "actions"):
            if field not in group:
                raise UserError(f"{where} has no {field!r}, only {', '.join(group) or 'nothing'}")
            arrays[field] = np.asarray(group[field], np.float64)
        xml = _read_model_xml(group, where)
    states = arrays["states"]
    actions = arrays["actions"]
    if states.ndim != 2 or actions.shape != (len(states), 7) or not len(states):
        raise UserError(
            f"{where}: states {states.shape} and actions {actions.shape}, expected [T, D] and "
            "[T, 7] with T > 0"
        )
    for field, array in arrays.items():
        is_finite = np.isfinite(array).all(axis=1)
        if not is_finite.all():
            raise UserError(f"{where}/{field}: not finite at step {np.argmin(is_finite)}")
    return LiberoDemo(states, actions, xml)


def _read_model_xml(group: h5py.Group, where: str) -> str:
    """Return the model: fixtures have no joints, so their poses are in the model only."""
    xml = str(group.attrs.get("model_file", ""))
    try:
        ET.fromstring(xml)
    except ET.ParseError as error:
        raise UserError(f"{where}: attribute model_file is no MuJoCo model ({error})") from error
    return xml


def _open(path: str | Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not a complete HDF5 file ({error})") from error


def _get_group(file: h5py.File, name: str, path: str | Path) -> h5py.Group:
    if not isinstance(file.get(name), h5py.Group):
        raise UserError(f"{path}: no group {name!r}: not a file of LIBERO demonstrations")
    return file[name]


def replay(env: Libero, demo: LiberoDemo, seed: int = 0) -> Episode | None:
    """Return the demonstration as this code would record it; None if it does not end in success.

    Args:
      seed: draws the wording of the instruction.

    Raises UserError or ValueError if states or model are not of the environment's task.
    """
    grasp_offset = _find_grasp_offset(env, demo)
    if not _ends_in_success(env, demo):
        return None
    env.restore(demo.states[0], demo.model_xml)
    env.grasp_offset = grasp_offset
    env.success = True
    recorder = FrameRecorder(env)
    for state in demo.states:
        env.restore(state)
        recorder.add(env.observe(), env.facts())
    instruction = env.instruction(np.random.default_rng(seed))
    return recorder.episode(instruction, demo.actions.astype(np.float32), seed)


def _ends_in_success(env: Libero, demo: LiberoDemo) -> bool:
    """Return whether the last state, or the last action repeated from it, reaches the goal."""
    if env.reached():
        return True
    return any(env.step(demo.actions[-1]) for _ in range(END_STEPS))


def _find_grasp_offset(env: Libero, demo: LiberoDemo) -> np.ndarray | None:
    """Return the point where the lifted target is held, in the target's frame.

    Leaves the environment in the last state.
    """
    env.restore(demo.states[0], demo.model_xml)
    for state in demo.states:
        env.restore(state)
        if env.remember_grasp():
            break
    env.restore(demo.states[-1])
    return env.grasp_offset
