"""Facts of real data: projection, phases from the robot's state, replies of a model."""

import json
import pathlib
from collections import Counter

import numpy as np
import pytest

from etcvla.data.adapters import Adapter
from etcvla.errors import UserError
from etcvla.etc.annotation import project
from etcvla.etc.annotators import semantics, tracks
from etcvla.etc.annotators.projection import Calibrations

# --- projection
# ------------------------------------------------------------------------------------

POSE = [0.5, -0.9, 0.8, -2.2, 0.1, 0.3]


def _calibrations(tmp_path, **content):
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps(content))
    return Calibrations(path)


def _camera(**changes):
    return {"size": [640, 480], "intrinsics": [500, 510, 320, 240], "pose": POSE} | changes


@pytest.fixture
def calibration(tmp_path):
    """The calibration of a camera."""
    return _calibrations(tmp_path, cameras={"front": _camera()}).get("any", "front")


def _to_base(calibration, point):
    """Transform a point from the camera's frame to the base frame."""
    return calibration.pose[:3, :3] @ point + calibration.pose[:3, 3]


def test_points_are_projected_like_in_a_pinhole_camera(calibration):
    point = _to_base(calibration, [0.1, -0.2, 1.5])
    expected = [(510 * -0.2 / 1.5 + 240) / 480, (500 * 0.1 / 1.5 + 320) / 640]
    np.testing.assert_allclose(project(calibration.matrix(), point), expected, atol=1e-5)


def test_points_behind_the_camera_are_unknown(calibration):
    point = _to_base(calibration, [0, 0, -1])
    assert np.isnan(project(calibration.matrix(), point)).all()


def test_points_are_rotated_with_the_image(calibration):
    point = _to_base(calibration, [0.2, -0.1, 1.0])
    y, x = project(calibration.matrix(), point)
    image = np.zeros((480, 640, 3), np.uint8)
    image[int(y * 480), int(x * 640)] = 255
    rotated = Adapter(rotated_cameras=("front",)).rotate("front", image)
    row, column = np.argwhere(rotated[..., 0])[0]
    projected = project(calibration.matrix(rotated=True), point) * [480, 640]
    np.testing.assert_allclose(projected, [row + 0.5, column + 0.5], atol=0.6)


def test_an_episode_overrides_fields_of_the_dataset(tmp_path):
    episodes = {"7": {"front": {"pose": [0] * 6}}}
    calibrations = _calibrations(tmp_path, cameras={"front": _camera()}, episodes=episodes)
    assert calibrations.get("7", "front").pose.tolist() == np.eye(4).tolist()
    assert calibrations.get("7", "front").intrinsics[0].tolist() == [500, 0, 320]
    assert calibrations.get("8", "front").pose[0, 3] == 0.5
    assert calibrations.get("8", "wrist") is None


@pytest.mark.parametrize(
    ("camera", "problem"),
    [
        ({"size": [640, 480]}, "camera front of episode 3: intrinsics, pose missing"),
        (_camera(pose=[1, 2]), r"pose of shape \(2,\), expected \(4, 4\)"),
        (_camera(intrinsics=[[1]]), r"intrinsics of shape \(1, 1\)"),
        (_camera(size=640), "episode 3"),
    ],
)
def test_malformed_calibrations_are_an_error(tmp_path, camera, problem):
    calibrations = _calibrations(tmp_path, cameras={"front": camera})
    with pytest.raises(UserError, match=problem):
        calibrations.get("3", "front")


# --- phases and tracks
# -----------------------------------------------------------------------------


def _pick_and_place(*, pauses=(20, 45), steps=60):
    """Return the gripper's opening float[T] and position float[T, 3] of a pick-and-place.

    The hand moves, pauses while the gripper closes, carries, pauses while the gripper opens, and
    leaves.
    """
    grasp, release = pauses
    times = [0, grasp - 3, grasp + 3, release - 3, release + 3, steps - 1]
    coordinates = [
        [0, 0.3, 0.3, 0.0, 0.0, 0.2],
        [0, 0.1, 0.1, 0.4, 0.4, 0.1],
        [0.3, 0, 0, 0.1, 0.1, 0.4],
    ]
    position = [np.interp(np.arange(steps), times, values) for values in coordinates]
    opening_times = [grasp - 2, grasp + 2, release - 2, release + 2]
    opening = np.interp(np.arange(steps), opening_times, [1, 0.3, 0.3, 1])
    return opening, np.stack(position, axis=-1)


def test_a_pick_and_place_has_five_phases():
    phases = tracks.detect_phases(*_pick_and_place())
    assert phases.kinds == ("approach", "grasp", "carry", "release", "leave")
    assert phases.starts.tolist() == [0, 18, 22, 43, 47]
    assert phases.texts("cup") == (
        "move to the cup",
        "grasp the cup",
        "carry the cup",
        "release the cup",
        "move away",
    )
    assert phases.phase(60)[[0, 17, 18, 30, 44, 59]].tolist() == [0, 0, 1, 2, 3, 4]
    assert tracks.grasp_step(phases) == 22


@pytest.mark.parametrize("times", [(5, 10), (0, 4)])
def test_closing_in_motion_or_before_the_first_motion_is_not_a_grasp(times):
    _, position = _pick_and_place()
    position = np.concatenate([position[:1], position[:1], position[:-2]])  # still at first
    opening = np.interp(np.arange(60), times, [1, 0.3])
    assert tracks.detect_phases(opening, position).kinds == ()


def test_a_grasp_without_a_release():
    opening, position = _pick_and_place()
    phases = tracks.detect_phases(np.minimum.accumulate(opening), position)
    assert phases.kinds == ("approach", "grasp", "carry")


def test_phases_agree_with_the_contacts_of_a_simulator():
    """Three pick-and-place episodes of Meta-World's scripted expert (80 Hz).

    Phases and contacts are those of the simulator. The second of its three phases begins by touch
    and the third by the object's motion.
    """
    data = np.load(pathlib.Path(__file__).with_name("metaworld_pick_place.npz"))
    fields = ("gripper_open", "gripper_position", "contact", "phase")
    end = 0
    for length in data["lengths"]:
        start = end
        end = start + length
        gripper_open, position, contact, phase = (data[name][start:end] for name in fields)
        phases = tracks.detect_phases(gripper_open, position)
        assert phases.kinds == ("approach", "grasp", "carry")
        touched = int(contact.argmax())
        assert phases.starts[1] < touched < phases.starts[2] <= touched + 4
        assert (phases.phase(length) == phase).mean() >= 0.95


def test_two_grasps_are_distinguished():
    opening, position = _pick_and_place()
    phases = tracks.detect_phases(
        np.concatenate([opening, opening]), np.concatenate([position, position + position[-1]])
    )
    assert phases.kinds.count("grasp") == 2
    assert len(set(phases.texts())) == len(phases.kinds)
    assert tracks.grasp_step(phases) is None


@pytest.mark.parametrize(
    "opening", [np.full(60, np.nan), np.full(60, 0.5), np.linspace(0.5, 0.4, 60)]
)
def test_unknown_or_small_openings_have_no_phases(opening):
    _, position = _pick_and_place()
    phases = tracks.detect_phases(opening, position)
    assert phases.kinds == ()
    assert (phases.phase(60) == -1).all()


def test_tracks_are_interpolated_over_short_gaps_only():
    points = np.full((20, 2), np.nan)
    points[[0, 4, 14, 16]] = [[0, 0], [0.4, 0.2], [0.5, 0.5], [0.5, 0.9]]
    track = tracks.interpolate_track(points, max_gap=5, max_speed=0.15)
    np.testing.assert_allclose(track[2], [0.2, 0.1])
    assert np.isnan(track[5:14]).all()  # the gap is too long
    assert np.isnan(track[15]).all()  # the jump is too fast
    assert np.isfinite(track[[0, 4, 14, 16]]).all()


# --- replies of a model
# ----------------------------------------------------------------------------

FRAMES = [0, 10, 20, 30, 39]
NO_PHASES = tracks.GripperPhases(np.zeros(0, np.int64), ())
GOOD_REPLY = {
    "objects": [{"name": "Red Cup", "color": "red"}, {"name": "plate", "color": "mauve"}],
    "target": "red cup",
    "subtasks": [{"text": "Move to the cup.", "start": 0}, {"text": "lift the cup", "start": 20}],
}


def _parse(reply, gripper_phases=NO_PHASES):
    dropped = Counter()
    text = reply if isinstance(reply, str) else json.dumps(reply)
    parsed = semantics.parse_reply(
        text, steps=40, frames=FRAMES, gripper_phases=gripper_phases, dropped=dropped
    )
    return parsed, dropped


def _subtasks(*texts_and_starts):
    return {"subtasks": [{"text": text, "start": start} for text, start in texts_and_starts]}


def test_a_valid_reply_is_used():
    parsed, dropped = _parse(f"Here it is:\n```json\n{json.dumps(GOOD_REPLY)}\n```")
    assert parsed.objects == ("red cup", "plate")
    assert parsed.colors == ("red", "")
    assert parsed.target == 0
    assert parsed.phases == ("move to the cup", "lift the cup")
    # The border is somewhere after frame 10, the last shown frame of the first subtask.
    assert parsed.phase.tolist() == [0] * 11 + [-1] * 9 + [1] * 20
    assert not dropped


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I cannot see any robot.", "no JSON"),
        ('{"objects": [', "no JSON"),
        ("[1, 2]", "no JSON"),
        ({"objects": [{"name": "a thing that has far too many words"}]}, "no object's name"),
        ({"objects": [{"name": "robot arm"}]}, "no object's name"),
        ({"objects": [{"name": "cup"}, {"name": "Cup"}]}, "object named twice"),
        ({"objects": [{"name": "cup"}], "target": "bowl"}, "target is not among the objects"),
        (_subtasks(("go", 0), ("go", 10)), "no list of distinct imperatives"),
        (_subtasks(("go", 10)), "do not begin in order"),
        (_subtasks(("go", 0), ("lift", 11)), "do not begin in order"),
        (_subtasks(("go", 0), ("lift", "20")), "do not begin in order"),
    ],
)
def test_malformed_parts_of_a_reply_are_unknown_and_counted(reply, reason):
    parsed, dropped = _parse(reply)
    assert any(reason in name for name in dropped), dropped
    assert parsed.target == -1
    assert parsed.phase is None or (parsed.phase == -1).all()


def test_the_model_names_the_phases_of_the_gripper():
    phases = tracks.detect_phases(*_pick_and_place())
    names = ["reach for the cup", "take the cup", "bring it to the plate", "let go", "withdraw"]
    parsed, _ = _parse({"subtasks": names}, phases)
    assert parsed.phases == tuple(names)
    assert parsed.phase is None
    parsed, dropped = _parse({"subtasks": names[:3]}, phases)
    assert parsed.phases == ()
    assert dropped == {"endpoint: other phases than the gripper's": 1}


def test_the_prompt_contains_the_phases_and_the_frames():
    phases = tracks.detect_phases(*_pick_and_place())
    assert "exactly 5" in semantics.build_prompt("put it there", FRAMES, phases)
    assert "0, 10, 20, 30, 39" in semantics.build_prompt("put it there", FRAMES, NO_PHASES)


def test_shown_frames_are_evenly_spaced():
    assert semantics.frames_to_show(40, 5) == [0, 10, 20, 29, 39]
    assert semantics.frames_to_show(3, 8) == [0, 1, 2]
