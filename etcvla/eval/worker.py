"""A simulator's process: plays trials, asking over a pipe for chunks.

It noise_samples only when the policy looks. Run by `rollouts.Workers` as `python -m etcvla.eval.worker FD`, by whichever Python
has the simulator; imports no JAX.
"""

from __future__ import annotations

import builtins
import contextlib
import signal
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from etcvla.eval.chunks import Chunks
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.results_schema import VIDEO_CAMERA
from etcvla.sims import suites
from etcvla.sims.episode_metrics import EpisodeMetrics
from etcvla.sims.libero import files as libero_files
from etcvla.sims.metaworld.tasks import TASKS
from etcvla.sims.perturbations import Perturbation
from etcvla.sims.seeds import eval_seed

GREY = 128


def work(connection: Connection) -> None:
    """Plays what it is sent, (protocol, trials), until None: sends looks and results, receives chunks.

    Whatever goes wrong is sent too, and ends the process.
    """
    env, key = None, None
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has gone
        try:
            while (job := connection.recv()) is not None:
                protocol, trials = job
                for trial in trials:
                    if key != (trial.scene, trial.task, protocol.image_size):
                        if env:
                            env.close()
                        key = trial.scene, trial.task, protocol.image_size
                        env = environment(*key)
                    connection.send(_episode(env, trial, protocol, connection))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the parent must say it
            connection.send(_portable(error))


def environment(scene: str, task: str, image_size: int):
    """The simulator of a task: Meta-World's name, or "suite/name" of LIBERO's.

    Raises RuntimeError, with the command that mends it, where the simulator is not installed or cannot draw.
    """
    if "/" in task:
        from etcvla.sims.libero.environment import Libero

        return Libero(task, scene, image_size)
    suites.require_metaworld()
    from etcvla.sims.metaworld.environment import MetaWorld

    return MetaWorld(task, scene, image_size)


def _portable(error: Exception) -> Exception:
    """An exception that another Python can read too."""
    if type(error) is getattr(builtins, type(error).__name__, None) and not isinstance(
        error, ImportError
    ):
        return error
    if isinstance(error, ImportError):
        return RuntimeError(
            f"{sys.executable} lacks a package that the simulator imports: {error}; install it there"
        )
    return RuntimeError(f"{type(error).__name__}: {error}")


def _episode(env, trial: Trial, protocol: EvalProtocol, connection: Connection) -> TrialResult:
    began, seed = time.monotonic(), eval_seed(trial.trial)
    changed = Perturbation.parse(trial.perturbation)
    changed.reset(env, seed)
    instruction = changed.say(_words(env, trial.instruction_of), seed)
    metrics, chunks = EpisodeMetrics(env), Chunks(protocol.replan_steps, protocol.ensemble)
    frames, steps = [], 0
    while steps < protocol.max_steps and not env.success:
        if chunks.needs_query:
            observation = changed.show(env.observe(), (seed, steps))
            if trial.video:
                frames.append(observation["images"][VIDEO_CAMERA])
            connection.send(
                {
                    **_shown(observation, trial),
                    "instruction": instruction,
                    "seed": (seed, steps, protocol.seed),
                    "video": trial.video,
                }
            )
            chunks.add(connection.recv())
        env.step(chunks.next())
        metrics.update()
        steps += 1
    if trial.video:
        frames.append(changed.show(env.observe(), (seed, steps))["images"][VIDEO_CAMERA])
    return TrialResult(
        trial,
        bool(env.success),
        steps,
        metrics.progress,
        bool(metrics.intention),
        instruction,
        time.monotonic() - began,
        np.stack(frames) if frames else None,
    )


def _shown(observation: dict, trial: Trial) -> dict:
    if trial.intervention != "blank_image":
        return observation
    return observation | {
        "images": {name: np.full_like(image, GREY) for name, image in observation["images"].items()}
    }


def _words(env, other: str) -> str:
    """The task's own instruction, or that of another task of the simulator."""
    if not other:
        return env.instruction()
    if "/" not in other:
        return TASKS[other].instructions[0]
    return libero_files.instruction(*libero_files.resolve(other))


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C is the parent's, whose end is heard by the pipe
    work(Connection(int(sys.argv[1])))
