"""A checkpoint that acts and answers: the same numbers as training rows, in the dataset's units and words."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from configs.common import constant
from etcvla.data.norm_stats import unnormalize
from etcvla.data.rows import RowBuilder, RowOptions
from etcvla.models.decode import decode_text, sample_actions
from etcvla.models.lora import merge
from etcvla.policy import Policy
from etcvla.train.checkpoint import Checkpoints
from etcvla.train.loop import checkpoint_meta
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from tests.data.handmade_rlds import write_robot_set
from tests.data.made_rows import segments, where
from tests.models.small import random_params
from tests.train.nano import nano_config

CAMERAS, LENGTH = ("front", "wrist"), 7


def save(stage, params, **options):
    """A checkpoint with these EMA parameters, as training would leave it, loaded as a policy."""
    state = TrainState(step=np.int32(1), params={}, ema=params, opt={"count": np.zeros(1)})
    checkpoints = Checkpoints(stage.config.workdir, keep=1)
    checkpoints.save(state, checkpoint_meta(stage))
    checkpoints.wait()
    return Policy.load(stage.config.workdir, num_steps=3, **options)


@pytest.fixture(scope="module", params=["token", "text"])
def acting(request, tmp_path_factory):
    """(policy, stage) of a checkpoint whose images are larger than the dataset's."""
    folder = tmp_path_factory.mktemp("policy")
    dataset = write_robot_set(folder / "robot", length=LENGTH, size=20)
    prompt = {"token": "pi0", "text": "pi05"}[request.param]
    stage = Stage.open(
        nano_config(dataset, folder / "run", model__state=request.param, data__prompt=prompt)
    )
    return save(stage, random_params(stage.model, scale=0.5)), stage


def row_builder(stage, *, use_fast=True):
    return RowBuilder(
        stage.plan,
        stage.datasets,
        stage.assets,
        stage.sizes,
        RowOptions(prompt=stage.config.data.prompt, use_fast=use_fast),
    )


def observe(stage, episode, step):
    """What a robot would see and be told at this frame, raw."""
    names = {name: f"observation/{name}" for name in CAMERAS}
    facts = stage.datasets["robot"].dataset.frame(
        episode * LENGTH + step, [*names.values(), "observation/state", "language_instruction"]
    )
    return {
        "images": {name: facts[key] for name, key in names.items()},
        "state": facts["observation/state"],
        "instruction": facts["language_instruction"],
    }


def test_a_policy_has_its_adapters_merged(tmp_path):
    config = nano_config(
        write_robot_set(tmp_path / "robot"), tmp_path / "run", model__lora=((".*", 2),)
    )
    stage = Stage.open(config)
    params = random_params(stage.model)
    policy = save(stage, params)
    jax.tree.map(
        np.testing.assert_array_equal, policy.params, merge(params, stage.model.config.adapters)
    )
    assert policy.config == dataclasses.replace(stage.model.config, lora=())


def test_acting_sees_what_training_showed(acting):
    """From raw observations, the chunk that the model makes of the training row of that frame."""
    policy, stage = acting
    builder = row_builder(stage, use_fast=False)
    rows = [builder(0, n) for n in range(3)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["action_mask"][:] = [
        True,
        True,
        False,
    ]  # also past the episode's end, which a robot does not know
    noise = np.stack(
        [np.random.default_rng(seed).standard_normal((4, 3), np.float32) for seed in range(3)]
    )
    chunks = jax.jit(lambda *args: sample_actions(stage.model, *args, 3))(
        policy.params, batch, noise
    )
    expected = unnormalize(np.asarray(chunks)[..., :2], stage.assets.action_stats, "quantile")
    acted = policy.act([observe(stage, *where(row)) for row in rows], [0, 1, 2])
    assert acted.shape == (3, 4, 2) and acted.dtype == np.float32
    np.testing.assert_allclose(acted, expected, atol=1e-5)
    mean = stage.assets.action_stats.mean
    assert (
        np.abs(acted - mean).max() < 2 and np.abs(acted - expected.mean(0)).max() > 1e-3
    )  # the dataset's own units


def test_actions_depend_on_their_own_observation_and_seed(acting):
    policy, stage = acting
    observations = [observe(stage, 0, 0), observe(stage, 3, 5), observe(stage, 1, 2)]
    observations[1]["instruction"] = (
        "do what is asked for here at some length, please, and do it well"
    )
    together = policy.act(observations, [5, (6, 1), 7])
    for i, (observation, seed) in enumerate(zip(observations, (5, (6, 1), 7), strict=True)):
        np.testing.assert_allclose(policy.act([observation], [seed])[0], together[i], atol=1e-5)
    assert (policy.act(observations[:1], [6]) != together[:1]).any()
    blank = observations[0] | {
        "images": {
            name: np.full_like(image, 128) for name, image in observations[0]["images"].items()
        }
    }
    told = observations[0] | {"instruction": "press"}
    for other in (blank, told):
        assert np.abs(policy.act([other], [5])[0] - together[0]).max() > 1e-4


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_answers_are_what_the_model_writes_after_a_training_prompt(acting):
    policy, stage = acting
    tokenizer = stage.assets.tokenizer
    builder = row_builder(stage)
    rows = [builder(1, n) for n in range(4)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    questions = [segments(row, tokenizer)[0][0].removesuffix("\n") for row in rows]
    for name in ("tokens", "segment", "target"):
        batch[name] = batch[name] * ~batch["target"]
    eos = tokenizer.layout.eos
    written = np.asarray(
        jax.jit(lambda *args: decode_text(stage.model, *args, max_new=5, eos=eos))(
            policy.params, batch
        )
    )
    views = [[observe(stage, *where(row))["images"][name] for name in CAMERAS] for row in rows]
    said = policy.answer(views, questions, max_new=5)
    assert said == [tokenizer.decode(row).strip() for row in written] and len(set(said)) > 1
    assert policy.answer(views[:1], questions[:1], max_new=5) == said[:1]


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_images_that_come_again_are_not_looked_at_again(acting, monkeypatch):
    plain, stage = acting
    policy = Policy.load(stage.config.workdir, num_steps=3, keep_image_cache=True)
    kept, sample = [], policy._sample
    monkeypatch.setattr(
        policy,
        "_sample",
        lambda *args, image_cache, guide: (
            kept.append(image_cache is not None)
            or sample(*args, image_cache=image_cache, guide=guide)
        ),
    )
    first, other = observe(stage, 0, 0), observe(stage, 3, 5)
    for observation in (
        first,
        first | {"instruction": "press"},
        first | {"state": other["state"]},
        other,
        first,
    ):
        np.testing.assert_allclose(
            policy.act([observation], [5]), plain.act([observation], [5]), atol=1e-5
        )
    assert kept == [False, True, True, False, False]


QUESTION = "the robot should {instruction}. what should it do now?"


@pytest.fixture(scope="module")
def thinking(acting):
    """The policy, asking first."""
    return Policy.load(acting[1].config.workdir, num_steps=3, subtask=QUESTION)


def two_observations(stage):
    return [observe(stage, 0, 0), observe(stage, 3, 5) | {"instruction": "Press it."}]


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_a_question_is_answered_first_and_acted_on(acting, thinking):
    """As asking, and then telling what was answered; the state, the noise and the images are the observation's."""
    policy, stage = acting
    observations = two_observations(stage)
    decision = thinking.infer(observations, [5, 6])
    views = [[o["images"][name] for name in CAMERAS] for o in observations]
    asked = [
        QUESTION.format(instruction=text) for text in (observations[0]["instruction"], "press it")
    ]
    assert (
        decision.subtasks == policy.answer(views, asked)
        and decision.valid.all()
        and all(decision.subtasks)
    )
    told = [
        o | {"instruction": text} for o, text in zip(observations, decision.subtasks, strict=True)
    ]
    np.testing.assert_allclose(decision.actions, policy.act(told, [5, 6]), atol=1e-5)
    assert np.abs(decision.actions - policy.act(observations, [5, 6])).max() > 1e-4
    assert policy.infer(observations, [5, 6]).subtasks == []
    with pytest.raises(
        ValueError, match="subtask 'what now' does not say where the {instruction} stands"
    ):
        Policy.load(stage.config.workdir, subtask="what now")


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_an_empty_answer_leaves_the_instruction(acting, thinking, monkeypatch):
    policy, stage = acting
    monkeypatch.setattr(thinking, "_answer", lambda batch, questions, look: ["" for _ in questions])
    observations = two_observations(stage)
    np.testing.assert_allclose(
        thinking.act(observations, [5, 6]), policy.act(observations, [5, 6]), atol=1e-5
    )


def test_a_prompt_with_subtasks_asks_for_them_as_training_did(tmp_path):
    """The subtask is what the model writes after the training row's question; the action's prompt then says it."""
    dataset = write_robot_set(tmp_path / "robot", length=LENGTH, phases=True)
    stage = Stage.open(
        nano_config(dataset, tmp_path / "run", data__prompt="subtask", data__text_len=192)
    )
    policy = save(stage, random_params(stage.model, scale=0.5))
    builder, tokenizer = row_builder(stage), stage.assets.tokenizer
    made = [builder(0, n) for n in range(12)]
    rows = [row for row in made if row["segment"].max() == 2][
        :2
    ]  # the frame's subtask is known, so it is asked for
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    observations = [observe(stage, *where(row)) for row in rows]
    decision = policy.infer(observations, [0, 1])
    question = text_of([row["tokens"][(row["segment"] == 2) & ~row["target"]] for row in rows])
    eos = tokenizer.layout.eos
    written = jax.jit(lambda *args: decode_text(stage.model, *args, max_new=48, eos=eos))(
        policy.params, batch | question
    )
    assert decision.subtasks == [tokenizer.decode(row).strip() for row in np.asarray(written)]
    told = [
        f"Task: {o['instruction']}, State: {state};\nSubtask: {subtask};\nAction: "
        for o, subtask, state in zip(
            observations,
            decision.subtasks,
            map(states_of, segments_of(rows, tokenizer)),
            strict=True,
        )
    ]
    batch |= text_of([tokenizer.encode(text, bos=True) for text in told])
    batch["action_mask"][:] = [True, True, False]
    noise = np.stack(
        [np.random.default_rng(seed).standard_normal((4, 3), np.float32) for seed in (0, 1)]
    )
    chunks = jax.jit(lambda *args: sample_actions(stage.model, *args, 3))(
        policy.params, batch, noise
    )
    expected = unnormalize(np.asarray(chunks)[..., :2], stage.assets.action_stats, "quantile")
    np.testing.assert_allclose(decision.actions, expected, atol=1e-5)


def text_of(prompts):
    """The batch's text: these token ids, one prompt a row."""
    tokens = np.zeros((len(prompts), 192), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    present = np.arange(192) < np.array([[len(prompt)] for prompt in prompts])
    return {"tokens": tokens, "segment": present.astype(np.int32), "target": np.zeros_like(present)}


def segments_of(rows, tokenizer):
    """The action prompt's text of each row."""
    return [segments(row, tokenizer)[0][0] for row in rows]


def states_of(prompt):
    """The bins in a prompt's text."""
    return prompt.split("State: ")[1].split(";")[0]


@pytest.fixture(scope="module")
def by_tokens(tmp_path_factory):
    """(policy, stage) of a checkpoint that was trained on FAST tokens alone."""
    folder = tmp_path_factory.mktemp("fast")
    dataset = write_robot_set(folder / "robot", length=LENGTH)
    stage = Stage.open(
        nano_config(
            dataset,
            folder / "run",
            model__state="text",
            model__expert="none",
            loss__flow=constant(0.0),
            data__prompt="pi0_fast",
            data__text_len=96,
        )
    )
    return save(stage, random_params(stage.model, scale=0.5)), stage


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_the_head_is_the_one_that_was_trained(acting, by_tokens):
    assert acting[0].head == "flow" and by_tokens[0].head == "fast"
    assert Policy.load(acting[1].config.workdir, head="fast").head == "fast"
    for head, error in (
        ("flow", "head 'flow' needs an action expert"),
        ("euler", "'euler' is not one of flow, fast"),
    ):
        with pytest.raises(ValueError, match=error):
            Policy.load(by_tokens[1].config.workdir, head=head)


def test_fast_tokens_are_what_the_model_writes_after_a_training_prompt(by_tokens, monkeypatch):
    policy, stage = by_tokens
    builder, tokenizer = row_builder(stage), stage.assets.tokenizer
    rows = [builder(0, n) for n in range(3)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for name in ("tokens", "segment", "target"):
        batch[name] = batch[name] * ~batch["target"]
    allowed = np.zeros(tokenizer.layout.vocab_size, bool)
    allowed[tokenizer.layout.action.offset :][: stage.assets.fast.vocab_size] = True
    allowed[tokenizer.encode("Action: ") + tokenizer.encode("|", eos=True)] = True
    written = np.asarray(
        jax.jit(
            lambda *args: decode_text(
                stage.model,
                *args,
                max_new=stage.config.data.max_targets,
                eos=tokenizer.layout.eos,
                allowed=allowed,
            )
        )(policy.params, batch)
    )
    seen, decode = [], policy._decode
    monkeypatch.setattr(
        policy,
        "_decode",
        lambda *args, **options: seen.append(decode(*args, **options)) or seen[-1],
    )
    policy.act([observe(stage, *where(row)) for row in rows], [0, 1, 2])
    np.testing.assert_array_equal(seen[0], written)
    assert (written > 0).any() and allowed[written[written > 0]].all()


def test_fast_tokens_cannot_go_on_from_a_chunk(by_tokens):
    policy, stage = by_tokens
    with pytest.raises(ValueError, match="needs the head 'flow'"):
        policy.act([observe(stage, 0, 0) | {"prefix": np.zeros((1, 2)), "delay": 0}], [0])


def test_fast_tokens_become_actions_and_what_is_no_chunk_is_marked(by_tokens, monkeypatch, caplog):
    policy, stage = by_tokens
    assets, eos = stage.assets, stage.assets.tokenizer.layout.eos
    chunk = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    ids, tokenizer = assets.fast.encode(chunk), assets.tokenizer
    whole, short = (
        [*tokenizer.encode("Action: "), *tokenizer.action_ids(part), *tokenizer.encode("|"), eos]
        for part in (ids, ids[:-1])
    )
    tokens = np.zeros((3, 40), np.int32)
    for row, written in zip(tokens, (whole, short, [eos]), strict=True):
        row[: len(written)] = written
    monkeypatch.setattr(policy, "_decode", lambda *args, **options: tokens)
    observations = [observe(stage, 0, step) for step in range(3)]
    with caplog.at_level(logging.WARNING):
        decision = policy.infer(observations, [0, 0, 0])
        assert not caplog.records
        np.testing.assert_array_equal(policy.act(observations, [0, 0, 0]), decision.actions)
    assert "2 of 3 sequences of FAST tokens make no whole chunk" in caplog.text
    assert decision.valid.tolist() == [True, False, False]
    expected = unnormalize(assets.fast.decode(ids)[0], assets.action_stats, "quantile")
    np.testing.assert_allclose(decision.actions[0], expected, atol=1e-6)
    middle = (assets.action_stats.q01 + assets.action_stats.q99) / 2
    np.testing.assert_allclose(decision.actions[1:], np.broadcast_to(middle, (2, 4, 2)), atol=1e-6)


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_wrong_observations_are_named(acting):
    policy, stage = acting
    good = observe(stage, 0, 0)
    images = good["images"]
    blind = good | {"images": {"front": images["front"]}}
    with pytest.raises(ValueError, match=r"observation has no camera wrist; it has \['front'\]"):
        policy.act([blind], [0])
    for state in (np.zeros(2), np.array([0, np.nan, 0]), np.zeros((1, 3))):
        with pytest.raises(ValueError, match="observation state .*: expected 3 finite numbers"):
            policy.act([good | {"state": state}], [0])
    for image, found in (
        (images["wrist"] / 255, r"float64\[20, 20, 3\]"),
        (images["wrist"][..., 0], r"uint8\[20, 20\]"),
        (np.zeros((20, 20, 4), np.uint8), r"uint8\[20, 20, 4\]"),
    ):
        with pytest.raises(
            ValueError, match=rf"observation image 'wrist' is {found}, expected uint8\[H, W, 3\]"
        ):
            policy.act([good | {"images": images | {"wrist": image}}], [0])
    for field in good:
        with pytest.raises(ValueError, match=f"observation has no '{field}'; it has"):
            policy.act([{name: value for name, value in good.items() if name != field}], [0])
    with pytest.raises(ValueError, match="observation instruction is int, expected text"):
        policy.act([good | {"instruction": 3}], [0])
    with pytest.raises(ValueError, match="1 observations and 2 seeds"):
        policy.act([good], [0, 1])
    assert policy.act([good | {"state": good["state"].tolist()}], [0]).shape == (1, 4, 2)


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_wrong_questions_are_named(acting):
    policy, stage = acting
    image = observe(stage, 0, 0)["images"]["front"]
    with pytest.raises(
        ValueError, match="3 images of one frame; the checkpoint was trained on 2 cameras"
    ):
        policy.answer([[image] * 3], ["what is this?"])
    with pytest.raises(
        ValueError, match=r"images\[0\]\[1\] is float32\[20, 20, 3\], expected uint8\[H, W, 3\]"
    ):
        policy.answer([[image, image.astype(np.float32)]], ["what is this?"])
    for images, questions in (([[image]], ["a?", "b?"]), ([], [])):
        with pytest.raises(
            ValueError, match=f"{len(images)} frames and {len(questions)} questions"
        ):
            policy.answer(images, questions)


@pytest.mark.parametrize("acting", ["token"], indirect=True)
@pytest.mark.parametrize(
    ("field", "found", "expected"),
    [
        ("action_dim", 4, "action_spec.action_dim is 4, but the model was made for at most 3"),
        ("state_dim", 5, "action_spec.state_dim is 5, but the model was made for at most 4"),
        ("horizon", 8, "action_spec.horizon is 8, but the model's chunks have 4 steps"),
    ],
)
def test_assets_that_do_not_fit_the_model_are_named(acting, field, found, expected):
    policy, _ = acting
    wrong = dataclasses.replace(
        policy.assets, action_spec=policy.assets.action_spec | {field: found}
    )
    with pytest.raises(ValueError, match=expected):
        Policy(policy.config, policy.params, wrong, 2)
    small = dataclasses.replace(policy.config, vocab_size=64)
    with pytest.raises(
        ValueError,
        match="the tokenizer's vocabulary is 2688, but the model was made for at most 64",
    ):
        Policy(small, policy.params, policy.assets, 2)


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_a_checkpoint_that_never_saw_actions_answers_but_does_not_act(acting, tmp_path):
    _, stage = acting
    only_words = nano_config(stage.config.datasets.robot.path, tmp_path)
    with only_words.unlocked():
        del only_words.streams["action"]
    talker = Stage.open(only_words)
    policy = save(talker, random_params(talker.model))
    assert (
        len(policy.answer([[np.zeros((28, 28, 3), np.uint8)]], ["what is this?"], max_new=2)) == 1
    )
    with pytest.raises(ValueError, match="this checkpoint cannot act"):
        policy.act([observe(stage, 0, 0)], [0])


@pytest.mark.parametrize("acting", ["token"], indirect=True)
def test_a_stage_that_taught_no_actions_acts_only_when_told_how(acting, tmp_path):
    _, stage = acting
    later = Stage.open(
        nano_config(
            stage.config.datasets.robot.path,
            tmp_path,
            loss__flow=constant(0.0),
            loss__fast=constant(0.0),
        )
    )
    policy = save(later, random_params(later.model))
    with pytest.raises(ValueError, match="trained no actions .* Policy.load"):
        policy.act([observe(stage, 0, 0)], [0])
    assert Policy.load(str(tmp_path), head="flow").act([observe(stage, 0, 0)], [0]).shape == (
        1,
        4,
        2,
    )


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Policy.load(str(tmp_path))
