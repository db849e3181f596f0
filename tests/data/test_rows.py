"""Rows contain the images, state and actions of their frame, and its questions and answers."""

import dataclasses

import numpy as np
import pytest

from etcvla import batch as batch_lib
from etcvla.data import prompts
from etcvla.data.norm_stats import unnormalize
from etcvla.data.stage_dataset import StageDataset
from etcvla.errors import UserError
from tests.data.handmade_rlds import (
    INSTRUCTIONS,
    KINDS,
    PHASES,
    robot_episode,
    robot_items,
    robot_steps,
    write_rlds,
    write_robot_set,
)
from tests.data.made_rows import SIZES, make_builder, segments, stream, where

EPISODES = 4
LENGTH = 7


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"), episodes=EPISODES, length=LENGTH)


def answers(frame):
    """{prompt: (kind, answer)} of a frame's items."""
    items = robot_items(*frame)
    return {f"{question}\n": (kind, answer) for kind, _, question, answer, _ in items}


def test_rows_match_the_schema(directory):
    builder = make_builder(
        directory, stream("action", "action", extra_segments=2), stream("etc", "any")
    )
    for index in (0, 1):
        row = builder(index, 3)
        batch_lib.validate(
            {name: value[None] for name, value in row.items()},
            B=1,
            C=2,
            H=28,
            W=28,
            L=96,
            Q=5,
            P=4,
            A=3,
        )
        assert row["segment"].max() >= 1 and (row["target"] <= (row["segment"] > 0)).all()


def test_action_row_has_the_values_of_its_frame(directory):
    builder = make_builder(directory, stream("action", "action"))
    assets = builder.assets
    dataset = builder.datasets["robot"].dataset
    actions = dataset.column("action")
    states = dataset.column("observation/state")
    for n in range(EPISODES * LENGTH):
        row = builder(0, n)
        episode, step = where(row)
        frame = episode * LENGTH + step
        for camera, name in enumerate(("observation/front", "observation/wrist")):
            np.testing.assert_array_equal(row["images"][camera], dataset.frame(frame, [name])[name])
        assert row["image_mask"].all() and row["action_segment"] == 1
        np.testing.assert_allclose(
            unnormalize(row["state"], assets.state_stats, "quantile")[:3], states[frame], atol=1e-5
        )
        inside = min(4, LENGTH - step)
        assert row["action_mask"][0].tolist() == [[t < inside, t < inside, False] for t in range(4)]
        chunk = unnormalize(row["actions"][0], assets.action_stats, "quantile")
        np.testing.assert_allclose(chunk[:inside, :2], actions[frame : frame + inside], atol=1e-6)
        np.testing.assert_allclose(
            chunk[inside:, :2], np.tile(actions[frame + inside - 1], (4 - inside, 1)), atol=1e-6
        )
        assert (row["actions"][..., 2:] == 0).all() and (row["state"][3:] == 0).all()
        [(prompt, target)] = segments(row, assets.tokenizer)
        assert prompt == INSTRUCTIONS[episode % 2] + "\n"
        fast, whole = assets.fast.decode(assets.tokenizer.action_tokens(target[:-1]))
        assert whole and target[-1] == assets.tokenizer.layout.eos
        np.testing.assert_allclose(fast, row["actions"][0, :, :2], atol=0.1)  # quantisation error


def test_prompt_with_state_and_no_fast_targets(directory):
    builder = make_builder(
        directory, stream("action", "action"), options={"prompt": "pi05", "use_fast": False}
    )
    row = builder(0, 0)
    [(prompt, target)] = segments(row, builder.assets.tokenizer)
    bins = np.array(prompt.removesuffix(";\nAction: ").split("State: ")[1].split(), int)
    # The prompt has the three numbers of the dataset's state, not all S.
    np.testing.assert_allclose((bins + 0.5) / 128 - 1, row["state"][:3], atol=1 / 128)
    assert target == [] and not row["target"].any() and not row["weight"].any()


def test_row_without_targets_has_no_token_weight(directory):
    options = {"prompt": "pi05", "use_fast": False, "loss_form": "openpi"}
    row = make_builder(directory, stream("action", "action"), options=options)(0, 0)
    assert row["segment"].any() and not row["weight"].any()


def test_pi0_fast_targets_have_opening_and_closing(directory):
    builder = make_builder(directory, stream("action", "action"), options={"prompt": "pi0_fast"})
    row = builder(0, 0)
    tokenizer = builder.assets.tokenizer
    [(prompt, target)] = segments(row, tokenizer)
    assert prompt.startswith("Task: ") and prompt.endswith(";\n")
    opening = tokenizer.encode("Action: ")
    closing = tokenizer.encode("|", eos=True)
    assert target[: len(opening)] == opening and target[-len(closing) :] == closing
    chunk, whole = builder.assets.fast.decode(
        prompts.read_action(tokenizer, target, prompt="pi0_fast")
    )
    assert whole
    np.testing.assert_allclose(chunk, row["actions"][0, :, :2], atol=0.1)


def test_prompt_with_subtasks_contains_and_asks_for_the_subtask(tmp_path):
    write_robot_set(tmp_path, episodes=EPISODES, length=LENGTH, phases=True)
    builder = make_builder(
        tmp_path,
        stream("action", "action", extra_segments=1),
        options={"prompt": "pi05_subtask"},
        text_len=200,
    )
    for n in range(EPISODES * LENGTH):
        row = builder(0, n)
        episode, step = where(row)
        task = INSTRUCTIONS[episode % 2]
        phase = [None, 0, 0, 1, 1, 1, 1][step]
        row_segments = segments(row, builder.assets.tokenizer)
        subtask = task if phase is None else PHASES[phase].replace("_", " ")
        assert row_segments[0][0].startswith(f"Task: {subtask}, State: ")
        assert row["action_segment"] == 1
        if phase is None:  # no question for an unknown subtask; the extra segment follows
            assert len(row_segments) == 2 and "Subtask" not in row_segments[1][0]
        else:
            prompt, target = row_segments[1]
            assert len(row_segments) == 3 and prompt == f"Task: {task}. Subtask: "
            assert builder.assets.tokenizer.decode(target) == PHASES[phase]


def test_prompt_with_subtasks_needs_phases(directory):
    with pytest.raises(
        UserError, match="'subtask' needs subtasks, but .* has none .*annotation/phase"
    ):
        make_builder(directory, stream("action", "action"), options={"prompt": "subtask"})
    make_builder(
        directory, stream("etc", "any"), options={"prompt": "subtask"}
    )  # which asks for no action


def test_padding_without_mask_as_in_openpi(directory):
    """Padded dimensions are zeros, and the last action is repeated past the episode's end."""
    action = stream("action", "action")
    masked = make_builder(directory, action, options={"mask_padding": True})
    unmasked = make_builder(directory, action, options={"mask_padding": False})
    for n in range(EPISODES * LENGTH):
        one = masked(0, n)
        other = unmasked(0, n)
        assert other["action_mask"].all()
        for name in set(one) - {"action_mask", "action_weight"}:
            np.testing.assert_array_equal(one[name], other[name])


def segment_weights(row):
    """Return the sum of the token weights of each segment of a row."""
    numbers = range(1, row["segment"].max() + 1)
    return [row["weight"][row["segment"] == number].sum() for number in numbers]


def test_share_weights_split_a_row_by_segments(directory):
    """A question row's segments share its coefficient; an action row's extras have their own."""
    action = dataclasses.replace(stream("action", "action", 2, weight=2.0), extra_weight=0.25)
    builder = make_builder(directory, action, stream("etc", "any", 2), text_len=140)
    coefficient = 1 / 6  # of a row of six
    row = builder(0, 0)
    expected = np.array([1, 0.125, 0.125]) * coefficient
    np.testing.assert_allclose(segment_weights(row), expected, rtol=1e-6)
    num_values = row["action_mask"].sum()
    np.testing.assert_allclose(row["action_weight"] * num_values, coefficient, rtol=1e-6)
    row = builder(1, 0)
    np.testing.assert_allclose(segment_weights(row), [coefficient / 3] * 3, rtol=1e-6)
    assert row["action_weight"] == 0
    np.testing.assert_array_equal(row["weight"] > 0, row["target"])


@pytest.mark.parametrize("extra_segments", [0, 2])
def test_weight_of_a_stream_is_its_share_of_the_objective(directory, extra_segments):
    """Weight 3 gives three times the coefficient, through more rows or through heavier rows."""
    for rows in ((), ((0.0, 1.0),)):
        action = dataclasses.replace(
            stream("action", "action", extra_segments, weight=3.0), rows=rows, extra_weight=0.0
        )
        etc = stream("etc", "any", extra_segments)
        builder = make_builder(directory, action, etc, batch_size=8, steps=4)
        totals = np.zeros(2)
        for step in range(4):
            draws = builder.plan.rows(step, 0, 8)
            batch = builder.rows(draws)
            streams = np.array([index for index, _ in draws])
            token_weights = batch["weight"].sum(axis=1)
            num_values = batch["action_mask"].sum(axis=(2, 3))
            flow_weights = (num_values * batch["action_weight"])[:, 0]
            np.testing.assert_allclose(flow_weights[streams == 0], token_weights[streams == 0])
            totals += np.bincount(streams, token_weights)
        np.testing.assert_allclose(totals / 4, [0.75, 0.25], rtol=1e-5)


def test_loss_weight_scales_the_rows_of_a_stream(directory):
    etc = stream("etc", "any")
    light = dataclasses.replace(etc, loss_weight=((0.0, 0.1),))
    row = make_builder(directory, light)(0, 0)
    np.testing.assert_allclose(row["weight"] * 10, make_builder(directory, etc)(0, 0)["weight"])


def test_openpi_weights_are_the_mean_of_a_row(directory):
    builder = make_builder(
        directory, stream("action", "action", extra_segments=1), options={"loss_form": "openpi"}
    )
    row = builder(0, 0)
    weights = row["weight"][row["target"]]
    np.testing.assert_allclose(weights, 1 / (6 * len(weights)), rtol=1e-6)
    np.testing.assert_allclose(row["action_weight"] * row["action_mask"].sum(), 1 / 6, rtol=1e-6)


def test_objectives_weights_are_one(directory):
    action = stream("action", "action", extra_segments=1)
    builder = make_builder(directory, action, options={"loss_form": "objectives"})
    row = builder(0, 0)
    np.testing.assert_array_equal(row["weight"], row["target"].astype(np.float32))
    assert row["action_weight"] == 1


def test_unknown_loss_form_raises(directory):
    with pytest.raises(UserError, match="unknown loss.form 'shares', did you mean 'share'"):
        make_builder(directory, stream("action", "action"), options={"loss_form": "shares"})


@pytest.mark.parametrize("kind", [*KINDS, "any"])
def test_question_row_has_items_of_its_frame(directory, kind):
    builder = make_builder(directory, stream("etc", kind, extra_segments=9))
    tokenizer = builder.assets.tokenizer
    main_kinds = set()
    for n in range(40):
        row = builder(0, n)
        items = answers(where(row))
        row_segments = segments(row, tokenizer)
        prompts_in_row = [prompt for prompt, _ in row_segments]
        assert sorted(prompts_in_row) == sorted(items)  # all items, each once
        for prompt, target in row_segments:
            assert tokenizer.decode(target) == items[prompt][1]
            assert target[-1] == tokenizer.layout.eos
        main_kinds.add(items[prompts_in_row[0]][0])
        assert row["action_segment"] == 0
        assert not row["action_mask"].any() and not row["actions"].any()
    assert main_kinds == ({kind} if kind != "any" else set(KINDS))


def test_extra_segments_follow_the_kind_weights(directory):
    builder = make_builder(
        directory,
        stream("action", "action", extra_segments=1),
        options={
            "extra_segment_weights": {"affordance": 3.0, "trajectory": 1.0, "task_planning": 5.0}
        },
    )
    drawn = []
    for n in range(300):
        row = builder(0, n)
        extra_prompt, _ = segments(row, builder.assets.tokenizer)[1]
        kind, _ = answers(where(row))[extra_prompt]
        drawn.append(kind)
    assert set(drawn) == {"affordance", "trajectory"}
    # Frames have one affordance and one or two trajectories: 3/4 or 3/5 are affordances.
    assert 0.55 < drawn.count("affordance") / len(drawn) < 0.8


def test_unknown_extra_segment_kind_raises(directory):
    with pytest.raises(
        UserError, match="extra_segment_weights: unknown kind afordance; choose from"
    ):
        make_builder(
            directory,
            stream("action", "action", extra_segments=1),
            options={"extra_segment_weights": {"afordance": 1.0}},
        )


def test_extra_segments_that_do_not_fit_are_left_out(directory):
    whole = make_builder(directory, stream("etc", "any", extra_segments=3), text_len=200)
    tokenizer = whole.assets.tokenizer
    for length, targets in ((60, 48), (200, 7), (40, 4)):
        cut = make_builder(
            directory, stream("etc", "any", extra_segments=3), text_len=length, max_targets=targets
        )
        for n in range(20):
            row = cut(0, n)
            all_segments = segments(whole(0, n), tokenizer)
            kept = segments(row, tokenizer)
            assert len(row["tokens"]) == length and row["target"].sum() <= targets
            assert kept[0] == all_segments[0] and len(kept) < len(all_segments)
            assert all(segment in all_segments for segment in kept)
            assert (np.diff(np.flatnonzero(row["segment"])) == 1).all()  # no gap between segments
    for small in ({"text_len": 8}, {"max_targets": 2}):
        with pytest.raises(
            ValueError,
            match=r"stream 'etc': a segment of \d+ tokens, 3 of them targets, does not fit",
        ):
            make_builder(directory, stream("etc", "any"), **small)(0, 0)


def test_tokens_have_a_stream(directory):
    builder = make_builder(
        directory, stream("action", "action", extra_segments=1), stream("etc", "any")
    )
    row = builder(1, 0)
    text = row["segment"] > 0
    assert (
        (row["stream"][text] == 1).all()
        and not row["tokens"][~text].any()
        and not row["target"][~text].any()
    )


def test_rows_are_reproducible_and_an_epoch_has_every_frame_once(directory):
    action = stream("action", "action", extra_segments=2)
    one = make_builder(directory, action)
    other = make_builder(directory, action)
    order = [where(one(0, n)) for n in range(2 * EPISODES * LENGTH)]
    first = order[: EPISODES * LENGTH]
    second = order[EPISODES * LENGTH :]
    assert sorted(first) == sorted(second) == list(np.ndindex(EPISODES, LENGTH))
    assert first != second and first != sorted(first)
    for n in (30, 4, 4):
        row = one(0, n)
        other_row = other(0, n)
        for name in row:
            np.testing.assert_array_equal(row[name], other_row[name])


def test_images_are_stretched_and_absent_cameras_masked(tmp_path):
    directory = write_robot_set(tmp_path, episodes=1, size=20)
    row = make_builder(directory, stream("action", "action"), cameras=("wrist",))(0, 3)
    assert row["image_mask"].tolist() == [True, False] and not row["images"][1].any()
    # The bright square ends at 14 of 20 pixels in the dataset, so at 14 / 20 of 28 in the row.
    edge = np.abs(np.diff(row["images"][0, 4, :, 0].astype(int))).argmax()
    assert abs(edge + 1 - 0.7 * SIZES["image_size"]) <= 1


def test_stage_dataset_without_camera_raises(directory, tmp_path):
    dataset = make_builder(directory, stream("action", "action")).datasets["robot"].dataset
    with pytest.raises(ValueError, match=r"no camera 'left'; it has \['front', 'wrist'\]"):
        StageDataset(dataset, ("front", "left"))
    assert len(StageDataset(dataset, ("front",)).candidates("any")) == EPISODES * LENGTH


@pytest.mark.parametrize("damaged", ["raise", "skip"])
def test_batch_equals_its_rows_for_any_content_of_the_buffer(tmp_path, damaged):
    builder = make_builder(
        write_robot_set(tmp_path),
        stream("action", "action", extra_segments=1),
        stream("etc", "any"),
        damaged=damaged,
    )
    draws = [(0, 3), (1, 1), (0, 0)]
    memory = np.full(builder.image_shape(3), 77, np.uint8)
    together = builder.rows(draws, memory)
    assert together["images"] is memory
    for i, draw in enumerate(draws):
        for name, value in builder(*draw).items():
            np.testing.assert_array_equal(together[name][i], value, err_msg=name)


def test_absent_cameras_are_black_in_a_used_buffer(tmp_path):
    builder = make_builder(
        write_robot_set(tmp_path), stream("action", "action"), cameras=("front",)
    )
    batch = builder.rows([(0, 0), (0, 1)], np.full(builder.image_shape(2), 77, np.uint8))
    assert batch["image_mask"].tolist() == [[True, False]] * 2
    assert (batch["images"][:, 1] == 0).all() and batch["images"][:, 0].any()


def test_row_with_a_damaged_draw_in_a_batch_equals_the_row_alone(tmp_path):
    """All other fields are filled before images are decoded; damaged frames show at either."""
    episodes = [robot_episode(number) for number in range(3)]
    episodes[1]["observation/wrist"][2] = b"no image"
    write_rlds(tmp_path, episodes, steps=robot_steps())
    builder = make_builder(
        tmp_path,
        stream("action", "action", extra_segments=1),
        stream("etc", "any"),
        damaged="skip",
    )
    draws = [(number % 2, number // 2) for number in range(42)]
    batch = builder.rows(draws)
    for i, draw in enumerate(draws):
        for name, value in builder(*draw).items():
            np.testing.assert_array_equal(batch[name][i], value, err_msg=name)


def test_renamed_words_change_questions_and_answers(directory):
    dataset = make_builder(directory, stream("action", "action")).datasets["robot"].dataset
    plain = StageDataset(dataset, ("front", "wrist"))
    renamed = StageDataset(dataset, ("front", "wrist"), {"where": "who", "affordance": "box"})
    frame = dataset.frame(3, plain.item_features)
    texts = [f"{item.question} {item.answer}" for item in plain.items(frame)]
    expected = [text.replace("where", "who").replace("affordance", "box") for text in texts]
    assert expected != texts
    assert [f"{item.question} {item.answer}" for item in renamed.items(frame)] == expected
