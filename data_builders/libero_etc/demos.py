"""LIBERO's own demonstrations: HDF5 files whose recorded simulator states are shown again and written down.

A file holds one task: `data/demo_<i>/{states float64[T, D], actions float64[T, 7], ...}`, the demonstration's model in
the attribute `model_file`, and in the attributes of `data` the problem file (`bddl_file_name`). Images are rendered
anew, so that size, decimation and convention are ours.
"""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from etcvla.sims.libero.tasks import CAMERAS
from etcvla.sims.rollout import Episode, annotate, encode_jpeg

if TYPE_CHECKING:  # the files can be read without the simulator
    from etcvla.sims.libero.environment import Libero


# How long the last action may take to end in success: a state does not tell how far the command to the fingers, which
# turns in eight steps, had got.
END_STEPS = 8


@dataclasses.dataclass(frozen=True)
class Demo:
    """One recorded demonstration of T steps."""

    states: np.ndarray  # float64[T, D], before each action
    actions: np.ndarray  # float64[T, 7]
    model_xml: str  # with the places of its fixtures


def find_demos(path: str | Path) -> dict[str, Path]:
    """{"suite/name": file} of an HDF5 file, or of all that lie below a directory.

    Raises FileNotFoundError if there is none, ValueError if a file is no LIBERO file or two hold the same task.
    """
    path = Path(path)
    files = sorted(path.rglob("*.hdf5")) if path.is_dir() else [path] if path.exists() else []
    if not files:
        raise FileNotFoundError(
            f"{path}: no such file, or no *.hdf5 below it; LIBERO's demonstrations are wanted"
        )
    found: dict[str, Path] = {}
    for file in files:
        task = task_of(file)
        if task in found:
            raise ValueError(f"{file} and {found[task]} both hold {task}; keep one")
        found[task] = file
    return found


def task_of(path: str | Path) -> str:
    """ "suite/name" of the task that a file demonstrates. Raises ValueError if it does not say."""
    with _open(path) as file:
        data = _group(file, "data", path)
        problem = str(data.attrs.get("bddl_file_name", ""))
    parts = re.split(r"[/\\]", problem)
    if len(parts) < 2 or not parts[-1].endswith(".bddl"):
        raise ValueError(
            f"{path}: attribute data.bddl_file_name is {problem!r}, expected <suite>/<task>.bddl"
        )
    return f"{parts[-2]}/{parts[-1].removesuffix('.bddl')}"


def names(path: str | Path) -> list[str]:
    """The demonstrations in a file, in the order of their numbers."""
    with _open(path) as file:
        return sorted(
            (name for name in _group(file, "data", path) if re.fullmatch(r"demo_\d+", name)),
            key=lambda name: int(name[5:]),
        )


def read_demo(path: str | Path, name: str) -> Demo:
    """Raises ValueError naming file, demonstration and field where one is missing, of another shape or not finite."""
    with _open(path) as file:
        group = _group(file, f"data/{name}", path)
        for field in ("states", "actions"):
            if field not in group:
                raise ValueError(
                    f"{path}: data/{name} has no {field!r}, only {', '.join(group) or 'nothing'}"
                )
        states, actions = (np.asarray(group[field], np.float64) for field in ("states", "actions"))
        xml = _model_xml(group, f"{path}: data/{name}")
    if states.ndim != 2 or actions.shape != (len(states), 7) or not len(states):
        raise ValueError(
            f"{path}: data/{name}: states {states.shape} and actions {actions.shape}, expected [T, D] "
            f"and [T, 7] with T > 0"
        )
    for field, value in (("states", states), ("actions", actions)):
        if not np.isfinite(value).all():
            step = np.argwhere(~np.isfinite(value))[0][0]
            raise ValueError(f"{path}: data/{name}/{field}: not finite at step {step}")
    return Demo(states, actions, xml)


def _model_xml(group: h5py.Group, where: str) -> str:
    """Fixtures have no joints, so that only the model tells where they stood."""
    xml = str(group.attrs.get("model_file", ""))
    try:
        ET.fromstring(xml)
    except ET.ParseError as error:
        raise ValueError(f"{where}: attribute model_file is no MuJoCo model ({error})") from error
    return xml


def _open(path: str | Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a whole HDF5 file ({error})") from error


def _group(file: h5py.File, name: str, path: str | Path) -> h5py.Group:
    if not isinstance(file.get(name), h5py.Group):
        raise ValueError(f"{path}: no group {name!r}: not a file of LIBERO demonstrations")
    return file[name]


def replay(env: Libero, demo: Demo, seed: int = 0) -> Episode | None:
    """The demonstration as it would have been recorded here; None if it does not end in success.

    Args:
      seed: draws the wording of the instruction.

    Raises ValueError where states or model are not of the environment's task.
    """
    hold = _find_hold(env, demo)
    if not (env.reached() or any(env.step(demo.actions[-1]) for _ in range(END_STEPS))):
        return None
    env.restore(demo.states[0], demo.model_xml)
    env.grasp_offset, env.success = hold, True
    images, states, facts = {name: [] for name in CAMERAS}, [], []
    for state in demo.states:
        env.restore(state)
        observation = env.observe()
        for name, image in observation["images"].items():
            images[name].append(encode_jpeg(image))
        states.append(observation["state"])
        facts.append(env.facts())
    annotation = annotate(env, env.instruction(np.random.default_rng(seed)), facts)
    return Episode(images, np.array(states), demo.actions.astype(np.float32), annotation, seed)


def _find_hold(env: Libero, demo: Demo) -> np.ndarray | None:
    """Where the target is held once it is being lifted, in its frame. Leaves the last state behind."""
    env.restore(demo.states[0], demo.model_xml)
    for state in demo.states:
        env.restore(state)
        if env.remember_grasp():
            break
    env.restore(demo.states[-1])
    return env.grasp_offset
