"""Rollouts with a policy made of rules, so that what is tested is the harness."""

import csv
import subprocess
import sys
import types

import numpy as np
import pytest

from etcvla.eval.benchmark import wrong_instruction
from etcvla.eval.evaluate import EvaluationSpec, trials
from etcvla.eval.results_log import ResultsLog
from etcvla.eval.rollouts import Workers, _Worker, evaluate, table
from etcvla.eval.trials import EvalProtocol, Trial
from etcvla.eval.worker import GREY, _portable
from etcvla.pages.videos import LINE
from etcvla.sims import suites

pytest.importorskip("metaworld")


class Rules:
    """Moves straight up, or towards a point that its noise seed gives; remembers what it was shown."""

    config, cameras = types.SimpleNamespace(horizon=10), ("front", "wrist")
    assets = types.SimpleNamespace(adapter=types.SimpleNamespace(turn=lambda camera, image: image))

    def __init__(self, noisy=False):
        self.noisy, self.seen = noisy, []

    def camera_images(self, images):
        return [images[name] for name in self.cameras]

    def answer(self, images, questions):
        assert "close the drawer" in questions[0]
        return ["<loc0512><loc0100><loc0512><loc0900>"] * len(questions)

    def act(self, observations, seeds):
        self.seen += observations
        actions = [
            np.random.default_rng(seed).uniform(-1, 1, 4) if self.noisy else [0, 0, 1, 0]
            for seed in seeds
        ]
        return np.tile(np.array(actions, np.float32)[:, None], (1, 10, 1))


PROTOCOL = EvalProtocol(max_steps=20, replan_steps=5, image_size=32, workers=2)
TWO = [
    Trial("metaworld", "source", "drawer-close", 0),
    Trial("metaworld", "source", "drawer-close", 1),
]


def test_the_number_of_workers_changes_nothing():
    steps = []
    for workers in (1, 2):
        policy = Rules(noisy=True)
        results = evaluate(
            policy,
            TWO,
            EvalProtocol(max_steps=20, replan_steps=5, image_size=32, workers=workers),
            what="test",
        )
        assert [r.trial for r in results] == TWO and all(
            r.steps == 20 and not r.success for r in results
        )
        shown = sorted(
            (o["seed"], o["state"].tobytes(), o["images"]["front"].tobytes()) for o in policy.seen
        )
        steps.append(list(dict.fromkeys(shown)))
    assert steps[0] == steps[1] and len(steps[0]) == 2 * 20 // 5


def test_conditions_change_what_the_policy_is_shown_and_nothing_else():
    policy = Rules()
    shown = [
        Trial("metaworld", "source", "drawer-close", 0, video=True),
        Trial("metaworld", "source", "drawer-close", 0, "wrong_instruction", "drawer-open"),
        Trial("metaworld", "source", "drawer-close", 0, "blank_image"),
    ]
    results = evaluate(policy, shown, PROTOCOL, what="test")
    words = {o["instruction"] for o in policy.seen}
    assert len(words) == 2 and any("close" in w for w in words) and any("open" in w for w in words)
    blank = [o for o in policy.seen if (o["images"]["front"] == GREY).all()]
    assert len({o["seed"] for o in blank}) == 4 and (blank[0]["images"]["wrist"] == GREY).all()
    *video, end = results[0].frames  # small frames are enlarged; a path at every look
    assert len(video) == 4 and end.shape == (192, 192, 3) and results[1].frames is None
    assert (
        all((frame[96, 96] == LINE).all() for frame in video)
        and not (end == LINE).all(axis=-1).any()
    )
    assert table(results)["blank_image"] == {"source": {"drawer-close": [0, 1]}}
    assert [result.row()["instruction_of"] for result in results] == [
        "drawer-close",
        "drawer-open",
        "drawer-close",
    ]


class Interrupted(Rules):
    """Stops the evaluation at its seventh look."""

    def act(self, observations, seeds):
        if len(self.seen) > 6 * PROTOCOL.workers:
            raise KeyboardInterrupt
        return super().act(observations, seeds)


def rows(folder):
    """episodes.csv but for the time that an episode took."""
    return [{**line, "seconds": ""} for line in csv.DictReader((folder / "episodes.csv").open())]


def test_two_runs_and_an_interrupted_one_give_the_same_rows(tmp_path):
    played = [
        Trial("metaworld", "source", task, i, perturbation=name)
        for task in ("drawer-close", "reach")
        for i in range(2)
        for name in ("", "language:2")
    ]
    with Workers(PROTOCOL.workers) as workers:
        for name in ("a", "b"):
            evaluate(
                Rules(noisy=True),
                played,
                PROTOCOL,
                what="test",
                results_log=ResultsLog(tmp_path / name, {}),
                workers=workers,
            )
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            Interrupted(noisy=True),
            played,
            PROTOCOL,
            what="test",
            results_log=ResultsLog(tmp_path / "c", {}),
        )
    assert 0 < len(rows(tmp_path / "c")) < len(played)
    policy = Rules(noisy=True)
    evaluate(policy, played, PROTOCOL, what="test", results_log=ResultsLog(tmp_path / "c", {}))
    assert rows(tmp_path / "a") == rows(tmp_path / "b") == rows(tmp_path / "c")
    assert [(row["task"], row["perturbation"]) for row in rows(tmp_path / "a")] == [
        (trial.task, trial.perturbation) for trial in played
    ]
    assert len({row["instruction"] for row in rows(tmp_path / "a")}) > 2


def test_a_workers_error_reaches_the_caller():
    with pytest.raises(ValueError, match="drawer-close"):
        evaluate(Rules(), [Trial("metaworld", "source", "drawer-clos", 0)], PROTOCOL, what="test")


def test_bad_protocols_are_refused():
    with pytest.raises(ValueError, match="chunk of 10"):
        evaluate(Rules(), TWO, EvalProtocol(replan_steps=11), what="test")
    with pytest.raises(ValueError, match="positive"):
        EvalProtocol(workers=0)


@pytest.mark.parametrize("dead", [False, True])  # it dies after, or before, it is sent anything
def test_a_worker_that_dies_is_an_error_and_not_a_hang(tmp_path, dead, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    start = _Worker._start
    monkeypatch.setattr(
        _Worker, "_start", lambda worker: (start(worker), worker._process.wait() if dead else None)
    )
    with (
        Workers(1, str(python)) as workers,
        pytest.raises(RuntimeError, match="a simulator worker died"),
    ):
        evaluate(Rules(), TWO, EvalProtocol(workers=1), what="test", workers=workers)


def test_the_wrong_instruction_is_the_opposite_where_there_is_one():
    tasks = ("reach", "drawer-open", "drawer-close", "window-close")
    assert wrong_instruction("metaworld", "drawer-open", tasks) == "drawer-close"
    assert wrong_instruction("metaworld", "window-close", tasks) == "reach"
    with pytest.raises(ValueError, match="only task"):
        wrong_instruction("metaworld", "reach", ("reach",))


def test_a_spec_lists_every_trial_once():
    spec = EvaluationSpec(
        tasks=("drawer-open", "drawer-close"),
        scenes=("source", "target"),
        interventions=("right", "wrong_instruction"),
        trials=3,
        intervention_trials=2,
        videos=1,
        questions=1,
        datasets={},
        protocol=PROTOCOL,
        seed=0,
    )
    listed = trials(spec)
    assert len(listed) == len(set(listed)) == 2 * 2 * (3 + 2)
    assert sum(t.video for t in listed) == 2 * 2 * 2
    with pytest.raises(ValueError, match="unknown intervention"):
        EvaluationSpec(**{**vars(spec), "interventions": ("dark",)})


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("etcvla.eval.worker", "jax"),
        ("etcvla.eval.benchmark", "mujoco"),
        ("etcvla.eval.worker", "mujoco"),
    ],
)
def test_policy_and_simulator_need_not_be_installed_together(module, others):
    code = f"import sys, {module}; sys.exit({others!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=suites.environment_variables())


def test_a_package_that_a_simulator_lacks_is_named_with_its_python():
    told = _portable(ModuleNotFoundError("No module named 'matplotlib'"))
    assert type(told) is RuntimeError
    assert (
        str(told)
        == f"{sys.executable} lacks a package that the simulator imports: No module named 'matplotlib'; "
        "install it there"
    )
