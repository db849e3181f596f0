"""Rows of the token table that no answer uses keep their values, and their drift is measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.train import stage as stage_lib
from etcvla.train.optim import make_optimizer
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from etcvla.train.step import StepSettings, train_step
from etcvla.train.vocabulary import MAX_MEASURED, TokenRows, read_rows
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import make_model, random_params, random_rows, write_segment
from tests.train.nano import nano_config, optim_config

VOCABULARY = 64
ANSWERS = (1, 40, 41, 42)
PROMPT = [2, 20, 3]
STEPS = 30
OFF = ((0.0, 0.0),)


@functools.cache
def trained_table(mode):
    """Train on answers from a closed set; return the table before, after, and the metrics."""
    model = make_model()
    params = random_params(model)
    rows = TokenRows.make(mode, ANSWERS, range(48))
    optim = optim_config(
        lr=((0.0, 0.005),),
        lr_multiple=(("llm/embedder/.*", 1.0), (".*", 0.0)),  # few parameters compile faster
        weight_decay=((".*", 1e-10),),
    )
    optimizer = make_optimizer(optim, STEPS, params)
    settings = StepSettings(
        seed=0,
        steps=STEPS,
        streams=("ask",),
        max_targets=2,
        noise_samples=1,
        form="objectives",
        text=((0.0, 1.0),),
        fast=OFF,
        flow=OFF,
        ema_decay=0.9,
        shift=0,
        color=0.0,
        loc_offset=999,
        token_rows=rows,
    )
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        ema=params,
        opt=optimizer.init(params),
        start_rows=read_rows(params, rows),
    )
    step = functools.partial(train_step, model=model, optimizer=optimizer, settings=settings)
    step = jax.jit(step)
    batch = random_rows(np.random.default_rng(0), 4)
    for row, answer in enumerate((40, 41, 42, 40)):
        write_segment(batch, row, 0, 1, PROMPT, [answer, 1])
    for _ in range(STEPS):
        state, metrics = step(state, batch)
    before = np.asarray(params["llm"]["embedder"]["input_embedding"])
    return before, np.asarray(state.params["llm"]["embedder"]["input_embedding"]), metrics


def test_a_closed_set_of_answers_moves_the_other_rows():
    _, _, metrics = trained_table("train")
    assert metrics["embedding/cosine_others"] < 0.97


@pytest.mark.parametrize("mode", ["protect", "freeze"])
def test_rows_outside_the_answers_keep_their_values(mode):
    before, after, metrics = trained_table(mode)
    assert metrics["embedding/cosine_others"] >= 0.99
    assert metrics["embedding/cosine_answers"] < 0.99
    unread = np.setdiff1d(np.arange(VOCABULARY), [*ANSWERS, *PROMPT])
    np.testing.assert_array_equal(after[unread], before[unread])
    assert (after[list(ANSWERS)] != before[list(ANSWERS)]).any(axis=1).all()
    is_changed = (after[PROMPT] != before[PROMPT]).any(axis=1)
    assert is_changed.all() if mode == "protect" else not is_changed.any()


def test_cosines_are_those_of_the_rows():
    before, after, metrics = trained_table("train")
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosine = (before * after).sum(1) / norms
    others = np.delete(cosine[:48], ANSWERS)
    for name, expected in {
        "answers": cosine[list(ANSWERS)].mean(),
        "others": others.mean(),
        "others_min": others.min(),
    }.items():
        np.testing.assert_allclose(metrics[f"embedding/cosine_{name}"], expected, rtol=1e-4)


def test_at_most_a_fixed_number_of_rows_is_measured():
    rows = TokenRows.make("train", range(0, 5000, 2), range(5000))
    assert len(rows.measured_answers) == len(rows.measured_others) == MAX_MEASURED
    assert rows.measured_answers[-1] == 4998 and rows.measured_others[0] == 1
    with pytest.raises(UserError, match="unknown optim.vocabulary 'protec', did you mean 'prot"):
        TokenRows.make("protec", [], [])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"), phases=True)


def targets_of_rows(stage, rows):
    """Return the ids that are targets in the first rows of each stream."""
    builder = stage.row_builder()
    ids = set()
    for stream in range(len(stage.plan.streams)):
        for n in range(rows):
            row = builder(stream, n)
            ids.update(row["tokens"][row["target"]].tolist())
    return ids


@pytest.mark.parametrize("prompt", ["pi0", "pi0_fast", "subtask"])
def test_answers_are_the_targets_of_the_rows(dataset, tmp_path, prompt):
    config = nano_config(dataset, tmp_path, data__prompt=prompt, data__text_len=96)
    stage = Stage.open(config)
    layout = stage.assets.tokenizer.layout
    answers = set(stage.token_rows.answers)
    targets = targets_of_rows(stage, 40)
    assert targets <= answers
    expected = set(range(layout.loc.offset, layout.loc.stop))
    expected |= set(stage.assets.tokenizer.action_ids(range(stage.assets.fast.vocab_size)))
    assert expected <= answers
    # The rows contain nearly all words of the answers.
    assert len(answers - expected - targets) <= 3
    others = set(stage.token_rows.measured_others)
    assert others and not others & answers


def test_only_what_a_stream_asks_is_an_answer(dataset, tmp_path):
    config = nano_config(dataset, tmp_path, loss__fast=OFF)
    layout = Stage.open(config).assets.tokenizer.layout
    places = (layout.eos, *range(layout.loc.offset, layout.loc.stop))
    assert Stage.open(config).token_rows.answers == places
    config.streams.action.extra_segments = 0
    config.streams.etc.extra_segments = 0
    config.streams.etc.kind = "affordance"
    assert Stage.open(config).token_rows.answers == places
    config.streams.etc.kind = "task_planning"  # the dataset has none
    assert Stage.open(config).token_rows.answers == ()


def test_a_run_keeps_the_answers_of_its_checkpoint(dataset, tmp_path, monkeypatch):
    config = nano_config(dataset, tmp_path)
    saved = type("Saved", (), {"meta": lambda self: {"answer_ids": [1, 7]}})
    stage = Stage.open(config)
    monkeypatch.setattr(stage_lib, "find_checkpoint", lambda workdir: saved())
    assert stage.token_rows.answers == (1, 7)
