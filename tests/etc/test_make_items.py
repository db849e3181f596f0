"""Items of synthetic episodes: complete, balanced, reproducible, and none about unknown facts."""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from etcvla.etc import make, make_items
from etcvla.etc.annotation import STEP_FIELDS
from etcvla.etc.facts import FrameView
from etcvla.etc.items import ETC_KINDS, parse_loc
from etcvla.etc.question_types import (
    BOX,
    PATH,
    POINT,
    QUESTION_TYPES,
    parse_question,
    template_pattern,
)
from etcvla.etc.scene import place
from etcvla.etc.task import propose_region, wrong_region
from etcvla.etc.trajectory import cut_at_border, keypoints, phase_ends
from tests.etc.synthetic_annotation import PHASES, make_annotation


def items_of(annotation, *question_types, seeds=(0,), **options):
    """Return (t, item) of an episode, for the given question types or for all."""
    result = []
    for seed in seeds:
        steps, _ = make_items(annotation, seed, **options)
        for t, items in enumerate(steps):
            for item in items:
                if not question_types or item.question_type in question_types:
                    result.append((t, item))
    return result


def types_of(annotation, seeds=range(3), **options):
    """Return the question types of the items of an episode."""
    return {item.question_type for _, item in items_of(annotation, seeds=seeds, **options)}


def with_unknown(annotation, *names):
    """Return the annotation with unknown step fields."""
    changes = {name: np.full_like(getattr(annotation, name), np.nan) for name in names}
    return replace(annotation, **changes)


def with_unknown_phase(annotation):
    """Return the annotation with an unknown phase at every step."""
    return replace(annotation, phase=np.full(len(annotation), -1))


# --- completeness and format ---------------------------------------------------------------------


def test_items_of_every_question_type_are_made():
    annotation = make_annotation()
    assert types_of(annotation, range(8)) == set(QUESTION_TYPES)


def test_every_step_has_one_or_two_items_of_every_kind():
    annotation = make_annotation()
    gripper = annotation.gripper_pixel[:, 0]
    steps, _ = make_items(annotation, seed=0)
    assert len(steps) == len(annotation)
    for t, items in enumerate(steps):
        counts = Counter(item.kind for item in items)
        assert max(counts.values()) <= 2
        expected = set(ETC_KINDS)
        if np.linalg.norm(gripper[t] - gripper[-1]) < 0.02:
            expected.remove("trajectory")
        # Planning items may all be removed by the balance. The other kinds have question types
        # that are exempt from it.
        assert counts.keys() | {"task_planning"} == expected


def test_no_item_of_a_complete_annotation_fails_its_verification():
    _, dropped = make_items(make_annotation(), seed=0)
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


def test_a_step_has_every_question_type_at_most_once():
    steps, _ = make_items(make_annotation(), 0)
    for items in steps:
        assert len({item.question_type for item in items}) == len(items)


@pytest.mark.parametrize("question_type", QUESTION_TYPES)
def test_all_templates_are_used(question_type):
    items = items_of(make_annotation(), question_type, seeds=range(10))
    for template in QUESTION_TYPES[question_type].templates:
        pattern = template_pattern(template)
        assert any(pattern.fullmatch(item.question) for _, item in items), template


def test_the_seed_determines_the_items():
    annotation = make_annotation()
    assert make_items(annotation, 7) == make_items(annotation, 7)
    assert make_items(annotation, 7)[0] != make_items(annotation, 8)[0]


def test_task_and_trajectory_questions_contain_the_instruction():
    for _, item in items_of(make_annotation()):
        contains_instruction = "put the cup near the drawer handle" in item.question
        assert contains_instruction == (item.grade != "scene_grounding"), item


@pytest.mark.parametrize("subject", ["gripper", "object"])
@pytest.mark.parametrize(
    ("relation", "frame"),
    [
        ("side", "image"),
        ("depth", "camera"),
        ("height", "robot"),
        ("robot_side", "robot"),
        ("robot_front", "robot"),
    ],
)
def test_relations_name_their_reference_frame(subject, relation, frame):
    templates = QUESTION_TYPES[f"{subject}_{relation}"].templates
    assert all(frame in template for template in templates)


def test_answers_are_canonical():
    for _, item in items_of(make_annotation()):
        assert item.source == "oracle"
        assert item.answer == item.answer.lower().strip()
        assert not item.answer.endswith(".")
        answer_type = QUESTION_TYPES[item.question_type].answer_type
        if answer_type in (BOX, POINT, PATH):
            assert parse_loc(item.answer, 4 if answer_type == BOX else 2) is not None


def test_integers_and_tokens_are_the_same_locations():
    annotation = make_annotation()
    tokens = items_of(annotation)
    integers = items_of(annotation, locations="integers")
    assert len(tokens) == len(integers)
    for (_, token), (_, integer) in zip(tokens, integers, strict=True):
        token_text = token.question + token.answer
        integer_text = integer.question + integer.answer
        assert "<loc" not in integer_text
        token_numbers = [int(number) for number in re.findall(r"\d+", token_text)]
        assert token_numbers == [int(number) for number in re.findall(r"\d+", integer_text)]


def test_an_unknown_notation_of_locations_is_an_error():
    with pytest.raises(ValueError, match="unknown locations 'integer', did you mean 'integers'"):
        make_items(make_annotation(), 0, locations="integer")


# --- balance -------------------------------------------------------------------------------------


def test_two_way_answers_are_balanced():
    counts = Counter()
    for seed in range(40):
        for _, item in items_of(make_annotation(seed, steps=30), seeds=[seed]):
            counts[item.question_type, item.answer] += 1
    for question_type, first, second in [
        ("gripper_side", "left", "right"),
        ("object_side", "left", "right"),
        ("gripper_height", "above", "below"),
        ("gripper_depth", "nearer", "farther"),
        ("present", "yes", "no"),
        ("stable_grasp", "yes", "no"),
        ("done", "yes", "no"),
    ]:
        total = counts[question_type, first] + counts[question_type, second]
        assert 0.43 < counts[question_type, first] / total < 0.57, question_type


def test_rare_facts_are_drawn_more_often_than_common_ones():
    annotation = make_annotation()
    position = annotation.position.copy()
    position[..., 2] = annotation.gripper_position[:, None, 2] - 0.1
    position[:6, :, 2] += 0.2  # the gripper is below all objects in six of sixty frames
    lifted = replace(annotation, position=position)
    steps = [t for t, _ in items_of(lifted, "gripper_height", seeds=range(10))]
    rare = sum(t < 6 for t in steps)
    common = len(steps) - rare
    assert rare / 6 > 1.5 * common / 54


def test_the_question_alone_does_not_reveal_a_changing_fact():
    relations = ("gripper_side", "gripper_height", "gripper_robot_side", "gripper_robot_front")
    for seed in range(3):
        answers = defaultdict(Counter)
        for _, item in items_of(make_annotation(seed), *relations, seeds=[seed]):
            fields = parse_question(item.question_type, item.question)
            answers[item.question_type, fields["a"], fields["b"]][item.answer] += 1
        changing = [counts for counts in answers.values() if len(counts) > 1]
        assert changing
        for counts in changing:
            assert max(counts.values()) * 2 <= counts.total()


def _names_jar_and_handle(item):
    return "sugar jar" in item.question and "drawer handle" in item.question


def test_facts_of_every_layout_are_not_asked():
    annotation = make_annotation()
    same_layout = make_annotation(steps=20)
    # Neither jar nor handle moves, here and in all other layouts, so no question relates them.
    sides = items_of(annotation, "object_side", "object_robot_side", layouts=same_layout)
    assert not any(_names_jar_and_handle(item) for _, item in sides)
    assert types_of(annotation, layouts=same_layout) >= {
        "gripper_side",
        "locate_box",
        "grasp_point",
        "path_task",
        "decompose",
        "current",
    }


def test_facts_that_differ_between_layouts_are_asked():
    annotation = make_annotation()
    layouts = make_annotation(steps=20)
    position = layouts.position.copy()
    position[::2, :2] = position[::2, 1::-1]  # jar and handle change places in half of them
    layouts = replace(layouts, position=position)
    sides = items_of(annotation, "object_robot_side", seeds=range(8), layouts=layouts)
    assert any(_names_jar_and_handle(item) for _, item in sides)


def test_items_that_fail_their_verification_are_dropped_and_counted(monkeypatch):
    annotation = make_annotation()
    num_items = len(items_of(annotation, "present"))

    def _check(item, annotation, t):
        return "wrong answer" if item.question_type == "present" else None

    monkeypatch.setattr(make, "check", _check)
    steps, dropped = make_items(annotation, 0)
    for items in steps:
        assert all(item.question_type != "present" for item in items)
    assert dropped["present: wrong answer"] >= num_items


# --- scene grounding -----------------------------------------------------------------------------


def test_absent_nouns_share_no_word_with_an_object():
    annotation = make_annotation()
    absent = ["lamp", "drawer", "tea cup", "jar"]
    items = items_of(annotation, "present", seeds=range(6), absent=absent)
    negative = [item.question for _, item in items if item.answer == "no"]
    assert negative
    assert all("lamp" in question for question in negative)
    assert "present" not in types_of(annotation, absent=())


def test_robot_directions_need_the_axes_of_the_base_frame():
    relations = {
        "gripper_robot_side",
        "gripper_robot_front",
        "object_robot_side",
        "object_robot_front",
    }
    assert not types_of(replace(make_annotation(), axes=())) & relations


def test_turned_axes_turn_the_answers():
    def _answers(annotation):
        items = items_of(annotation, "gripper_robot_front", seeds=range(4))
        return {(item.question, item.answer) for _, item in items}

    answers = _answers(make_annotation())
    turned = _answers(replace(make_annotation(), axes=("back", "right", "up")))
    opposite = {"front": "behind", "behind": "front"}
    constant = [
        (question, answer)
        for question, answer in answers
        if (question, opposite[answer]) not in answers
    ]
    assert not turned.intersection(constant)


def test_questions_about_other_views():
    annotation = make_annotation()
    types = ("cross_seen", "cross_place", "cross_box")
    items = items_of(annotation, *types, seeds=range(4))
    assert all("camera1 view" in item.question for _, item in items)
    # Only the jar comes and goes: it leaves the other view after 30 steps.
    seen = {(t < 30, item.answer) for t, item in items if item.question_type == "cross_seen"}
    assert seen == {(True, "yes"), (False, "no")}
    assert {item.question_type for t, item in items if t >= 30} == set(types)


def test_an_object_that_is_always_in_the_other_view_is_not_asked():
    annotation = make_annotation()
    always = replace(
        annotation,
        box=annotation.box[:30].repeat(2, 0),
        visible=annotation.visible[:30].repeat(2, 0),
    )
    assert "cross_seen" not in types_of(always)


def test_nearly_equal_values_are_not_compared():
    annotation = make_annotation()
    level = annotation.position.copy()
    level[..., 2] = annotation.gripper_position[:, None, 2] + 0.01
    assert "gripper_height" not in types_of(replace(annotation, position=level))
    beside = annotation.box.copy()
    # The centres are 0.015 to the right of the gripper.
    beside[..., [1, 3]] = annotation.gripper_pixel[:, :, None, 1:] + [-0.05, 0.08]
    types = types_of(replace(annotation, box=beside))
    assert not types & {"gripper_side", "object_side"}
    same = np.repeat(annotation.gripper_position[:, None], 3, axis=1)
    assert "gripper_depth" not in types_of(replace(annotation, position=same))


def test_objects_with_a_color_in_their_name_are_not_described():
    annotation = make_annotation()
    annotation = replace(annotation, objects=("green jar", *annotation.objects[1:]))
    items = items_of(annotation, "describe", "describe_shape", seeds=range(4))
    assert items
    assert not any("green jar" in item.question for _, item in items)


def test_boxes_of_several_objects_are_not_identified():
    annotation = make_annotation()
    box = np.repeat(annotation.box[:, :, :1], 3, axis=2)
    assert "identify" not in types_of(replace(annotation, box=box))


def test_places_are_ninths_of_the_image():
    assert place([0.1, 0.1]) == ("top left", True)
    assert place([0.5, 0.5]) == ("center", True)
    assert place([0.9, 0.5]) == ("bottom", True)
    assert place([0.5, 1.0]) == ("right", True)
    _, is_clear = place([0.5, 0.34])
    assert not is_clear


def test_depth_does_not_depend_on_the_scale_of_the_camera_matrix():
    annotation = make_annotation()
    eye = np.array([0.5, -0.9, 0.8])
    axis = np.array([0, 0, 0.1]) - eye
    point = eye + 0.7 * axis / np.linalg.norm(axis)
    points = np.tile(point, (len(annotation), 1, 1))
    scaled = replace(annotation, camera_matrix=annotation.camera_matrix * 3)
    np.testing.assert_allclose(FrameView(scaled).depth(points), 0.7, rtol=1e-5)


# --- affordance ----------------------------------------------------------------------------------


def test_the_destination_is_the_final_place_of_the_target():
    annotation = make_annotation()
    end = annotation.box[-1, 0, 2].reshape(2, 2).mean(0)
    items = items_of(annotation, "place_point")
    points = [parse_loc(item.answer, 2)[0] for _, item in items]
    assert points
    np.testing.assert_allclose(points, np.tile(end, (len(points), 1)), atol=1 / 512)


def test_wrong_regions_are_of_three_sorts():
    rng = np.random.default_rng(0)
    point = np.array([0.4, 0.5])
    other = np.array([0.45, 0.7])
    boxes = np.array([wrong_region(point, [other], rng) for _ in range(300)])
    low = boxes[:, :2]
    high = boxes[:, 2:]
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    contains_point = ((low <= point) & (point <= high)).all(-1)
    is_large = (high - low).max(-1) > 0.3
    assert (contains_point == is_large).all()
    assert 20 < is_large.sum() < 80
    is_around_other = np.abs((low + high) / 2 - other).max(-1) < 0.07
    assert is_around_other.sum() > 60


@pytest.mark.parametrize("good", [True, False])
def test_proposed_regions_clearly_contain_the_point_or_clearly_do_not(good):
    rng = np.random.default_rng(0)
    point = np.array([0.4, 0.6])
    sizes = []
    for _ in range(300):
        box = propose_region(point, good, rng)
        distance = np.minimum(point - box[:2], box[2:] - point).min()
        assert distance >= 0.0199 if good else distance <= -0.0199
        assert box.min() >= 0
        assert box.max() <= 1
        sizes.append(box[2:] - box[:2])
    np.testing.assert_allclose(np.mean(sizes), 0.15, atol=0.01)
    assert propose_region(np.array([0.0, 0.0]), True, rng) is None


# --- task planning -------------------------------------------------------------------------------


def test_the_subtask_is_not_asked_where_it_changes():
    annotation = make_annotation()
    changes = np.flatnonzero(np.diff(annotation.phase))
    steps = {t for t, _ in items_of(annotation, "current", "next", seeds=range(4))}
    assert steps
    assert not steps.intersection([*changes, *(changes + 1)])


def test_next_is_asked_only_where_the_episode_follows_the_plan():
    annotation = make_annotation()
    skipping = replace(annotation, phase=np.where(annotation.phase == 1, 2, annotation.phase))
    answers = {item.answer for _, item in items_of(skipping, "next", seeds=range(4))}
    assert answers == {"done"}


def test_done_is_asked_at_the_end_and_before_the_last_subtask():
    annotation = make_annotation()
    last_begins = int(np.argmax(annotation.phase == len(PHASES) - 1))
    items = items_of(annotation, "done")
    assert items
    for t, item in items:
        if item.answer == "yes":
            assert t >= len(annotation) - 2
        else:
            assert t < last_begins


def test_items_of_a_failed_episode_claim_no_success():
    failed = replace(make_annotation(), success=False)
    assert not types_of(failed) & {"done", "path_task", "place_point"}
    outcomes = [(t, item.answer) for t, item in items_of(failed, "outcome")]
    assert outcomes == [(58, "failure"), (59, "failure")]
    assert "done" not in {item.answer for _, item in items_of(failed, "next")}


# --- incomplete annotations ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "lost"),
    [
        ("gripper_pixel", {"gripper_point", "gripper_side", "path_subtask", "path_task"}),
        (
            "gripper_position",
            {"gripper_height", "gripper_depth", "gripper_robot_side", "gripper_robot_front"},
        ),
        ("camera_matrix", {"gripper_depth", "object_depth", "place_point"}),
        ("box", {"identify", "locate_box", "describe", "object_side", "gripper_side"}),
        ("box", {"cross_seen", "cross_place"}),
        ("position", {"gripper_height", "gripper_depth", "object_height", "object_robot_side"}),
        ("position", {"place_point"}),
        ("grasp_pixel", {"grasp_point", "stable_grasp"}),
        ("phase", {"current", "next", "path_subtask"}),
    ],
)
def test_unknown_facts_are_not_asked(field, lost):
    annotation = make_annotation()
    if field == "phase":
        changed = with_unknown_phase(annotation)
    else:
        changed = with_unknown(annotation, field)
    assert not types_of(changed) & lost
    assert lost <= types_of(annotation, range(8))


def test_an_episode_without_facts_has_only_questions_about_the_plan_and_its_end():
    names = [name for name in STEP_FIELDS if name not in ("phase", "gripper_open")]
    unknown = with_unknown_phase(with_unknown(make_annotation(), *names))
    assert types_of(unknown, absent=()) == {"decompose", "done", "outcome"}


def test_objects_with_an_unknown_visible_fraction_are_located():
    annotation = make_annotation()
    assert "locate_box" in types_of(with_unknown(annotation, "visible"))
    hidden = replace(annotation, visible=annotation.visible * 0.1)
    assert "locate_box" not in types_of(hidden)


def test_an_episode_without_objects_target_and_phases():
    annotation = make_annotation()
    changes = {}
    for name, axes in STEP_FIELDS.items():
        if "N" in axes:
            changes[name] = np.delete(getattr(annotation, name), [0, 1, 2], 1 + axes.index("N"))
    changes |= {"objects": (), "colors": (), "shapes": (), "phases": (), "target": -1}
    bare = with_unknown_phase(replace(annotation, **changes))
    assert types_of(bare, absent=()) == {"gripper_point", "done", "outcome", "path_task"}


def test_an_episode_of_one_step():
    annotation = make_annotation(steps=2)
    changes = {name: getattr(annotation, name)[:1] for name in STEP_FIELDS}
    steps, _ = make_items(replace(annotation, **changes), 0)
    assert len(steps) == 1


# --- paths ---------------------------------------------------------------------------------------


def test_keypoints_contain_corners_and_ends():
    straight = np.linspace([0.1, 0.2], [0.8, 0.4], 30)
    np.testing.assert_allclose(keypoints(straight), straight[[0, -1]])
    down = np.linspace([0.1, 0.1], [0.1, 0.9], 20)
    right = np.linspace([0.1, 0.9], [0.7, 0.9], 20)
    corner = np.concatenate([down, right[1:]])
    np.testing.assert_allclose(keypoints(corner), [[0.1, 0.1], [0.1, 0.9], [0.7, 0.9]])
    back_and_forth = np.concatenate([straight, straight[::-1]])
    np.testing.assert_allclose(keypoints(back_and_forth), straight[[0, -1, 0]])
    zigzag = np.stack([np.linspace(0, 1, 50), np.tile([0.4, 0.6], 25)], axis=-1)
    assert len(keypoints(zigzag)) == 5


def test_a_wait_on_a_straight_path_is_a_keypoint():
    steady = np.linspace([0.1, 0.1], [0.9, 0.9], 41)
    waiting = np.concatenate([steady[:21], np.repeat(steady[20:21], 40, axis=0), steady[21:]])
    points = keypoints(waiting)
    assert 2 < len(points) <= 5
    assert np.abs(points - steady[20]).max(-1).min() < 0.02
    assert len(keypoints(steady)) == 2


def test_a_path_is_cut_where_it_leaves_the_image():
    path = np.array([[0.5, 0.5], [0.7, 0.9], [0.9, 1.3], [0.5, 0.5]])
    np.testing.assert_allclose(cut_at_border(path), [[0.5, 0.5], [0.7, 0.9], [0.75, 1.0]])
    np.testing.assert_array_equal(cut_at_border(path[:2]), path[:2])


def test_paths_of_a_gripper_that_leaves_the_image_end_at_its_border():
    annotation = make_annotation()
    pixel = annotation.gripper_pixel.copy()
    pixel[20:40, 0] += [0, 0.7]  # outside the image from step 20 to step 39
    items = items_of(replace(annotation, gripper_pixel=pixel), "path_task")
    ends = {t: parse_loc(item.answer, 2)[-1] for t, item in items}
    assert ends.keys() >= set(range(20))
    assert not ends.keys() & set(range(20, 40))
    for t, end in ends.items():
        assert (end[1] > 0.999) == (t < 20)


def test_phase_ends():
    np.testing.assert_array_equal(phase_ends(np.array([0, 0, 1, 2, 2, 1])), [1, 1, 2, 4, 4, 5])
