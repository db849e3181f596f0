"""A scripted expert for pick-and-place.

It grasps an object from above and puts it on or in another one. The expert knows the whole state.
Everything is in LIBERO's world frame, metres and radians. The gripper is a Panda's, pointing down.
The axes of the hand are the closing direction of the fingers, the direction across it, and down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from etcvla.sims.render import mesh_slices

Point = np.ndarray  # float64[3], metres in the world
Points = np.ndarray  # float64[n, 3]
Target = tuple[Point, bool]  # where the grasp centre should go, and whether the gripper is closed

_POINT_SPACING = 0.004  # between points on surfaces
_NUM_POINTS = (200, 20_000)  # least and most points on a geom

# The gripper.
_FINGER_BELOW = 0.0093  # distance that the fingers extend below the grasp centre
_HALF_OPENING = 0.04
_HALF_FINGER = 0.013  # half the width of a finger, with a margin
_MAX_WIDTH = 0.07  # of an object between the fingers
# Boxes (low, high) around the open hand, along its axes, relative to the grasp centre: the two
# fingers, and the palm above them.
_HAND = np.array(
    [
        [[_HALF_OPENING, -0.011, -0.045], [_HALF_OPENING + 0.015, 0.011, _FINGER_BELOW]],
        [[-_HALF_OPENING - 0.015, -0.011, -0.045], [-_HALF_OPENING, 0.011, _FINGER_BELOW]],
        [[-0.105, -0.033, -0.14], [0.105, 0.033, -0.045]],
    ]
)

# The choice of a grasp.
_DEPTH = 0.03  # of the grasp centre below the top of a tall object
_RIM_DEPTH = 0.027  # below a bowl's rim; at 0.018 its slanted wall slips out of the fingers
_MIN_HEIGHT = 0.011  # above the bottom of a flat object
_YAWS = np.deg2rad(np.arange(-90, 90, 7.5))
_RIM_ANGLES = np.deg2rad(np.arange(0, 360, 15))
_NEIGHBOURHOOD = 0.3  # half the side of the square around an object in which others are obstacles
_ENOUGH_CLEARANCE = 0.01  # more clearance than this does not improve a grasp
_TURN_COST = 0.003  # metres of clearance that one radian of wrist rotation is worth
# Metres of clearance that one metre between the fingers is worth: objects grasped diagonally turn
# in the grip.
_WIDTH_COST = 0.3

# The motion.
_HOVER = 0.10  # height of the approach above the grasp
_CARRY_CLEARANCE = 0.04  # between the carried object and everything that it passes over
_CLOSING_STEPS = 16  # the gripper's command itself takes eight steps from open to closed
_OPENING_STEPS = 12
_NEAR = 0.02
_AT_TARGET = 0.008
_GENTLE_LIFT = 0.015  # lead of the commanded height when an object is lifted by its rim
_LIFTED = 0.015
_GAIN = 0.8  # share of the remaining distance per step, before the action is clipped
_FULL_STEP = 0.05  # metres of a full action
_FULL_TURN = 0.5  # radians of a full action


class SceneGeometry:
    """Points on the surfaces of a scene's objects, fixed to their bodies, and the pose of the hand.

    Args:
      model: the model with the visible meshes.
      data: the simulator's state.
      geoms: ids of the visible geoms of each object.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, geoms: Sequence[np.ndarray]):
        self._data = data
        rng = np.random.default_rng(0)
        self._local_points = []
        for object_geoms in geoms:
            surfaces = {geom: _surface_points(model, geom, rng) for geom in object_geoms.tolist()}
            self._local_points.append(surfaces)

    def points(self, index: int) -> Points:
        """Return points on the surface of an object, in the world."""
        surfaces = []
        for geom, local in self._local_points[index].items():
            rotation = self._data.geom_xmat[geom].reshape(3, 3)
            surfaces.append(local @ rotation.T + self._data.geom_xpos[geom])
        return np.concatenate(surfaces)

    def points_except(self, index: int) -> Points:
        """Return points on all objects but one."""
        others = [self.points(i) for i in range(len(self._local_points)) if i != index]
        return np.concatenate(others)

    @property
    def grasp_centre(self) -> Point:
        """Position of the grasp centre."""
        return self._data.site("gripper0_grip_site").xpos.copy()

    @property
    def hand_axes(self) -> np.ndarray:
        """The hand's axes as columns of float64[3, 3]."""
        return self._data.site("gripper0_grip_site").xmat.reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        """Direction in the plane in which the fingers close."""
        x, y, _ = self.hand_axes[:, 0]
        return float(np.arctan2(y, x))


def _surface_points(model: mujoco.MjModel, geom: int, rng: np.random.Generator) -> Points:
    """Return random points on a geom's surface, in the geom's frame.

    The surface of a geom that is no mesh is its bounding box.
    """
    mesh = model.geom_dataid[geom]
    if mesh >= 0:
        vertices, faces = mesh_slices(model, mesh)
        corners = model.mesh_vert[vertices][model.mesh_face[faces]]
    else:
        centre, half_extent = np.split(model.geom_aabb[geom], 2)
        corners = _box_triangles(centre - half_extent, centre + half_extent)
    first, second, third = corners.swapaxes(0, 1)
    area = np.linalg.norm(np.cross(second - first, third - first), axis=-1) / 2
    count = int(np.clip(area.sum() / _POINT_SPACING**2, *_NUM_POINTS))
    chosen = rng.choice(len(corners), count, p=area / area.sum())
    u, v = np.sort(rng.random((2, count)), axis=0)
    weights = np.stack([u, v - u, 1 - v], -1)
    return np.einsum("nk,nkd->nd", weights, corners[chosen])


def _box_triangles(low: Point, high: Point) -> np.ndarray:
    """Return the sides of a box, two triangles each, float64[12, 3, 3]."""
    below = [[[0, 0, side], [1, 0, side], [1, 1, side]] for side in (0, 1)]
    above = [[[0, 0, side], [0, 1, side], [1, 1, side]] for side in (0, 1)]
    horizontal = np.array(below + above, float)
    triangles = np.concatenate([np.roll(horizontal, axis, axis=-1) for axis in range(3)])
    return low + (high - low) * triangles


def _box_centre(points: Points) -> np.ndarray:
    """Return the centre float64[2] in the plane of the bounding box of points."""
    return (points.min(0) + points.max(0))[:2] / 2


def _radius(points: Points, centre: np.ndarray) -> np.ndarray:
    """Return the distances float64[n] in the plane of points float64[n, 2 or 3] to a centre."""
    return np.linalg.norm(points[:, :2] - centre, axis=-1)


def _direction(yaw: float) -> np.ndarray:
    """Return the unit vector float64[2] at an angle in the plane."""
    return np.array([np.cos(yaw), np.sin(yaw)])


def _hand_axes(yaw: float) -> np.ndarray:
    """Return the axes, as columns of float64[3, 3], of a hand that points down."""
    x, y = _direction(yaw)
    return np.array([[x, y, 0], [y, -x, 0], [0, 0, -1]])


@dataclasses.dataclass(frozen=True)
class Grasp:
    """A grasp from above."""

    point: Point  # the grasp centre
    yaw: float  # direction in which the fingers close
    width: float = 0.0  # metres between the closed fingers


def grasps(own: Points, others: Points, current_yaw: float) -> list[Grasp]:
    """Return grasps of an object from above, the best one first.

    A hollow object, open at the top, is grasped by its rim; any other one across its narrow side.

    Args:
      own: points on the object.
      others: points on all other objects.
      current_yaw: of the hand.
    """
    offset = np.abs(others[:, :2] - _box_centre(own))
    neighbours = others[(offset < _NEIGHBOURHOOD).all(1)]
    obstacles = np.concatenate([neighbours, own])

    def _cost(grasp: Grasp) -> float:
        clearance = min(_clearance(obstacles, grasp), _ENOUGH_CLEARANCE)
        turn = abs(_wrap_half_turn(grasp.yaw - current_yaw))
        return _WIDTH_COST * grasp.width - (clearance - _TURN_COST * turn)

    candidates = _rim_grasps(own) if _is_hollow(own) else _grasps_across(own)
    return sorted(candidates, key=_cost)


def _is_hollow(own: Points) -> bool:
    """Return whether an object is too wide for the gripper and its middle is lower than its rim."""
    low = own.min(0)
    high = own.max(0)
    is_middle = _radius(own, _box_centre(own)) < 0.02
    middle_height = own[is_middle, 2].max(initial=low[2])
    is_wide = (high - low)[:2].min() > _MAX_WIDTH
    return bool(is_wide and middle_height < high[2] - 0.015)


def _rim_grasps(own: Points) -> list[Grasp]:
    """Return grasps of the wall all around a hollow object."""
    centre = _box_centre(own)
    height = own[:, 2].max() - _RIM_DEPTH
    is_wall = np.abs(own[:, 2] - height) < 0.006
    wall = own[is_wall, :2] - centre
    radius = np.linalg.norm(wall, axis=-1)
    wall_angles = np.arctan2(wall[:, 1], wall[:, 0])
    candidates = []
    for angle in _RIM_ANGLES:
        difference = (wall_angles - angle + np.pi) % (2 * np.pi) - np.pi
        is_near = np.abs(difference) < np.deg2rad(8)
        if is_near.any():
            point = centre + np.median(radius[is_near]) * _direction(angle)
            candidates.append(Grasp(np.append(point, height), angle))
    return candidates


def _grasps_across(own: Points) -> list[Grasp]:
    """Return the grasps across an object's middle in every direction in which it is narrow."""
    height = max(own[:, 2].max() - _DEPTH, own[:, 2].min() + _MIN_HEIGHT)
    middle = _box_centre(own)
    upper = own[own[:, 2] > height - 0.015, :2] - middle
    candidates = []
    for yaw in _YAWS:
        closing = _direction(yaw)
        across = [-closing[1], closing[0]]
        extent = upper[np.abs(upper @ across) < _HALF_FINGER] @ closing
        if len(extent) and np.ptp(extent) <= _MAX_WIDTH:
            point = middle + closing * (extent.min() + extent.max()) / 2
            candidates.append(Grasp(np.append(point, height), yaw, float(np.ptp(extent))))
    return candidates


def _clearance(points: Points, grasp: Grasp) -> float:
    """Return the distance from the open hand to the nearest point; negative inside the hand."""
    local = (points - grasp.point) @ _hand_axes(grasp.yaw)
    outside = np.maximum(_HAND[:, None, 0] - local, local - _HAND[:, None, 1])
    distance = np.linalg.norm(outside.clip(0), axis=-1) + np.minimum(outside.max(-1), 0)
    return float(distance.min())


def _wrap_half_turn(angle: float) -> float:
    """Return the angle of the same closing axis in [-pi / 2, pi / 2)."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _levelling(own: Points) -> np.ndarray:
    """Return the rotation vector float64[3] that levels a round object that is wider than high."""
    thinnest = np.linalg.eigh(np.cov(own.T))[1][:, 0]
    axis = thinnest * np.sign(thinnest[2])
    rotation_axis = np.cross(axis, [0, 0, 1])
    sine = np.linalg.norm(rotation_axis)
    if sine <= 1e-9:
        return np.zeros(3)
    return rotation_axis * (np.arctan2(sine, axis[2]) / sine)


class Expert:
    """Attempts grasps until the object is in its place. Call `act` once per step.

    The stages are methods that return a `Target` and choose the next stage.

    Args:
      scene: the objects' surfaces and the hand.
      target: index of the object to move.
      place: index of the object that it goes on or in.
      inside: in, instead of on.

    Attributes:
      attempts: number of grasps that were tried, the current one included.
      grasp: the current grasp.
    """

    def __init__(self, scene: SceneGeometry, target: int, place: int, *, inside: bool):
        self._scene = scene
        self._target_index = target
        self._place_index = place
        self._inside = inside
        self.attempts = 0
        self._observe()
        self._begin()

    def _observe(self) -> None:
        """Read the positions of the hand, the object and its place."""
        self._hand = self._scene.grasp_centre
        self._own = self._scene.points(self._target_index)
        self._place = self._scene.points(self._place_index)

    def _begin(self) -> None:
        """Choose a grasp.

        After a failed attempt, skip one, because neighbours in the order are similar.
        """
        own = self._own
        yaw = self._scene.yaw
        middle = (own.min(0) + own.max(0)) / 2
        candidates = grasps(own, self._obstacles(), yaw) or [Grasp(middle, yaw)]
        self.grasp = candidates[(2 * self.attempts) % len(candidates)]
        self.attempts += 1
        self._is_hollow = _is_hollow(own)
        self._rest_height = own[:, 2].min()
        self._go_to(self._approach)

    def _obstacles(self) -> Points:
        return self._scene.points_except(self._target_index)

    @property
    def reaching(self) -> bool:
        """Whether the object is still where it was when the grasp was chosen."""
        return self._stage in (self._approach, self._descend)

    def act(self, success: bool) -> np.ndarray:
        """Return the action of this step, float32[7] in [-1, 1].

        Args:
          success: whether the task's goal is reached.
        """
        self._observe()
        if success and self._stage not in (self._release, self._leave):
            self._go_to(self._release)
        self._steps_in_stage += 1
        target, is_closed = self._stage()
        gripper = 1.0 if is_closed else -1.0
        return np.append(self._motion(target), gripper).astype(np.float32)

    def _go_to(self, stage: Callable[[], Target]) -> None:
        self._stage = stage
        self._steps_in_stage = 0

    def _motion(self, target: Point) -> np.ndarray:
        """Return the action's motion, float64[6], that moves the grasp centre to a point."""
        # A bowl that is put down at an angle rolls off its place.
        if self._is_hollow and self._stage in (self._carry, self._lower):
            turn = _levelling(self._own)
        else:
            axes = _hand_axes(self._scene.yaw + self._turn_to_grasp())
            turn = Rotation.from_matrix(axes @ self._scene.hand_axes.T).as_rotvec()
        offset = target - self._hand
        motion = np.concatenate([_GAIN * offset / _FULL_STEP, _GAIN * turn / _FULL_TURN])
        return np.clip(motion, -1, 1)

    def _turn_to_grasp(self) -> float:
        return _wrap_half_turn(self.grasp.yaw - self._scene.yaw)

    def _approach(self) -> Target:
        target = self.grasp.point + [0, 0, _HOVER]
        is_near = np.linalg.norm(target - self._hand) < _NEAR
        has_arrived = is_near and abs(self._turn_to_grasp()) < 0.08
        if has_arrived or self._steps_in_stage > 80:
            self._go_to(self._descend)
        return target, False

    def _descend(self) -> Target:
        target = self.grasp.point
        if np.linalg.norm(target - self._hand) < _AT_TARGET or self._steps_in_stage > 25:
            self._go_to(self._close)
        return target, False

    def _close(self) -> Target:
        if self._steps_in_stage >= _CLOSING_STEPS:
            self._carry_height = self._safe_height()
            self._go_to(self._lift)
        return self.grasp.point, True

    def _safe_height(self) -> float:
        """Return the height of the grasp centre at which the object clears all obstacles."""
        obstacles = self._obstacles()
        start = self._own[:, :2].mean(0)
        path = _box_centre(self._place) - start
        offset = obstacles[:, :2] - start
        share = np.clip(offset @ path / max(path @ path, 1e-9), 0, 1)
        distance = np.linalg.norm(offset - share[:, None] * path, axis=-1)
        is_passed = distance < _radius(self._own, start).max() + 0.02
        highest_passed = obstacles[is_passed, 2].max(initial=-np.inf)
        top = max(highest_passed, self._place[:, 2].max(), self._rest_height)
        return top + _CARRY_CLEARANCE + self._hand[2] - self._own[:, 2].min()

    def _lift(self) -> Target:
        is_lifted = self._is_lifted()
        if not is_lifted and self._steps_in_stage > 20:
            return self._try_again()
        height = self._carry_height
        is_high = self._hand[2] > height - _NEAR
        if is_lifted and (is_high or self._steps_in_stage > 50):
            self._go_to(self._carry)
        if self._is_hollow:  # a rim is held by friction alone: a jerk pulls it out of the fingers
            height = min(height, self._hand[2] + _GENTLE_LIFT)
        return np.append(self.grasp.point[:2], height), True

    def _try_again(self) -> Target:
        self._begin()
        return self._hand + [0, 0, 0.05], False

    def _is_lifted(self) -> bool:
        return bool(self._own[:, 2].min() > self._rest_height + _LIFTED)

    def _above_place(self, height: float) -> Point:
        """Return the grasp centre at a height that puts the object over its place."""
        point = self._hand[:2] + _box_centre(self._place) - _box_centre(self._own)
        return np.append(point, height)

    def _carry(self) -> Target:
        if not self._is_lifted():
            return self._try_again()
        target = self._above_place(self._carry_height)
        distance = np.linalg.norm((target - self._hand)[:2])
        if distance < _AT_TARGET or self._steps_in_stage > 50:
            self._go_to(self._lower)
        return target, True

    def _lower(self) -> Target:
        place = self._place
        own_bottom = self._own[:, 2].min()
        place_bottom = place[:, 2].min()
        height = self._hand[2]
        if self._inside:  # neither the object nor the hand may hit the rim
            hand_clearance = height - place[:, 2].max() - 0.02
            down = min(own_bottom - place_bottom - 0.03, hand_clearance)
        else:
            is_middle = _radius(place, _box_centre(place)) < 0.04
            surface = place[is_middle, 2].max(initial=place_bottom)
            down = own_bottom - surface - 0.004
        if down < 0.006 or self._steps_in_stage > 30:
            self._go_to(self._release)
        return self._above_place(height - max(down, 0)), True

    def _release(self) -> Target:
        if self._steps_in_stage >= _OPENING_STEPS:
            self._go_to(self._leave)
        return self._hand, False

    def _leave(self) -> Target:
        if self._steps_in_stage > 40:
            self._begin()
        return self._hand + [0, 0, 0.03], False
