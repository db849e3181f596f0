"""The plan: exact shares, every frame once per epoch, batches that depend on (seed, step) only."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcvla.data.plan import Plan, Stream, apportion
from etcvla.errors import UserError


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
    assert (
        np.abs(np.cumsum(plan.counts, 0) - batch * np.cumsum(plan.row_shares, 0)).max() < 1 + 1e-6
    )


def test_shares_that_fall_to_zero_do_not_delay_other_streams():
    ends = [(1.0, 0.0)] * 3 + [(1.0, 0.5625), (1.0, 0.03125), (0.75, 0.0), (0.75, 0.0), (0.0, 0.5)]
    streams = [stream(str(i), (0.0, a), (1.0, b)) for i, (a, b) in enumerate(ends)]
    plan = Plan.make(streams, batch_size=4, steps=150, seed=0)
    assert np.abs(np.cumsum(plan.counts, 0) - 4 * np.cumsum(plan.row_shares, 0)).max() < 1


def test_shares_stay_exact_over_a_long_run_with_changing_weights():
    rng = np.random.default_rng(0)
    for steps, batch in ((30_000, 256), (200, 3)):
        weights = (
            rng.uniform(0, 1, (steps, 6)) * (rng.random((steps, 6)) < 0.5) + np.eye(6)[0] / 100
        )
        weights /= weights.sum(axis=1, keepdims=True)
        counts = apportion(weights, batch)
        assert (counts >= 0).all() and (counts.sum(axis=1) == batch).all()
        assert np.abs(np.cumsum(counts, 0) - batch * np.cumsum(weights, 0)).max() < 1 + 1e-6


def test_coefficients_of_the_drawn_rows_add_up_to_the_shares():
    """With rows of their own, the streams keep their shares, at each step up to whole rows."""
    ramp = ((0.0, 0.8), (1.0, 0.2))
    streams = [
        Stream("etc", "d", "any", ramp, 0, rows=((0.0, 0.4),), loss_weight=((0.0, 0.5),)),
        Stream("act", "d", "action", ((0.0, 0.2), (1.0, 0.8)), 0, rows=((0.0, 0.6),)),
    ]
    plan = Plan.make(streams, batch_size=5, steps=101, seed=0)
    assert (plan.counts == [2, 3]).all()
    progress = np.linspace(0, 1, 101)
    expected = np.stack([0.5 * (0.8 - 0.6 * progress), 0.2 + 0.6 * progress], axis=1)
    for step in (0, 50, 100):
        totals = np.zeros(2)
        for index, n in plan.rows(step, 0, 5):
            totals[index] += plan.row_coefficient(index, n)
        np.testing.assert_allclose(totals, expected[step], rtol=1e-5)
    np.testing.assert_allclose(plan.coefficients, expected, rtol=1e-5)


def test_twice_the_weight_is_twice_the_coefficient():
    rows = ((0.0, 1.0),)
    coefficients = []
    for weight in (1.0, 2.0):
        streams = [
            Stream("a", "d", "any", ((0.0, weight),), 0, rows=rows),
            Stream("b", "d", "any", ((0.0, 1.0),), 0, rows=rows),
        ]
        plan = Plan.make(streams, batch_size=4, steps=3, seed=0)
        coefficients.append([plan.row_coefficient(index, 0) for index in (0, 1)])
    ratios = [a / b for a, b in coefficients]
    assert ratios == [1.0, 2.0]


def test_a_stream_with_weight_and_no_rows_raises():
    without_rows = Stream("a", "d", "any", ((0.0, 1.0),), 0, rows=((0.0, 1.0), (1.0, 0.0)))
    with pytest.raises(UserError, match="streams.a.rows is 0 at step 9, where its weight is not"):
        Plan.make([without_rows, stream("b", (0.0, 1.0))], batch_size=4, steps=10, seed=0)


def test_rows_number_the_draws_of_a_stream_without_gaps():
    plan = Plan.make(
        [stream("a", (0, 1), (1, 0)), stream("b", (0, 0), (1, 1))], batch_size=7, steps=20, seed=0
    )
    drawn = list(itertools.chain.from_iterable(plan.rows(step, 0, 7) for step in range(20)))
    for i in range(2):
        draws = [n for stream_index, n in drawn if stream_index == i]
        assert draws == list(range(plan.counts[:, i].sum()))


def test_epoch_draws_every_frame_once_and_epochs_differ():
    plan = Plan.make([stream("a", (0, 1))], batch_size=1, steps=1, seed=3)
    first = [plan.draw(0, n, 50) for n in range(50)]
    second = [plan.draw(0, n, 50) for n in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    other = Plan.make([stream("a", (0, 1))], batch_size=1, steps=1, seed=4)
    assert [other.draw(0, n, 50) for n in range(50)] != first


@pytest.mark.parametrize("size", [3, 4, 37, 40])
def test_neighbours_are_drawn_together_and_every_frame_once_per_epoch(size):
    plan = Plan.make([stream("a", (0, 1))], batch_size=1, steps=1, seed=3)
    draws = [plan.draw(0, n, size, together=4) for n in range(3 * size)]
    epochs = [draws[:size], draws[size : 2 * size], draws[2 * size :]]
    assert all(sorted(drawn) == list(range(size)) for drawn in epochs)
    for drawn in epochs:
        for block in range(size // 4):
            first, *others = drawn[4 * block : 4 * block + 4]
            assert others == [(first + i) % size for i in (1, 2, 3)]
    first_blocks = {frozenset(epochs[0][i : i + 4]) for i in range(0, size - 3, 4)}
    second_blocks = {frozenset(epochs[1][i : i + 4]) for i in range(0, size - 3, 4)}
    assert size < 8 or first_blocks != second_blocks


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
def test_malformed_schedules_raise(weight, message):
    with pytest.raises(ValueError, match=message):
        Plan.make([Stream("a", "d", "action", weight, 0)], batch_size=1, steps=2, seed=0)
