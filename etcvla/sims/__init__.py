"""Robot simulators behind one interface: environments, experts and facts about each frame.

Importing this package imports no simulator. `make(simulator, task, scene, image_size)` imports the
one that it needs.
"""

from etcvla.sims import headless  # noqa: F401  sets environment variables before mujoco is imported
from etcvla.sims.environment import Environment
from etcvla.sims.libero import LIBERO
from etcvla.sims.metaworld import METAWORLD
from etcvla.sims.registry import Requirement, Simulator, get, make, register, simulators
from etcvla.sims.tabletop import TABLETOP

__all__ = ["Environment", "Requirement", "Simulator", "get", "make", "register", "simulators"]

register(METAWORLD)
register(LIBERO)
register(TABLETOP)
