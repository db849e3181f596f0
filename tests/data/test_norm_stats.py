"""Norm statistics are exact, and the transform has an inverse."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etcvla.data.norm_stats import NormStats, compute_norm_stats, normalize, stats_of, unnormalize
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from tests.data.handmade_rlds import STEPS, robot_episode, robot_steps, write_rlds
from tests.golden_dir import ROOT, golden

DATA = np.random.default_rng(0).normal([0, 5, -2], [1, 0.1, 30], (2000, 3)).astype(np.float32)


@pytest.mark.parametrize("source", golden("rlds_tfrecord"), ids=lambda folder: folder.name)
def test_statistics_of_public_datasets_are_exact(source, tmp_path):
    dataset = RLDSDataset(shutil.copytree(source, tmp_path / source.name), "train")
    with np.load(ROOT / "rlds_tfrecord" / f"expected_{source.name}.npz") as file:
        actions = np.concatenate(
            [file[f"train/{e}/action"] for e in range(dataset.num_episodes)]
        ).astype(np.float64)
    stats = compute_norm_stats(dataset)
    assert set(stats) == {"action", "observation/state"}
    action = stats["action"]
    assert action.count == len(actions)
    ordered = np.sort(actions, axis=0)
    position = 0.01 * (len(actions) - 1)
    q01 = (
        ordered[0] + (ordered[1] - ordered[0]) * position
        if position < 1
        else np.quantile(actions, 0.01, axis=0)
    )
    for got, want in [
        (action.mean, actions.sum(0) / len(actions)),
        (action.min, ordered[0]),
        (action.max, ordered[-1]),
        (action.q01, q01),
        (action.std, np.sqrt(((actions - actions.mean(0)) ** 2).mean(0))),
    ]:
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
        assert got.dtype == np.float32


def test_modes_normalize_to_their_range():
    stats = stats_of(DATA)
    scaled = normalize(DATA, stats, "quantile")
    np.testing.assert_allclose(
        np.quantile(scaled, [0.01, 0.99], axis=0), [[-1] * 3, [1] * 3], atol=1e-4
    )
    assert np.abs(scaled).max() > 1.1  # not clipped: outliers keep their order
    scaled = normalize(DATA, stats, "zscore")
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-4)
    np.testing.assert_array_equal(normalize(DATA, stats, "none"), DATA)


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(np.float32, (4, 3), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(["quantile", "zscore", "none"]),
    st.integers(0, 4),
)
def test_unnormalize_inverts_normalize_and_leaves_padding(x, mode, padding):
    stats = stats_of(DATA)
    padded = np.pad(x, ((0, 0), (0, padding)), constant_values=7)
    scaled = normalize(padded, stats, mode)
    assert scaled.shape == padded.shape and scaled.dtype == np.float32
    assert (scaled[:, 3:] == 7).all()
    np.testing.assert_allclose(unnormalize(scaled, stats, mode), padded, rtol=1e-4, atol=1e-4)


def test_works_under_jit():
    stats = stats_of(DATA)
    got = jax.jit(lambda x: normalize(x, stats, "quantile"))(jnp.asarray(DATA))
    np.testing.assert_allclose(got, normalize(DATA, stats, "quantile"), rtol=1e-5, atol=1e-5)


def test_constant_dimensions_are_unchanged_and_logged(tmp_path, caplog):
    action = np.stack([np.linspace(-3, 3, 400), np.full(400, 0.25)], -1).astype(np.float32)
    action[7, 1] = 0.5  # one outlier: constant between its quantiles, not by its deviation
    write_rlds(tmp_path, [{"action": action.ravel()}], steps={"action": STEPS["action"]})
    stats = compute_norm_stats(RLDSDataset(tmp_path), ["action"])["action"]
    assert "dimensions [1] do not vary" in caplog.text and str(tmp_path) in caplog.text
    assert (
        stats.constant("quantile").tolist() == [False, True] and not stats.constant("zscore").any()
    )
    np.testing.assert_array_equal(normalize(action, stats, "quantile")[:, 1], action[:, 1])
    assert not stats.constant("none").any()


def test_constant_dimensions_of_state_and_action_are_logged(tmp_path, caplog):
    episodes = [robot_episode(number) for number in range(3)]
    for episode in episodes:
        for name, width, dimension in (("observation/state", 3, 2), ("action", 2, 0)):
            episode[name] = episode[name].copy()
            episode[name][dimension::width] = 0.5
    write_rlds(tmp_path, episodes, steps=robot_steps())
    stats = compute_norm_stats(RLDSDataset(tmp_path))
    assert stats["observation/state"].constant("quantile").tolist() == [False, False, True]
    assert stats["action"].constant("zscore").tolist() == [True, False]
    assert f"observation/state of {tmp_path}: dimensions [2]" in caplog.text
    assert f"action of {tmp_path}: dimensions [0]" in caplog.text


def test_json_round_trip_is_exact():
    stats = stats_of(DATA)
    back = NormStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    for name, value in vars(stats).items():
        np.testing.assert_array_equal(getattr(back, name), value)
        assert type(getattr(back, name)) is type(value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_values_raise(tmp_path, value):
    good = np.zeros(6, np.float32)
    bad = np.zeros(8, np.float32)
    bad[5] = value
    write_rlds(tmp_path, [{"action": good}, {"action": bad}], steps={"action": STEPS["action"]})
    with pytest.raises(
        ValueError, match=rf"action\[1\] is {value} at episode 1, step 2 of {tmp_path}, split train"
    ):
        compute_norm_stats(RLDSDataset(tmp_path), ["action"])


def test_errors_name_mode_width_and_feature(tmp_path):
    stats = stats_of(DATA)
    with pytest.raises(
        ValueError, match="unknown normalisation 'quantiles', did you mean 'quantile'"
    ):
        normalize(DATA, stats, "quantiles")
    with pytest.raises(ValueError, match="width 2 .*width 3"):
        unnormalize(DATA[:, :2], stats, "zscore")
    write_rlds(tmp_path, [{"note": [b"a"]}], steps={"note": STEPS["note"]})
    with pytest.raises(ValueError, match="note .*not a vector"):
        compute_norm_stats(RLDSDataset(tmp_path), ["note"])
    with pytest.raises(UserError, match="action"):
        compute_norm_stats(RLDSDataset(tmp_path), ["action"])
