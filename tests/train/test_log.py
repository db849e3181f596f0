"""What a run writes down, and when it stops."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.train.log import Logger, clock


def metrics(**values):
    return {name: jnp.float32(value) for name, value in ({"loss": 1.0, "grad_norm": 2.0} | values).items()}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_the_means_since_the_last(tmp_path, capsys):
    with Logger(str(tmp_path), "stage", steps=5, every=2) as logger:
        for step, loss in enumerate([1.0, 3.0, 5.0, 8.0, 7.0], start=1):
            rare = {"a/loss": 4.0 if step == 2 else np.nan, "b/loss": np.nan}
            logger.step(step, metrics(loss=loss, **rare))
            assert len(lines(tmp_path)) == [0, 1, 1, 2, 3][step - 1]  # every second step, and the last
    written = lines(tmp_path)
    assert [(line["step"], line["loss"]) for line in written] == [(2, 2.0), (4, 6.5), (5, 7.0)]
    assert written[0]["a/loss"] == 4.0 and "b/loss" not in written[0]  # absent, not NaN: JSON has none
    assert "a/loss" not in written[1] and written[0]["steps_per_second"] > 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("stage 2/5 | ") and "left | loss 2.000 | data wait 0%" in shown[0]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("values", "what"), [({"loss": np.nan}, "the loss is nan"), (
    {"grad_norm": np.inf}, "the gradient's norm is inf")])
def test_what_is_not_finite_stops_the_run_at_its_step(tmp_path, values, what):
    with Logger(str(tmp_path), "stage", steps=9, every=3) as logger:
        logger.step(1, metrics())
        logger.step(2, metrics(**values))
        with pytest.raises(FloatingPointError, match=f"stage: {what} at step 2"):
            logger.step(3, metrics())
    assert lines(tmp_path) == []


def test_waiting_is_counted(tmp_path):
    with Logger(str(tmp_path), "stage", steps=1, every=1) as logger:
        assert list(logger.waiting(iter("ab"))) == ["a", "b"]
        logger.step(1, metrics())
    assert 0 <= lines(tmp_path)[0]["data_wait"] <= 1


def test_clock():
    assert [clock(s) for s in (0.9, 61, 3600 * 11 + 62)] == ["0:00", "1:01", "11:01:02"]
