"""A checkpoint that acts and answers: the same numbers as training rows, in the dataset's units and words."""

import jax
import numpy as np
import pytest

from etcvla.data.norm_stats import unnormalize
from etcvla.data.rows import RowBuilder
from etcvla.models.vla import decode_text, sample_actions
from etcvla.policy import Policy
from etcvla.train.checkpoint import Checkpoints
from etcvla.train.loop import checkpoint_meta
from etcvla.train.stage import Stage
from etcvla.train.step import TrainState
from tests.data.handmade_rlds import write_robot_set
from tests.data.made_rows import segments, where
from tests.models.small import random_params
from tests.train.nano import nano_config

CAMERAS, LENGTH = ("front", "wrist"), 7


def save(stage, params):
    """A checkpoint with these EMA parameters, as training would leave it."""
    state = TrainState(step=np.int32(1), params={}, ema=params, opt={"count": np.zeros(1)})
    checkpoints = Checkpoints(stage.config.workdir, keep=1)
    checkpoints.save(state, checkpoint_meta(stage))
    checkpoints.wait()
    return Policy.load(stage.config.workdir, num_steps=3)


@pytest.fixture(scope="module", params=["token", "text"])
def acting(request, tmp_path_factory):
    """(policy, stage) of a checkpoint whose images are larger than the dataset's."""
    folder = tmp_path_factory.mktemp("policy")
    dataset = write_robot_set(folder / "robot", length=LENGTH, size=20)
    prompt = {"token": "pi0", "text": "pi05"}[request.param]
    stage = Stage.open(nano_config(dataset, folder / "run", model__state=request.param, data__prompt=prompt))
    return save(stage, random_params(stage.model, scale=0.5)), stage


def row_builder(stage, *, use_fast=True):
    return RowBuilder(stage.plan, stage.sources, stage.assets, stage.sizes, rider_mix={}, use_fast=use_fast,
                      prompt=stage.config.data.prompt)


def observe(stage, episode, step):
    """What a robot would see and be told at this frame, raw."""
    names = {name: f"observation/{name}" for name in CAMERAS}
    facts = stage.sources["robot"].dataset.frame(
        episode * LENGTH + step, [*names.values(), "observation/state", "language_instruction"])
    return {"images": {name: facts[key] for name, key in names.items()}, "state": facts["observation/state"],
            "instruction": facts["language_instruction"]}


def test_acting_sees_what_training_showed(acting):
    """From raw observations, the chunk that the model makes of the training row of that frame."""
    policy, stage = acting
    builder = row_builder(stage, use_fast=False)
    rows = [builder(0, n) for n in range(3)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["action_mask"][:] = [True, True, False]  # also past the episode's end, which a robot does not know
    noise = np.stack([np.random.default_rng(seed).standard_normal((4, 3), np.float32) for seed in range(3)])
    chunks = jax.jit(lambda *args: sample_actions(stage.model, *args, 3))(policy.params, batch, noise)
    expected = unnormalize(np.asarray(chunks)[..., :2], stage.assets.action_stats, "quantile")
    acted = policy.act([observe(stage, *where(row)) for row in rows], [0, 1, 2])
    assert acted.shape == (3, 4, 2) and acted.dtype == np.float32
    np.testing.assert_allclose(acted, expected, atol=1e-5)
    mean = stage.assets.action_stats.mean
    assert np.abs(acted - mean).max() < 2 and np.abs(acted - expected.mean(0)).max() > 1e-3  # the dataset's own units


def test_actions_depend_on_their_own_observation_and_seed(acting):
    policy, stage = acting
    observations = [observe(stage, 0, 0), observe(stage, 3, 5), observe(stage, 1, 2)]
    observations[1]["instruction"] = "do what is asked for here at some length, please, and do it well"
    together = policy.act(observations, [5, (6, 1), 7])
    for i, (observation, seed) in enumerate(zip(observations, (5, (6, 1), 7), strict=True)):
        np.testing.assert_allclose(policy.act([observation], [seed])[0], together[i], atol=1e-5)
    assert (policy.act(observations[:1], [6]) != together[:1]).any()
    blank = observations[0] | {"images": {name: np.full_like(image, 128)
                                          for name, image in observations[0]["images"].items()}}
    told = observations[0] | {"instruction": "press"}
    for other in (blank, told):
        assert np.abs(policy.act([other], [5])[0] - together[0]).max() > 1e-4


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
    written = np.asarray(jax.jit(lambda *args: decode_text(stage.model, *args, max_new=5, eos=eos))(
        policy.params, batch))
    views = [[observe(stage, *where(row))["images"][name] for name in CAMERAS] for row in rows]
    said = policy.answer(views, questions, max_new=5)
    assert said == [tokenizer.decode(row).strip() for row in written] and len(set(said)) > 1
    assert policy.answer(views[:1], questions[:1], max_new=5) == said[:1]


def test_wrong_observations_are_named(acting):
    policy, stage = acting
    good = observe(stage, 0, 0)
    blind = good | {"images": {"front": good["images"]["front"]}}
    with pytest.raises(ValueError, match=r"observation has no camera wrist; it has \['front'\]"):
        policy.act([blind], [0])
    for state in (np.zeros(2), np.array([0, np.nan, 0]), np.zeros((1, 3))):
        with pytest.raises(ValueError, match="observation state .*: expected 3 finite numbers"):
            policy.act([good | {"state": state}], [0])
    assert policy.act([good | {"state": good["state"].tolist()}], [0]).shape == (1, 4, 2)


def test_a_checkpoint_that_never_saw_actions_answers_but_does_not_act(acting, tmp_path):
    _, stage = acting
    only_words = nano_config(stage.config.datasets.robot.path, tmp_path)
    with only_words.unlocked():
        del only_words.streams["action"]
    talker = Stage.open(only_words)
    policy = save(talker, random_params(talker.model))
    assert len(policy.answer([[np.zeros((28, 28, 3), np.uint8)]], ["what is this?"], max_new=2)) == 1
    with pytest.raises(ValueError, match="this checkpoint cannot act"):
        policy.act([observe(stage, 0, 0)], [0])


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Policy.load(str(tmp_path))
