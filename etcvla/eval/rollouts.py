"""Closed-loop evaluation: worker processes hold the simulators, this process holds the policy.

A worker draws images only when the policy looks. Looks of all waiting workers are answered in one batch. What an
episode does depends on its own seed alone (layout and action noise), so the number of workers changes nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from etils import epath

from etcvla.eval.stats import wilson
from etcvla.policy import Policy
from etcvla.train.log import clock

CONDITIONS = ("right", "wrong_instruction", "blank_image")
GREY = 128


@dataclasses.dataclass(frozen=True)
class Trial:
    """One episode to run."""

    domain: str
    task: str
    trial: int  # fixes layout and noise
    condition: str = "right"  # what the policy is shown: see CONDITIONS
    instruction_of: str = ""  # the task whose instruction is given; "" for its own
    film: bool = False  # keep the frames that the policy saw


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How episodes are run; it is written beside every score."""

    max_steps: int = 250  # control steps before an episode counts as failed
    replan: int = 5  # control steps between looks
    image_size: int = 96  # pixels
    workers: int = 4

    def __post_init__(self):
        if self.replan < 1 or self.max_steps < 1 or self.workers < 1:
            raise ValueError(f"protocol: max_steps, replan and workers must be positive, got {self}")


@dataclasses.dataclass(frozen=True)
class Result:
    """How one trial ended; `frames` uint8[n, H, W, 3] only where it was filmed."""

    trial: Trial
    success: bool
    steps: int
    frames: np.ndarray | None


def evaluate(policy: Policy, trials: Sequence[Trial], protocol: Protocol, *, what: str) -> list[Result]:
    """Runs all trials and returns their results in the order of `trials`. `what` names the run on the progress line.

    Raises ValueError if the protocol replans later than a chunk is long, RuntimeError if a worker dies.
    """
    if protocol.replan > policy.config.horizon:
        raise ValueError(f"protocol.replan {protocol.replan} exceeds the policy's chunk of {policy.config.horizon}")
    workers = [_Worker(protocol, part) for part in _split(trials, protocol.workers)]
    results, began, shown = {}, time.time(), 0.0
    try:
        while len(results) < len(trials):
            ready = _messages(workers)
            looks = [(worker, look) for worker, look in ready if isinstance(look, dict)]
            results |= {message.trial: message for _, message in ready if isinstance(message, Result)}
            if looks:
                _answer(policy, looks, protocol)
            if time.time() - shown > 5 or len(results) == len(trials):
                shown = time.time()
                _progress(what, results, len(trials), began)
    finally:
        for worker in workers:
            worker.stop()
    return [results[trial] for trial in trials]


def _split(trials: Sequence[Trial], parts: int) -> list[list[Trial]]:
    """Near-equal runs of trials that share their simulator, so that a worker makes few of them."""
    ordered = sorted(trials, key=lambda t: (t.domain, t.task))
    cuts = np.linspace(0, len(ordered), parts + 1).astype(int)
    return [ordered[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if b > a]


def _messages(workers: Sequence[_Worker]) -> list[tuple[_Worker, Any]]:
    ready = wait([worker.connection for worker in workers if not worker.done])
    return [(worker, worker.receive()) for worker in workers if worker.connection in ready]


def _answer(policy: Policy, looks: list, protocol: Protocol) -> None:
    """One batch for all looks; padded by repetition, so that a single shape is compiled."""
    padded = (looks * protocol.workers)[:protocol.workers]
    chunks = policy.act([look for _, look in padded], [look["seed"] for _, look in padded])
    for (worker, _), chunk in zip(looks, chunks, strict=False):
        worker.connection.send(chunk[:protocol.replan])


def _progress(what: str, results: dict, total: int, began: float) -> None:
    done, seconds = len(results), time.time() - began
    left = clock(seconds / done * (total - done)) if done else "?"
    won = sum(result.success for result in results.values())
    print(f"{what} {done}/{total} episodes | {won} succeeded | {left} left", flush=True)


class _Worker:
    """A process with a simulator, and this end of its pipe."""

    def __init__(self, protocol: Protocol, trials: list[Trial]):
        context = multiprocessing.get_context("spawn")  # EGL and JAX do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, protocol, trials), daemon=True)
        with _environment(OMP_NUM_THREADS="1", LP_NUM_THREADS="1"):
            self.process.start()
        theirs.close()
        self.left = len(trials)

    @property
    def done(self) -> bool:
        return self.left == 0

    def receive(self) -> Any:
        try:
            message = self.connection.recv()
        except EOFError as error:
            raise RuntimeError("a simulator worker died; its message stands above") from error
        if isinstance(message, Exception):
            raise message
        self.left -= isinstance(message, Result)
        return message

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


class _environment:
    """Sets environment variables while a worker starts."""

    def __init__(self, **variables: str):
        self.variables = variables

    def __enter__(self):
        self.before = {name: os.environ.get(name) for name in self.variables}
        os.environ.update(self.variables)

    def __exit__(self, *_):
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(connection: Connection, protocol: Protocol, trials: list[Trial]) -> None:
    """A worker: runs its trials, sending looks and receiving chunks."""
    try:
        from etcvla.sims.metaworld import MetaWorld  # here, so that the parent needs no simulator

        env, key = None, None
        for trial in trials:
            if key != (trial.domain, trial.task):
                if env:
                    env.close()
                env, key = MetaWorld(trial.task, trial.domain, protocol.image_size), (trial.domain, trial.task)
            connection.send(_episode(env, trial, protocol, connection))
    except Exception as error:  # noqa: BLE001  whatever it is, the parent must say it
        connection.send(error)


def _episode(env, trial: Trial, protocol: Protocol, connection: Connection) -> Result:
    from etcvla.sims.metaworld import TASKS, eval_seed

    env.reset(eval_seed(trial.trial))
    instruction = TASKS[trial.instruction_of or trial.task].instructions[0]
    frames, steps = [], 0
    while steps < protocol.max_steps and not env.success:
        observation = env.observe()
        if trial.film:
            frames.append(observation["images"]["front"])
        if trial.condition == "blank_image":
            observation["images"] = {name: np.full_like(image, GREY) for name, image in observation["images"].items()}
        connection.send({**observation, "instruction": instruction, "seed": (eval_seed(trial.trial), steps)})
        for action in connection.recv():
            steps += 1
            if env.step(action) or steps == protocol.max_steps:
                break
    if trial.film:
        frames.append(env.observe()["images"]["front"])
    return Result(trial, env.success, steps, np.stack(frames) if frames else None)


def table(results: Sequence[Result]) -> dict[str, dict[str, dict[str, list[int]]]]:
    """{condition: {domain: {task: [successes, trials]}}}."""
    out: dict = {}
    for result in results:
        t = result.trial
        cell = out.setdefault(t.condition, {}).setdefault(t.domain, {}).setdefault(t.task, [0, 0])
        cell[0] += result.success
        cell[1] += 1
    return out


def rates(results: Sequence[Result]) -> Iterator[str]:
    """A line a condition and domain: successes, trials, rate and its 95 % interval."""
    for condition, domains in table(results).items():
        for domain, tasks in domains.items():
            won, total = np.sum(list(tasks.values()), axis=0).tolist()
            low, high = wilson(won, total)
            yield (f"{condition:<18}{domain:<8} {won}/{total} = {won / total:.0%} [{low:.0%}, {high:.0%}]   "
                   + ", ".join(f"{task} {a}/{b}" for task, (a, b) in tasks.items()))


def write_csv(path: epath.PathLike, results: Sequence[Result]) -> None:
    """One line an episode."""
    with epath.Path(path).open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["domain", "task", "trial", "condition", "instruction_of", "success", "steps"])
        for r in results:
            t = r.trial
            writer.writerow([t.domain, t.task, t.trial, t.condition, t.instruction_of or t.task, int(r.success),
                             r.steps])
