"""Facts about data without a simulator: projection, phases from the robot's state, and what a model says."""

import json
import pathlib
from collections import Counter

import numpy as np
import pytest

from etcvla.data.adapters import Adapter
from etcvla.etc.annotation import project
from etcvla.etc.annotators import semantics, tracks
from etcvla.etc.annotators.projection import Calibrations

POSE = [0.5, -0.9, 0.8, -2.2, 0.1, 0.3]
NOTHING = tracks.GripperPhases(np.zeros(0, np.int64), ())


def _calibrations(tmp_path, **content):
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps(content))
    return Calibrations(path)


def _camera(**changes):
    return {"size": [640, 480], "intrinsics": [500, 510, 320, 240], "pose": POSE} | changes


def test_a_point_before_the_camera_lands_where_a_pinhole_puts_it(tmp_path):
    calibration = _calibrations(tmp_path, cameras={"front": _camera()}).get("any", "front")
    in_camera = np.array([0.1, -0.2, 1.5])
    point = calibration.pose[:3, :3] @ in_camera + calibration.pose[:3, 3]
    expected = [(510 * -0.2 / 1.5 + 240) / 480, (500 * 0.1 / 1.5 + 320) / 640]
    np.testing.assert_allclose(project(calibration.matrix(), point), expected, atol=1e-5)
    behind = calibration.pose[:3, :3] @ [0, 0, -1] + calibration.pose[:3, 3]
    assert np.isnan(project(calibration.matrix(), behind)).all()


def test_points_turn_with_the_image(tmp_path):
    calibration = _calibrations(tmp_path, cameras={"front": _camera()}).get("any", "front")
    point = calibration.pose[:3, :3] @ [0.2, -0.1, 1.0] + calibration.pose[:3, 3]
    y, x = project(calibration.matrix(), point)
    image = np.zeros((480, 640, 3), np.uint8)
    image[int(y * 480), int(x * 640)] = 255
    row, column = np.argwhere(Adapter(rotated_cameras=("front",)).rotate("front", image)[..., 0])[0]
    found = project(calibration.matrix(rotated=True), point) * [480, 640]
    np.testing.assert_allclose(found, [row + 0.5, column + 0.5], atol=0.6)


def test_an_episode_overrides_fields_of_the_dataset(tmp_path):
    found = _calibrations(
        tmp_path, cameras={"front": _camera()}, episodes={"7": {"front": {"pose": [0] * 6}}}
    )
    assert found.get("7", "front").pose.tolist() == np.eye(4).tolist()
    assert found.get("7", "front").intrinsics[0].tolist() == [500, 0, 320]
    assert found.get("8", "front").pose[0, 3] == 0.5
    assert found.get("8", "wrist") is None


@pytest.mark.parametrize(
    ("camera", "problem"),
    [
        ({"size": [640, 480]}, "camera front of episode 3: intrinsics, pose missing"),
        (_camera(pose=[1, 2]), r"pose of shape \(2,\), expected \(4, 4\)"),
        (_camera(intrinsics=[[1]]), r"intrinsics of shape \(1, 1\)"),
        (_camera(size=640), "episode 3"),
    ],
)
def test_a_malformed_calibration_is_named(tmp_path, camera, problem):
    with pytest.raises(ValueError, match=problem):
        _calibrations(tmp_path, cameras={"front": camera}).get("3", "front")


def _pick_and_place(*, pauses=(20, 45), steps=60):
    """Moves, stands still at the first pause and closes, carries, stands still at the second and opens, leaves."""
    points = [0, pauses[0] - 3, pauses[0] + 3, pauses[1] - 3, pauses[1] + 3, steps - 1]
    position = np.stack(
        [
            np.interp(np.arange(steps), points, values)
            for values in (
                [0, 0.3, 0.3, 0.0, 0.0, 0.2],
                [0, 0.1, 0.1, 0.4, 0.4, 0.1],
                [0.3, 0, 0, 0.1, 0.1, 0.4],
            )
        ],
        -1,
    )
    times = [pauses[0] - 2, pauses[0] + 2, pauses[1] - 2, pauses[1] + 2]
    return np.interp(np.arange(steps), times, [1, 0.3, 0.3, 1]), position


def test_a_pick_and_place_has_five_phases():
    segments = tracks.detect_phases(*_pick_and_place())
    assert segments.kinds == ("approach", "grasp", "carry", "release", "leave")
    assert segments.starts.tolist() == [0, 18, 22, 43, 47]
    assert segments.texts("cup") == (
        "move to the cup",
        "grasp the cup",
        "carry the cup",
        "release the cup",
        "move away",
    )
    phase = segments.phase(60)
    assert [phase[t] for t in (0, 17, 18, 30, 44, 59)] == [0, 0, 1, 2, 3, 4]
    assert tracks.grasp_step(segments) == 22


@pytest.mark.parametrize("when", [(5, 10), (0, 4)])
def test_a_fist_made_on_the_way_or_at_the_start_is_no_grasp(when):
    _, position = _pick_and_place()
    position = np.concatenate([position[:1], position[:1], position[:-2]])  # at rest at first
    assert tracks.detect_phases(np.interp(np.arange(60), when, [1, 0.3]), position).kinds == ()


def test_a_grasp_that_is_never_released():
    opening, position = _pick_and_place()
    segments = tracks.detect_phases(np.minimum.accumulate(opening), position)
    assert segments.kinds == ("approach", "grasp", "carry")


def test_phases_agree_with_a_simulators_contacts():
    """Three pick-and-place episodes of Meta-World's scripted expert (80 Hz), with phases and contacts from the
    simulator: of its three phases the last two begin by touch and by the object's motion."""
    truth = np.load(pathlib.Path(__file__).with_name("metaworld_pick_place.npz"))
    ends = np.cumsum(truth["lengths"])
    for at in (
        slice(end - length, end) for end, length in zip(ends, truth["lengths"], strict=True)
    ):
        segments = tracks.detect_phases(truth["gripper_open"][at], truth["gripper_position"][at])
        assert segments.kinds == ("approach", "grasp", "carry")
        touched = int(truth["contact"][at].argmax())
        assert segments.starts[1] < touched < segments.starts[2] <= touched + 4
        assert (segments.phase(len(truth["phase"][at])) == truth["phase"][at]).mean() >= 0.95


def test_two_grasps_are_told_apart():
    one, two = _pick_and_place(), _pick_and_place()
    segments = tracks.detect_phases(
        np.concatenate([one[0], two[0]]), np.concatenate([one[1], two[1] + one[1][-1]])
    )
    assert segments.kinds.count("grasp") == 2
    assert len(set(segments.texts())) == len(segments.kinds)
    assert tracks.grasp_step(segments) is None


@pytest.mark.parametrize(
    "opening", [np.full(60, np.nan), np.full(60, 0.5), np.linspace(0.5, 0.4, 60)]
)
def test_unknown_stays_unknown(opening):
    segments = tracks.detect_phases(opening, _pick_and_place()[1])
    assert segments.kinds == ()
    assert (segments.phase(60) == -1).all()


def test_a_track_bridges_short_gaps_alone():
    points = np.full((20, 2), np.nan)
    points[[0, 4, 14, 16]] = [[0, 0], [0.4, 0.2], [0.5, 0.5], [0.5, 0.9]]
    track = tracks.interpolate_track(points, max_gap=5, max_speed=0.15)
    np.testing.assert_allclose(track[2], [0.2, 0.1])
    assert np.isnan(track[5:14]).all()  # too long
    assert np.isnan(track[15]).all()  # too fast
    assert np.isfinite(track[[0, 4, 14, 16]]).all()


FRAMES = [0, 10, 20, 30, 39]


def _parse(answer, segments=NOTHING):
    dropped = Counter()
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return semantics.parse_reply(
        text, steps=40, frames=FRAMES, gripper_phases=segments, dropped=dropped
    ), dropped


def test_a_good_answer_is_believed():
    said, dropped = _parse(
        "Here it is:\n```json\n"
        + json.dumps(
            {
                "objects": [
                    {"name": "Red Cup", "color": "red"},
                    {"name": "plate", "color": "mauve"},
                ],
                "target": "red cup",
                "subtasks": [
                    {"text": "Move to the cup.", "start": 0},
                    {"text": "lift the cup", "start": 20},
                ],
            }
        )
        + "\n```"
    )
    assert (said.objects, said.colors, said.target) == (("red cup", "plate"), ("red", ""), 0)
    assert said.phases == ("move to the cup", "lift the cup")
    # The border lies somewhere after frame 10, the last that was shown of the first subtask.
    assert said.phase.tolist() == [0] * 11 + [-1] * 9 + [1] * 20
    assert not dropped


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot see any robot.", "no JSON"),
        ('{"objects": [', "no JSON"),
        ("[1, 2]", "no JSON"),
        ({"objects": [{"name": "a thing that has far too many words"}]}, "no object's name"),
        ({"objects": [{"name": "robot arm"}]}, "no object's name"),
        ({"objects": [{"name": "cup"}, {"name": "Cup"}]}, "object named twice"),
        ({"objects": [{"name": "cup"}], "target": "bowl"}, "target is not among the objects"),
        (
            {"subtasks": [{"text": "go", "start": 0}, {"text": "go", "start": 10}]},
            "no list of distinct imperatives",
        ),
        ({"subtasks": [{"text": "go", "start": 10}]}, "do not begin in order"),
        (
            {"subtasks": [{"text": "go", "start": 0}, {"text": "lift", "start": 11}]},
            "do not begin in order",
        ),
        (
            {"subtasks": [{"text": "go", "start": 0}, {"text": "lift", "start": "20"}]},
            "do not begin in order",
        ),
    ],
)
def test_what_is_malformed_is_unknown_and_counted(answer, reason):
    said, dropped = _parse(answer)
    assert [name for name in dropped if reason in name], dropped
    assert said.target == -1
    assert said.phase is None or (said.phase == -1).all()


def test_phases_that_the_gripper_shows_are_only_named():
    segments = tracks.detect_phases(*_pick_and_place())
    names = [
        "reach for the cup",
        "take the cup",
        "bring the cup to the plate",
        "let go",
        "withdraw",
    ]
    said, dropped = _parse({"subtasks": names}, segments)
    assert (said.phases, said.phase) == (tuple(names), None)
    said, dropped = _parse({"subtasks": names[:3]}, segments)
    assert said.phases == ()
    assert dropped == {"endpoint: other phases than the gripper's": 1}
    assert "exactly 5" in semantics.build_prompt("put it there", FRAMES, segments)
    assert "0, 10, 20, 30, 39" in semantics.build_prompt("put it there", FRAMES, NOTHING)


def test_frames_to_show_are_spread():
    assert semantics.frames_to_show(40, 5) == [0, 10, 20, 29, 39]
    assert semantics.frames_to_show(3, 8) == [0, 1, 2]
