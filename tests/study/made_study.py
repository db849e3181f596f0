"""A small study: configs of stages that train in seconds, and a stand-in for training."""

import dataclasses
import json
import pathlib
import time

import ml_collections

from configs import common
from etcvla.study.config import RANDOM, StudySpec, parse
from etcvla.study.runs import Graph, Run, make_graph
from tests.train.nano import nano_config


def run(stage="objective_bridge", init=RANDOM, changes=(), scenes=("A{rotation}",), **fields):
    """Return the entry of a run, as configs/study.py does."""
    return {
        "stage": stage,
        "init": init,
        "changes": tuple(changes),
        "questions": (),
        "scenes": scenes,
        "interventions": ("right",),
        **fields,
    }


def study_config(workdir, dataset="nowhere", **fields) -> ml_collections.ConfigDict:
    """Return a study of three cells and two seeds; two cells share their first run."""
    c = ml_collections.ConfigDict()
    c.name = "small"
    c.workdir = str(workdir)
    c.variant = "tiny"
    c.datasets = ml_collections.ConfigDict()
    c.datasets.robot = tuple(common.dataset(f"{dataset}", ("front", "wrist")) for _ in range(2))
    c.general = ()
    c.matched = "action_rows"
    c.runs = ml_collections.ConfigDict(
        {
            "first": run("distribution_bridge", scenes=()),
            "plain": run(),
            "bridged": run(init="first"),
            "slow": run(init="first", changes=(("optim.clip", 0.5),)),
        }
    )
    c.cells = tuple(
        {"name": name, "run": name, "seeds": (0, 1)} for name in ("plain", "bridged", "slow")
    )
    c.contrasts = (contrast(),)
    c.gates = ()
    c.base = ""
    c.eval = ml_collections.ConfigDict()
    c.eval.simulator = "tabletop"
    c.eval.tasks = ("touch",)
    c.eval.trials = 5
    c.eval.intervention_trials = 5
    c.eval.max_steps = 10
    c.eval.replan_steps = 2
    c.eval.workers = 1
    c.eval.questions = 2
    c.eval.videos = 0
    for name, value in fields.items():
        c[name] = value
    return c


def contrast(**fields):
    """Return the contrast bridged - plain."""
    return {
        "name": "bridging",
        "a": "bridged",
        "b": "plain",
        "metric": "intention",
        "tier": "A",
        "margin": 8.0,
        **fields,
    }


def load_stage(path, variant, changes):
    """Return the config of a small stage."""
    c = nano_config(pathlib.Path("nowhere"), pathlib.Path("nowhere"))
    with c.unlocked():
        c.stage = pathlib.Path(path).stem
        c.steps = 2
    common.override(c, dict(changes))
    return c


def small_graph(workdir, **fields) -> Graph:
    """Return the graph of the study."""
    return make_graph(parse(study_config(workdir, **fields)), load_stage)


def small_study(workdir, **fields) -> StudySpec:
    """Return the parsed study."""
    return parse(study_config(workdir, **fields))


@dataclasses.dataclass
class FakeTrainer:
    """Stands in for training and evaluating: writes a line into `log` for every run.

    Attributes:
      log: file that all workers append to.
      fail: name -> number of times that a run of this name fails.
      seconds: time that a run takes.
    """

    log: pathlib.Path
    fail: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def __call__(self, run: Run):
        """Return the results of a run."""
        line = {"run": run.spec.name, "seed": run.seed, "parent": bool(run.config.init_from)}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(self.seconds)
        if self.fail.get(run.spec.name, 0):
            self.fail[run.spec.name] -= 1
            raise RuntimeError(f"{run.spec.name} has failed")
        return {"seconds": 4.0, "evaluation_seconds": 2.0, "scores": {}}

    def done(self):
        """Return (run, seed) in the order in which they were started."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [(line["run"], line["seed"]) for line in lines]
