"""Chunks become one action a step; the test actions name their chunk and their step."""

import numpy as np
import pytest

from etcvla.chunks import ActionChunks, RealTimeChunks
from etcvla.errors import UserError

HORIZON = 10


def execute(chunks, steps, horizon=4):
    """Return the steps with a query, and actions float[steps, 2]: (query step, own step)."""
    queries = []
    actions = []
    for step in range(steps):
        if chunks.needs_query:
            queries.append(step)
            chunks.add(np.array([[step, step + i] for i in range(horizon)], np.float32))
        actions.append(chunks.next())
    return queries, np.array(actions)


@pytest.mark.parametrize(
    ("replan_steps", "expected_queries"),
    [(0, [0, 4, 8]), (3, [0, 3, 6, 9]), (1, list(range(10)))],
)
def test_newest_chunk_is_executed(replan_steps, expected_queries):
    queries, actions = execute(ActionChunks(replan_steps), 10)
    assert queries == expected_queries
    assert actions[:, 1].tolist() == list(range(10))
    for step in range(10):
        assert actions[step, 0] == max(query for query in queries if query <= step)


def test_ensemble_weights_old_chunks_most():
    _, actions = execute(ActionChunks(1, ensemble=0.5), 6)
    assert actions[:, 1].tolist() == pytest.approx(range(6))  # all chunks agree on the step
    weights = np.exp(-0.5 * np.arange(4))
    assert actions[5, 0] == pytest.approx((weights * [2, 3, 4, 5]).sum() / weights.sum())
    assert actions[1, 0] == pytest.approx((weights[:2] * [0, 1]).sum() / weights[:2].sum())


def test_ensemble_of_zero_is_the_mean():
    _, actions = execute(ActionChunks(2, ensemble=0.0), 6)
    assert actions[5, 0] == pytest.approx((2 + 4) / 2)


def test_single_chunk_is_returned_bit_for_bit():
    chunk = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    chunks = ActionChunks(4, ensemble=0.1)
    chunks.add(chunk)
    for action in chunk:
        assert (chunks.next() == action).all()
    assert chunks.empty


def plan(step):
    """Return a chunk whose actions are the numbers of their steps."""
    return np.arange(step, step + HORIZON, dtype=np.float32)[:, None]


@pytest.mark.parametrize("delay", [0, 1, 3, 5])
@pytest.mark.parametrize("guided", [True, False])
def test_late_chunks_give_the_action_of_each_step(delay, guided):
    chunks = RealTimeChunks(execute=5, guided=guided)
    queries = []
    pending = None  # the step of the query whose chunk has not arrived

    def receive(step):
        nonlocal pending
        if pending is not None and (step == pending + delay or chunks.empty):
            chunks.add(plan(pending))
            pending = None

    for step in range(40):
        receive(step)
        fields = chunks.request_fields()
        if fields is not None:
            pending = step
            queries.append(step)
            if step and guided:
                np.testing.assert_array_equal(fields["rtc"]["prefix"], plan(step)[: HORIZON - 5])
                assert fields["rtc"]["delay"] == (0 if len(queries) == 2 else delay)
            else:
                assert fields == {}
        receive(step)
        assert chunks.next() == step
    assert queries == list(range(0, 40, 5))


def test_requested_delay_is_the_largest_of_the_last_ones():
    chunks = RealTimeChunks(execute=1, memory=2)
    requested = []
    for delay in (2, 3, 1, 1, 1):
        requested.append(chunks.request_fields().get("rtc", {}).get("delay"))
        if chunks.empty:
            chunks.add(plan(0))
            chunks.next()
            chunks.request_fields()
        for _ in range(delay):
            chunks.next()
        chunks.add(plan(0))
        chunks.next()
    assert requested == [None, 2, 3, 3, 1]


@pytest.mark.parametrize(("execute", "delay"), [(0, 0), (1, -1)])
def test_wrong_step_counts_are_refused(execute, delay):
    with pytest.raises(UserError, match="must be 1 or more"):
        RealTimeChunks(execute, delay=delay)
