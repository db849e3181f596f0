"""The registry of simulators, and the example of CONTRIBUTING.md run through the evaluation."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from etcvla import sims
from etcvla.errors import UserError
from etcvla.eval import rollouts
from etcvla.eval.benchmark import Benchmark
from etcvla.eval.trials import EvalProtocol
from etcvla.sims import registry, suites
from etcvla.sims.rollout import rollout_expert

ROOT = Path(__file__).resolve().parents[2]
# A Python interpreter in which the example is registered: `toy_python -m MODULE ARGUMENTS`.
TOY_PYTHON = """#!{python}
import runpy
import sys

sys.path.insert(0, {folder!r})
import toy
from etcvla import sims

sims.register(toy.TOY)
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The example as a module, registered."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a simulator")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    path = tmp_path / "toy.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(registry, "_SIMULATORS", dict(registry._SIMULATORS))
    sims.register(module.TOY)
    return module


@pytest.fixture
def toy_python(toy, tmp_path):
    """A Python for simulator processes in which the example is registered."""
    path = tmp_path / "python"
    path.write_text(TOY_PYTHON.format(python=sys.executable, folder=str(tmp_path)))
    path.chmod(0o755)
    return str(path)


class MoveTo:
    """A policy that moves the point to the side that the instruction names."""

    config = types.SimpleNamespace(horizon=5)
    cameras = ("front",)

    def __init__(self):
        self.observations = []

    def act(self, observations, seeds):
        """Return chunks float32[B, 5, 2] towards the red pixels, or away from them."""
        self.observations += observations
        chunks = []
        for observation in observations:
            image = observation["images"]["front"]
            red = np.argwhere((image == (255, 0, 0)).all(-1))
            row, column = red.mean(0) / (len(image) - 1)
            offset = np.array([column, 1 - row]) - observation["state"]
            side = "left" if offset[0] < 0 else "right"
            direction = 1 if side in observation["instruction"] else -1
            chunks.append(np.tile(direction * 2 * offset, (5, 1)))
        return np.array(chunks, np.float32)


def test_example_of_contributing_is_evaluated(toy_python):
    suite = suites.find("toy_reach", toy_python)
    assert suite.tasks == ("reach-left", "reach-right")
    assert suite.versions["python"] == sys.version.split()[0]
    protocol = EvalProtocol(
        max_steps=suite.max_steps, replan_steps=5, image_size=suite.image_size, workers=1
    )
    benchmark = Benchmark(
        suite,
        suite.tasks,
        trials=1,
        protocol=protocol,
        interventions=("right", "wrong_instruction"),
        perturbations=("", "robot:1", "language:1"),
    )
    policy = MoveTo()
    with rollouts.WorkerPool(1, toy_python) as pool:
        results = rollouts.run_trials(
            policy, benchmark.grid.trials(), protocol, label="toy", pool=pool
        )
    assert len(results) == 2 * 2 * 3
    for result in results:
        assert result.success == (result.trial.intervention == "right")
        assert result.intention == result.success
        assert result.to_row()["simulator"] == "toy"
    wrong = {
        result.trial.task: result.trial.instruction_of
        for result in results
        if result.trial.intervention == "wrong_instruction"
    }
    assert wrong == {"reach-left": "reach-right", "reach-right": "reach-left"}
    assert {observation["images"]["front"].shape for observation in policy.observations} == {
        (32, 32, 3)
    }


def test_example_satisfies_the_protocol_and_records_demonstrations(toy):
    env = sims.make("toy", "reach-left", "bright", 32)
    assert isinstance(env, sims.Environment)
    episode = rollout_expert(env, seed=0, noise=(0.0, 0.0))
    assert len(episode.action) == len(episode.state) > 2
    assert episode.annotation.instruction in toy.TASKS["reach-left"].instructions


def test_unknown_names_are_errors_with_the_nearest_name(toy):
    with pytest.raises(ValueError, match="unknown simulator 'tiy', did you mean 'toy'"):
        sims.make("tiy", "reach-left", "bright", 32)
    with pytest.raises(ValueError, match="unknown task 'reach-lef', did you mean 'reach-left'"):
        sims.make("toy", "reach-lef", "bright", 32)
    with pytest.raises(ValueError, match="unknown suite 'toy_reac', did you mean 'toy_reach'"):
        suites.describe("toy_reac")


def test_name_cannot_be_registered_twice(toy):
    with pytest.raises(ValueError, match="'toy' is already registered"):
        sims.register(toy.TOY)


def test_missing_package_raises_the_install_command():
    requirement = sims.Requirement("Toy", ("no_such_module",), "pip install toy")
    with pytest.raises(UserError, match="Toy is not installed in .*: pip install toy"):
        requirement.check()


@pytest.mark.parametrize("package", ["mujoco", "metaworld", "robosuite", "jax"])
def test_importing_sims_imports_no_simulator(package):
    code = (
        f"import sys, etcvla.sims, etcvla.sims.perturbations; sys.exit({package!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=suites.environment_variables())
    assert done.returncode == 0


def test_suites_that_a_simulator_does_not_list_are_found_by_their_prefix(monkeypatch):
    def _describe(name):
        return suites.Suite(name, "libero", (), "rlds", 1, 32, (), None, 8, 7)

    libero = dataclasses.replace(
        sims.get("libero"),
        requirement=sims.Requirement("LIBERO", (), ""),
        describe_suite=_describe,
    )
    monkeypatch.setitem(registry._SIMULATORS, "libero", libero)
    assert "libero_goal_with_mug" not in suites.names()
    assert suites.describe("libero_goal_with_mug").simulator == "libero"
    with pytest.raises(ValueError, match="unknown suite 'metaworld_mt5'"):
        suites.describe("metaworld_mt5")


def test_python_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--simulator_python .*/python: cannot run it"):
        suites.find("metaworld_mt10", str(tmp_path / "python"))
