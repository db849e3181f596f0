"""Kills a real run at random moments, again and again; where it ends is compared, bit by bit, with one that was let be.

    python -m tests.kill_training --kills=20 [--seed=0]

One kill in four is a SIGTERM, which the run may answer by saving; the others are SIGKILL.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import signal
import tempfile
import time

import jax
import numpy as np

from etcvla.rules import path_str
from etcvla.train import sharding
from etcvla.train.checkpoint import Checkpoints
from etcvla.train.hosts import PREEMPTED
from etcvla.train.loop import abstract_state, train
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import write_robot_set
from tests.train.nano import nano_config

STEPS = 8


def config_of(dataset: pathlib.Path, workdir: pathlib.Path):
    """Saved after every step, so that most moments are in a save."""
    return nano_config(dataset, workdir, steps=STEPS, save_every=1, keep=2)


def run(dataset: pathlib.Path, workdir: pathlib.Path) -> None:
    """A process: trains until it is done, or killed."""
    train(config_of(dataset, workdir))


class Killer:
    """Runs of one config in processes that share their imports and a compilation cache."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.dataset = write_robot_set(folder / "robot")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.kill_training"])

    def finish(self, workdir: pathlib.Path) -> float:
        """Lets a run end; returns its seconds."""
        began = time.time()
        code = self._end(self._start(workdir))
        if code:
            raise AssertionError(f"a run in {workdir} ended with {code}")
        return time.time() - began

    def kill(self, workdir: pathlib.Path, within: float) -> int:
        """Kills a run at some moment within so many seconds; returns its exit code, 0 if it had ended before."""
        process = self._start(workdir)
        process.join(self.rng.uniform(0, within))
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM if self.rng.random() < 0.25 else signal.SIGKILL)
        return self._end(process)

    def state(self, workdir: pathlib.Path) -> dict[str, np.ndarray]:
        """The newest checkpoint, by path."""
        config = config_of(self.dataset, workdir)
        _, abstract = abstract_state(Stage.open(config), sharding.make_mesh(config.mesh))
        found = Checkpoints(workdir).restore(abstract)
        return {path_str(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}

    def _start(self, workdir):
        process = self._context.Process(target=run, args=(self.dataset, workdir))
        process.start()
        return process

    def _end(self, process):
        process.join()
        return process.exitcode


def kill_training(folder: pathlib.Path, kills: int, seed: int) -> dict[str, int]:
    """Kills so often, and lets each run end at last.

    Returns: how many {"SIGKILL", "SIGTERM", "runs"} there were. Raises AssertionError where a run ended elsewhere.
    """
    killer, counts = Killer(folder, seed), {"SIGKILL": 0, "SIGTERM": 0, "runs": 0}
    killer.finish(folder / "let_be")  # and fills the compilation cache
    expected, seconds = killer.state(folder / "let_be"), killer.finish(folder / "timed")
    while counts["SIGKILL"] + counts["SIGTERM"] < kills:
        workdir = folder / f"killed_{counts['runs']}"
        code = killer.kill(workdir, seconds)
        name = {-signal.SIGKILL: "SIGKILL", -signal.SIGTERM: "SIGTERM", PREEMPTED: "SIGTERM"}.get(code)
        if name:
            counts[name] += 1
            print(f"{name} at step {Checkpoints(workdir).latest() or 0}", flush=True)
        elif code:
            raise AssertionError(f"a run in {workdir} ended with {code}")
        if not code or counts["SIGKILL"] + counts["SIGTERM"] == kills:
            killer.finish(workdir)
            assert_same(killer.state(workdir), expected)
            assert logged(workdir) == logged(folder / "let_be"), f"{workdir} logged other steps"
            counts["runs"] += 1
    return counts


def logged(workdir: pathlib.Path) -> list[dict[str, float]]:
    """What a run's lines say of its steps and their batches."""
    with (workdir / "metrics.jsonl").open() as file:
        return [{name: value for name, value in json.loads(line).items()
                 if name == "step" or name.startswith(("loss", "grad_norm", "mixture"))} for line in file]


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raises AssertionError naming an array that differs in a bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        counts = kill_training(pathlib.Path(folder), options.kills, options.seed)
    print(f"{counts['SIGKILL']} times SIGKILL, {counts['SIGTERM']} times SIGTERM, {counts['runs']} runs of {STEPS} "
          "steps: each ended in the bits of the run that was let be")


if __name__ == "__main__":
    main()
