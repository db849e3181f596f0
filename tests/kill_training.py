"""Kills a real run at random moments, again and again; where it ends is compared, bit by bit, with one that was let be.

    python -m tests.kill_training --kills=20 [--processes=1,2] [--seed=0]

One kill in four is a SIGTERM, which the run may answer by saving; the others are SIGKILL. With several numbers of
processes a run is taken up by each in turn, on as many devices in all: hosts come and go while it is being killed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import wait

import jax
import numpy as np

from etcvla.rules import path_str
from etcvla.train import hosts, sharding
from etcvla.train.checkpoint import find_checkpoint, open_checkpoint
from etcvla.train.loop import abstract_state, train
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import write_robot_set
from tests.train.nano import nano_config

STEPS = 8


def config_of(dataset: pathlib.Path, workdir: pathlib.Path):
    """Saved after every step, so that most moments are in a save."""
    return nano_config(dataset, workdir, steps=STEPS, save_every=1, keep=2)


def run(dataset: pathlib.Path, workdir: pathlib.Path, devices: int, others: tuple) -> None:
    """A process with so many devices, alone or one of several: trains until the run is done, or killed.

    Args:
      others: what `hosts.connect` takes; () for none.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    if others:
        hosts.connect(*others)
    train(config_of(dataset, workdir))


def saved_step(workdir: pathlib.Path) -> int:
    """Return the step of a workdir's newest checkpoint; 0 without one."""
    checkpoint = find_checkpoint(workdir)
    return checkpoint.step if checkpoint else 0


def free_port() -> int:
    """One of this machine that nobody listens at."""
    with contextlib.closing(socket.socket()) as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Killer:
    """Runs of one config in processes that share their imports and a compilation cache.

    Args:
      counts: of processes: one run's is the first, the next one's the second, and so on, and over again.
    """

    def __init__(self, folder: pathlib.Path, seed: int, counts: Sequence[int] = (1,)):
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.dataset = write_robot_set(folder / "robot")
        self._counts, self._devices = itertools.cycle(counts), max(counts)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["etcvla.train.loop", "tests.train.nano"])

    def finish(self, workdir: pathlib.Path) -> float:
        """Lets a run end; returns its seconds."""
        began = time.time()
        codes = self._end(self._start(workdir))
        if any(codes):
            raise AssertionError(f"a run in {workdir} ended with {codes}")
        return time.time() - began

    def kill(self, workdir: pathlib.Path, within: float) -> str:
        """Kills one of a run's processes at some moment within so many seconds, and then those that fail or hang.

        Returns: the signal that ended the run, "" if it had ended before. Raises AssertionError at another end.
        """
        processes = self._start(workdir)
        wait([process.sentinel for process in processes], self.rng.uniform(0, within))
        number = signal.SIGTERM if self.rng.random() < 0.25 else signal.SIGKILL
        victim = processes[self.rng.integers(len(processes))]
        if told := victim.is_alive():
            os.kill(victim.pid, number)
        codes = self._end(processes)
        if not any(codes):
            return ""
        alone = {-number, hosts.PREEMPTED} if number == signal.SIGTERM else {-number}
        if (
            not told or len(processes) == 1 and victim.exitcode not in alone
        ):  # who lacks another fails in many ways
            raise AssertionError(f"a run in {workdir} ended with {codes}")
        return number.name

    def state(self, workdir: pathlib.Path) -> dict[str, np.ndarray]:
        """The newest checkpoint, by path."""
        config = config_of(self.dataset, workdir)
        _, abstract = abstract_state(Stage.open(config), sharding.make_mesh(config.mesh))
        found = open_checkpoint(workdir).train_state(abstract)
        return {
            path_str(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]
        }

    def _start(self, workdir):
        count, address = next(self._counts), f"localhost:{free_port()}"
        processes = [
            self._context.Process(
                target=run,
                args=(
                    self.dataset,
                    workdir,
                    self._devices // count,
                    (address, count, i) if count > 1 else (),
                ),
            )
            for i in range(count)
        ]
        for process in processes:
            process.start()
        return processes

    def _end(self, processes):
        """Exit codes of all; as what restarts a pod does, ends the others of one that failed."""
        alive = processes
        while alive:
            wait([process.sentinel for process in alive])
            alive = [process for process in processes if process.is_alive()]
            if any(process.exitcode not in (None, 0, hosts.PREEMPTED) for process in processes):
                for process in alive:
                    process.kill()
        return [process.exitcode for process in processes]


def kill_training(
    folder: pathlib.Path, kills: int, seed: int, processes: Sequence[int] = (1,)
) -> dict[str, int]:
    """Kills so often, and lets each run end at last.

    Returns: how many {"SIGKILL", "SIGTERM", "runs"} there were. Raises AssertionError where a run ended elsewhere.
    """
    killer, counts = Killer(folder, seed, processes), {"SIGKILL": 0, "SIGTERM": 0, "runs": 0}
    let_be = [folder / f"let_be_{i}" for i in range(len(processes))]
    for workdir in let_be:  # and fill the compilation cache
        killer.finish(workdir)
    expected, seconds = (
        killer.state(let_be[0]),
        max(killer.finish(folder / f"timed_{n}") for n in processes),
    )
    assert_as(killer, let_be[-1], expected, let_be[0])
    while counts["SIGKILL"] + counts["SIGTERM"] < kills:
        workdir = folder / f"killed_{counts['runs']}"
        if name := killer.kill(workdir, seconds):
            counts[name] += 1
            print(f"{name} at step {saved_step(workdir)}", flush=True)
        if not name or counts["SIGKILL"] + counts["SIGTERM"] == kills:
            killer.finish(workdir)
            assert_as(killer, workdir, expected, let_be[0])
            counts["runs"] += 1
    return counts


def assert_as(
    killer: Killer, workdir: pathlib.Path, expected: dict[str, np.ndarray], let_be: pathlib.Path
) -> None:
    """Raises AssertionError where a run ended in other bits, or logged other steps, than the one that was let be."""
    found = killer.state(workdir)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert logged(workdir) == logged(let_be), f"{workdir} logged other steps"


def logged(workdir: pathlib.Path) -> list[dict[str, float]]:
    """What a run's lines say of its steps and their batches."""
    with (workdir / "metrics.jsonl").open() as file:
        return [
            {
                name: value
                for name, value in json.loads(line).items()
                if name == "step" or name.startswith(("loss", "grad_norm", "mixture"))
            }
            for line in file
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--processes", default="1", help="numbers of processes that take a run up, in turn"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        counts = kill_training(
            pathlib.Path(folder),
            options.kills,
            options.seed,
            [int(count) for count in options.processes.split(",")],
        )
    print(
        f"{counts['SIGKILL']} times SIGKILL, {counts['SIGTERM']} times SIGTERM, {counts['runs']} runs of {STEPS} "
        "steps: each ended in the bits of the run that was let be"
    )


if __name__ == "__main__":
    main()
