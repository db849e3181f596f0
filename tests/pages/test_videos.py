"""Predicted paths land where they were said, in the video that they belong to."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from etcvla.pages.videos import LINE, VideoRecorder, draw_paths


@dataclasses.dataclass
class Ended:
    frames: np.ndarray | None


class Tracer:
    """Says a path down the middle for the gripper's task, and remembers what it was asked."""

    cameras = ("front",)

    def __init__(self, turns=0):
        self.asked = []
        self.assets = SimpleNamespace(
            adapter=SimpleNamespace(rotate=lambda camera, image: np.rot90(image, turns))
        )

    def camera_images(self, images):
        return list(images.values())

    def answer(self, images, questions):
        self.asked += questions
        return ["<loc0100><loc0512><loc0900><loc0512>", "no path"][: len(questions)]


def test_a_path_is_drawn_where_it_was_said():
    plain, drawn = draw_paths(
        np.zeros((2, 96, 96, 3), np.uint8), [None, np.array([[0.1, 0.25], [0.9, 0.25]])]
    )
    assert plain.shape == (192, 192, 3) and not plain.any()
    assert (drawn[60, 48] == LINE).all() and not drawn[60, 100].any() and not drawn[:10, 48].any()


def test_each_film_gets_its_own_paths_and_others_stay():
    policy, frames = Tracer(), np.zeros((2, 200, 200, 3), np.uint8)
    videos = VideoRecorder(policy, 2)
    look = {"images": {"front": frames[0]}, "instruction": "Open the door.", "video": True}
    videos.predict_paths({"a": look, "b": look, "c": {**look, "video": False}})
    assert len(policy.asked) == 2 and "open the door" in policy.asked[0]
    a, b, c = (videos.finish(player, Ended(frames)).frames for player in "abc")
    assert (a[0, 100, 100] == LINE).all() and not a[1].any()  # the end of the episode was no look
    assert not b.any() and not c.any()
    assert videos.finish("a", Ended(None)).frames is None


def test_a_path_is_drawn_into_what_the_policy_sees():
    frames = np.zeros((1, 200, 200, 3), np.uint8)
    frames[0, 0] = 255  # a camera upside down
    videos = VideoRecorder(Tracer(turns=2), 1)
    videos.predict_paths({"a": {"images": {"front": frames[0]}, "instruction": "x", "video": True}})
    found = videos.finish("a", Ended(frames)).frames[0]
    assert (found[199, 10] == 255).all() and not found[0].any() and (found[100, 100] == LINE).all()


def test_nothing_is_drawn_where_the_policy_looks_elsewhere_first():
    policy = Tracer()
    policy.cameras = ("wrist", "front")
    VideoRecorder(policy, 1).predict_paths({"a": {"images": {}, "instruction": "x", "video": True}})
    assert not policy.asked
