"""Policies act and answer as the model does on training rows, in the units of the dataset."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from configs.common import constant
from etcvla.data.norm_stats import unnormalize
from etcvla.data.rows import RowBuilder, RowOptions
from etcvla.errors import UserError
from etcvla.models.decode import TextOptions, decode_text, sample_actions
from etcvla.models.lora import merge
from etcvla.policy import Policy, PolicyOptions
from etcvla.train.checkpoint import CheckpointWriter
from etcvla.train.checkpoint_meta import checkpoint_meta
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from tests.data.handmade_rlds import write_robot_set
from tests.data.made_rows import segments, where
from tests.models.small import random_params
from tests.train.nano import nano_config

CAMERAS = ("front", "wrist")
LENGTH = 7  # steps of an episode
TEXT_LEN = 192  # of the stage with subtasks
QUESTION = "the robot should {instruction}. what should it do now?"
token_state = pytest.mark.parametrize("flow_policy", ["token"], indirect=True)


def save(stage, params, **options):
    """Save a checkpoint with these EMA parameters, as training does, and load it as a policy."""
    state = TrainState(step=np.int32(1), params={}, ema=params, opt={"count": np.zeros(1)})
    checkpoints = CheckpointWriter(stage.config.workdir, keep=1)
    checkpoints.save(state, checkpoint_meta(stage))
    checkpoints.wait()
    return Policy.load(stage.config.workdir, num_steps=3, **options)


@pytest.fixture(scope="module", params=["token", "text"])
def flow_policy(request, tmp_path_factory):
    """(policy, stage) of a checkpoint whose images are larger than the dataset's."""
    folder = tmp_path_factory.mktemp("policy")
    dataset = write_robot_set(folder / "robot", length=LENGTH, size=20)
    prompt = {"token": "pi0", "text": "pi05"}[request.param]
    config = nano_config(dataset, folder / "run", model__state=request.param, data__prompt=prompt)
    stage = Stage.open(config)
    return save(stage, random_params(stage.model, scale=0.5)), stage


@pytest.fixture(scope="module")
def fast_policy(tmp_path_factory):
    """(policy, stage) of a checkpoint that was trained on FAST tokens only."""
    folder = tmp_path_factory.mktemp("fast")
    config = nano_config(
        write_robot_set(folder / "robot", length=LENGTH),
        folder / "run",
        model__state="text",
        model__expert="none",
        loss__flow=constant(0.0),
        data__prompt="pi0_fast",
        data__text_len=96,
    )
    stage = Stage.open(config)
    return save(stage, random_params(stage.model, scale=0.5)), stage


@pytest.fixture(scope="module")
def asking_policy(flow_policy):
    """The flow policy with a question for the subtask."""
    return Policy.load(flow_policy[1].config.workdir, num_steps=3, subtask_question=QUESTION)


def row_builder(stage, *, use_fast=True):
    return RowBuilder(
        stage.plan,
        stage.datasets,
        stage.assets,
        stage.sizes,
        RowOptions(prompt=stage.config.data.prompt, use_fast=use_fast),
    )


def stack(rows):
    batch = {}
    for name in rows[0]:
        batch[name] = np.stack([row[name] for row in rows])
    return batch


def without_targets(rows):
    """Return a batch of these rows without the tokens that the model predicts."""
    batch = stack(rows)
    for name in ("tokens", "segment", "target"):
        batch[name] = batch[name] * ~batch["target"]
    return batch


def observe(stage, episode, step):
    """Return the raw observation of a robot at a frame of the dataset."""
    images = {name: f"observation/{name}" for name in CAMERAS}
    names = [*images.values(), "observation/state", "language_instruction"]
    frame = stage.datasets["robot"].dataset.frame(episode * LENGTH + step, names)
    return {
        "images": {name: frame[key] for name, key in images.items()},
        "state": frame["observation/state"],
        "instruction": frame["language_instruction"],
    }


def two_observations(stage):
    return [observe(stage, 0, 0), observe(stage, 3, 5) | {"instruction": "Press it."}]


def camera_frames(observations):
    frames = []
    for observation in observations:
        frames.append([observation["images"][name] for name in CAMERAS])
    return frames


def model_actions(stage, params, batch, seeds):
    """Return the actions that the model makes of a batch, by `sample_actions` alone."""
    batch["action_mask"][:] = [True, True, False]  # a robot does not know the end of an episode
    noise = np.stack(
        [np.random.default_rng(seed).standard_normal((4, 3), np.float32) for seed in seeds]
    )
    sample = jax.jit(lambda *args: sample_actions(stage.model, *args, 3))
    chunks = np.asarray(sample(params, batch, noise))
    return unnormalize(chunks[..., :2], stage.assets.action_stats, "quantile")


def model_text(stage, params, batch, **options):
    """Return the token ids that the model writes, by `decode_text` alone."""
    eos = stage.assets.tokenizer.layout.eos
    decode = jax.jit(lambda *args: decode_text(stage.model, *args))
    return np.asarray(decode(params, batch, TextOptions(eos=eos, **options)))


def test_policy_merges_adapters(tmp_path):
    dataset = write_robot_set(tmp_path / "robot")
    stage = Stage.open(nano_config(dataset, tmp_path / "run", model__lora=((".*", 2),)))
    params = random_params(stage.model)
    policy = save(stage, params)
    merged = merge(params, stage.model.config.adapters)
    jax.tree.map(np.testing.assert_array_equal, policy.params, merged)
    assert policy.config == dataclasses.replace(stage.model.config, lora=())


def test_actions_are_those_of_the_training_row(flow_policy):
    policy, stage = flow_policy
    builder = row_builder(stage, use_fast=False)
    rows = [builder(0, n) for n in range(3)]
    expected = model_actions(stage, policy.params, stack(rows), range(3))
    actions = policy.act([observe(stage, *where(row)) for row in rows], [0, 1, 2])
    assert actions.shape == (3, 4, 2)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    # The actions have the units of the dataset, and they differ between rows.
    assert np.abs(actions - stage.assets.action_stats.mean).max() < 2
    assert np.abs(actions - expected.mean(0)).max() > 1e-3


def test_actions_depend_on_their_own_observation_and_seed(flow_policy):
    policy, stage = flow_policy
    observations = [observe(stage, 0, 0), observe(stage, 3, 5), observe(stage, 1, 2)]
    observations[1]["instruction"] = "an instruction that is a lot longer than the other two are"
    seeds = [5, (6, 1), 7]
    together = policy.act(observations, seeds)
    for i, observation in enumerate(observations):
        np.testing.assert_allclose(
            policy.act([observation], seeds[i : i + 1])[0], together[i], atol=1e-5
        )
    assert (policy.act(observations[:1], [6]) != together[:1]).any()
    images = observations[0]["images"]
    grey_images = {name: np.full_like(image, 128) for name, image in images.items()}
    for change in ({"images": grey_images}, {"instruction": "press"}):
        changed = policy.act([observations[0] | change], [5])[0]
        assert np.abs(changed - together[0]).max() > 1e-4


@token_state
def test_answers_are_those_of_the_training_row(flow_policy):
    policy, stage = flow_policy
    tokenizer = stage.assets.tokenizer
    builder = row_builder(stage)
    rows = [builder(1, n) for n in range(4)]
    questions = [segments(row, tokenizer)[0][0].removesuffix("\n") for row in rows]
    tokens = model_text(stage, policy.params, without_targets(rows), max_new=5)
    frames = camera_frames([observe(stage, *where(row)) for row in rows])
    answers = policy.answer(frames, questions, max_new=5)
    assert answers == [tokenizer.decode(row).strip() for row in tokens]
    assert len(set(answers)) > 1
    assert policy.answer(frames[:1], questions[:1], max_new=5) == answers[:1]


@token_state
def test_cells_are_read_and_written_as_pairs(flow_policy, monkeypatch):
    policy, stage = flow_policy
    cell = stage.assets.tokenizer.layout.loc.offset + 33  # row 1, column 1
    monkeypatch.setattr(policy._model, "_decode", lambda *args: [np.array([cell])])
    frames = camera_frames([observe(stage, 0, 0)])
    assert policy.answer(frames, ["is it at <loc0000><loc0000>?"]) == ["<loc0048><loc0048>"]
    with pytest.raises(UserError, match="<loc0000> in 'is it at <loc0000>.' has 1 coordinates"):
        policy.answer(frames, ["is it at <loc0000>?"])


@token_state
def test_kept_image_cache_is_used_for_the_same_images(flow_policy, monkeypatch):
    plain, stage = flow_policy
    policy = Policy.load(stage.config.workdir, num_steps=3, keep_image_cache=True)
    sample = policy._model._sample_actions
    reused = []

    def sample_and_note(*args, image_cache):
        reused.append(image_cache is not None)
        return sample(*args, image_cache=image_cache)

    monkeypatch.setattr(policy._model, "_sample_actions", sample_and_note)
    first = observe(stage, 0, 0)
    other = observe(stage, 3, 5)
    other_words = first | {"instruction": "press"}
    other_state = first | {"state": other["state"]}
    for observation in (first, other_words, other_state, other, first):
        expected = plain.act([observation], [5])
        np.testing.assert_allclose(policy.act([observation], [5]), expected, atol=1e-5)
    assert reused == [False, True, True, False, False]


@token_state
def test_policy_asks_for_a_subtask_and_acts_on_the_answer(flow_policy, asking_policy):
    """The result is that of `answer` and then `act` with the answer as the instruction."""
    policy, stage = flow_policy
    observations = two_observations(stage)
    output = asking_policy.infer(observations, [5, 6])
    instructions = (observations[0]["instruction"], "press it")
    questions = [QUESTION.format(instruction=text) for text in instructions]
    assert output.subtasks == policy.answer(camera_frames(observations), questions)
    assert all(output.subtasks)
    assert output.valid.all()
    with_subtasks = []
    for observation, subtask in zip(observations, output.subtasks, strict=True):
        with_subtasks.append(observation | {"instruction": subtask})
    np.testing.assert_allclose(output.actions, policy.act(with_subtasks, [5, 6]), atol=1e-5)
    assert np.abs(output.actions - policy.act(observations, [5, 6])).max() > 1e-4
    assert policy.infer(observations, [5, 6]).subtasks == []


@token_state
def test_empty_subtask_leaves_the_instruction(flow_policy, asking_policy, monkeypatch):
    policy, stage = flow_policy
    monkeypatch.setattr(
        asking_policy._model, "text", lambda params, batch, image_cache: [""] * len(batch["tokens"])
    )
    observations = two_observations(stage)
    actions = asking_policy.act(observations, [5, 6])
    np.testing.assert_allclose(actions, policy.act(observations, [5, 6]), atol=1e-5)


def test_prompt_with_subtasks_asks_as_in_training(tmp_path):
    """The subtask is the model's answer to the row's question; the action prompt contains it."""
    dataset = write_robot_set(tmp_path / "robot", length=LENGTH, phases=True)
    stage = Stage.open(
        nano_config(dataset, tmp_path / "run", data__prompt="subtask", data__text_len=TEXT_LEN)
    )
    policy = save(stage, random_params(stage.model, scale=0.5))
    builder = row_builder(stage)
    tokenizer = stage.assets.tokenizer
    rows = [builder(0, n) for n in range(12)]
    # Rows with a second segment are those of frames whose subtask is known.
    rows = [row for row in rows if row["segment"].max() == 2][:2]
    batch = stack(rows)
    observations = [observe(stage, *where(row)) for row in rows]
    output = policy.infer(observations, [0, 1])

    questions = [row["tokens"][(row["segment"] == 2) & ~row["target"]] for row in rows]
    tokens = model_text(stage, policy.params, batch | text_fields(questions), max_new=48)
    assert output.subtasks == [tokenizer.decode(row).strip() for row in tokens]

    action_prompts = []
    for row, observation, subtask in zip(rows, observations, output.subtasks, strict=True):
        row_prompt = segments(row, tokenizer)[0][0]
        state = row_prompt.split("State: ")[1].split(";")[0]
        text = f"Task: {observation['instruction']}, State: {state};\n"
        text += f"Subtask: {subtask};\nAction: "
        action_prompts.append(tokenizer.encode(text, bos=True))
    expected = model_actions(stage, policy.params, batch | text_fields(action_prompts), [0, 1])
    np.testing.assert_allclose(output.actions, expected, atol=1e-5)


def text_fields(prompts):
    """Return the text fields of a batch with one prompt (token ids) a row."""
    tokens = np.zeros((len(prompts), TEXT_LEN), np.int32)
    segment = np.zeros_like(tokens)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
        segment[i, : len(prompt)] = 1
    return {"tokens": tokens, "segment": segment, "target": np.zeros(tokens.shape, bool)}


@token_state
def test_default_head_is_the_trained_one(flow_policy, fast_policy):
    assert flow_policy[0].head == "flow"
    assert fast_policy[0].head == "fast"
    assert Policy.load(flow_policy[1].config.workdir, head="fast").head == "fast"
    with pytest.raises(UserError, match="head 'flow' needs an action expert"):
        Policy.load(fast_policy[1].config.workdir, head="flow")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "euler"}, "'euler' is not one of flow, fast"),
        ({"subtask_question": "what now"}, "'what now' has no field {instruction}"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PolicyOptions(**options)


def test_fast_tokens_are_those_of_the_training_row(fast_policy, monkeypatch):
    policy, stage = fast_policy
    builder = row_builder(stage)
    tokenizer = stage.assets.tokenizer
    rows = [builder(0, n) for n in range(3)]
    allowed = np.zeros(tokenizer.layout.vocab_size, bool)
    allowed[tokenizer.layout.action.offset :][: stage.assets.fast.vocab_size] = True
    allowed[tokenizer.encode("Action: ") + tokenizer.encode("|", eos=True)] = True
    max_new = stage.config.data.max_targets
    batch = without_targets(rows)
    expected = model_text(stage, policy.params, batch, max_new=max_new, allowed=allowed)
    decode = policy._model._decode_text
    decoded = []

    def decode_and_note(*args, **options):
        decoded.append(decode(*args, **options))
        return decoded[-1]

    monkeypatch.setattr(policy._model, "_decode_text", decode_and_note)
    policy.act([observe(stage, *where(row)) for row in rows], [0, 1, 2])
    np.testing.assert_array_equal(decoded[0], expected)
    assert (expected > 0).any()
    assert allowed[expected[expected > 0]].all()


def test_fast_policy_refuses_a_prefix(fast_policy):
    policy, stage = fast_policy
    observation = observe(stage, 0, 0) | {"prefix": np.zeros((1, 2)), "delay": 0}
    with pytest.raises(UserError, match="needs head 'flow'"):
        policy.act([observation], [0])


def test_incomplete_fast_chunks_are_marked_and_logged(fast_policy, monkeypatch, caplog):
    policy, stage = fast_policy
    assets = stage.assets
    tokenizer = assets.tokenizer
    eos = tokenizer.layout.eos
    chunk = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    ids = assets.fast.encode(chunk)

    def action_text(fast_tokens):
        opening = tokenizer.encode("Action: ")
        return [*opening, *tokenizer.action_ids(fast_tokens), *tokenizer.encode("|"), eos]

    tokens = np.zeros((3, 40), np.int32)
    for row, text in zip(tokens, (action_text(ids), action_text(ids[:-1]), [eos]), strict=True):
        row[: len(text)] = text
    monkeypatch.setattr(policy._model, "_decode_text", lambda *args, **options: tokens)
    observations = [observe(stage, 0, step) for step in range(3)]
    with caplog.at_level(logging.WARNING):
        output = policy.infer(observations, [0, 0, 0])
        assert not caplog.records
        np.testing.assert_array_equal(policy.act(observations, [0, 0, 0]), output.actions)
    assert "2 of 3 sequences of FAST tokens do not decode to a complete chunk" in caplog.text
    assert output.valid.tolist() == [True, False, False]
    expected = unnormalize(assets.fast.decode(ids)[0], assets.action_stats, "quantile")
    np.testing.assert_allclose(output.actions[0], expected, atol=1e-6)
    middle = (assets.action_stats.q01 + assets.action_stats.q99) / 2
    np.testing.assert_allclose(output.actions[1:], np.broadcast_to(middle, (2, 4, 2)), atol=1e-6)


@token_state
def test_wrong_observations_are_refused(flow_policy):
    policy, stage = flow_policy
    good = observe(stage, 0, 0)
    images = good["images"]

    def check_refused(change, message):
        with pytest.raises(UserError, match=message):
            policy.act([good | change], [0])

    only_front = {"front": images["front"]}
    check_refused({"images": only_front}, r"has no camera wrist; it has \['front'\]")
    for state in (np.zeros(2), np.array([0, np.nan, 0]), np.zeros((1, 3))):
        check_refused({"state": state}, "observation state .*: expected 3 finite numbers")
    for image, description in (
        (images["wrist"] / 255, r"float64\[20, 20, 3\]"),
        (images["wrist"][..., 0], r"uint8\[20, 20\]"),
        (np.zeros((20, 20, 4), np.uint8), r"uint8\[20, 20, 4\]"),
    ):
        message = rf"observation image 'wrist' is {description}, expected uint8\[H, W, 3\]"
        check_refused({"images": images | {"wrist": image}}, message)
    check_refused({"instruction": 3}, "observation instruction is int, expected text")
    for field in good:
        incomplete = {name: value for name, value in good.items() if name != field}
        with pytest.raises(UserError, match=f"observation has no '{field}'; it has"):
            policy.act([incomplete], [0])
    with pytest.raises(UserError, match="1 observations and 2 seeds"):
        policy.act([good], [0, 1])
    assert policy.act([good | {"state": good["state"].tolist()}], [0]).shape == (1, 4, 2)


@token_state
def test_wrong_questions_are_refused(flow_policy):
    policy, stage = flow_policy
    image = observe(stage, 0, 0)["images"]["front"]
    with pytest.raises(UserError, match="3 images, but the checkpoint was trained on 2 cameras"):
        policy.answer([[image] * 3], ["what is this?"])
    with pytest.raises(UserError, match=r"images\[0\]\[1\] is float32\[20, 20, 3\], expected"):
        policy.answer([[image, image.astype(np.float32)]], ["what is this?"])
    with pytest.raises(UserError, match="1 frames and 2 questions"):
        policy.answer([[image]], ["a?", "b?"])
    with pytest.raises(UserError, match="0 frames and 0 questions"):
        policy.answer([], [])


@token_state
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("action_dim", 4, "action_spec.action_dim is 4, but the model has room for at most 3"),
        ("state_dim", 5, "action_spec.state_dim is 5, but the model has room for at most 4"),
        ("horizon", 8, "action_spec.horizon is 8, but the model's chunks have 4 steps"),
    ],
)
def test_assets_that_do_not_fit_the_model_are_refused(flow_policy, field, value, message):
    policy, _ = flow_policy
    spec = policy.assets.action_spec | {field: value}
    assets = dataclasses.replace(policy.assets, action_spec=spec)
    with pytest.raises(UserError, match=message):
        Policy(policy.config, policy.params, assets, 2)


@token_state
def test_tokenizer_larger_than_the_model_is_refused(flow_policy):
    policy, _ = flow_policy
    small = dataclasses.replace(policy.config, vocab_size=64)
    with pytest.raises(
        UserError, match="vocabulary is 2688, but the model has room for at most 64"
    ):
        Policy(small, policy.params, policy.assets, 2)


@token_state
def test_checkpoint_without_actions_answers_but_does_not_act(flow_policy, tmp_path):
    _, stage = flow_policy
    config = nano_config(stage.config.datasets.robot.path, tmp_path)
    with config.unlocked():
        del config.streams["action"]
    text_stage = Stage.open(config)
    policy = save(text_stage, random_params(text_stage.model))
    image = np.zeros((28, 28, 3), np.uint8)
    assert len(policy.answer([[image]], ["what is this?"], max_new=2)) == 1
    with pytest.raises(UserError, match="this checkpoint cannot act"):
        policy.act([observe(stage, 0, 0)], [0])


@token_state
def test_stage_that_trained_no_actions_needs_an_explicit_head(flow_policy, tmp_path):
    _, stage = flow_policy
    config = nano_config(
        stage.config.datasets.robot.path,
        tmp_path,
        loss__flow=constant(0.0),
        loss__fast=constant(0.0),
    )
    later = Stage.open(config)
    policy = save(later, random_params(later.model))
    with pytest.raises(UserError, match="trained no actions .* Policy.load"):
        policy.act([observe(stage, 0, 0)], [0])
    policy = Policy.load(str(tmp_path), head="flow")
    assert policy.act([observe(stage, 0, 0)], [0]).shape == (1, 4, 2)


def test_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        Policy.load(str(tmp_path))
