"""CKA and attention gains of features and attention whose values are known, and the CSV table."""

import csv

import jax
import numpy as np
import pytest

from etcvla.eval.attention_probes import FEATURES, Activations, record_activations
from etcvla.eval.knowledge import attention_gains, cka, cka_by_layer, write_csv
from etcvla.policy import Policy
from tests.eval.test_attention_probes import make_probes, policy  # noqa: F401  a fixture


def test_cka_is_1_up_to_rotation_and_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8)) + 3
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert cka(x, 5 * x @ rotation - 1) == pytest.approx(1)


def test_cka_of_unrelated_features_is_0_on_average():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    values = [cka(x, rng.normal(size=(60, 200))) for _ in range(20)]
    assert abs(np.mean(values)) < 0.05  # the biased estimator has 0.3 here


def test_cka_falls_with_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    near, far = (cka(x, x + noise * rng.normal(size=x.shape)) for noise in (0.3, 1.5))
    assert 1 > near > 0.8 > far > 0.05


def test_action_gain_uses_probes_whose_instruction_names_the_object():
    boxes = [[0, 0, 0.5, 0.5]] * 4
    probes = make_probes(boxes[:2]) + make_probes(boxes[2:], in_instruction=False)
    attention = np.array([[[0.3, 0.1, 0.4], [0.3, 0.1, 0.4], [0.1, 0.1, 0.4], [0.1, 0.1, 0.4]]])
    activations = Activations({}, {"question": attention, "action": attention})
    gains = attention_gains(activations, probes, 16)
    (question,) = gains["question"]
    (action,) = gains["action"]
    assert question["gain"] == pytest.approx(2)
    assert question["low"] < 2 < question["high"]
    assert action["gain"] == pytest.approx(3)
    assert action["other_box_gain"] == pytest.approx(1)


def test_action_gain_is_empty_without_such_probes():
    probes = make_probes([[0, 0, 0.5, 0.5]] * 2, in_instruction=False)
    activations = Activations({}, {"action": np.ones((1, 2, 3))})
    assert attention_gains(activations, probes, 16) == {"action": []}


def test_model_has_cka_1_with_itself_and_less_with_another(policy):  # noqa: F811
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((12, 2, 2)), axis=1)
    probes = make_probes(corners.reshape(12, 4))
    activations = record_activations(policy, probes)
    changed_params = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), policy.params
    )
    other = Policy(policy.config, changed_params, policy.assets, policy.num_cameras)
    for values in cka_by_layer(activations, activations).values():
        np.testing.assert_allclose(values, 1, rtol=1e-6)
    for values in cka_by_layer(record_activations(other, probes), activations).values():
        assert max(values) < 0.99


def test_write_csv_has_a_row_for_each_number(tmp_path):
    scores = {
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
    result = {
        "answers": {"source": {"goal_description": scores}},
        "cka": {name: [1.0, 0.5] for name in FEATURES},
        "attention": {"question": [gain], "answer": [gain], "action": []},
    }
    write_csv(tmp_path / "knowledge.csv", {"runs/one": result, "runs/two": result})
    rows = list(csv.DictReader((tmp_path / "knowledge.csv").read_text().splitlines()))
    assert len(rows) == 2 * (4 + 6 + 4)
    text_cka = [row for row in rows if row["measure"] == "cka" and row["name"] == "text"]
    assert [row["value"] for row in text_cka[:2]] == ["1.0", "0.5"]
    accuracy = rows[0]
    assert accuracy["measure"] == "accuracy"
    assert accuracy["name"] == "source/goal_description"
    assert (accuracy["low"], accuracy["high"], accuracy["count"]) == ("0.3", "0.7", "20")
