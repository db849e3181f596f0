"""Kill a training run at random moments, and compare its end with that of an uninterrupted run.

    python -m tests.kill_training --kills=20 [--processes=1,2] [--seed=0]

One kill in four is a SIGTERM, which the run may answer by saving; the others are SIGKILL. With
several numbers of processes, each start of a run uses the next number, on as many devices in all.
The final states must be equal bit by bit, and so must the logged losses.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
import ml_collections
import numpy as np

from etcvla.train import hosts
from etcvla.train.checkpoint import find_checkpoint
from etcvla.train.loop import train
from tests.data.handmade_rlds import write_robot_set
from tests.train.nano import nano_config, read_metrics, saved_state

STEPS = 8


def make_config(dataset: pathlib.Path, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Return a config that saves after every step, so that most kills hit a save."""
    return nano_config(dataset, workdir, steps=STEPS, save_every=1, keep=2)


def run(dataset: pathlib.Path, workdir: pathlib.Path, devices: int, cluster: tuple) -> None:
    """Train in this process until the run is done or killed.

    Args:
      devices: number of devices of this process.
      cluster: arguments of `hosts.connect`; () for a run of one process.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    if cluster:
        hosts.connect(*cluster)
    train(make_config(dataset, workdir))


def saved_step(workdir: pathlib.Path) -> int:
    """Return the step of a workdir's newest checkpoint; 0 without one."""
    checkpoint = find_checkpoint(workdir)
    return checkpoint.step if checkpoint else 0


def free_port() -> int:
    """Return an unused port of this machine."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Killer:
    """Starts runs in processes that share their imports and a compilation cache, and kills them.

    Args:
      counts: numbers of processes; each start of a run uses the next one.
    """

    def __init__(self, folder: pathlib.Path, seed: int, counts: Sequence[int] = (1,)):
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.dataset = write_robot_set(folder / "robot")
        self._counts = itertools.cycle(counts)
        self._devices = max(counts)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["etcvla.train.loop", "tests.train.nano"])

    def finish(self, workdir: pathlib.Path) -> float:
        """Let a run finish; return its seconds."""
        start = time.time()
        exit_codes = self._wait_for_exit(self._start(workdir))
        if any(exit_codes):
            raise AssertionError(f"a run in {workdir} ended with {exit_codes}")
        return time.time() - start

    def kill(self, workdir: pathlib.Path, within: float) -> str:
        """Kill one of a run's processes within so many seconds, and then those that fail or hang.

        Returns: the name of the signal that ended the run, "" if it finished before. Raises
        AssertionError if it ended otherwise.
        """
        processes = self._start(workdir)
        wait([process.sentinel for process in processes], self.rng.uniform(0, within))
        number = signal.SIGTERM if self.rng.random() < 0.25 else signal.SIGKILL
        victim = processes[self.rng.integers(len(processes))]
        was_running = victim.is_alive()
        if was_running:
            os.kill(victim.pid, number)
        exit_codes = self._wait_for_exit(processes)
        if not any(exit_codes):
            return ""
        expected = {-number}
        if number == signal.SIGTERM:
            expected.add(hosts.PREEMPTED)
        # The other processes of a killed run fail in many ways, so only a lone process is checked.
        unexpected = len(processes) == 1 and victim.exitcode not in expected
        if not was_running or unexpected:
            raise AssertionError(f"a run in {workdir} ended with {exit_codes}")
        return number.name

    def state(self, workdir: pathlib.Path) -> dict[str, np.ndarray]:
        """Return the newest checkpoint's training state by path."""
        return saved_state(make_config(self.dataset, workdir))

    def _start(self, workdir: pathlib.Path) -> list[multiprocessing.Process]:
        count = next(self._counts)
        address = f"localhost:{free_port()}"
        processes = []
        for i in range(count):
            cluster = (address, count, i) if count > 1 else ()
            arguments = (self.dataset, workdir, self._devices // count, cluster)
            processes.append(self._context.Process(target=run, args=arguments))
        for process in processes:
            process.start()
        return processes

    def _wait_for_exit(self, processes: list[multiprocessing.Process]) -> list[int]:
        """Return all exit codes. If one process fails, end the others, as a pod's manager does."""
        alive = processes
        while alive:
            wait([process.sentinel for process in alive])
            alive = [process for process in processes if process.is_alive()]
            exit_codes = [process.exitcode for process in processes]
            if any(code not in (None, 0, hosts.PREEMPTED) for code in exit_codes):
                for process in alive:
                    process.kill()
        return [process.exitcode for process in processes]


def kill_training(
    folder: pathlib.Path, kills: int, seed: int, processes: Sequence[int] = (1,)
) -> dict[str, int]:
    """Kill runs `kills` times in all, let each finish, and check its end.

    Returns: how many {"SIGKILL", "SIGTERM", "runs"} there were. Raises AssertionError if a run ends
    in another state than an uninterrupted one.
    """
    killer = Killer(folder, seed, processes)
    counts = {"SIGKILL": 0, "SIGTERM": 0, "runs": 0}
    uninterrupted = [folder / f"uninterrupted_{i}" for i in range(len(processes))]
    for workdir in uninterrupted:  # these also fill the compilation cache
        killer.finish(workdir)
    expected = killer.state(uninterrupted[0])
    seconds = max(killer.finish(folder / f"timed_{n}") for n in processes)
    assert_same_run(killer, uninterrupted[-1], expected, uninterrupted[0])
    while counts["SIGKILL"] + counts["SIGTERM"] < kills:
        workdir = folder / f"killed_{counts['runs']}"
        name = killer.kill(workdir, seconds)
        if name:
            counts[name] += 1
            print(f"{name} at step {saved_step(workdir)}", flush=True)
        if not name or counts["SIGKILL"] + counts["SIGTERM"] == kills:
            killer.finish(workdir)
            assert_same_run(killer, workdir, expected, uninterrupted[0])
            counts["runs"] += 1
    return counts


def assert_same_run(
    killer: Killer,
    workdir: pathlib.Path,
    expected: dict[str, np.ndarray],
    uninterrupted: pathlib.Path,
) -> None:
    """Raise AssertionError if a run's final state or logged steps differ from the expected ones."""
    state = killer.state(workdir)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert logged_steps(workdir) == logged_steps(uninterrupted), f"{workdir} logged other steps"


def logged_steps(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """Return what metrics.jsonl says of losses, gradients and the mixture, by step."""
    steps = {}
    for step, line in read_metrics(workdir).items():
        steps[step] = {
            name: value
            for name, value in line.items()
            if name.startswith(("loss", "grad_norm", "mixture"))
        }
    return steps


def main() -> None:
    """Run the test from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--processes", default="1", help="numbers of processes; each start uses the next one"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    processes = [int(count) for count in options.processes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        counts = kill_training(pathlib.Path(folder), options.kills, options.seed, processes)
    print(
        f"{counts['SIGKILL']} times SIGKILL, {counts['SIGTERM']} times SIGTERM, {counts['runs']} "
        f"runs of {STEPS} steps: each ended in the state of the uninterrupted run"
    )


if __name__ == "__main__":
    main()
