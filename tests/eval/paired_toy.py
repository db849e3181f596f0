"""A simulator with three objects in a row; consecutive trials share the row and name each once."""

import types

import numpy as np

from etcvla import sims
from etcvla.sims import registry
from etcvla.sims.task import ObjectSpec

NAMES = ("red cube", "red ball", "blue cube")
MAX_STEPS = 6


class RowEnvironment:
    """The hand starts above the middle; an action moves it sideways or down, to the touch."""

    cameras = ("front",)
    objects = tuple(ObjectSpec(name, "") for name in NAMES)
    made = 0  # environments of this class so far

    def __init__(self, task, scene, image_size, condition):
        RowEnvironment.made += 1
        self.condition = condition
        self.closed = False

    def reset(self, seed, hand=None, shift=0.0):
        self.target = seed % 3
        self.goal_objects = (self.target,)
        self.places = np.random.default_rng(seed // 3).permutation(3)
        self.place = 1
        self.done = False

    @property
    def success(self):
        return self.done and bool(self.touched()[self.target])

    @property
    def novelty(self):
        return ("none", "noun", "color")[self.target]

    def instruction_for(self, index):
        return f"touch the {NAMES[index]}"

    def instruction(self, rng=None):
        return self.instruction_for(self.target)

    def observe(self):
        places = dict(zip(NAMES, self.places.tolist(), strict=True))
        image = np.zeros((8, 8, 3), np.uint8)
        return {"images": {"front": image}, "state": np.zeros(1, np.float32), "places": places}

    def step(self, action):
        assert not self.done
        self.place = int(np.clip(self.place + action[0], 0, 2))
        self.done = action[1] > 0
        return self.success

    def touched(self):
        return (self.places == self.place) & self.done

    def progress(self):
        return float(self.success)

    def set_appearance(self, condition, seed):
        pass

    def close(self):
        self.closed = True


def register(monkeypatch):
    """Register the simulator as "row" for one test."""
    monkeypatch.setattr(registry, "_SIMULATORS", dict(registry._SIMULATORS))
    simulator = sims.Simulator(
        name="row",
        make_environment=RowEnvironment,
        instruction=lambda task: max((f"touch the {name}" for name in NAMES), key=len),
        suites=(),
        describe_suite=lambda name: None,
        requirement=sims.Requirement("Row", (), ""),
        conditions=lambda task: ("night",),
        trials_per_layout=3,
    )
    sims.register(simulator)


class Reader:
    """A policy that goes to the object that the instruction names, or to a place without one."""

    config = types.SimpleNamespace(horizon=2)
    cameras = ("front",)

    def act(self, observations, seeds):
        """Return chunks float32[B, 2, 2]: sideways, then down."""
        chunks = []
        for observation in observations:
            name = observation["instruction"].removeprefix("touch the ")
            place = observation["places"].get(name, 1)
            chunks.append([[place - 1, 0], [0, 1]])
        return np.array(chunks, np.float32)
