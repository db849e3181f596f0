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

from etcvla import sims
from etcvla.chunks import ActionChunks
from etcvla.errors import UserError
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.results_schema import VIDEO_CAMERA
from etcvla.sims.environment import Environment
from etcvla.sims.episode_metrics import EpisodeMetrics
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
                    needed = (trial.simulator, trial.task, trial.scene, protocol.image_size)
                    if key != needed:
                        if env:
                            env.close()
                        key = needed
                        env = sims.make(*needed)
                    connection.send(_episode(env, trial, protocol, connection))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the parent must say it
            connection.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """An exception that another Python can read too."""
    if isinstance(error, UserError):
        return error
    if type(error) is getattr(builtins, type(error).__name__, None) and not isinstance(
        error, ImportError
    ):
        return error
    if isinstance(error, ImportError):
        return RuntimeError(
            f"{sys.executable} lacks a package that the simulator imports: {error}; install it there"
        )
    return RuntimeError(f"{type(error).__name__}: {error}")


def _episode(
    env: Environment, trial: Trial, protocol: EvalProtocol, connection: Connection
) -> TrialResult:
    began, seed = time.monotonic(), eval_seed(trial.trial)
    changed = Perturbation.parse(trial.perturbation)
    changed.reset(env, seed)
    instruction = changed.rewrite_instruction(_instruction(env, trial), seed)
    metrics, chunks = EpisodeMetrics(env), ActionChunks(protocol.replan_steps, protocol.ensemble)
    frames, steps = [], 0
    while steps < protocol.max_steps and not env.success:
        if chunks.needs_query:
            observation = changed.perturb_observation(env.observe(), (seed, steps))
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
        frames.append(
            changed.perturb_observation(env.observe(), (seed, steps))["images"][VIDEO_CAMERA]
        )
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


def _instruction(env: Environment, trial: Trial) -> str:
    """Return the task's own instruction, or that of the trial's `instruction_of`."""
    if not trial.instruction_of:
        return env.instruction()
    return sims.get(trial.simulator).instruction(trial.instruction_of)


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C is the parent's, whose end is heard by the pipe
    work(Connection(int(sys.argv[1])))
