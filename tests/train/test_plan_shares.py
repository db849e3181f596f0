"""The shares that a plan shows, in each form of the loss."""

import pytest

from configs import common
from etcvla.errors import UserError
from etcvla.train.plan_shares import plan_shares
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import make_plan

CONSTANT = common.constant


def make_config(form, extra_segments=0, **stream_fields):
    """Return a stage with an action stream of weight 3 and a question stream of weight 1."""
    config = common.base("objective_bridge", "tiny")
    action = common.stream("source", "action", 3.0, extra_segments)
    question = common.stream("source", "any", 1.0, extra_segments=1)
    action.update(stream_fields)
    common.override(config, {"datasets.source": common.metaworld("source")})
    common.add_streams(config, {"action": action, "question": question})
    config.loss.form = form
    config.loss.flow = CONSTANT(1.0)
    config.steps = 4
    config.batch_size = 8
    return config


def shares_of(config):
    """Return the shares of rows, segments and loss at the first step, by entry."""
    shares = plan_shares(config, make_plan(config))
    return {
        name: dict(zip(shares.names, getattr(shares, name)[0].round(6).tolist(), strict=True))
        for name in ("rows", "segments", "loss")
    }


@pytest.mark.parametrize(
    ("form", "loss"),
    [
        ("share", {"action": 0.75, "question": 0.25}),
        ("objectives", {"action": 0.5, "question": 0.5}),
        ("openpi", {"action": 0.75, "question": 0.25}),
    ],
)
def test_shares_of_each_form(form, loss):
    shares = shares_of(make_config(form))
    assert shares["rows"] == {"action": 0.75, "question": 0.25}
    assert shares["segments"] == {"action": 0.6, "question": 0.4}
    assert shares["loss"] == loss


def test_extra_segments_of_action_rows_are_an_entry_of_their_own():
    shares = shares_of(make_config("share", extra_segments=2, extra_weight=1 / 3))
    assert shares["rows"] == {"action": 0.75, "action extra": 0, "question": 0.25}
    # 3 action segments, 6 extra segments and 2 of the question rows
    assert shares["segments"] == pytest.approx(
        {"action": 3 / 11, "action extra": 6 / 11, "question": 2 / 11}, abs=1e-6
    )
    assert shares["loss"] == {"action": 0.6, "action extra": 0.2, "question": 0.2}


def test_action_rows_hold_several_actions_and_a_subtask():
    config = make_config("share")
    config.data.actions_per_row = 2
    config.data.prompt = "pi05_subtask"
    shares = shares_of(config)
    # 3 rows of two actions and a question, 1 row of two questions
    assert shares["segments"] == pytest.approx({"action": 9 / 11, "question": 2 / 11}, abs=1e-6)
    assert shares["loss"] == {"action": 0.75, "question": 0.25}


def test_rows_and_loss_weight_of_a_stream():
    config = make_config("share", rows=CONSTANT(1.0), loss_weight=CONSTANT(1 / 3))
    shares = shares_of(config)
    assert shares["rows"] == {"action": 0.5, "question": 0.5}
    assert shares["loss"] == {"action": 0.5, "question": 0.5}


def test_losses_without_weight_have_no_share():
    config = make_config("share", extra_segments=2)
    config.loss.text = CONSTANT(0.0)
    assert shares_of(config)["loss"] == {"action": 1, "action extra": 0, "question": 0}


def test_table_shows_the_first_and_the_last_share():
    config = make_config("share", extra_segments=1)
    config.streams.action.weight = ((0.0, 1.0), (1.0, 3.0))
    table = plan_table(config, make_plan(config))
    cells = {line.split()[0]: line.split() for line in table.splitlines()[2:]}
    assert cells["question"][2:5] == ["50.0", ">", "25.0"]
    [extra] = [line.split() for line in table.splitlines() if "action extra" in line]
    assert extra[-3:] == ["4.8", ">", "7.0"]  # 0.05 of 1.05, 0.075 of 1.075
    [actions] = [line.split() for line in table.splitlines() if "all actions" in line]
    assert actions[-3:] == ["47.6", ">", "69.8"]


@pytest.mark.parametrize(
    ("form", "fields", "message"),
    [
        ("openpi", {"rows": CONSTANT(1.0)}, "action.rows has no effect with loss.form 'openpi'"),
        ("objectives", {"loss_weight": CONSTANT(0.1)}, "action.loss_weight has no effect with"),
        ("share", {"extra_weight": 0.5}, "action.extra_weight has no effect without extra"),
    ],
)
def test_weights_that_the_form_does_not_use_raise(form, fields, message):
    with pytest.raises(UserError, match=message):
        make_plan(make_config(form, **fields))
