"""A row holds its own instruction and relabels of its frame, each with its actions."""

import jax
import numpy as np
import pytest

from configs import common
from etcvla.data.norm_stats import unnormalize
from etcvla.data.rows import RowBuilder
from etcvla.errors import UserError
from etcvla.train.stage import streams_of
from etcvla.train.step import StepSettings, microbatch_losses, prepare_targets, total_loss
from tests.data.handmade_rlds import INSTRUCTIONS, RELABELS, relabel_actions, write_robot_set
from tests.data.made_rows import SIZES, make_builder, segments, stream, where
from tests.models.small import make_model, random_params

EPISODES = 3
LENGTH = 7
TOKENS = {"text_len": 120, "max_targets": 100}
ONE = ((0.0, 1.0),)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relabels")
    return write_robot_set(folder, episodes=EPISODES, length=LENGTH, relabels=True)


def builder_of(directory, count: int, *, extra_segments: int = 0, **changes) -> RowBuilder:
    """Return a builder of rows with `count` actions."""
    action = stream("action", "action", extra_segments)
    return make_builder(directory, action, actions_per_row=count, **{**TOKENS, **changes})


def test_row_has_its_instruction_and_relabels(directory):
    builder = builder_of(directory, 3)
    assets = builder.assets
    drawn = set()
    for n in range(EPISODES * LENGTH):
        row = builder(0, n)
        episode, step = where(row)
        steps_left = LENGTH - 1 - step
        prompts = [prompt.strip() for prompt, _ in segments(row, assets.tokenizer)]
        assert prompts[0] == INSTRUCTIONS[episode % 2]
        if steps_left == 0:  # no relabel has an action at the last step
            assert row["action_segment"].tolist() == [1, 0, 0]
            assert len(prompts) == 1 and not row["action_mask"][1:].any()
            continue
        assert row["action_segment"].tolist() == [1, 2, 3] and prompts[1] != prompts[2]
        drawn.update(prompts[1:])
        stored = relabel_actions(episode, step, 2)
        chunks = unnormalize(row["actions"], assets.action_stats, "quantile")[..., :2]
        for prompt, chunk, mask in zip(
            prompts[1:], chunks[1:], row["action_mask"][1:], strict=True
        ):
            order = np.minimum(np.arange(SIZES["horizon"]), steps_left - 1)
            expected = stored[RELABELS.index(prompt)][order]
            np.testing.assert_allclose(chunk, expected, atol=1e-5)
            assert mask[:, 0].sum() == min(SIZES["horizon"], steps_left)
            assert not mask[:, 2:].any()
    assert drawn == set(RELABELS)


def test_first_chunk_equals_that_of_a_row_with_one_action(directory):
    one = builder_of(directory, 1)
    several = builder_of(directory, 5)
    for n in range(5):
        row = several(0, n)
        expected = one(0, n)
        for name in ("actions", "action_mask", "action_segment"):
            np.testing.assert_array_equal(row[name][0], expected[name][0])
        first_text = row["tokens"][row["segment"] == 1]
        np.testing.assert_array_equal(first_text, expected["tokens"][expected["segment"] == 1])
        for name, value in several(0, n).items():
            np.testing.assert_array_equal(row[name], value)


def test_extra_segments_follow_the_actions(directory):
    row = builder_of(directory, 2, extra_segments=1)(0, 0)
    assert row["action_segment"].tolist() == [1, 2] and row["segment"].max() == 3


def separate_rows(row, count):
    """Return a batch of `count` rows with one action segment of a packed row each."""
    batch = {name: np.stack([value] * count) for name, value in row.items()}
    for k in range(count):
        for name in ("tokens", "segment", "target", "weight"):
            batch[name][k] *= row["segment"] == row["action_segment"][k]
    for name in ("actions", "action_mask", "action_weight", "action_segment"):
        batch[name] = row[name][:, None]
    return batch


def test_packed_row_equals_separate_rows(directory):
    """The loss and the gradients of five actions in one row are those of five rows."""
    count = 5
    builder = builder_of(directory, count)
    row = next(row for row in (builder(0, n) for n in range(9)) if row["action_segment"].all())
    one = {name: value[None] for name, value in row.items()}
    model = make_model(
        vocab_size=builder.assets.tokenizer.layout.vocab_size, state_dim=5, action_dim=3
    )
    params = random_params(model)
    settings = StepSettings(
        seed=0,
        steps=1,
        streams=("action",),
        max_targets=TOKENS["max_targets"],
        noise_samples=count,
        form="share",
        text=ONE,
        fast=ONE,
        flow=ONE,
        ema_decay=0.9,
        shift=0,
        color=0.0,
        loc_offset=0,
    )
    packed, packed_sums = prepare_targets(one, jax.random.key(0), settings)
    single = settings.replace(noise_samples=1)
    rows, sums = prepare_targets(separate_rows(row, count), jax.random.key(0), single)
    for name in ("x_t", "time", "velocity", "flow_mask", "flow_weight"):
        rows[name] = packed[name][0][:, None]
    for name, weight_sum in packed_sums.items():
        np.testing.assert_allclose(sums[name], weight_sum, rtol=1e-5)

    @jax.jit
    def loss_and_grad(rows, sums):
        def loss(params):
            losses, _ = microbatch_losses(model, params, rows, sums, settings)
            return total_loss(losses, sums, 0.0, settings)

        return jax.value_and_grad(loss)(params)

    value, grads = loss_and_grad(packed, packed_sums)
    expected, expected_grads = loss_and_grad(rows, sums)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for grad, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, other, atol=1e-5 * max(1, np.abs(other).max()))


def test_relabels_that_do_not_fit_are_errors(directory, tmp_path):
    with pytest.raises(UserError, match=r"relabels have 6 actions, but model.horizon is 9"):
        builder_of(directory, 2, horizon=9)
    with pytest.raises(UserError, match=r"does not fit data.text_len 60 .* are used"):
        builder = builder_of(directory, 5, text_len=60)
        builder.rows([(0, n) for n in range(9)])
    plain = write_robot_set(tmp_path / "plain")
    with pytest.raises(UserError, match=r"data.actions_per_row is 2, but no dataset .* relabels"):
        builder_of(plain, 2)
    assert builder_of(plain, 1)(0, 0)["action_segment"] == 1


def test_configs_whose_actions_do_not_fit_are_errors():
    config = common.base("objective_bridge", "tiny")
    common.override(config, {"data.actions_per_row": 3})
    with pytest.raises(UserError, match=r"noise_samples 4 is not a multiple of .*_per_row 3"):
        StepSettings.from_config(config, loc_offset=0)
    common.override(config, {"loss.noise_samples": 6})
    assert StepSettings.from_config(config, loc_offset=0).noise_samples == 6
    entries = {"datasets.robot": {}, "model.image_attends_prompt": True}
    common.override(config, entries)
    common.add_streams(config, {"action": common.stream("robot", "action", 1.0, 0)})
    with pytest.raises(UserError, match=r"data.actions_per_row must be 1 with"):
        streams_of(config)
