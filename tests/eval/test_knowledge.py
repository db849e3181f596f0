"""What checkpoints know: how it is measured, on features and attention of which the truth is known."""

import csv
import dataclasses

import jax
import numpy as np
import pytest

from etcvla.data.rlds import RLDSDataset
from etcvla.data.stage_dataset import StageDataset
from etcvla.eval import knowledge
from etcvla.eval.knowledge import Probe, cka, coverage, drift, gains, trace
from etcvla.models.decode import sample_actions
from etcvla.models.vla import VLA
from etcvla.train.stage import Stage
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import random_params
from tests.test_policy import save
from tests.train.nano import nano_config

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knowledge")
    stage = Stage.open(nano_config(write_robot_set(folder / "robot"), folder / "run"))
    return save(stage, random_params(stage.model, scale=0.5))


def probes_of(boxes, *, told=True):
    return [
        Probe(
            "locate the mug.",
            np.array(box, np.float32),
            tuple(RNG.integers(0, 256, (2, 20, 20, 3), np.uint8)),
            "push the mug",
            RNG.normal(size=3).astype(np.float32),
            told,
        )
        for box in boxes
    ]


def test_a_patch_is_covered_by_as_much_of_it_as_lies_in_the_box():
    np.testing.assert_allclose(coverage(np.array([0, 0, 1, 1]), 16), np.ones(16))
    np.testing.assert_allclose(
        coverage(np.array([0.25, 0.5, 0.375, 1]), 16).reshape(4, 4)[1], [0, 0, 0.5, 0.5]
    )
    assert coverage(np.array([0.1, 0.2, 0.7, 0.6]), 256).mean() == pytest.approx(
        0.6 * 0.4, rel=1e-5
    )


def test_cka_knows_rotations_and_unrelated_features():
    x = RNG.normal(size=(60, 8)) + 3
    turn, _ = np.linalg.qr(RNG.normal(size=(8, 8)))
    assert cka(x, 5 * x @ turn - 1) == pytest.approx(1)
    others = [cka(x, RNG.normal(size=(60, 200))) for _ in range(20)]
    assert abs(np.mean(others)) < 0.05  # the estimator without correction gives 0.3 here
    near, far = (cka(x, x + noise * RNG.normal(size=x.shape)) for noise in (0.3, 1.5))
    assert 1 > near > 0.8 > far > 0.05


def test_attention_is_what_the_model_attends_with(policy):
    """Shares of boxes that make up the image add up; they are those of a softmax written out."""
    left, right, whole = [0, 0, 1, 0.5], [0, 0.5, 1, 1], [0, 0, 1, 1]
    (probe,) = probes_of([left])
    seen = trace(
        policy,
        [dataclasses.replace(probe, box=np.array(box, np.float32)) for box in (left, right, whole)],
    )
    assert set(seen.looks) == set(knowledge.READERS)
    for looks in (
        seen.looks["question"],
        seen.looks["answer"],
    ):  # each row acts from noise of its own
        own, _, camera = np.moveaxis(looks, -1, 0)
        np.testing.assert_allclose(own[:, 0] + own[:, 1], camera[:, 0], rtol=1e-4)
        np.testing.assert_allclose(own[:, 2], camera[:, 2], rtol=1e-4)
        assert np.abs(own[0, 0] - own[0, 1]) > 1e-2 and (camera < 1).all()
        np.testing.assert_allclose(
            looks[:, 0, 1], own[:, 2], rtol=1e-4
        )  # another's box: here that of the last probe
    np.testing.assert_allclose(
        seen.looks["answer"][0, 0, 0], softmax_share(policy, probe), rtol=1e-3
    )


def softmax_share(policy, probe):
    """Attention of the last token of the question to the left half of the first image in the first layer, by hand."""
    asked = [knowledge.prompts.question(policy.assets.tokenizer, probe.question)]
    batch = policy.model_batch([probe.images], asked)
    _, sown = VLA(policy.config).apply(
        {"params": policy.params}, batch, None, None, None, mutable=["intermediates"]
    )
    q, k, mask = sown["intermediates"]["llm"]["layers"]["attn"]["attention_inputs_0"][0]
    patches = policy.config.siglip.tokens
    last = 2 * patches + len(asked[0].prompt) - 1
    q, k, mask = np.asarray(q)[0, 0, last], np.asarray(k)[0, 0], np.asarray(mask)[0, 0, last]
    k = np.repeat(k, len(q) // k.shape[1], axis=1)
    weights = np.exp(np.einsum("nh,snh->ns", q, k)) * mask
    weights /= weights.sum(axis=1, keepdims=True)
    side = int(patches**0.5)
    return (
        weights[:, :patches].reshape(len(q), side, side)[:, :, : side // 2].sum(axis=(1, 2)).mean()
    )


def test_nothing_is_sown_for_who_does_not_ask(policy):
    def act(params, batch, noise):
        return sample_actions(VLA(policy.config), params, batch, noise, 2)

    (probe,) = probes_of([[0, 0, 1, 1]])
    batch = policy.model_batch(
        [probe.images], policy.action_prompts(["push"], [probe.state]), [probe.state]
    )
    noise = np.zeros((1, policy.config.horizon, policy.config.action_dim), np.float32)
    assert jax.eval_shape(act, policy.params, batch, noise).shape == noise.shape


def test_gains_count_only_what_the_instruction_speaks_of():
    boxes = [[0, 0, 0.5, 0.5]] * 4
    probes = probes_of(boxes[:2]) + probes_of(boxes[2:], told=False)
    looks = np.array([[[0.3, 0.1, 0.4], [0.3, 0.1, 0.4], [0.1, 0.1, 0.4], [0.1, 0.1, 0.4]]])
    found = gains(knowledge.Trace({}, {"question": looks, "action": looks}), probes, 16)
    assert found["question"][0]["gain"] == pytest.approx(2) and found["action"][0][
        "gain"
    ] == pytest.approx(3)
    assert found["question"][0]["low"] < 2 < found["question"][0]["high"]
    assert found["action"][0]["other_box_gain"] == pytest.approx(1)
    untold = gains(knowledge.Trace({}, {"action": looks}), probes_of(boxes, told=False), 16)
    assert untold["action"] == []


def test_a_model_has_not_drifted_from_itself_but_from_another(policy):
    probes = probes_of(np.sort(RNG.random((12, 2, 2)), axis=1).reshape(12, 4))
    first = trace(policy, probes)
    other = type(policy)(
        policy.config,
        jax.tree.map(
            lambda x: x + 0.3 * RNG.normal(size=x.shape).astype(np.float32), policy.params
        ),
        policy.assets,
        policy.num_cameras,
    )
    np.testing.assert_allclose(np.concatenate(list(drift(first, first).values())), 1, rtol=1e-6)
    assert all(
        value < 0.99 for layers in drift(trace(other, probes), first).values() for value in layers
    )


def test_probes_are_frames_with_a_box_and_need_one(tmp_path):
    source = StageDataset(RLDSDataset(write_robot_set(tmp_path)), ("front", "wrist"))
    with pytest.raises(ValueError, match="no question of the question_type locate_box"):
        knowledge.draw_probes(source, 3)


def test_write_csv_has_a_row_for_each_number(tmp_path):
    kind = {
        "accuracy": 0.5,
        "low": 0.3,
        "high": 0.7,
        "count": 20,
        "majority": 0.2,
        "blind": 0.4,
        "iou": 0.6,
        "iou_count": 9,
    }
    gain = {"gain": 1.5, "low": 1.1, "high": 1.9, "other_box_gain": 0.9}
    results = {
        f"runs/{name}": {
            "answers": {"source": {"goal_description": kind}},
            "cka": {part: [1.0, 0.5] for part in knowledge.FEATURES},
            "attention": {"question": [gain], "answer": [gain], "action": []},
        }
        for name in ("one", "two")
    }
    knowledge.write_csv(tmp_path / "k.csv", results)
    lines = list(csv.DictReader((tmp_path / "k.csv").read_text().splitlines()))
    assert len(lines) == 2 * (4 + 6 + 4)
    text_cka = [line for line in lines if line["what"] == "cka" and line["of"] == "text"]
    assert [line["value"] for line in text_cka[:2]] == ["1.0", "0.5"]
