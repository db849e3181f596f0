"""A simulator process of an evaluation: it runs trials, and gets action chunks through a pipe.

`rollouts.WorkerPool` starts it as `python -m etcvla.eval.worker FD`, with any Python that has the
simulator. It renders images only when it queries the policy. It does not import JAX.

Messages to the worker: (protocol, trials), then one chunk float32[P, A] for every observation;
None ends the worker. Messages from the worker: an observation (a dict), a `TrialResult` at the end
of each trial, or an exception, after which it exits.
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


def run_worker(connection: Connection) -> None:
    """Run trials until None arrives or the parent process ends."""
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has ended
        try:
            _run_jobs(connection)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  the parent raises it
            connection.send(make_portable(error))


def _run_jobs(connection: Connection) -> None:
    env = None
    env_arguments = None
    while (job := connection.recv()) is not None:
        protocol, trials = job
        for trial in trials:
            needed = (trial.simulator, trial.task, trial.scene, protocol.image_size)
            if env_arguments != needed:
                if env:
                    env.close()
                env = sims.make(*needed)
                env_arguments = needed
            connection.send(_run_trial(env, trial, protocol, connection))


def make_portable(error: Exception) -> Exception:
    """Return an exception that a Python without the simulator's packages can unpickle."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ImportError):
        return UserError(
            f"{sys.executable} lacks a package that the simulator imports: {error}; install it "
            "there"
        )
    if type(error) is getattr(builtins, type(error).__name__, None):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _run_trial(
    env: Environment, trial: Trial, protocol: EvalProtocol, connection: Connection
) -> TrialResult:
    start = time.monotonic()
    seed = eval_seed(trial.trial)
    perturbation = Perturbation.parse(trial.perturbation)
    perturbation.reset(env, seed)
    instruction = perturbation.rewrite_instruction(_task_instruction(env, trial), seed)
    metrics = EpisodeMetrics(env)
    chunks = ActionChunks(protocol.replan_steps, protocol.ensemble)
    frames = []
    steps = 0
    while steps < protocol.max_steps and not env.success:
        if chunks.needs_query:
            observation = perturbation.perturb_observation(env.observe(), (seed, steps))
            if trial.video:
                frames.append(observation["images"][VIDEO_CAMERA])
            message = {
                **_apply_intervention(observation, trial),
                "instruction": instruction,
                "seed": (seed, steps, protocol.seed),
                "video": trial.video,
            }
            connection.send(message)
            chunks.add(connection.recv())
        env.step(chunks.next())
        metrics.update()
        steps += 1
    if trial.video:
        observation = perturbation.perturb_observation(env.observe(), (seed, steps))
        frames.append(observation["images"][VIDEO_CAMERA])
    return TrialResult(
        trial,
        success=bool(env.success),
        steps=steps,
        progress=metrics.progress,
        intention=bool(metrics.intention),
        instruction=instruction,
        seconds=time.monotonic() - start,
        frames=np.stack(frames) if frames else None,
    )


def _apply_intervention(observation: dict, trial: Trial) -> dict:
    if trial.intervention != "blank_image":
        return observation
    images = observation["images"].items()
    return observation | {"images": {name: np.full_like(image, GREY) for name, image in images}}


def _task_instruction(env: Environment, trial: Trial) -> str:
    """Return the task's own instruction, or that of the trial's `instruction_of`."""
    if not trial.instruction_of:
        return env.instruction()
    return sims.get(trial.simulator).instruction(trial.instruction_of)


if __name__ == "__main__":
    # Ctrl-C in a terminal also signals this process. The parent handles it and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_worker(Connection(int(sys.argv[1])))
