"""A scripted expert that sees the whole state: picks one thing up from above and puts it on or in another.

Everything is in LIBERO's world frame, metres and radians. The gripper is a Panda's, pointing down; its fingers close
along the x axis of its site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

_SPACING = 0.004  # between points on surfaces
_REACH_DOWN = 0.0093  # the fingers end so far below the grasp centre
_HALF_OPENING = 0.04
_STRIP = 0.013  # half the width of a finger, and a little
_MAX_WIDTH = 0.07
_DEPTH = 0.03  # below the top of a tall thing
_RIM_DEPTH = 0.027  # below a bowl's rim: at 1.8 cm its slanted wall slips out of the fingers
_LEAST = 0.011  # above the bottom of a flat thing
_YAWS = np.deg2rad(np.arange(-90, 90, 7.5))
_NEAR = 0.3  # metres around a thing in which others stand in the way
_ENOUGH = 0.01  # metres of clearance beyond which more is no better
_TURN_COST = 0.003  # metres of clearance that a radian of wrist rotation is worth
_WIDTH_COST = 0.3  # metres of clearance that a metre between the fingers is worth: aslant, things turn in the grip
_HOVER = 0.10
_CARRY = 0.04  # metres between what is carried and what it passes over
_CLOSING, _OPENING = 16, 12  # steps; the command itself takes eight to turn from open to closed
_NEARBY, _ON_SPOT = 0.02, 0.008
_GENTLY = 0.015  # metres ahead of the hand when something is lifted by its rim
_GAIN = 0.8  # of the remaining way a step, before the limit of the action
_STEP, _TURN = 0.05, 0.5  # metres and radians of a full action
# Boxes around the open hand, in its frame (across the fingers, along the closing axis, up), metres from the grasp
# centre: the two fingers, and the palm above them. (low, high)
_HAND = np.array(
    [
        [[-0.011, _HALF_OPENING, -_REACH_DOWN], [0.011, _HALF_OPENING + 0.015, 0.045]],
        [[-0.011, -_HALF_OPENING - 0.015, -_REACH_DOWN], [0.011, -_HALF_OPENING, 0.045]],
        [[-0.033, -0.105, 0.045], [0.033, 0.105, 0.14]],
    ]
)


class GraspScene:
    """Points on the surfaces of a scene's objects, fixed to their bodies; where the hand is."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, geoms: Sequence[np.ndarray]):
        """`geoms`: the visible geoms of each object."""
        self.data = data
        rng = np.random.default_rng(0)
        self._local = [
            [(geom, _surface(model, geom, rng)) for geom in group.tolist()] for group in geoms
        ]

    def points(self, index: int) -> np.ndarray:
        """float64[n, 3] on the surface of an object, in the world."""
        data = self.data
        return np.concatenate(
            [
                local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
                for geom, local in self._local[index]
            ]
        )

    def others(self, index: int) -> np.ndarray:
        """float64[n, 3] on all objects but one."""
        return np.concatenate([self.points(i) for i in range(len(self._local)) if i != index])

    @property
    def grip(self) -> np.ndarray:
        return self.data.site("gripper0_grip_site").xpos.copy()

    @property
    def hand(self) -> np.ndarray:
        """float64[3, 3]: the hand's axes as columns; the fingers close along x, z points down."""
        return self.data.site("gripper0_grip_site").xmat.reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        """The direction in which the fingers close, from above."""
        return float(np.arctan2(*self.hand[[1, 0], 0]))


def _surface(model: mujoco.MjModel, geom: int, rng: np.random.Generator) -> np.ndarray:
    """float64[n, 3] spread over a geom's surface, in its frame; of a geom that is no mesh, over its bounding box."""
    mesh = model.geom_dataid[geom]
    if mesh >= 0:
        first, start = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
        corners = vertices[model.mesh_face[start : start + model.mesh_facenum[mesh]]]
    else:
        low, high = (
            model.geom_aabb[geom, :3] - model.geom_aabb[geom, 3:],
            model.geom_aabb[geom].reshape(2, 3).sum(0),
        )
        corners = _box_triangles(low, high)
    edges = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(*edges), axis=-1) / 2
    count = int(np.clip(area.sum() / _SPACING**2, 200, 20_000))
    faces = rng.choice(len(corners), count, p=area / area.sum())
    u, v = np.sort(rng.random((2, count)), axis=0)
    weights = np.stack([u, v - u, 1 - v], -1)
    return np.einsum("nk,nkd->nd", weights, corners[faces]).astype(np.float64)


def _box_triangles(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float64[12, 3, 3]: the sides of a box, two triangles each."""
    unit = np.array(
        [[[0, 0, s], [1, 0, s], [1, 1, s]] for s in (0, 1)]
        + [[[0, 0, s], [0, 1, s], [1, 1, s]] for s in (0, 1)],
        float,
    )
    return low + (high - low) * np.concatenate(
        [np.roll(unit, shift, axis=-1) for shift in range(3)]
    )


@dataclasses.dataclass(frozen=True)
class Grasp:
    """Where the grasp centre should be, and the direction in which the fingers close."""

    point: np.ndarray  # float64[3]
    yaw: float  # of the closing axis
    score: float


def grasps(own: np.ndarray, others: np.ndarray, yaw_now: float) -> list[Grasp]:
    """Grasps from above of a thing float64[n, 3] among others float64[m, 3], the best first.

    A hollow thing, open at the top, is taken by its rim; everything else across its narrow side.
    """
    low, high = own.min(0), own.max(0)
    others = others[(np.abs(others[:, :2] - (low + high)[:2] / 2) < _NEAR).all(1)]
    candidates = _rim(own) if _is_hollow(own) else [_across(own, yaw) for yaw in _YAWS]
    found = []
    for point, yaw, width in filter(None, candidates):
        clearance = min(_clearance(others, point, yaw), _clearance(own, point, yaw))
        turn = abs(_half_turn(yaw - yaw_now))
        found.append(
            Grasp(point, yaw, min(clearance, _ENOUGH) - _TURN_COST * turn - _WIDTH_COST * width)
        )
    return sorted(found, key=lambda grasp: -grasp.score)


def _is_hollow(own: np.ndarray) -> bool:
    """Is there nothing at the height of the rim over the middle of a thing too wide for the gripper?"""
    low, high = own.min(0), own.max(0)
    middle = np.linalg.norm(own[:, :2] - (low + high)[:2] / 2, axis=-1) < 0.02
    return (high - low)[:2].min() > _MAX_WIDTH and own[middle, 2].max(initial=low[2]) < high[
        2
    ] - 0.015


def _rim(own: np.ndarray) -> list[tuple[np.ndarray, float, float]]:
    """Pinches of the wall, all around: grasp centre, yaw, width."""
    low, high = own.min(0), own.max(0)
    centre, height = (low + high)[:2] / 2, high[2] - _RIM_DEPTH
    wall = own[np.abs(own[:, 2] - height) < 0.006, :2] - centre
    angles = np.arctan2(wall[:, 1], wall[:, 0])
    found = []
    for angle in np.deg2rad(np.arange(0, 360, 15)):
        near = np.abs((angles - angle + np.pi) % (2 * np.pi) - np.pi) < np.deg2rad(8)
        if near.any():
            radius = np.median(np.linalg.norm(wall[near], axis=-1))
            point = np.append(centre + radius * np.array([np.cos(angle), np.sin(angle)]), height)
            found.append((point, angle, 0.0))
    return found


def _across(own: np.ndarray, yaw: float) -> tuple[np.ndarray, float, float] | None:
    """The grasp through the middle of a thing with the fingers closing along `yaw`; None if it is too wide."""
    low, high = own.min(0), own.max(0)
    height = max(high[2] - _DEPTH, low[2] + _LEAST)
    along, beside = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    flat = own[:, :2] - (low + high)[:2] / 2
    strip = flat[(np.abs(flat @ beside) < _STRIP) & (own[:, 2] > height - 0.015)] @ along
    if not len(strip) or np.ptp(strip) > _MAX_WIDTH:
        return None
    middle = (low + high)[:2] / 2 + along * (strip.min() + strip.max()) / 2
    return np.append(middle, height), yaw, float(np.ptp(strip))


def _clearance(points: np.ndarray, grasp: np.ndarray, yaw: float) -> float:
    """Metres from the open hand to the nearest point; negative if it lies inside."""
    if not len(points):
        return np.inf
    axes = np.array([[np.sin(yaw), -np.cos(yaw), 0], [np.cos(yaw), np.sin(yaw), 0], [0, 0, 1]])
    local = (points - grasp) @ axes.T
    outside = np.maximum(_HAND[:, None, 0] - local, local - _HAND[:, None, 1])
    distance = np.linalg.norm(outside.clip(0), axis=-1) + np.minimum(outside.max(-1), 0)
    return float(distance.min())


def _half_turn(angle: float) -> float:
    """The same direction of a closing axis, in [-pi / 2, pi / 2)."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _levelling(own: np.ndarray) -> np.ndarray:
    """float64[3]: the rotation vector that levels a round thing, wider than high, whose points are float64[n, 3]."""
    axis = np.linalg.eigh(np.cov(own.T))[1][:, 0]  # in which it extends least
    axis = axis * np.sign(axis[2])
    across = np.cross(axis, [0, 0, 1])
    sine = np.linalg.norm(across)
    return across * (np.arctan2(sine, axis[2]) / sine) if sine > 1e-9 else np.zeros(3)


class Expert:
    """One attempt after the other until the thing is where it should be. Call `act` once a step."""

    def __init__(self, scene: GraspScene, target: int, goal: int, *, inside: bool):
        self._scene, self._target, self._goal, self._inside = scene, target, goal, inside
        self._attempt = 0
        self._begin()

    def _begin(self) -> None:
        """Chooses a grasp; after a failed attempt the next best of another kind."""
        own = self._scene.points(self._target)
        found = grasps(own, self._scene.others(self._target), self._scene.yaw)
        if not found:
            centre = (own.min(0) + own.max(0)) / 2
            found = [Grasp(centre, self._scene.yaw, 0.0)]
        self._grasp = found[(2 * self._attempt) % len(found)]
        self._hollow = _is_hollow(own)
        self._stage, self._since, self._rest = self._approach, 0, own[:, 2].min()

    @property
    def attempts(self) -> int:
        """The number of the grasp that it is at."""
        return self._attempt + 1

    @property
    def grasp_point(self) -> np.ndarray:
        """float64[3]: where the thing is to be held, as long as the hand is `reaching` for it."""
        return self._grasp.point

    @property
    def reaching(self) -> bool:
        """Is the thing still where it stood when the grasp was chosen?"""
        return self._stage in (self._approach, self._descend)

    def act(self, success: bool) -> np.ndarray:
        """float32[7] in [-1, 1]."""
        if success and self._stage not in (self._release, self._leave):
            self._go(self._release)
        self._since += 1
        target, closed = self._stage()
        return np.append(self._towards(target), 1.0 if closed else -1.0).astype(np.float32)

    def _go(self, stage) -> None:
        self._stage, self._since = stage, 0

    def _towards(self, target: np.ndarray) -> np.ndarray:
        """float64[6]: the action that brings the grasp centre to a point and turns the hand."""
        # A bowl that is put down aslant rolls off its place.
        level = self._hollow and self._stage in (self._carry, self._lower)
        turn = _levelling(self._scene.points(self._target)) if level else self._to_yaw()
        move = target - self._scene.grip
        return np.clip(np.concatenate([_GAIN * move / _STEP, _GAIN * turn / _TURN]), -1, 1)

    def _to_yaw(self) -> np.ndarray:
        """float64[3]: the rotation vector that turns the hand upright, to the grasp's yaw."""
        yaw = self._scene.yaw + _half_turn(self._grasp.yaw - self._scene.yaw)
        closing = np.array([np.cos(yaw), np.sin(yaw), 0])
        down = np.array([0, 0, -1.0])
        wanted = np.column_stack([closing, np.cross(down, closing), down])
        return Rotation.from_matrix(wanted @ self._scene.hand.T).as_rotvec()

    def _off(self, target: np.ndarray) -> float:
        return float(np.linalg.norm(target - self._scene.grip))

    def _turned(self) -> bool:
        return abs(_half_turn(self._grasp.yaw - self._scene.yaw)) < 0.08

    def _approach(self):
        target = self._grasp.point + [0, 0, _HOVER]
        if self._off(target) < _NEARBY and self._turned() or self._since > 80:
            self._go(self._descend)
        return target, False

    def _descend(self):
        if self._off(self._grasp.point) < _ON_SPOT or self._since > 25:
            self._go(self._close)
        return self._grasp.point, False

    def _close(self):
        if self._since >= _CLOSING:
            self._height = self._carry_height()
            self._go(self._lift)
        return self._grasp.point, True

    def _carry_height(self) -> float:
        """Of the grasp centre, so that what hangs below it clears what stands on the way."""
        own, others = self._scene.points(self._target), self._scene.points(self._goal)
        start, end = own[:, :2].mean(0), (others.min(0) + others.max(0))[:2] / 2
        radius = np.linalg.norm(own[:, :2] - start, axis=-1).max()
        cloud = self._scene.others(self._target)
        way = end - start
        share = np.clip((cloud[:, :2] - start) @ way / max(way @ way, 1e-9), 0, 1)
        passed = (
            np.linalg.norm(cloud[:, :2] - start - share[:, None] * way, axis=-1) < radius + 0.02
        )
        top = max(cloud[passed, 2].max(initial=-np.inf), others[:, 2].max(), self._rest)
        return top + _CARRY + self._scene.grip[2] - own[:, 2].min()

    def _lift(self):
        held = self._held_off_table()
        # A rim is held by friction alone: a jerk pulls it out of the fingers.
        height = min(self._height, self._scene.grip[2] + _GENTLY) if self._hollow else self._height
        if not held and self._since > 20:
            self._attempt += 1
            self._begin()
            return self._scene.grip + [0, 0, 0.05], False
        if held and (self._scene.grip[2] > self._height - _NEARBY or self._since > 50):
            self._go(self._carry)
        return np.append(self._grasp.point[:2], height), True

    def _held_off_table(self) -> bool:
        return bool(self._scene.points(self._target)[:, 2].min() > self._rest + 0.015)

    def _above_goal(self) -> np.ndarray:
        """float64[2]: where the grasp centre must be for the thing to be over the middle of its place."""
        own, place = self._scene.points(self._target), self._scene.points(self._goal)
        centres = [(points.min(0) + points.max(0))[:2] / 2 for points in (own, place)]
        return self._scene.grip[:2] + centres[1] - centres[0]

    def _carry(self):
        target = np.append(self._above_goal(), self._height)
        if not self._held_off_table():
            self._attempt += 1
            self._begin()
            return self._scene.grip + [0, 0, 0.05], False
        if np.linalg.norm(target[:2] - self._scene.grip[:2]) < _ON_SPOT or self._since > 50:
            self._go(self._lower)
        return target, True

    def _lower(self):
        own, place = self._scene.points(self._target), self._scene.points(self._goal)
        grip = self._scene.grip[2]
        if self._inside:  # neither the thing nor the hand may hit the rim
            down = min(own[:, 2].min() - place[:, 2].min() - 0.03, grip - place[:, 2].max() - 0.02)
        else:
            middle = (
                np.linalg.norm(place[:, :2] - (place.min(0) + place.max(0))[:2] / 2, axis=-1) < 0.04
            )
            down = own[:, 2].min() - place[middle, 2].max(initial=place[:, 2].min()) - 0.004
        if down < 0.006 or self._since > 30:
            self._go(self._release)
        return np.append(self._above_goal(), grip - max(down, 0)), True

    def _release(self):
        if self._since >= _OPENING:
            self._go(self._leave)
        return self._scene.grip, False

    def _leave(self):
        if self._since > 40:
            self._attempt += 1
            self._begin()
        return self._scene.grip + [0, 0, 0.03], False
