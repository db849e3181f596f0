"""Episodes in progress: environments that act until the policy has to be queried.

Simulator workers import this module, so it must not import JAX.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from etcvla import sims
from etcvla.chunks import ActionChunks
from etcvla.eval.trials import EvalProtocol, Trial, TrialResult
from etcvla.results_schema import VIDEO_CAMERA
from etcvla.sims.environment import Environment, PairedEnvironment
from etcvla.sims.episode_metrics import EpisodeMetrics
from etcvla.sims.perturbations import Perturbation
from etcvla.sims.seeds import eval_seed

GREY = 128


@dataclasses.dataclass
class Update:
    """What happened in some slots since the last chunks.

    Attributes:
      results: (slot, result) of the trials that ended, in their order.
      observations: slot -> observation of each slot that waits for a chunk.
    """

    results: list[tuple[int, TrialResult]] = dataclasses.field(default_factory=list)
    observations: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)


def advance(slots: Sequence[Slot], chunks: dict[int, np.ndarray]) -> Update:
    """Give chunks to the slots that wait for one, and run all slots until they wait or are idle."""
    update = Update()
    for number, slot in enumerate(slots):
        results, observation = slot.advance(chunks.get(number))
        update.results += [(number, result) for result in results]
        if observation is not None:
            update.observations[number] = observation
    return update


class Slot:
    """One row of the policy's batch: runs its trials one after another.

    It keeps its environment as long as trials need the same one.
    """

    def __init__(self):
        self._protocol = EvalProtocol()
        self._trials: deque[Trial] = deque()
        self._episode: TrialEpisode | None = None
        self._env: Environment | None = None
        self._env_arguments: tuple = ()

    def start(self, protocol: EvalProtocol, trials: Sequence[Trial]) -> None:
        """Set the trials to run."""
        self._protocol = protocol
        self._trials = deque(trials)

    def advance(self, chunk: np.ndarray | None) -> tuple[list[TrialResult], dict | None]:
        """Run until an episode needs a chunk; the next trial starts as soon as one has ended.

        Args:
          chunk: float32[P, A] that the episode waits for; None if no episode is in progress.

        Returns the results of trials that ended, and the observation; None after the last trial.
        """
        results = []
        if self._episode:
            self._episode.add_chunk(chunk)
        while self._episode or self._trials:
            if not self._episode:
                trial = self._trials.popleft()
                self._episode = TrialEpisode(self._environment(trial), trial, self._protocol)
            observation = self._episode.advance()
            if observation is not None:
                return results, observation
            results.append(self._episode.result())
            self._episode = None
        return results, None

    def _environment(self, trial: Trial) -> Environment:
        size = self._protocol.image_size
        arguments = (trial.simulator, trial.task, trial.scene, size, trial.condition)
        if self._env_arguments != arguments:
            if self._env:
                self._env.close()
            self._env = sims.make(*arguments)
            self._env_arguments = arguments
        return self._env


class TrialEpisode:
    """One trial in progress."""

    def __init__(self, env: Environment, trial: Trial, protocol: EvalProtocol):
        self._env = env
        self._trial = trial
        self._protocol = protocol
        self._start = time.monotonic()
        self._seed = eval_seed(trial.trial)
        self._perturbation = Perturbation.parse(trial.perturbation)
        self._perturbation.reset(env, self._seed)
        self._instruction, self._instruction_of = choose_instruction(env, trial)
        if self._instruction:
            rewrite = self._perturbation.rewrite_instruction
            self._instruction = rewrite(self._instruction, self._seed)
        self._metrics = EpisodeMetrics(env)
        self._chunks = ActionChunks(protocol.replan_steps, protocol.ensemble)
        self._frames = []
        self._steps = 0

    def add_chunk(self, chunk: np.ndarray) -> None:
        """Add the chunk float32[P, A] that the last observation asked for."""
        self._chunks.add(chunk)

    def advance(self) -> dict[str, Any] | None:
        """Act until a chunk is needed and return the observation; None if the episode is over."""
        while self._steps < self._protocol.max_steps and not self._env.done:
            if self._chunks.needs_query:
                return self._query()
            self._env.step(self._chunks.next())
            self._metrics.update()
            self._steps += 1
        return None

    def _query(self) -> dict[str, Any]:
        observation = self._observe()
        if self._trial.intervention == "blank_image":
            images = observation["images"].items()
            observation["images"] = {name: np.full_like(image, GREY) for name, image in images}
        return {
            **observation,
            "instruction": self._instruction,
            "seed": (self._seed, self._steps, self._protocol.seed),
            "video": self._trial.video,
        }

    def _observe(self) -> dict[str, Any]:
        key = (self._seed, self._steps)
        observation = self._perturbation.perturb_observation(self._env.observe(), key)
        if self._trial.video:
            self._frames.append(observation["images"][VIDEO_CAMERA])
        return observation

    def result(self) -> TrialResult:
        """Return the result of an episode that is over."""
        env = self._env
        if self._trial.video:
            self._observe()
        is_paired = sims.get(self._trial.simulator).trials_per_layout > 1
        return TrialResult(
            self._trial,
            success=bool(env.success),
            steps=self._steps,
            progress=self._metrics.progress,
            intention=bool(self._metrics.intention),
            instruction=self._instruction,
            instruction_of=self._instruction_of,
            seconds=time.monotonic() - self._start,
            named=env.objects[env.target].name,
            novelty=env.novelty if is_paired else "",
            touched=self._metrics.first_touched,
            frames=np.stack(self._frames) if self._frames else None,
        )


def choose_instruction(env: Environment | PairedEnvironment, trial: Trial) -> tuple[str, str]:
    """Return the instruction that the policy gets, and the task or object that it is about.

    If trials share a layout, a wrong instruction names another object of the layout. Which one
    depends on the layout, and each object is named by one of the layout's wrong instructions.
    """
    simulator = sims.get(trial.simulator)
    count = simulator.trials_per_layout
    if trial.intervention == "no_instruction":
        return "", ""
    if count == 1:
        text = simulator.instruction(trial.instruction_of) if trial.instruction_of else ""
        return env.rename_objects(text or env.instruction()), trial.instruction_of or trial.task
    if trial.intervention != "wrong_instruction":
        return env.instruction(), env.objects[env.target].name
    layout = trial.trial // count
    other = (env.target + 1 + layout % (count - 1)) % count
    return env.instruction_for(other), env.objects[other].name
