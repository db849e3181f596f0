"""Chunks of numbers that say when they were predicted, and for which step."""

import numpy as np
import pytest

from etcvla.eval.chunks import Chunks


def act(chunks, steps, length=4):
    """(looks, actions float[steps, 2]); a chunk's action is (step of its look, its own step)."""
    looks, actions = [], []
    for step in range(steps):
        if chunks.needs_query:
            looks.append(step)
            chunks.add(np.array([[step, step + i] for i in range(length)], np.float32))
        actions.append(chunks.next())
    return looks, np.array(actions)


@pytest.mark.parametrize(
    ("replan_steps", "looks"), [(0, [0, 4, 8]), (3, [0, 3, 6, 9]), (1, list(range(10)))]
)
def test_the_newest_chunk_is_acted_on(replan_steps, looks):
    looked, actions = act(Chunks(replan_steps), 10)
    assert looked == looks
    assert actions[:, 1].tolist() == list(range(10))
    assert actions[:, 0].tolist() == [
        max(look for look in looks if look <= step) for step in range(10)
    ]


def test_an_ensemble_weighs_old_chunks_most():
    _, actions = act(Chunks(1, ensemble=0.5), 6)
    assert actions[:, 1].tolist() == pytest.approx(range(6))  # all chunks agree on what step it is
    weights = np.exp(-0.5 * np.arange(4))
    assert actions[5, 0] == pytest.approx((weights * [2, 3, 4, 5]).sum() / weights.sum())
    assert actions[1, 0] == pytest.approx((weights[:2] * [0, 1]).sum() / weights[:2].sum())
    _, mean = act(Chunks(2, ensemble=0.0), 6)
    assert mean[5, 0] == pytest.approx((2 + 4) / 2)


def test_a_lone_chunk_keeps_its_bits():
    chunk = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    chunks = Chunks(4, ensemble=0.1)
    chunks.add(chunk)
    assert all((chunks.next() == action).all() for action in chunk)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        Chunks(-1)
    with pytest.raises(ValueError, match="must not be negative"):
        Chunks(1, ensemble=-0.1)
    with pytest.raises(
        ValueError, match="a chunk of 2 actions, but the next look is after replan_steps = 3"
    ):
        Chunks(3).add(np.zeros((2, 1)))
