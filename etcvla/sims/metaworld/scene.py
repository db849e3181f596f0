"""Meta-World's bare simulation, and the appearance of its scene variants."""

from __future__ import annotations

import dataclasses

import numpy as np

from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.sawyer_xyz_env import SawyerXYZEnv  # noqa: E402

from etcvla.sims.appearance import light_scene  # noqa: E402
from etcvla.sims.conditions import Orbit, Rgb  # noqa: E402
from etcvla.sims.oracle import hide_sites  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP, coarsen_mesh  # noqa: E402
from etcvla.sims.task import Task  # noqa: E402

# Parts of the arm that are out of view or far from the table, and cost more to render than
# everything else.
_HIDDEN_BODIES = (
    "head",
    "screen",
    "right_arm_base_link",
    "pedestal",
    "pedestal_feet",
    "controller_box",
    "torso",
    "right_l0",
    "right_l1",
    "right_l2",
    "right_l3",
)
_FINE_MESHES = ("l4", "l5", "l6", "eGripperBase")  # 90 % of the remaining triangles
_MESH_CELL = 0.005  # metres; less than a pixel at the usual image sizes
_MARKER_RADIUS = 0.03  # metres; Meta-World's 0.02 is two pixels in an image of 96
_MARKER_RGBA = (0.0, 0.8, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class SceneVariant:
    """The appearance of a scene."""

    camera: Orbit  # of "front"
    table: Rgb | None = None  # color; None: Meta-World's wood
    light: Rgb = (1.0, 1.0, 1.0)  # factors of the lights' color
    ambient: float = 1.0  # factor of the ambient light


SCENES = {
    "source": SceneVariant(Orbit(lookat=(0, 0.72, 0.1), distance=1.2, azimuth=160, elevation=-40)),
    "target": SceneVariant(
        Orbit(lookat=(0, 0.72, 0.08), distance=1.15, azimuth=178, elevation=-55),
        table=(0.42, 0.5, 0.62),
        light=(1.25, 1.1, 0.8),
        ambient=0.75,
    ),
}


def make_simulation(task: str) -> SawyerXYZEnv:
    """Return Meta-World's own environment of a task.

    The whole state is observable, and the seed draws the layout.
    """
    env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._partially_observable = False
    env._set_task_called = True
    del env.sawyer_observation_space  # its cached bounds would clip the goal to zero
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env.max_path_length = 10**9
    return env


def apply_scene_variant(model: mujoco.MjModel, task: Task, scene: SceneVariant) -> None:
    """Set a model's markers, table and light.

    Shows only the markers that the task names, and hides the arm's distant parts.
    """
    markers = [spec.site for spec in task.objects if spec.site]
    hide_sites(model, markers)
    for name in markers:
        model.site(name).size[:] = _MARKER_RADIUS
        model.site(name).rgba[:] = _MARKER_RGBA
    hidden = [model.body(name).id for name in _HIDDEN_BODIES]
    model.geom_group[np.isin(model.geom_bodyid, hidden)] = HIDDEN_GROUP
    for mesh in _FINE_MESHES:
        coarsen_mesh(model, model.mesh(mesh).id, _MESH_CELL)
    if scene.table is not None:
        table = table_geoms(model)
        model.geom_matid[table] = -1
        model.geom_rgba[table] = (*scene.table, 1)
    light_scene(model, scene.light, scene.ambient)


def table_geoms(model: mujoco.MjModel) -> np.ndarray:
    """Return the ids of the geoms of the table top.

    The table must still have Meta-World's material.
    """
    return np.flatnonzero(model.geom_matid == model.material("table_wood").id)
