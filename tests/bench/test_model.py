"""The model benchmark without its times: inputs of both sides, sums, error messages."""

import dataclasses

import jax
import numpy as np
import pytest

from etcvla.bench import model, openpi, ours
from etcvla.bench.worker import JobResult
from etcvla.errors import UserError
from etcvla.models import variants
from etcvla.models.vla import VLA
from launch import common
from tests.models.small import CONFIG

TINY = ours.Workload("tiny", vocab_size=64, rows=2, dtype="float32")


def fixed(**results):
    """Sides that always give these results, in seconds of wall time."""
    return {
        name: lambda job, cameras, name=name: JobResult(
            results[name], results[name], results[name] / 2, 1.0
        )
        for name in results
    }


def test_two_cameras_are_the_first_two_of_three():
    three, two = TINY.batch(2, 3), TINY.batch(2, 2)
    np.testing.assert_array_equal(two["images"], three["images"][:, :2])
    assert two["image_mask"].shape == (2, 2)
    for name in ("tokens", "state", "actions"):
        np.testing.assert_array_equal(two[name], three[name])


def test_no_parameter_is_zero_and_all_are_openpis():
    params = TINY.params()
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(params))
    renamed = openpi.rename(params)
    assert renamed["PaliGemma"] == {"img": params["img"], "llm": params["llm"]}
    assert set(renamed) == {
        "PaliGemma",
        "action_in_proj",
        "action_out_proj",
        "state_proj",
        "action_time_mlp_in",
        "action_time_mlp_out",
    }


def test_our_side_trains_and_samples(monkeypatch):
    monkeypatch.setitem(
        variants.SIZES, "nano", {name: getattr(CONFIG, name) for name in variants.SIZES["tiny"]}
    )
    side = ours.OurModel(**dataclasses.asdict(TINY) | {"size": "nano", "rows": 1})
    sampled = np.array(side.sample(cameras=2))
    assert sampled.shape == (1, ours.HORIZON, ours.ACTION_DIM) and np.isfinite(sampled).all()
    first = side.train(cameras=2)
    assert np.isfinite(first) and side.train(cameras=2) != first
    assert int(side.state.step) == 2


def test_tflop_of_a_step_by_hand():
    """One more camera costs 6 FLOPs per weight and token, 12 per token pair and attention unit."""
    config = dataclasses.replace(TINY.config, remat="none")
    tower, vlm = config.siglip, config.vlm
    encoder = tower.depth * (4 * tower.width**2 + 2 * tower.width * tower.mlp_dim)
    heads = (2 * vlm.num_heads + 2 * vlm.num_kv_heads) * vlm.head_dim
    gemma = vlm.depth * vlm.width * (heads + 3 * vlm.mlp_dim)
    few, many = (
        model.step_tflop(VLA(config), TINY.batch(1, n), ours.make_settings()) * 1e12 for n in (1, 2)
    )
    linear = (
        6
        * tower.tokens
        * (encoder + gemma + tower.width * vlm.width + 3 * tower.patch**2 * tower.width)
    )
    tower_scores = tower.depth * 12 * tower.tokens**2 * tower.width
    length, added = tower.tokens + ours.TEXT_LEN, tower.tokens
    pairs = (length + added) ** 2 - length**2 + added * (ours.HORIZON + 1)
    scores = vlm.depth * 12 * pairs * vlm.num_heads * vlm.head_dim
    # The patch embedding has no gradient by its input.
    by_hand = linear + tower_scores + scores - 2 * tower.tokens * 3 * tower.patch**2 * tower.width
    assert many - few == pytest.approx(by_hand, rel=1e-9)


def test_segment_counts():
    segments = model.SegmentCount(
        extra_segments=4, text_len=256, tflop_packed=2.0, tflop_action=1.5, tflop_etc=1.0
    )
    assert segments.packed == 2.5
    assert segments.separate == 40 / (32 * 1.5 + 8 * 1.0)


def test_segments_that_do_not_fit_are_not_counted():
    config = common.load_config("configs/objective_bridge.py", "paligemma_3b")
    config.data.text_len = 128
    with pytest.raises(ValueError, match=r"take 256 tokens.*data.text_len 128"):
        model.count_segments(config)


def test_turns_and_ratios():
    runs = model.take_turns(fixed(ours=3.0, openpi=4.0), rounds=3)
    assert {len(run) for run in runs.values()} == {3}
    found = model.summarize(runs)
    for name in (
        "train_step_ratio_3cam",
        "train_step_ratio_2cam",
        "sample_ratio_3cam",
        "sample_ratio_2cam",
        "train_step_cpu_ratio_3cam",
    ):
        assert found[name] == 0.75
    assert found["sample_openpi_wall_seconds_2cam"] == [4.0] * 3
    assert "train step, 2 cameras" in model.time_table(found)


def test_sides_that_disagree_are_not_timed():
    assert model.difference(fixed(ours=1.0, openpi=1.00005), "velocity", 3, 1e-4) == pytest.approx(
        5e-5
    )
    with pytest.raises(RuntimeError, match=r"velocity with 2 cameras differs by 1.0e\+00"):
        model.difference(fixed(ours=1.0, openpi=2.0), "velocity", 2, 1e-4)
    with pytest.raises(RuntimeError, match="differs by nan"):
        model.difference(fixed(ours=1.0, openpi=float("nan")), "velocity", 2, 1e-4)


def test_install_says_what_it_could_not_get(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        UserError, match=r"(?s)could not install rlinf-openpi==0.1.1.*--only=flops runs without"
    ):
        openpi.install(tmp_path / "openpi")
    assert not (tmp_path / "openpi" / "requirements.txt").exists()
