"""The tabletop's MuJoCo model: a table, an arm with a suction cup, and five slots for objects.

A slot takes any shape and color at a reset. The geometry of each shape is compiled once into a
hidden template, and `TableScene.show` copies the template's fields, which takes microseconds.

World frame, metres: x right and y away from the camera, z up, and z = 0 on the table.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from etcvla.sims import headless

headless.require_egl()
import mujoco  # noqa: E402

from etcvla.sims.conditions import Orbit, Rgb  # noqa: E402
from etcvla.sims.render import HIDDEN_GROUP  # noqa: E402
from etcvla.sims.tabletop import shapes  # noqa: E402
from etcvla.sims.tabletop.layouts import NUM_OBJECTS, Layout  # noqa: E402
from etcvla.sims.tabletop.words import ALL_NOUNS  # noqa: E402

CAMERA = Orbit(lookat=(0.0, 0.025, 0.0), distance=0.68, azimuth=90, elevation=-54)
TABLE_HALF_SIZE = (0.42, 0.3, 0.02)
RGB: dict[str, Rgb] = {
    "red": (0.86, 0.08, 0.08),
    "orange": (0.98, 0.47, 0.03),
    "yellow": (0.97, 0.86, 0.08),
    "green": (0.1, 0.6, 0.16),
    "blue": (0.1, 0.26, 0.9),
    "purple": (0.48, 0.1, 0.62),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
    "pink": (0.98, 0.52, 0.72),
    "teal": (0.02, 0.58, 0.58),
}
# Muted colors of the table; a layout selects one.
TABLE_RGB: tuple[Rgb, ...] = (
    (0.62, 0.5, 0.38),
    (0.55, 0.55, 0.5),
    (0.48, 0.53, 0.56),
    (0.6, 0.55, 0.44),
    (0.5, 0.56, 0.46),
    (0.6, 0.48, 0.44),
)
_BOX = mujoco.mjtGeom.mjGEOM_BOX
_SPHERE = mujoco.mjtGeom.mjGEOM_SPHERE
_CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
_MESH = mujoco.mjtGeom.mjGEOM_MESH
_SOLIDS = {
    "cube": (_BOX, (0.026, 0.026, 0.026)),
    "ball": (_SPHERE, (0.029, 0, 0)),
    "can": (_CYLINDER, (0.021, 0.034, 0)),
}
_MESHES = {
    "cone": shapes.cone(0.033, 0.034),
    "ring": shapes.torus(0.027, 0.0095),
    "cross": shapes.boxes(
        ((0, 0, 0), (0.036, 0.0125, 0.014)),
        ((0, 0.02425, 0), (0.0125, 0.01175, 0.014)),
        ((0, -0.02425, 0), (0.0125, 0.01175, 0.014)),
    ),
    "star": shapes.prism(shapes.star_outline(5, 0.039, 0.016), 0.012),
    "arch": shapes.boxes(
        ((-0.025, 0, -0.008), (0.009, 0.016, 0.02)),
        ((0.025, 0, -0.008), (0.009, 0.016, 0.02)),
        ((0, 0, 0.02), (0.034, 0.016, 0.008)),
    ),
}
_TEMPLATE_FIELDS = (
    "geom_type",
    "geom_dataid",
    "geom_size",
    "geom_aabb",
    "geom_rbound",
    "geom_pos",
    "geom_quat",
)
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_LINK = 0.34  # length of the upper arm and of the forearm
_SHOULDER = np.array([0.0, 0.36, 0.3])
_WRIST_HEIGHT = 0.15  # of the wrist above the tip
TIP_RADIUS = 0.009
# Bits that say what collides: objects with the table, the tip and one another.
_OBJECT_BITS = 3
_TABLE_BIT = 1
_TIP_BIT = 2
_SLOT = f"""
    <body name="{{name}}">
      <freejoint name="{{name}}"/>
      <inertial pos="0 0 0" mass="0.05" diaginertia="2e-5 2e-5 2e-5"/>
      <geom name="{{name}}" size="0.03" contype="{_OBJECT_BITS}" conaffinity="{_OBJECT_BITS}"/>
    </body>"""
_WELD = """
    <weld name="{name}" body1="hand" body2="{name}" active="false"/>"""
# Names of the bodies, geoms and welds of the objects.
SLOTS = [f"object{number}" for number in range(NUM_OBJECTS)]
_XML = f"""
<mujoco model="tabletop">
  <option timestep="0.01" integrator="implicitfast"/>
  <visual>
    <global fovy="38"/>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.22 0.22 0.22" specular="0 0 0"/>
    <quality numslices="12" numstacks="6" numquads="1" offsamples="0"/>
    <map znear="0.05" zfar="10"/>
  </visual>
  <asset>
    <texture name="table" type="2d" builtin="flat" width="64" height="64" rgb1="1 1 1"/>
    <material name="table" texture="table" specular="0"/>
  </asset>
  <default>
    <geom contype="0" conaffinity="0"/>
    <default class="arm"><geom type="capsule" rgba="0.62 0.65 0.7 1"/></default>
    <default class="joint"><geom type="cylinder" rgba="0.24 0.26 0.3 1"/></default>
  </default>
  <worldbody>
    <light directional="true" pos="0 0 2" dir="-0.35 0.45 -1" diffuse="0.5 0.5 0.48"/>
    <geom name="room" type="box" size="2 2 0.02" pos="0 0 -0.5" rgba="0.27 0.3 0.34 1"/>
    <geom name="table" type="box" size="{" ".join(map(str, TABLE_HALF_SIZE))}" pos="0 0 -0.02"
      material="table" contype="{_TABLE_BIT}" friction="0.8"/>
    <geom name="column" class="joint" size="0.045 0.4" pos="0 0.36 -0.1"/>
    <body name="upper" mocap="true">
      <geom class="arm" size="0.026 {_LINK / 2}"/>
    </body>
    <body name="fore" mocap="true">
      <geom class="arm" size="0.019 {_LINK / 2}"/>
      <geom class="joint" type="sphere" size="0.03" pos="0 0 {-_LINK / 2}"/>
    </body>
    <body name="hand" mocap="true">
      <geom class="joint" size="0.02 0.016" pos="0 0 {_WRIST_HEIGHT}"/>
      <geom class="arm" type="cylinder" size="0.008 0.06" pos="0 0 0.08"/>
      <geom class="joint" size="0.013 0.007" pos="0 0 0.019"/>
      <geom name="tip" type="cylinder" size="{TIP_RADIUS} 0.006" pos="0 0 0.006"
        rgba="0.13 0.13 0.15 1" contype="{_TIP_BIT}"/>
    </body>
    {"".join(_SLOT.format(name=name) for name in SLOTS)}
  </worldbody>
  <equality>
    {"".join(_WELD.format(name=name) for name in SLOTS)}
  </equality>
</mujoco>
"""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A state of a `TableScene`."""

    physics: np.ndarray  # float64, of the fields `_STATE`
    welds: np.ndarray  # the model's eq_data
    held: int


class TableScene:
    """The model and its state.

    Attributes:
      model: the model.
      data: its state.
      held: number of the object that the suction cup holds; -1 for none.
    """

    def __init__(self):
        self.model = _make_model()
        self.data = mujoco.MjData(self.model)
        self.held = -1
        self.table = self.model.geom("table").id
        self.objects = np.array([self.model.geom(name).id for name in SLOTS])
        self._bodies = self.model.geom_bodyid[self.objects]
        self._templates = {noun: self.model.geom(f"template/{noun}").id for noun in ALL_NOUNS}
        self._half_heights = {noun: self._measure(geom) for noun, geom in self._templates.items()}
        self._material = self.model.geom_matid[self.table]
        self._tip = self.model.geom("tip").id
        self._mocap = {name: self.model.body(name).mocapid[0] for name in ("hand", "upper", "fore")}
        # Objects stop soon after a push, and balls do not roll away.
        self.model.dof_damping.reshape(NUM_OBJECTS, 6)[:] = [0.1] * 3 + [5e-4] * 3

    def _measure(self, geom: int) -> float:
        """Return half the height of an upright shape."""
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, self.model.geom_quat[geom])
        return float(np.abs(rotation.reshape(3, 3)[2]) @ self.model.geom_aabb[geom, 3:])

    def half_height(self, noun: str) -> float:
        """Return half the height of an upright object in metres."""
        return self._half_heights[noun]

    def show(self, layout: Layout) -> None:
        """Apply a layout's shapes and colors to the objects and the table."""
        for number, shown in enumerate(layout.objects):
            geom = self.objects[number]
            template = self._templates[shown.noun]
            for name in _TEMPLATE_FIELDS:
                values = getattr(self.model, name)
                values[geom] = values[template]
            self.model.geom_sameframe[geom] = 0  # the shape may be off the body's frame
            self.model.geom_rgba[geom, :3] = RGB[shown.color]
        self.model.geom_matid[self.table] = -1
        self.model.geom_rgba[self.table, :3] = TABLE_RGB[layout.table % len(TABLE_RGB)]

    def show_texture(self) -> None:
        """Render the table with its texture. Without it, a frame costs a fifth less."""
        self.model.geom_matid[self.table] = self._material

    def reset(self, layout: Layout, tip: np.ndarray) -> None:
        """Place the objects and the tip, float[3], and start the simulation."""
        mujoco.mj_resetData(self.model, self.data)
        self.held = -1
        poses = self.data.qpos.reshape(NUM_OBJECTS, 7)
        poses[:, :2] = layout.positions
        poses[:, 2] = [self.half_height(shown.noun) for shown in layout.objects]
        poses[:, 3:] = 0
        poses[:, 3] = np.cos(layout.yaws / 2)
        poses[:, 6] = np.sin(layout.yaws / 2)
        self.move_tip(tip)
        self.pose_arm(tip)
        mujoco.mj_forward(self.model, self.data)

    def snapshot(self) -> Snapshot:
        """Return the state for `restore`."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, physics, _STATE)
        return Snapshot(physics, self.model.eq_data.copy(), self.held)

    def restore(self, snapshot: Snapshot) -> None:
        """Return to a state of the same layout."""
        self.model.eq_data[:] = snapshot.welds
        self.held = snapshot.held
        mujoco.mj_setState(self.model, self.data, snapshot.physics, _STATE)
        self.update()

    def move_tip(self, tip: np.ndarray) -> None:
        """Set the position of the tip, float[3]. The arm follows in `pose_arm`."""
        self.data.mocap_pos[self._mocap["hand"]] = tip

    def pose_arm(self, tip: np.ndarray) -> None:
        """Connect the shoulder with the hand, whose tip is at float[3], by two links."""
        wrist = tip + [0, 0, _WRIST_HEIGHT]
        offset = wrist - _SHOULDER
        x, y, z = offset
        upward = np.array([-x * z, -y * z, x * x + y * y])  # at right angles to the offset
        bend = np.sqrt(max(0.0, _LINK**2 - offset @ offset / 4))
        elbow = _SHOULDER + offset / 2 + bend * upward / np.linalg.norm(upward)
        self._set_link("upper", _SHOULDER, elbow)
        self._set_link("fore", elbow, wrist)

    def _set_link(self, name: str, start: np.ndarray, end: np.ndarray) -> None:
        """Put a link, whose length is along its z axis, between two points."""
        mocap = self._mocap[name]
        self.data.mocap_pos[mocap] = (start + end) / 2
        mujoco.mju_quatZ2Vec(self.data.mocap_quat[mocap], end - start)

    def update(self) -> None:
        """Update positions and contacts after the tip moved, without dynamics."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_collision(self.model, self.data)

    def simulate(self, steps: int) -> None:
        """Simulate `steps` of 0.01 seconds."""
        mujoco.mj_step(self.model, self.data, steps)

    def contacts(self) -> np.ndarray:
        """Return bool[5]: which objects the tip touches."""
        pairs = self.data.contact.geom
        touching = pairs[(pairs == self._tip).any(1)]
        return np.isin(self.objects, touching)

    def positions(self) -> np.ndarray:
        """Return the centres of the objects, float[5, 3] metres."""
        return self.data.xpos[self._bodies]

    def set_suction(self, is_on: bool) -> None:
        """Hold the object that the tip touches, or release what it holds."""
        if not is_on:
            self.data.eq_active[:] = 0
            self.held = -1
        elif self.held < 0 and self.contacts().any():
            self.held = int(self.contacts().argmax())
            self._weld(self.held)

    def _weld(self, number: int) -> None:
        """Fix an object to the hand in its current pose. The hand is always upright."""
        body = self._bodies[number]
        offset = self.data.xpos[body] - self.data.mocap_pos[self._mocap["hand"]]
        # anchor, relative position and orientation, scale of the torque
        weld = [np.zeros(3), offset, self.data.xquat[body], [1.0]]
        self.model.eq_data[number] = np.concatenate(weld)
        self.data.eq_active[number] = 1


def _make_model() -> mujoco.MjModel:
    """Compile the model."""
    spec = mujoco.MjSpec.from_string(_XML)
    for noun in ALL_NOUNS:
        _add_template(spec, noun)
    model = spec.compile()
    for noun in ALL_NOUNS:
        model.geom(f"template/{noun}").contype = 0
    return model


def _add_template(spec: mujoco.MjSpec, noun: str) -> None:
    """Add the hidden geom of a shape. It may collide, so that a mesh gets its convex hull."""
    geom = spec.worldbody.add_geom(name=f"template/{noun}", group=HIDDEN_GROUP, contype=1)
    if noun in _SOLIDS:
        geom.type, geom.size = _SOLIDS[noun]
        return
    mesh = spec.add_mesh(name=noun)
    mesh.uservert = _MESHES[noun].vertices.ravel()
    mesh.userface = _MESHES[noun].faces.ravel()
    geom.type = _MESH
    geom.meshname = noun
