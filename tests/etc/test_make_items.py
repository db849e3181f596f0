"""Items of synthetic episodes: complete, balanced, reproducible, and silent where facts are missing or in doubt."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from etcvla.etc import make, make_items
from etcvla.etc.annotation import STEP_FIELDS
from etcvla.etc.facts import FrameView
from etcvla.etc.items import ETC_KINDS, parse_loc
from etcvla.etc.question_types import BOX, PATH, POINT, QUESTION_TYPES, parse_question
from etcvla.etc.scene import place
from etcvla.etc.task import propose_region, wrong_region
from etcvla.etc.trajectory import cut_at_border, keypoints, phase_ends
from tests.etc.synthetic_annotation import PHASES, make_annotation

REPLACE = dataclasses.replace


def flat(annotation, seed=0, **kwargs):
    """[(t, item)] of an episode."""
    return [
        (t, item)
        for t, step in enumerate(make_items(annotation, seed, **kwargs)[0])
        for item in step
    ]


def question_types(annotation, seeds=range(3), **kwargs):
    return {item.question_type for seed in seeds for _, item in flat(annotation, seed, **kwargs)}


def words(template):
    """A pattern of a question's fixed words."""
    return re.compile(".+".join(map(re.escape, re.split(r"{\w+}", template))))


def unknown(annotation, *names):
    return REPLACE(
        annotation, **{name: np.full_like(getattr(annotation, name), np.nan) for name in names}
    )


def test_every_form_of_every_kind_is_made():
    annotation = make_annotation()
    assert question_types(annotation, range(8)) == set(QUESTION_TYPES)
    steps, dropped = make_items(annotation, seed=0)
    assert len(steps) == len(annotation)
    to_go = np.linalg.norm(
        annotation.gripper_pixel[:, 0] - annotation.gripper_pixel[-1, 0], axis=-1
    )
    for step, distance in zip(steps, to_go, strict=True):
        # Planning may be missing where its items were surplus; the others have a question_type that needs no balance.
        assert {item.kind for item in step} | {"task_planning"} == set(ETC_KINDS) - (
            {"trajectory"} if distance < 0.02 else set()
        )
    assert max(Counter(item.kind for item in step).most_common(1)[0][1] for step in steps) <= 2
    # Nothing is dropped because it failed its check.
    assert {reason.split(": ")[1] for reason in dropped} <= {
        "ambiguous",
        "color unknown",
        "tiny motion",
        "no room",
        "unbalanced",
        "nothing to move, or unknown",
        "not in view",
        "never changes",
    }


def test_no_form_twice_in_a_step_and_all_paraphrases_are_used():
    annotation = make_annotation()
    items = [
        item for seed in range(10) for step in make_items(annotation, seed)[0] for item in step
    ]
    for step in make_items(annotation, 0)[0]:
        assert len({item.question_type for item in step}) == len(step)
    for question_type, spec in QUESTION_TYPES.items():
        used = {
            i
            for item in items
            if item.question_type == question_type
            for i, pattern in enumerate(map(words, spec.templates))
            if pattern.fullmatch(item.question)
        }
        assert used == set(range(len(spec.templates))), question_type


def test_items_follow_from_the_seed():
    annotation = make_annotation()
    assert make_items(annotation, 7) == make_items(annotation, 7)
    assert make_items(annotation, 7)[0] != make_items(annotation, 8)[0]


def test_task_and_trajectory_questions_name_the_instruction():
    for _, item in flat(make_annotation()):
        named = "put the cup near the drawer handle" in item.question
        assert named == (item.grade != "scene_grounding"), item


def test_a_relation_names_its_frame():
    for relation, frame in {
        "side": "image",
        "depth": "camera",
        "height": "robot",
        "robot_side": "robot",
        "robot_front": "robot",
    }.items():
        for subject in ("gripper", "object"):
            assert all(
                frame in question for question in QUESTION_TYPES[f"{subject}_{relation}"].templates
            )


def test_answers_are_canonical():
    for _, item in flat(make_annotation()):
        assert (
            item.source == "oracle"
            and item.answer == item.answer.lower().strip()
            and not item.answer.endswith(".")
        )
        if (kind := QUESTION_TYPES[item.question_type].answer_type) in (BOX, POINT, PATH):
            assert parse_loc(item.answer, 4 if kind == BOX else 2) is not None


def test_two_way_answers_are_balanced():
    answers = Counter(
        (item.question_type, item.answer)
        for seed in range(40)
        for _, item in flat(make_annotation(seed, steps=30), seed)
    )
    pairs = {
        "gripper_side": ("left", "right"),
        "object_side": ("left", "right"),
        "gripper_height": ("above", "below"),
        "gripper_depth": ("nearer", "farther"),
        "present": ("yes", "no"),
        "stable_grasp": ("yes", "no"),
        "done": ("yes", "no"),
    }
    for question_type, (a, b) in pairs.items():
        share = answers[question_type, a] / (answers[question_type, a] + answers[question_type, b])
        assert 0.43 < share < 0.57, (question_type, share)


def test_rare_facts_are_drawn_more_often_than_common_ones():
    annotation = make_annotation()
    position = annotation.position.copy()
    position[..., 2] = annotation.gripper_position[:, None, 2] - 0.1
    position[:6, :, 2] += 0.2  # the gripper is below everything in six frames of sixty
    lifted = REPLACE(annotation, position=position)
    asked = Counter(
        t < 6
        for seed in range(10)
        for t, item in flat(lifted, seed)
        if item.question_type == "gripper_height"
    )
    assert asked[True] / 6 > 1.5 * asked[False] / 54


def test_items_that_fail_their_check_are_dropped_and_counted(monkeypatch):
    annotation = make_annotation()
    wrong = sum(item.question_type == "present" for _, item in flat(annotation))
    monkeypatch.setattr(
        make,
        "check",
        lambda item, facts, t: "wrong answer" if item.question_type == "present" else None,
    )
    steps, dropped = make_items(annotation, 0)
    assert "present" not in {item.question_type for step in steps for item in step}
    assert dropped["present: wrong answer"] >= wrong


def test_presence_cannot_be_told_from_the_noun_of_another_scene():
    absent = ["lamp", "drawer", "tea cup", "jar"]
    questions = [
        item
        for seed in range(6)
        for _, item in flat(make_annotation(), seed, absent=absent)
        if item.question_type == "present"
    ]
    asked = {item.question for item in questions if item.answer == "no"}
    # The other three share a word with what is there.
    assert asked and all("lamp" in question for question in asked)
    assert "present" not in question_types(make_annotation(), absent=())


def test_no_question_gives_its_answer_away():
    """Within an episode, what changes is answered half this way and half that, for each subject of the question."""
    for seed in range(3):
        answers = {}
        for _, item in flat(make_annotation(seed), seed):
            if item.question_type in (
                "gripper_side",
                "gripper_height",
                "gripper_robot_side",
                "gripper_robot_front",
            ):
                target_positions = parse_question(item.question_type, item.question)
                answers.setdefault(
                    (item.question_type, target_positions["a"], target_positions["b"]), []
                ).append(item.answer)
        mixed = [Counter(given).values() for given in answers.values() if len(set(given)) > 1]
        assert mixed and all(max(counts) * 2 <= sum(counts) for counts in mixed)


def test_what_is_so_in_every_layout_is_not_asked():
    annotation = make_annotation()
    same = make_annotation(steps=20)
    asked = question_types(annotation, layouts=same)
    # Jar and handle stand still, here and in all other layouts: nothing about them and no object's place is asked.
    assert not {"object_side", "object_robot_side"} & {
        item.question_type
        for _, item in flat(annotation, layouts=same)
        if "sugar jar" in item.question and "drawer handle" in item.question
    }
    assert asked >= {
        "gripper_side",
        "locate_box",
        "grasp_point",
        "path_task",
        "decompose",
        "current",
    }
    position = same.position.copy()
    position[::2, :2] = position[::2, 1::-1]  # in half of them they have changed places
    varied = REPLACE(same, position=position)
    found = {
        item.question_type
        for seed in range(8)
        for _, item in flat(annotation, seed, layouts=varied)
        if "sugar jar" in item.question and "drawer handle" in item.question
    }
    assert "object_robot_side" in found


def test_integers_say_the_same_as_tokens():
    annotation = make_annotation()
    for (_, token), (_, integer) in zip(
        flat(annotation), flat(annotation, locations="integers"), strict=True
    ):
        assert "<loc" not in integer.question + integer.answer
        numbers = [
            list(map(int, re.findall(r"\d+", text)))
            for text in (token.question + token.answer, integer.question + integer.answer)
        ]
        assert numbers[0] == numbers[1]
    with pytest.raises(ValueError, match="unknown locations 'integer', did you mean 'integers'"):
        make_items(annotation, 0, locations="integer")


def test_frames_of_the_robot_need_its_axes():
    robot = {"gripper_robot_side", "gripper_robot_front", "object_robot_side", "object_robot_front"}
    assert not question_types(REPLACE(make_annotation(), axes=())) & robot
    turned = REPLACE(make_annotation(), axes=("back", "right", "up"))
    one, other = (
        {
            (item.question, item.answer)
            for seed in range(4)
            for _, item in flat(facts, seed)
            if item.question_type == "gripper_robot_front"
        }
        for facts in (make_annotation(), turned)
    )
    opposite = {"front": "behind", "behind": "front"}
    static = {question for question, answer in one if (question, opposite[answer]) not in one}
    assert not {pair for pair in one if pair[0] in static} & other


def test_other_views_are_asked_about_in_words():
    items = [
        (t, item)
        for seed in range(4)
        for t, item in flat(make_annotation(), seed)
        if item.question_type.startswith("cross")
    ]
    assert all("camera1 view" in item.question for _, item in items)
    seen = [
        (t < 30, item.answer) for t, item in items if item.question_type == "cross_seen"
    ]  # only the jar comes and goes
    assert set(seen) == {(True, "yes"), (False, "no")}
    assert {item.question_type for t, item in items if t >= 30} == {
        "cross_seen",
        "cross_place",
        "cross_box",
    }
    annotation = make_annotation()
    gone = REPLACE(
        annotation,
        box=annotation.box[:30].repeat(2, 0),
        visible=annotation.visible[:30].repeat(2, 0),
    )
    assert "cross_seen" not in question_types(gone)


def test_the_place_to_go_is_where_the_target_ends_up():
    annotation = make_annotation()
    end = annotation.box[-1, 0, 2].reshape(2, 2).mean(0)
    points = [
        parse_loc(item.answer, 2)[0]
        for _, item in flat(annotation)
        if item.question_type == "place_point"
    ]
    assert points
    np.testing.assert_allclose(points, np.tile(end, (len(points), 1)), atol=1 / 512)


def test_wrong_regions_are_near_misses_of_all_sorts():
    rng, point, other = np.random.default_rng(0), np.array([0.4, 0.5]), np.array([0.45, 0.7])
    boxes = [wrong_region(point, [other], rng) for _ in range(300)]
    assert all(box.min() >= 0 and box.max() <= 1 for box in boxes)
    holds = [(box[:2] <= point).all() and (point <= box[2:]).all() for box in boxes]
    large = [(box[2:] - box[:2]).max() > 0.3 for box in boxes]
    assert holds == large and 20 < sum(large) < 80
    assert sum(np.abs((box[:2] + box[2:]) / 2 - other).max() < 0.07 for box in boxes) > 60


def test_level_things_are_not_compared():
    annotation = make_annotation()
    level = annotation.position.copy()
    level[..., 2] = annotation.gripper_position[:, None, 2] + 0.01
    assert "gripper_height" not in question_types(REPLACE(annotation, position=level))
    beside = annotation.box.copy()
    beside[..., [1, 3]] = annotation.gripper_pixel[:, :, None, 1:] + [
        -0.05,
        0.08,
    ]  # centre 0.015 to the right
    made = question_types(REPLACE(annotation, box=beside))
    assert "gripper_side" not in made and "object_side" not in made
    same = np.repeat(annotation.gripper_position[:, None], 3, axis=1)
    assert "gripper_depth" not in question_types(REPLACE(annotation, position=same))


def test_subtask_is_not_asked_where_it_changes():
    annotation = make_annotation()
    changes = np.flatnonzero(np.diff(annotation.phase))
    at_change = {t for change in changes for t in (change, change + 1)}
    asked = {
        t
        for seed in range(4)
        for t, item in flat(annotation, seed)
        if item.question_type in ("current", "next")
    }
    assert asked and not asked & at_change


def test_next_follows_the_plan_only():
    phase = make_annotation().phase
    skipping = REPLACE(make_annotation(), phase=np.where(phase == 1, 2, phase))
    answers = {
        item.answer
        for seed in range(4)
        for _, item in flat(skipping, seed)
        if item.question_type == "next"
    }
    assert answers == {"done"}


def test_a_color_in_the_name_is_no_description():
    annotation = make_annotation()
    named = REPLACE(annotation, objects=("green jar", *annotation.objects[1:]))
    described = [
        item
        for seed in range(4)
        for _, item in flat(named, seed)
        if item.question_type.startswith("describe")
    ]
    assert described and not any("green jar" in item.question for item in described)


def test_confusable_boxes_are_not_named():
    annotation = make_annotation()
    box = np.repeat(annotation.box[:, :, :1], 3, axis=2)
    assert "identify" not in question_types(REPLACE(annotation, box=box))


@pytest.mark.parametrize(
    "field, lost",
    [
        ("gripper_pixel", {"gripper_point", "gripper_side", "path_subtask", "path_task"}),
        (
            "gripper_position",
            {"gripper_height", "gripper_depth", "gripper_robot_side", "gripper_robot_front"},
        ),
        ("camera_matrix", {"gripper_depth", "object_depth", "place_point"}),
        (
            "box",
            {
                "identify",
                "locate_box",
                "describe",
                "object_side",
                "gripper_side",
                "cross_seen",
                "cross_place",
            },
        ),
        (
            "position",
            {
                "gripper_height",
                "gripper_depth",
                "object_height",
                "object_robot_side",
                "place_point",
            },
        ),
        ("grasp_pixel", {"grasp_point", "stable_grasp"}),
        ("phase", {"current", "next", "path_subtask"}),
    ],
)
def test_unknown_facts_make_no_item(field, lost):
    annotation = make_annotation()
    changed = (
        REPLACE(annotation, phase=np.full_like(annotation.phase, -1))
        if field == "phase"
        else unknown(annotation, field)
    )
    assert not question_types(changed) & lost
    assert lost <= question_types(annotation, range(8))


def test_nothing_known_leaves_what_needs_no_frame():
    nothing = unknown(
        make_annotation(), *(name for name in STEP_FIELDS if name not in ("phase", "gripper_open"))
    )
    nothing = REPLACE(nothing, phase=np.full(len(nothing), -1))
    assert question_types(nothing, absent=()) == {"decompose", "done", "outcome"}


def test_unknown_visible_share_does_not_hide_a_known_box():
    annotation = make_annotation()
    assert "locate_box" in question_types(unknown(annotation, "visible"))
    assert "locate_box" not in question_types(REPLACE(annotation, visible=annotation.visible * 0.1))


def test_episode_without_objects_target_or_phases():
    annotation = make_annotation()
    empty = {
        name: getattr(annotation, name)[(slice(None),) * axes.index("N") + (slice(None), slice(0))]
        for name, axes in STEP_FIELDS.items()
        if "N" in axes
    }
    bare = REPLACE(
        annotation,
        objects=(),
        colors=(),
        shapes=(),
        phases=(),
        target=-1,
        phase=np.full(60, -1),
        **empty,
    )
    assert question_types(bare, absent=()) == {"gripper_point", "done", "outcome", "path_task"}


def test_failed_episode_claims_no_success():
    failed = question_types(REPLACE(make_annotation(), success=False))
    assert not failed & {"done", "path_task", "place_point"}
    ends = [
        (t, item.answer)
        for t, item in flat(REPLACE(make_annotation(), success=False))
        if item.question_type == "outcome"
    ]
    assert ends == [(58, "failure"), (59, "failure")]
    answers = {
        item.answer
        for _, item in flat(REPLACE(make_annotation(), success=False))
        if item.question_type == "next"
    }
    assert "done" not in answers


def test_one_step_episode():
    annotation = make_annotation(steps=2)
    one = REPLACE(annotation, **{name: getattr(annotation, name)[:1] for name in STEP_FIELDS})
    assert len(make_items(one, 0)[0]) == 1


def test_done_is_asked_at_the_end_and_before_the_last_subtask():
    annotation = make_annotation()
    begin = int(np.argmax(annotation.phase == len(PHASES) - 1))
    for t, item in flat(annotation):
        if item.question_type == "done":
            assert (t >= len(annotation) - 2) if item.answer == "yes" else (t < begin)


# --- the geometry behind them --------------------------------------------------------------------------------------


def test_keypoints_keep_corners_and_ends():
    straight = np.linspace([0.1, 0.2], [0.8, 0.4], 30)
    np.testing.assert_allclose(keypoints(straight), straight[[0, -1]])
    corner = np.concatenate(
        [np.linspace([0.1, 0.1], [0.1, 0.9], 20), np.linspace([0.1, 0.9], [0.7, 0.9], 20)[1:]]
    )
    np.testing.assert_allclose(keypoints(corner), [[0.1, 0.1], [0.1, 0.9], [0.7, 0.9]])
    there_and_back = np.concatenate([straight, straight[::-1]])
    np.testing.assert_allclose(keypoints(there_and_back), [straight[0], straight[-1], straight[0]])
    zigzag = np.stack([np.linspace(0, 1, 50), np.tile([0.4, 0.6], 25)], axis=-1)
    assert len(keypoints(zigzag)) == 5


def test_a_wait_on_a_straight_path_is_a_keypoint():
    way = np.linspace([0.1, 0.1], [0.9, 0.9], 41)
    waiting = np.concatenate([way[:21], np.repeat(way[20:21], 40, axis=0), way[21:]])
    points = keypoints(waiting)
    assert 2 < len(points) <= 5
    assert np.abs(points - way[20]).max(-1).min() < 0.02
    assert len(keypoints(way)) == 2


def test_path_stops_where_it_leaves_the_image():
    path = np.array([[0.5, 0.5], [0.7, 0.9], [0.9, 1.3], [0.5, 0.5]])
    np.testing.assert_allclose(cut_at_border(path), [[0.5, 0.5], [0.7, 0.9], [0.75, 1.0]])
    np.testing.assert_array_equal(cut_at_border(path[:2]), path[:2])


def test_paths_of_a_gripper_that_leaves_the_image_end_at_its_border():
    annotation = make_annotation()
    pixel = annotation.gripper_pixel.copy()
    pixel[20:40, 0] += [0, 0.7]  # and comes back
    leaving = REPLACE(annotation, gripper_pixel=pixel)
    paths = {
        t: parse_loc(item.answer, 2)
        for t, item in flat(leaving)
        if item.question_type == "path_task"
    }
    assert set(paths) >= set(range(20)) and not set(paths) & set(range(20, 40))
    assert all((path[-1, 1] > 0.999) == (t < 20) for t, path in paths.items())


def test_phase_ends():
    np.testing.assert_array_equal(phase_ends(np.array([0, 0, 1, 2, 2, 1])), [1, 1, 2, 4, 4, 5])


def test_places_are_ninths_of_the_image():
    assert place(np.array([0.1, 0.1])) == ("top left", True)
    assert place(np.array([0.5, 0.5])) == ("center", True)
    assert place(np.array([0.9, 0.5])) == ("bottom", True)
    assert place(np.array([0.5, 1.0])) == ("right", True)
    assert not place(np.array([0.5, 0.34]))[1]


@pytest.mark.parametrize("good", [True, False])
def test_proposed_regions_contain_the_point_or_clearly_do_not(good):
    rng = np.random.default_rng(0)
    point = np.array([0.4, 0.6])
    sizes = []
    for _ in range(300):
        box = propose_region(point, good, rng)
        inner = np.minimum(point - box[:2], box[2:] - point).min()
        assert inner >= 0.0199 if good else inner <= -0.0199
        assert box.min() >= 0 and box.max() <= 1
        sizes.append(box[2:] - box[:2])
    np.testing.assert_allclose(np.mean(sizes), 0.15, atol=0.01)
    assert propose_region(np.array([0.0, 0.0]), True, rng) is None


def test_depth_is_metric_whatever_the_matrix_scale():
    annotation = make_annotation()
    eye = np.array([0.5, -0.9, 0.8])
    on_axis = eye + 0.7 * (np.array([0, 0, 0.1]) - eye) / np.linalg.norm(
        np.array([0, 0, 0.1]) - eye
    )
    points = np.tile(on_axis, (len(annotation), 1, 1))
    scaled = REPLACE(annotation, camera_matrix=annotation.camera_matrix * 3)
    np.testing.assert_allclose(FrameView(scaled).depth(points), 0.7, rtol=1e-5)
