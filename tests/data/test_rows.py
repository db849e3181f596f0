"""Rows hold what the dataset holds: the frame, its state and actions, and questions with their own answers."""

import numpy as np
import pytest

from etcvla import batch as batch_lib
from etcvla.data import prompts
from etcvla.data.norm_stats import unnormalize
from etcvla.data.stage_dataset import StageDataset
from tests.data.handmade_rlds import INSTRUCTIONS, KINDS, PHASES, robot_items, write_robot_set
from tests.data.made_rows import SIZES, make_builder, segments, stream, where

EPISODES, LENGTH = 4, 7


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"), episodes=EPISODES, length=LENGTH)


def answers(frame):
    """{prompt: (kind, answer)} of a frame's items."""
    return {f"{question}\n": (kind, answer) for kind, _, question, answer, _ in robot_items(*frame)}


def test_rows_keep_the_schema(directory):
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


def test_an_action_row_is_its_frame(directory):
    builder = make_builder(directory, stream("action", "action"))
    assets, dataset = builder.assets, builder.datasets["robot"].dataset
    actions, states = dataset.column("action"), dataset.column("observation/state")
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
        assert row["action_mask"].tolist() == [[t < inside, t < inside, False] for t in range(4)]
        chunk = unnormalize(row["actions"], assets.action_stats, "quantile")
        np.testing.assert_allclose(chunk[:inside, :2], actions[frame : frame + inside], atol=1e-6)
        np.testing.assert_allclose(
            chunk[inside:, :2], np.tile(actions[frame + inside - 1], (4 - inside, 1)), atol=1e-6
        )
        assert (row["actions"][:, 2:] == 0).all() and (row["state"][3:] == 0).all()
        [(prompt, target)] = segments(row, assets.tokenizer)
        assert prompt == INSTRUCTIONS[episode % 2] + "\n"
        fast, whole = assets.fast.decode(assets.tokenizer.action_tokens(target[:-1]))
        assert whole and target[-1] == assets.tokenizer.layout.eos
        np.testing.assert_allclose(
            fast, row["actions"][:, :2], atol=0.1
        )  # to within the quantisation


def test_the_state_may_stand_in_the_prompt_and_fast_may_be_left_out(directory):
    builder = make_builder(
        directory, stream("action", "action"), options={"prompt": "pi05", "use_fast": False}
    )
    row = builder(0, 0)
    [(prompt, target)] = segments(row, builder.assets.tokenizer)
    bins = np.array(prompt.removesuffix(";\nAction: ").split("State: ")[1].split(), int)
    np.testing.assert_allclose(
        (bins + 0.5) / 128 - 1, row["state"][:3], atol=1 / 128
    )  # of three, not of all S
    assert target == [] and not row["target"].any() and not row["weight"].any()


def test_pi0_fast_frames_its_actions(directory):
    builder = make_builder(directory, stream("action", "action"), options={"prompt": "pi0_fast"})
    row, tokenizer = builder(0, 0), builder.assets.tokenizer
    [(prompt, target)] = segments(row, tokenizer)
    assert prompt.startswith("Task: ") and prompt.endswith(";\n")
    opening, closing = tokenizer.encode("Action: "), tokenizer.encode("|", eos=True)
    assert target[: len(opening)] == opening and target[-len(closing) :] == closing
    chunk, whole = builder.assets.fast.decode(
        prompts.read_action(tokenizer, target, prompt="pi0_fast")
    )
    assert whole
    np.testing.assert_allclose(chunk, row["actions"][:, :2], atol=0.1)


def test_a_prompt_with_subtasks_says_and_asks_what_is_done(tmp_path):
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
        task, phase = INSTRUCTIONS[episode % 2], [None, 0, 0, 1, 1, 1, 1][step]
        found = segments(row, builder.assets.tokenizer)
        subtask = task if phase is None else PHASES[phase].replace("_", " ")
        assert found[0][0].startswith(f"Task: {subtask}, State: ") and row["action_segment"] == 1
        if phase is None:  # nothing to learn of what is unknown; the rider follows
            assert len(found) == 2 and "Subtask" not in found[1][0]
        else:
            assert len(found) == 3 and found[1][0] == f"Task: {task}. Subtask: "
            assert builder.assets.tokenizer.decode(found[1][1]) == PHASES[phase]


def test_a_dataset_without_subtasks(directory):
    with pytest.raises(
        ValueError, match="'subtask' needs subtasks, but .* has none .*annotation/phase"
    ):
        make_builder(directory, stream("action", "action"), options={"prompt": "subtask"})
    make_builder(
        directory, stream("etc", "any"), options={"prompt": "subtask"}
    )  # which asks for no action


def test_padding_may_be_learnt_as_openpi_does(directory):
    """Widths that are not there are zeros then, and the last action is repeated past the episode's end."""
    masked, learnt = (
        make_builder(directory, stream("action", "action"), options={"mask_padding": mask})
        for mask in (True, False)
    )
    for n in range(EPISODES * LENGTH):
        one, other = masked(0, n), learnt(0, n)
        assert other["action_mask"].all()
        for name in set(one) - {"action_mask"}:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_segments_mean_weighs_every_segment_alike(directory):
    builder = make_builder(
        directory, stream("action", "action", extra_segments=1), options={"loss_mean": "segment"}
    )
    row = builder(0, 0)
    for number in (1, 2):
        np.testing.assert_allclose(row["weight"][row["segment"] == number].sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(row["weight"] > 0, row["target"])
    with pytest.raises(ValueError, match="unknown loss.mean 'tokens', did you mean 'token'"):
        make_builder(directory, stream("action", "action"), options={"loss_mean": "tokens"})


@pytest.mark.parametrize("kind", [*KINDS, "any"])
def test_a_question_row_asks_about_its_own_frame(directory, kind):
    builder = make_builder(directory, stream("etc", kind, extra_segments=9))
    tokenizer, main = builder.assets.tokenizer, set()
    for n in range(40):
        row = builder(0, n)
        items, found = answers(where(row)), segments(row, tokenizer)
        assert sorted(prompt for prompt, _ in found) == sorted(items)  # all of them, none twice
        for prompt, target in found:
            assert (
                tokenizer.decode(target) == items[prompt][1] and target[-1] == tokenizer.layout.eos
            )
        main.add(items[found[0][0]][0])
        assert (
            row["action_segment"] == 0 and not row["action_mask"].any() and not row["actions"].any()
        )
    assert main == ({kind} if kind != "any" else set(KINDS))


def test_riders_are_drawn_from_the_mix(directory):
    builder = make_builder(
        directory,
        stream("action", "action", extra_segments=1),
        options={
            "extra_segment_weights": {"affordance": 3.0, "trajectory": 1.0, "task_planning": 5.0}
        },
    )
    drawn = [
        answers(where(row))[segments(row, builder.assets.tokenizer)[1][0]][0]
        for row in (builder(0, n) for n in range(300))
    ]
    assert set(drawn) == {"affordance", "trajectory"}
    # Frames have one affordance and, half of them, two trajectories: 3/4 or 3/5 of the extra_segments.
    assert 0.55 < drawn.count("affordance") / len(drawn) < 0.8


def test_a_rider_of_no_kind_is_named(directory):
    with pytest.raises(
        ValueError, match="extra_segment_weights: unknown kind afordance; choose from"
    ):
        make_builder(
            directory,
            stream("action", "action", extra_segments=1),
            options={"extra_segment_weights": {"afordance": 1.0}},
        )


def test_text_that_does_not_fit(directory):
    whole = make_builder(directory, stream("etc", "any", extra_segments=3), text_len=200)
    tokenizer = whole.assets.tokenizer
    for length, targets in ((60, 48), (200, 7), (40, 4)):
        cut = make_builder(
            directory, stream("etc", "any", extra_segments=3), text_len=length, max_targets=targets
        )
        for n in range(20):
            row, full = cut(0, n), segments(whole(0, n), tokenizer)
            kept = segments(row, tokenizer)
            assert len(row["tokens"]) == length and row["target"].sum() <= targets
            assert (
                kept[0] == full[0] and all(part in full for part in kept) and len(kept) < len(full)
            )
            assert (
                np.diff(np.flatnonzero(row["segment"])) == 1
            ).all()  # no hole where a rider was left out
    for small in ({"text_len": 8}, {"max_targets": 2}):
        with pytest.raises(
            ValueError,
            match=r"stream 'etc': a segment of \d+ tokens, 3 of them targets, does not fit",
        ):
            make_builder(directory, stream("etc", "any"), **small)(0, 0)


def test_tokens_carry_weight_and_stream(directory):
    builder = make_builder(
        directory, stream("action", "action", extra_segments=1), stream("etc", "any")
    )
    row = builder(1, 0)
    text = row["segment"] > 0
    np.testing.assert_array_equal(row["weight"], row["target"].astype(np.float32))
    assert (
        (row["stream"][text] == 1).all()
        and not row["tokens"][~text].any()
        and not row["target"][~text].any()
    )


def test_a_row_is_a_function_of_its_number_and_an_epoch_shows_every_frame_once(directory):
    one, other = (
        make_builder(directory, stream("action", "action", extra_segments=2)) for _ in range(2)
    )
    order = [where(one(0, n)) for n in range(2 * EPISODES * LENGTH)]
    first, second = order[: EPISODES * LENGTH], order[EPISODES * LENGTH :]
    assert (
        sorted(first) == sorted(second) == [(e, t) for e in range(EPISODES) for t in range(LENGTH)]
    )
    assert first != second and first != sorted(first)
    for n in (30, 4, 4):
        a, b = one(0, n), other(0, n)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_pictures_are_stretched_and_absent_cameras_masked(tmp_path):
    directory = write_robot_set(tmp_path, episodes=1, size=20)
    row = make_builder(directory, stream("action", "action"), cameras=("wrist",))(0, 3)
    assert row["image_mask"].tolist() == [True, False] and not row["images"][1].any()
    # The dataset's bright square ends at 14 of 20 pixels, so it must end at 14 / 20 of 28.
    edge = np.abs(np.diff(row["images"][0, 4, :, 0].astype(int))).argmax()
    assert abs(edge + 1 - 0.7 * SIZES["image_size"]) <= 1


def test_a_source_says_what_it_lacks(directory, tmp_path):
    dataset = make_builder(directory, stream("action", "action")).datasets["robot"].dataset
    with pytest.raises(ValueError, match=r"no camera 'left'; it has \['front', 'wrist'\]"):
        StageDataset(dataset, ("front", "left"))
    assert len(StageDataset(dataset, ("front",)).candidates("any")) == EPISODES * LENGTH


@pytest.mark.parametrize("damaged", ["raise", "skip"])
def test_a_batch_is_its_rows_whatever_lay_in_its_memory(tmp_path, damaged):
    builder = make_builder(
        write_robot_set(tmp_path),
        stream("action", "action", extra_segments=1),
        stream("etc", "any"),
        damaged=damaged,
    )
    noise_samples = [(0, 3), (1, 1), (0, 0)]
    memory = np.full(builder.image_shape(3), 77, np.uint8)
    together = builder.rows(noise_samples, memory)
    assert together["images"] is memory
    for i, draw in enumerate(noise_samples):
        for name, value in builder(*draw).items():
            np.testing.assert_array_equal(together[name][i], value, err_msg=name)


def test_cameras_that_a_dataset_lacks_are_black_in_used_memory(tmp_path):
    builder = make_builder(
        write_robot_set(tmp_path), stream("action", "action"), cameras=("front",)
    )
    batch = builder.rows([(0, 0), (0, 1)], np.full(builder.image_shape(2), 77, np.uint8))
    assert batch["image_mask"].tolist() == [[True, False]] * 2
    assert (batch["images"][:, 1] == 0).all() and batch["images"][:, 0].any()
