"""Predicted paths are drawn at their coordinates into the video that they belong to."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from etcvla.pages.videos import LINE_COLOR, VideoRecorder, draw_paths


@dataclasses.dataclass
class Result:
    """The result of an episode, as far as videos need it."""

    frames: np.ndarray | None


class PathPolicy:
    """A policy that answers the first question with a vertical path, and records questions."""

    cameras = ("front",)

    def __init__(self, quarter_turns=0):
        self.questions = []
        adapter = SimpleNamespace(rotate=lambda camera, image: np.rot90(image, quarter_turns))
        self.assets = SimpleNamespace(adapter=adapter)

    def camera_images(self, images):
        return list(images.values())

    def answer(self, images, questions):
        self.questions += questions
        return ["<loc0100><loc0512><loc0900><loc0512>", "no path"][: len(questions)]


def observation(image, *, instruction="open the door", video=True):
    return {"images": {"front": image}, "instruction": instruction, "video": video}


def test_path_is_drawn_at_its_coordinates():
    path = np.array([[0.1, 0.25], [0.9, 0.25]])
    without, drawn = draw_paths(np.zeros((2, 96, 96, 3), np.uint8), [None, path])
    assert without.shape == (192, 192, 3)
    assert not without.any()
    assert (drawn[60, 48] == LINE_COLOR).all()
    assert not drawn[60, 100].any()
    assert not drawn[:10, 48].any()


def test_each_video_gets_its_own_paths():
    policy = PathPolicy()
    frames = np.zeros((2, 200, 200, 3), np.uint8)
    recorder = VideoRecorder(policy, 2)
    recorder.predict_paths(
        {
            "a": observation(frames[0], instruction="Open the door."),
            "b": observation(frames[0]),
            "c": observation(frames[0], video=False),
        }
    )
    assert len(policy.questions) == 2
    assert "open the door" in policy.questions[0]
    with_path = recorder.finish("a", Result(frames)).frames
    assert (with_path[0, 100, 100] == LINE_COLOR).all()
    assert not with_path[1].any()  # there is no prediction for the end of the episode
    for worker in "bc":  # an answer that is no path, and an episode without video
        assert not recorder.finish(worker, Result(frames)).frames.any()
    assert recorder.finish("a", Result(None)).frames is None


def test_path_is_drawn_into_the_rotated_image_that_the_policy_sees():
    frames = np.zeros((1, 200, 200, 3), np.uint8)
    frames[0, 0] = 255  # the camera is mounted upside down
    recorder = VideoRecorder(PathPolicy(quarter_turns=2), 1)
    recorder.predict_paths({"a": observation(frames[0])})
    drawn = recorder.finish("a", Result(frames)).frames[0]
    assert (drawn[199, 10] == 255).all()
    assert not drawn[0].any()
    assert (drawn[100, 100] == LINE_COLOR).all()


def test_no_paths_are_predicted_if_the_first_camera_is_another():
    policy = PathPolicy()
    policy.cameras = ("wrist", "front")
    VideoRecorder(policy, 1).predict_paths({"a": {"images": {}, "instruction": "x", "video": True}})
    assert not policy.questions
