"""The plan's promises: exact shares, every frame once an epoch, a batch that is a function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcvla.data.plan import Plan, Stream, apportion


def stream(name, *weight, extra_segments=0):
    return Stream(name, "d", "action", weight, extra_segments)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.integers(1, 64), st.integers(2, 200)
)
def test_constant_shares_are_exact_to_within_one_row(weights, batch, steps):
    weights = np.tile(np.array(weights) / np.sum(weights), (steps, 1))
    counts = apportion(weights, batch)
    assert (counts >= 0).all() and (counts.sum(axis=1) == batch).all()
    assert np.abs(np.cumsum(counts, 0) - batch * np.cumsum(weights, 0)).max() < 1 + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=8),
    st.integers(4, 64),
)
def test_ramped_shares_are_exact_to_within_one_row(ends, batch):
    streams = [stream(str(i), (0.0, a), (1.0, b)) for i, (a, b) in enumerate([*ends, (0, 0.5)])]
    plan = Plan.make(streams, batch_size=batch, steps=150, seed=0)
    assert (plan.counts >= 0).all() and (plan.counts.sum(axis=1) == batch).all()
    assert np.abs(np.cumsum(plan.counts, 0) - batch * np.cumsum(plan.weights, 0)).max() < 1 + 1e-6


def test_shares_that_fall_to_nothing_leave_no_other_behind():
    ends = [(1.0, 0.0)] * 3 + [(1.0, 0.5625), (1.0, 0.03125), (0.75, 0.0), (0.75, 0.0), (0.0, 0.5)]
    streams = [stream(str(i), (0.0, a), (1.0, b)) for i, (a, b) in enumerate(ends)]
    plan = Plan.make(streams, batch_size=4, steps=150, seed=0)
    assert np.abs(np.cumsum(plan.counts, 0) - 4 * np.cumsum(plan.weights, 0)).max() < 1


def test_shares_change_at_any_step_and_stay_exact_over_a_long_run():
    rng = np.random.default_rng(0)
    for steps, batch in ((30_000, 256), (200, 3)):
        weights = (
            rng.uniform(0, 1, (steps, 6)) * (rng.random((steps, 6)) < 0.5) + np.eye(6)[0] / 100
        )
        weights /= weights.sum(axis=1, keepdims=True)
        counts = apportion(weights, batch)
        assert (counts >= 0).all() and (counts.sum(axis=1) == batch).all()
        assert np.abs(np.cumsum(counts, 0) - batch * np.cumsum(weights, 0)).max() < 1 + 1e-6


def test_rows_number_a_streams_draws_without_gap():
    plan = Plan.make(
        [stream("a", (0, 1), (1, 0)), stream("b", (0, 0), (1, 1))], batch_size=7, steps=20, seed=0
    )
    drawn = [plan.row(step, row) for step in range(20) for row in range(7)]
    for i in range(2):
        noise_samples = [n for s, n in drawn if s == i]
        assert (
            noise_samples == list(range(len(noise_samples)))
            and len(noise_samples) == plan.counts[:, i].sum()
        )


def test_an_epoch_holds_every_frame_once_and_epochs_differ():
    plan = Plan.make([stream("a", (0, 1))], batch_size=1, steps=1, seed=3)
    first, second = ([plan.draw(0, n + 50 * e, 50) for n in range(50)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    other = Plan.make([stream("a", (0, 1))], batch_size=1, steps=1, seed=4)
    assert [other.draw(0, n, 50) for n in range(50)] != first


@pytest.mark.parametrize("size", [3, 4, 37, 40])
def test_neighbours_are_drawn_together_and_still_every_frame_once_an_epoch(size):
    plan = Plan.make([stream("a", (0, 1))], batch_size=1, steps=1, seed=3)
    epochs = [[plan.draw(0, n + size * e, size, together=4) for n in range(size)] for e in range(3)]
    assert all(sorted(drawn) == list(range(size)) for drawn in epochs)
    for drawn in epochs:
        for block in range(size // 4):
            first, *others = drawn[4 * block : 4 * block + 4]
            assert others == [(first + i) % size for i in (1, 2, 3)]
    blocks = [{frozenset(drawn[i : i + 4]) for i in range(0, size - 3, 4)} for drawn in epochs[:2]]
    assert size < 8 or blocks[0] != blocks[1]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (((0, 1), (0, 2)), "increase"),
        (((0, -1),), "negative"),
        ((1, 2), "expected"),
        (((0, 0),), "all weights"),
        (((0.5, 1), (2, 1)), "increase"),
    ],
)
def test_malformed_schedules_are_named(weight, message):
    with pytest.raises(ValueError, match=message):
        Plan.make([Stream("a", "d", "action", weight, 0)], batch_size=1, steps=2, seed=0)
