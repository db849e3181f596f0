"""Recorded features and attention are those of the model's own pass."""

import dataclasses

import jax
import numpy as np
import pytest

from etcvla.data import prompts
from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from etcvla.errors import UserError
from etcvla.eval.attention_probes import (
    READERS,
    Probe,
    draw_probes,
    patch_coverage,
    record_activations,
)
from etcvla.models.decode import sample_actions
from etcvla.models.vla import VLA
from etcvla.policy import Policy
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import random_params
from tests.test_policy import save
from tests.train.nano import nano_config

LEFT = (0, 0, 1, 0.5)
RIGHT = (0, 0.5, 1, 1)
WHOLE = (0, 0, 1, 1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    stage = Stage.open(nano_config(write_robot_set(folder / "robot"), folder / "run"))
    return save(stage, random_params(stage.model, scale=0.5))


def make_probes(boxes, *, in_instruction=True):
    rng = np.random.default_rng(0)
    probes = []
    for box in boxes:
        probe = Probe(
            "locate the mug.",
            box=np.array(box, np.float32),
            images=tuple(rng.integers(0, 256, (2, 20, 20, 3), np.uint8)),
            instruction="push the mug",
            state=rng.normal(size=3).astype(np.float32),
            in_instruction=in_instruction,
        )
        probes.append(probe)
    return probes


def test_patch_coverage_is_the_share_of_the_patch_in_the_box():
    np.testing.assert_allclose(patch_coverage(np.array(WHOLE), 16), np.ones(16))
    coverage = patch_coverage(np.array([0.25, 0.5, 0.375, 1]), 16).reshape(4, 4)
    np.testing.assert_allclose(coverage[1], [0, 0, 0.5, 0.5])
    mean = patch_coverage(np.array([0.1, 0.2, 0.7, 0.6]), 256).mean()
    assert mean == pytest.approx(0.6 * 0.4, rel=1e-5)


def test_attention_on_boxes_adds_up_to_the_attention_on_the_camera(policy):
    (probe,) = make_probes([LEFT])
    probes = [
        dataclasses.replace(probe, box=np.array(box, np.float32)) for box in (LEFT, RIGHT, WHOLE)
    ]
    activations = record_activations(policy, probes)
    assert set(activations.attention) == set(READERS)
    # "action" is left out, because each row has another noise.
    for reader in ("question", "answer"):
        own, previous, camera = np.moveaxis(activations.attention[reader], -1, 0)
        np.testing.assert_allclose(own[:, 0] + own[:, 1], camera[:, 0], rtol=1e-4)
        np.testing.assert_allclose(own[:, 2], camera[:, 2], rtol=1e-4)
        assert np.abs(own[0, 0] - own[0, 1]) > 1e-2
        assert (camera < 1).all()
        np.testing.assert_allclose(previous[:, 0], own[:, 2], rtol=1e-4)


def test_attention_is_that_of_a_written_out_softmax(policy):
    (probe,) = make_probes([LEFT])
    attention = record_activations(policy, [probe]).attention["answer"]
    np.testing.assert_allclose(attention[0, 0, 0], softmax_share(policy, probe), rtol=1e-3)


def softmax_share(policy, probe):
    """Return the attention of the question's last token on the left half of the first image.

    It is that of the first layer, a mean over heads.
    """
    question = prompts.question(policy.assets.tokenizer, probe.question)
    batch = policy.model_batch([probe.images], [question])
    _, sown = VLA(policy.config).apply(
        {"params": policy.params}, batch, None, None, None, mutable=["intermediates"]
    )
    (inputs,) = sown["intermediates"]["llm"]["layers"]["attn"]["attention_inputs_0"]
    queries, keys, mask = (np.asarray(x)[0, 0] for x in inputs)
    patches = policy.config.siglip.tokens
    last = 2 * patches + len(question.prompt) - 1
    query = queries[last]
    keys = np.repeat(keys, len(query) // keys.shape[1], axis=1)
    weights = np.exp(np.einsum("nh,snh->ns", query, keys)) * mask[last]
    weights /= weights.sum(axis=1, keepdims=True)
    side = int(patches**0.5)
    image_weights = weights[:, :patches].reshape(len(query), side, side)
    return image_weights[:, :, : side // 2].sum(axis=(1, 2)).mean()


def test_acting_sows_nothing(policy):
    def act(params, batch, noise):
        return sample_actions(VLA(policy.config), params, batch, noise, 2)

    (probe,) = make_probes([WHOLE])
    segments = policy.action_prompts(["push"], [probe.state])
    batch = policy.model_batch([probe.images], segments, [probe.state])
    noise = np.zeros((1, policy.config.horizon, policy.config.action_dim), np.float32)
    assert jax.eval_shape(act, policy.params, batch, noise).shape == noise.shape
    _, sown = VLA(policy.config).apply(
        {"params": policy.params}, batch, None, None, None, mutable=["other"]
    )
    assert not sown


def test_dataset_without_boxes_has_no_probes(tmp_path):
    dataset = StageDataset(RLDSDataset(write_robot_set(tmp_path)), ("front", "wrist"))
    with pytest.raises(UserError, match="no question of the type locate_box"):
        draw_probes(dataset, 3)


def test_policy_without_expert_has_no_action_attention(policy):
    without_head = Policy(
        policy.config,
        policy.params,
        policy.assets,
        policy.num_cameras,
        dataclasses.replace(policy.options, head="fast"),
    )
    activations = record_activations(without_head, make_probes([LEFT]))
    assert set(activations.attention) == {"question", "answer"}
