"""Rollouts with a scripted policy: batching, interventions, resuming and errors of workers."""

import csv
import subprocess
import sys
import types

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.eval.episodes import GREY
from etcvla.eval.results_log import ResultsLog
from etcvla.eval.rollouts import WorkerPool, WorkerProcess, run_trials
from etcvla.eval.trials import EvalProtocol, Trial, TrialGrid
from etcvla.eval.worker import make_portable
from etcvla.pages.videos import LINE_COLOR
from etcvla.sims import suites

pytest.importorskip("metaworld")


class ScriptedPolicy:
    """Moves up, or in a direction that depends on the noise seed; keeps its observations."""

    config = types.SimpleNamespace(horizon=10)
    cameras = ("front", "wrist")
    assets = types.SimpleNamespace(
        adapter=types.SimpleNamespace(rotate=lambda camera, image: image)
    )

    def __init__(self, random=False):
        self.random = random
        self.observations = []

    def camera_images(self, images):
        return [images[name] for name in self.cameras]

    def answer(self, images, questions):
        assert "close the drawer" in questions[0]
        return ["<loc0512><loc0100><loc0512><loc0900>"] * len(questions)

    def act(self, observations, seeds):
        self.observations += observations
        actions = []
        for seed in seeds:
            if self.random:
                actions.append(np.random.default_rng(seed).uniform(-1, 1, 4))
            else:
                actions.append(np.array([0, 0, 1, 0]))
        return np.tile(np.array(actions, np.float32)[:, None], (1, 10, 1))


PROTOCOL = EvalProtocol(max_steps=20, replan_steps=5, image_size=32, workers=2)
TRIALS = [Trial("metaworld", "source", "drawer-close", number) for number in range(2)]


def observed(policy):
    """Return the distinct observations of a policy, sorted."""
    observations = set()
    for observation in policy.observations:
        image = observation["images"]["front"].tobytes()
        observations.add((observation["seed"], observation["state"].tobytes(), image))
    return sorted(observations)


def test_number_of_workers_does_not_change_the_observations():
    observations = []
    for workers in (1, 2):
        policy = ScriptedPolicy(random=True)
        protocol = EvalProtocol(max_steps=20, replan_steps=5, image_size=32, workers=workers)
        results = run_trials(policy, TRIALS, protocol, label="test")
        assert [result.trial for result in results] == TRIALS
        assert all(result.steps == 20 and not result.success for result in results)
        observations.append(observed(policy))
    assert observations[0] == observations[1]
    assert len(observations[0]) == 2 * 20 // 5


def test_interventions_change_only_what_the_policy_gets():
    policy = ScriptedPolicy()
    trials = [
        Trial("metaworld", "source", "drawer-close", 0, video=True),
        Trial("metaworld", "source", "drawer-close", 0, "wrong_instruction", "drawer-open"),
        Trial("metaworld", "source", "drawer-close", 0, "blank_image"),
    ]
    results = run_trials(policy, trials, PROTOCOL, label="test")
    instructions = sorted({observation["instruction"] for observation in policy.observations})
    assert len(instructions) == 2
    assert "close" in instructions[0].lower()
    assert "open" in instructions[1].lower()
    blank = [o for o in policy.observations if (o["images"]["front"] == GREY).all()]
    assert len({observation["seed"] for observation in blank}) == 4
    assert (blank[0]["images"]["wrist"] == GREY).all()
    assert [result.to_row()["instruction_of"] for result in results] == [
        "drawer-close",
        "drawer-open",
        "drawer-close",
    ]


def test_conditions_change_the_images_and_the_names():
    policy = ScriptedPolicy()
    grid = TrialGrid(
        "metaworld", ("source",), ("push",), {"right": 1}, conditions=("", "night", "ball_for_it")
    )
    protocol = EvalProtocol(max_steps=5, image_size=32, workers=1, environments=3)
    results = run_trials(policy, grid.trials(), protocol, label="test")
    assert [result.to_row()["condition"] for result in results] == ["", "night", "ball_for_it"]
    plain, night, ball = results
    assert "puck" in plain.instruction
    assert night.instruction == plain.instruction
    assert ball.instruction == plain.instruction.replace("puck", "ball")
    assert (plain.named, ball.named) == ("puck", "ball")
    means = {}
    for observation in policy.observations:
        means[observation["images"]["front"].tobytes()] = observation["images"]["front"].mean()
    assert len(means) == 3
    assert min(means.values()) < 0.8 * max(means.values())


def test_videos_have_a_path_at_every_query():
    trials = [Trial("metaworld", "source", "drawer-close", 0, video=True), TRIALS[1]]
    results = run_trials(ScriptedPolicy(), trials, PROTOCOL, label="test")
    *query_frames, last_frame = results[0].frames
    assert len(query_frames) == 4
    assert last_frame.shape == (192, 192, 3)  # small frames are enlarged
    assert all((frame[96, 96] == LINE_COLOR).all() for frame in query_frames)
    assert not (last_frame == LINE_COLOR).all(axis=-1).any()
    assert results[1].frames is None


class InterruptedPolicy(ScriptedPolicy):
    """Stops the evaluation at its seventh query."""

    def act(self, observations, seeds):
        if len(self.observations) > 6 * PROTOCOL.workers:
            raise KeyboardInterrupt
        return super().act(observations, seeds)


def read_lines(folder):
    """Return episodes.csv without the time of an episode."""
    return [{**line, "seconds": ""} for line in csv.DictReader((folder / "episodes.csv").open())]


def test_repeated_and_resumed_evaluations_write_the_same_lines(tmp_path):
    trials = []
    for task in ("drawer-close", "reach"):
        for number in range(2):
            for perturbation in ("", "language:2"):
                trial = Trial("metaworld", "source", task, number, perturbation=perturbation)
                trials.append(trial)

    def run(policy, folder, pool=None):
        results_log = ResultsLog(tmp_path / folder, {})
        run_trials(policy, trials, PROTOCOL, label="test", results_log=results_log, pool=pool)

    with WorkerPool(PROTOCOL.workers) as pool:
        run(ScriptedPolicy(random=True), "first", pool)
        run(ScriptedPolicy(random=True), "second", pool)
    with pytest.raises(KeyboardInterrupt):
        run(InterruptedPolicy(random=True), "resumed")
    assert 0 < len(read_lines(tmp_path / "resumed")) < len(trials)
    run(ScriptedPolicy(random=True), "resumed")
    lines = read_lines(tmp_path / "first")
    assert lines == read_lines(tmp_path / "second") == read_lines(tmp_path / "resumed")
    assert [(line["task"], line["perturbation"]) for line in lines] == [
        (trial.task, trial.perturbation) for trial in trials
    ]
    assert len({line["instruction"] for line in lines}) > 2


def test_error_of_a_worker_is_raised():
    trial = Trial("metaworld", "source", "drawer-clos", 0)
    with pytest.raises(ValueError, match="drawer-close"):
        run_trials(ScriptedPolicy(), [trial], PROTOCOL, label="test")


def test_replan_steps_longer_than_a_chunk_are_refused():
    with pytest.raises(UserError, match="chunk of 10"):
        run_trials(ScriptedPolicy(), TRIALS, EvalProtocol(replan_steps=11), label="test")


@pytest.mark.parametrize("dies_first", [False, True])
def test_worker_that_dies_is_an_error(tmp_path, dies_first, monkeypatch):
    """The process dies before the parent sends anything, or after it."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    start = WorkerProcess._start

    def start_and_wait(worker):
        start(worker)
        if dies_first:
            worker._process.wait()

    monkeypatch.setattr(WorkerProcess, "_start", start_and_wait)
    with (
        WorkerPool(1, str(python)) as pool,
        pytest.raises(RuntimeError, match="a simulator worker died"),
    ):
        run_trials(ScriptedPolicy(), TRIALS, EvalProtocol(workers=1), label="test", pool=pool)


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("etcvla.eval.worker", "jax"),
        ("etcvla.eval.worker", "mujoco"),
        ("etcvla.eval.benchmark", "mujoco"),
        ("etcvla.policy", "etcvla.train.optim"),
    ],
)
def test_module_does_not_import_another(module, other):
    code = f"import sys, {module}; sys.exit({other!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=suites.environment_variables())
    assert done.returncode == 0


def test_missing_package_of_a_simulator_is_a_user_error():
    error = make_portable(ModuleNotFoundError("No module named 'matplotlib'"))
    assert type(error) is UserError
    assert str(error) == (
        f"{sys.executable} lacks a package that the simulator imports: "
        "No module named 'matplotlib'; install it there"
    )


def test_other_exceptions_become_portable():
    class SimulatorError(Exception):
        pass

    assert repr(make_portable(SimulatorError("x"))) == "RuntimeError('SimulatorError: x')"
    assert type(make_portable(KeyError("x"))) is KeyError
