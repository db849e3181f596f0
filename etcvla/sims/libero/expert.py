"""A scripted expert for pick-and-place.

It grasps an object from above and puts it on or in another one. The expert sees the whole state.
Everything is in LIBERO's world frame, metres and radians. The gripper is a Panda's, pointing down;
its fingers close along the x axis of its site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

_POINT_SPACING = 0.004  # between points on surfaces
_NUM_POINTS = (200, 20_000)  # least and most points on a geom

# The gripper.
_FINGER_BELOW = 0.0093  # distance that the fingers extend below the grasp centre
_HALF_OPENING = 0.04
_HALF_FINGER = 0.013  # half the width of a finger, with a margin
_MAX_WIDTH = 0.07  # of an object between the fingers
# Boxes around the open hand, in its frame (across the fingers, along the closing axis, up),
# relative to the grasp centre: the two fingers, and the palm above them. (low, high)
_HAND = np.array(
    [
        [[-0.011, _HALF_OPENING, -_FINGER_BELOW], [0.011, _HALF_OPENING + 0.015, 0.045]],
        [[-0.011, -_HALF_OPENING - 0.015, -_FINGER_BELOW], [0.011, -_HALF_OPENING, 0.045]],
        [[-0.033, -0.105, 0.045], [0.033, 0.105, 0.14]],
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
        self.data = data
        rng = np.random.default_rng(0)
        self._local_points = []
        for object_geoms in geoms:
            surfaces = [(geom, _surface_points(model, geom, rng)) for geom in object_geoms.tolist()]
            self._local_points.append(surfaces)

    def points(self, index: int) -> np.ndarray:
        """Return points float64[n, 3] on the surface of an object, in the world."""
        surfaces = []
        for geom, local in self._local_points[index]:
            rotation = self.data.geom_xmat[geom].reshape(3, 3)
            surfaces.append(local @ rotation.T + self.data.geom_xpos[geom])
        return np.concatenate(surfaces)

    def points_except(self, index: int) -> np.ndarray:
        """Return points float64[n, 3] on all objects but one."""
        others = [self.points(i) for i in range(len(self._local_points)) if i != index]
        return np.concatenate(others)

    @property
    def grasp_centre(self) -> np.ndarray:
        """Position of the grasp centre, float64[3]."""
        return self.data.site("gripper0_grip_site").xpos.copy()

    @property
    def hand(self) -> np.ndarray:
        """The hand's axes as columns of float64[3, 3]; the fingers close along x, z points down."""
        return self.data.site("gripper0_grip_site").xmat.reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        """Direction in the plane in which the fingers close."""
        x, y, _ = self.hand[:, 0]
        return float(np.arctan2(y, x))


def _surface_points(model: mujoco.MjModel, geom: int, rng: np.random.Generator) -> np.ndarray:
    """Return random points float64[n, 3] on a geom's surface, in the geom's frame.

    The surface of a geom that is no mesh is its bounding box.
    """
    mesh = model.geom_dataid[geom]
    if mesh >= 0:
        first_vertex = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[first_vertex : first_vertex + model.mesh_vertnum[mesh]]
        first_face = model.mesh_faceadr[mesh]
        faces = model.mesh_face[first_face : first_face + model.mesh_facenum[mesh]]
        corners = vertices[faces]
    else:
        centre = model.geom_aabb[geom, :3]
        half_extent = model.geom_aabb[geom, 3:]
        corners = _box_triangles(centre - half_extent, centre + half_extent)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=-1) / 2
    count = int(np.clip(area.sum() / _POINT_SPACING**2, *_NUM_POINTS))
    chosen = rng.choice(len(corners), count, p=area / area.sum())
    u, v = np.sort(rng.random((2, count)), axis=0)
    weights = np.stack([u, v - u, 1 - v], -1)
    return np.einsum("nk,nkd->nd", weights, corners[chosen]).astype(np.float64)


def _box_triangles(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the sides of a box, two triangles each, float64[12, 3, 3]."""
    below = [[[0, 0, side], [1, 0, side], [1, 1, side]] for side in (0, 1)]
    above = [[[0, 0, side], [0, 1, side], [1, 1, side]] for side in (0, 1)]
    horizontal = np.array(below + above, float)
    triangles = np.concatenate([np.roll(horizontal, axis, axis=-1) for axis in range(3)])
    return low + (high - low) * triangles


def _box_centre(points: np.ndarray) -> np.ndarray:
    """Return the centre float64[2] in the plane of the bounding box of points float64[n, 3]."""
    return (points.min(0) + points.max(0))[:2] / 2


@dataclasses.dataclass(frozen=True)
class _Candidate:
    point: np.ndarray  # float64[3], the grasp centre
    yaw: float  # of the closing axis
    width: float  # between the fingers


@dataclasses.dataclass(frozen=True)
class Grasp:
    """A grasp from above."""

    point: np.ndarray  # float64[3], the grasp centre
    yaw: float  # direction in which the fingers close
    score: float  # larger is better


def grasps(own: np.ndarray, others: np.ndarray, current_yaw: float) -> list[Grasp]:
    """Return grasps of an object from above, the best one first.

    A hollow object, open at the top, is grasped by its rim; any other one across its narrow side.

    Args:
      own: points on the object, float64[n, 3].
      others: points on all other objects, float64[m, 3].
      current_yaw: of the hand.
    """
    offset = np.abs(others[:, :2] - _box_centre(own))
    obstacles = others[(offset < _NEIGHBOURHOOD).all(1)]
    candidates = [_grasp_across(own, yaw) for yaw in _YAWS]
    if _is_hollow(own):
        candidates = _rim_grasps(own)
    scored = []
    for candidate in candidates:
        if candidate is None:
            continue
        clearance = min(_clearance(obstacles, candidate), _clearance(own, candidate))
        turn = abs(_wrap_half_turn(candidate.yaw - current_yaw))
        score = min(clearance, _ENOUGH_CLEARANCE) - _TURN_COST * turn
        score -= _WIDTH_COST * candidate.width
        scored.append(Grasp(candidate.point, candidate.yaw, score))
    return sorted(scored, key=lambda grasp: -grasp.score)


def _is_hollow(own: np.ndarray) -> bool:
    """Return whether an object is too wide for the gripper and its middle is lower than its rim."""
    low = own.min(0)
    high = own.max(0)
    is_middle = np.linalg.norm(own[:, :2] - _box_centre(own), axis=-1) < 0.02
    middle_height = own[is_middle, 2].max(initial=low[2])
    is_wide = (high - low)[:2].min() > _MAX_WIDTH
    return bool(is_wide and middle_height < high[2] - 0.015)


def _rim_grasps(own: np.ndarray) -> list[_Candidate]:
    """Return grasps of the wall all around a hollow object."""
    centre = _box_centre(own)
    height = own[:, 2].max() - _RIM_DEPTH
    is_wall = np.abs(own[:, 2] - height) < 0.006
    wall = own[is_wall, :2] - centre
    wall_angles = np.arctan2(wall[:, 1], wall[:, 0])
    candidates = []
    for angle in _RIM_ANGLES:
        difference = (wall_angles - angle + np.pi) % (2 * np.pi) - np.pi
        is_near = np.abs(difference) < np.deg2rad(8)
        if is_near.any():
            radius = np.median(np.linalg.norm(wall[is_near], axis=-1))
            direction = np.array([np.cos(angle), np.sin(angle)])
            point = np.append(centre + radius * direction, height)
            candidates.append(_Candidate(point, angle, 0.0))
    return candidates


def _grasp_across(own: np.ndarray, yaw: float) -> _Candidate | None:
    """Return the grasp across an object's middle; None if it is too wide in this direction."""
    height = max(own[:, 2].max() - _DEPTH, own[:, 2].min() + _MIN_HEIGHT)
    along = np.array([np.cos(yaw), np.sin(yaw)])
    across = np.array([-np.sin(yaw), np.cos(yaw)])
    middle = _box_centre(own)
    flat = own[:, :2] - middle
    is_between_fingers = (np.abs(flat @ across) < _HALF_FINGER) & (own[:, 2] > height - 0.015)
    extent = flat[is_between_fingers] @ along
    if not len(extent) or np.ptp(extent) > _MAX_WIDTH:
        return None
    point = middle + along * (extent.min() + extent.max()) / 2
    return _Candidate(np.append(point, height), yaw, float(np.ptp(extent)))


def _clearance(points: np.ndarray, grasp: _Candidate) -> float:
    """Return the distance from the open hand to the nearest point; negative inside the hand."""
    if not len(points):
        return np.inf
    sine = np.sin(grasp.yaw)
    cosine = np.cos(grasp.yaw)
    hand_axes = np.array([[sine, -cosine, 0], [cosine, sine, 0], [0, 0, 1]])
    local = (points - grasp.point) @ hand_axes.T
    outside = np.maximum(_HAND[:, None, 0] - local, local - _HAND[:, None, 1])
    distance = np.linalg.norm(outside.clip(0), axis=-1) + np.minimum(outside.max(-1), 0)
    return float(distance.min())


def _wrap_half_turn(angle: float) -> float:
    """Return the angle of the same closing axis in [-pi / 2, pi / 2)."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _levelling(own: np.ndarray) -> np.ndarray:
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

    The stages are methods. Each returns the target of the grasp centre, float64[3], and whether the
    gripper is closed.

    Args:
      scene: the objects' surfaces and the hand.
      target: index of the object to move.
      place: index of the object that it goes on or in.
      inside: in, instead of on.
    """

    def __init__(self, scene: SceneGeometry, target: int, place: int, *, inside: bool):
        self._scene = scene
        self._target = target
        self._place = place
        self._inside = inside
        self._failed_attempts = 0
        self._begin()

    def _begin(self) -> None:
        """Choose a grasp.

        After a failed attempt, skip one, because neighbours in the order are similar.
        """
        own = self._target_points()
        candidates = grasps(own, self._obstacles(), self._scene.yaw)
        if not candidates:
            centre = (own.min(0) + own.max(0)) / 2
            candidates = [Grasp(centre, self._scene.yaw, 0.0)]
        self._grasp = candidates[(2 * self._failed_attempts) % len(candidates)]
        self._is_hollow = _is_hollow(own)
        self._rest_height = own[:, 2].min()
        self._go_to(self._approach)

    def _target_points(self) -> np.ndarray:
        return self._scene.points(self._target)

    def _place_points(self) -> np.ndarray:
        return self._scene.points(self._place)

    def _obstacles(self) -> np.ndarray:
        return self._scene.points_except(self._target)

    @property
    def attempts(self) -> int:
        """Number of grasps that were tried, the current one included."""
        return self._failed_attempts + 1

    @property
    def grasp_point(self) -> np.ndarray:
        """Where the object is grasped, float64[3]. Valid while the hand is `reaching`."""
        return self._grasp.point

    @property
    def reaching(self) -> bool:
        """Whether the object is still where it was when the grasp was chosen."""
        return self._stage in (self._approach, self._descend)

    def act(self, success: bool) -> np.ndarray:
        """Return the action of this step, float32[7] in [-1, 1].

        Args:
          success: whether the task's goal is reached.
        """
        if success and self._stage not in (self._release, self._leave):
            self._go_to(self._release)
        self._steps_in_stage += 1
        target, is_closed = self._stage()
        gripper = 1.0 if is_closed else -1.0
        return np.append(self._motion(target), gripper).astype(np.float32)

    def _go_to(self, stage: Callable[[], tuple[np.ndarray, bool]]) -> None:
        self._stage = stage
        self._steps_in_stage = 0

    def _motion(self, target: np.ndarray) -> np.ndarray:
        """Return the action's motion, float64[6], that moves the grasp centre to a point."""
        # A bowl that is put down at an angle rolls off its place.
        if self._is_hollow and self._stage in (self._carry, self._lower):
            turn = _levelling(self._target_points())
        else:
            turn = self._turn_to_grasp()
        offset = target - self._scene.grasp_centre
        motion = np.concatenate([_GAIN * offset / _FULL_STEP, _GAIN * turn / _FULL_TURN])
        return np.clip(motion, -1, 1)

    def _turn_to_grasp(self) -> np.ndarray:
        """Return the rotation vector float64[3] that turns the hand to the grasp's yaw."""
        yaw = self._scene.yaw + _wrap_half_turn(self._grasp.yaw - self._scene.yaw)
        closing = np.array([np.cos(yaw), np.sin(yaw), 0])
        down = np.array([0, 0, -1.0])
        wanted = np.column_stack([closing, np.cross(down, closing), down])
        return Rotation.from_matrix(wanted @ self._scene.hand.T).as_rotvec()

    def _distance_to(self, target: np.ndarray) -> float:
        return float(np.linalg.norm(target - self._scene.grasp_centre))

    def _has_grasp_yaw(self) -> bool:
        return abs(_wrap_half_turn(self._grasp.yaw - self._scene.yaw)) < 0.08

    def _approach(self) -> tuple[np.ndarray, bool]:
        target = self._grasp.point + [0, 0, _HOVER]
        has_arrived = self._distance_to(target) < _NEAR and self._has_grasp_yaw()
        if has_arrived or self._steps_in_stage > 80:
            self._go_to(self._descend)
        return target, False

    def _descend(self) -> tuple[np.ndarray, bool]:
        if self._distance_to(self._grasp.point) < _AT_TARGET or self._steps_in_stage > 25:
            self._go_to(self._close)
        return self._grasp.point, False

    def _close(self) -> tuple[np.ndarray, bool]:
        if self._steps_in_stage >= _CLOSING_STEPS:
            self._carry_height = self._safe_height()
            self._go_to(self._lift)
        return self._grasp.point, True

    def _safe_height(self) -> float:
        """Return the height of the grasp centre at which the object clears all obstacles."""
        own = self._target_points()
        place = self._place_points()
        obstacles = self._obstacles()
        start = own[:, :2].mean(0)
        way = _box_centre(place) - start
        radius = np.linalg.norm(own[:, :2] - start, axis=-1).max()
        offset = obstacles[:, :2] - start
        share = np.clip(offset @ way / max(way @ way, 1e-9), 0, 1)
        distance = np.linalg.norm(offset - share[:, None] * way, axis=-1)
        is_passed = distance < radius + 0.02
        highest_passed = obstacles[is_passed, 2].max(initial=-np.inf)
        top = max(highest_passed, place[:, 2].max(), self._rest_height)
        return top + _CARRY_CLEARANCE + self._scene.grasp_centre[2] - own[:, 2].min()

    def _lift(self) -> tuple[np.ndarray, bool]:
        is_lifted = self._is_lifted()
        current = self._scene.grasp_centre[2]
        height = self._carry_height
        if self._is_hollow:  # a rim is held by friction alone: a jerk pulls it out of the fingers
            height = min(height, current + _GENTLE_LIFT)
        if not is_lifted and self._steps_in_stage > 20:
            return self._try_again()
        is_high = current > self._carry_height - _NEAR
        if is_lifted and (is_high or self._steps_in_stage > 50):
            self._go_to(self._carry)
        return np.append(self._grasp.point[:2], height), True

    def _try_again(self) -> tuple[np.ndarray, bool]:
        self._failed_attempts += 1
        self._begin()
        return self._scene.grasp_centre + [0, 0, 0.05], False

    def _is_lifted(self) -> bool:
        return bool(self._target_points()[:, 2].min() > self._rest_height + _LIFTED)

    def _above_place(self) -> np.ndarray:
        """Return the grasp centre in the plane, float64[2], that puts the object over its place."""
        own_centre = _box_centre(self._target_points())
        place_centre = _box_centre(self._place_points())
        return self._scene.grasp_centre[:2] + place_centre - own_centre

    def _carry(self) -> tuple[np.ndarray, bool]:
        target = np.append(self._above_place(), self._carry_height)
        if not self._is_lifted():
            return self._try_again()
        distance = np.linalg.norm(target[:2] - self._scene.grasp_centre[:2])
        if distance < _AT_TARGET or self._steps_in_stage > 50:
            self._go_to(self._lower)
        return target, True

    def _lower(self) -> tuple[np.ndarray, bool]:
        own_bottom = self._target_points()[:, 2].min()
        place = self._place_points()
        place_bottom = place[:, 2].min()
        current = self._scene.grasp_centre[2]
        if self._inside:  # neither the object nor the hand may hit the rim
            hand_clearance = current - place[:, 2].max() - 0.02
            down = min(own_bottom - place_bottom - 0.03, hand_clearance)
        else:
            is_middle = np.linalg.norm(place[:, :2] - _box_centre(place), axis=-1) < 0.04
            surface = place[is_middle, 2].max(initial=place_bottom)
            down = own_bottom - surface - 0.004
        if down < 0.006 or self._steps_in_stage > 30:
            self._go_to(self._release)
        return np.append(self._above_place(), current - max(down, 0)), True

    def _release(self) -> tuple[np.ndarray, bool]:
        if self._steps_in_stage >= _OPENING_STEPS:
            self._go_to(self._leave)
        return self._scene.grasp_centre, False

    def _leave(self) -> tuple[np.ndarray, bool]:
        if self._steps_in_stage > 40:
            self._failed_attempts += 1
            self._begin()
        return self._scene.grasp_centre + [0, 0, 0.03], False
