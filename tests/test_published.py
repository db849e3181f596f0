"""Tests of the published recipes: variants, models, schedules and prompts."""

import functools
import importlib
import json
import math
import pathlib

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs import common
from etcvla import schedule
from etcvla.data.rows import RowBuilder, RowOptions
from etcvla.data.tokenizer import Tokenizer
from etcvla.models.variants import config_from_dict
from etcvla.models.vla import init_params
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.loop import train
from etcvla.train.optim import make_optimizer
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import Stage, inherited_assets, make_model, make_plan, streams_of
from etcvla.train.step import StepSettings, active_losses
from tests.data.handmade_rlds import write_robot_set
from tests.data.made_rows import segments
from tests.train.nano import nano_config

# recipe -> (losses, golden checkpoint with its parameters)
RECIPES = {
    "pi0": (["flow"], "pi0"),
    "pi05": (["flow"], "pi05"),
    "pi0_fast": (["fast"], "pi0_fast"),
    "two_bridges_1": (["text"], "pi0_fast"),
    "two_bridges_2": (["text", "fast"], "pi0_fast"),
}


def get_config(recipe, variant):
    return importlib.import_module(f"configs.published.{recipe}").get_config(variant)


def full_model(recipe):
    """Return the full-size model. The tiny tokenizer replaces PaliGemma's, which changes only
    the rows of the embedding.
    """
    config = get_config(recipe, "paligemma_3b")
    config.update({"init_from": "", "workdir": "nowhere"})
    config.data.update({"tokenizer": "tiny", "layout": "disjoint", "fast_vocab": 256})
    return make_model(config, inherited_assets(config))


@pytest.mark.parametrize("variant", common.VARIANTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_complete(recipe, variant):
    config = get_config(recipe, variant)
    assert config.is_locked and config.workdir == f"runs/{variant}/{recipe}"
    config.steps = min(config.steps, 3000)
    plan = make_plan(config)
    assert plan.counts.sum() == plan.steps * plan.batch_size
    assert all(name in plan_table(config, plan) for name in config.streams)
    settings = StepSettings.from_config(config, 0)
    assert active_losses(settings) == RECIPES[recipe][0]
    assert (
        config.data.max_targets < config.data.text_len and config.batch_size % config.mesh.fsdp == 0
    )
    assert all(
        stream.extra_segments == 0 for stream in streams_of(config)
    )  # images read the prompt, so a row has one prompt


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_parameters_of_openpi(recipe):
    """Compare names and ranks at full size; the recipe uses every rule."""
    params = jax.eval_shape(functools.partial(init_params, full_model(recipe)))
    actual = {path: leaf.ndim for path, leaf in flatten_dict(params, sep="/").items()}
    golden = np.load(pathlib.Path(__file__).parent / "golden" / RECIPES[recipe][1] / "params.npz")
    assert actual == {path.removeprefix("PaliGemma/"): golden[path].ndim for path in golden.files}
    config = get_config(recipe, "paligemma_3b")
    make_optimizer(config.optim, config.steps, params)


def test_full_sizes_are_the_released_ones():
    """PaliGemma 3B at 224 px has 2,923,466,480 parameters on Hugging Face, 64 padding rows
    included.
    """
    model = full_model("pi0_fast")
    params = jax.eval_shape(functools.partial(init_params, model))
    width = model.config.vlm.width
    vocabulary = model.config.vocab_size
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count + (257_152 + 64 - vocabulary) * width == 2_923_466_480


@pytest.mark.parametrize("recipe", ["pi0", "pi0_fast"])
def test_learning_rate_equals_openpi(recipe):
    config = get_config(recipe, "paligemma_3b")
    theirs = optax.warmup_cosine_decay_schedule(2.5e-5 / 1001, 2.5e-5, 1000, 30_000, 2.5e-6)
    for step in (0, 1, 500, 999, 1000, 1001, 5000, 15_500, 29_000, 30_000):
        ours = schedule.value_at(config.optim.lr, step / config.steps, np)
        assert ours == pytest.approx(float(theirs(step)), abs=1e-3 * 2.5e-5)


def test_batches_have_the_shares_of_the_paper():
    """Each step has 32 rows of actions and 8 of ETC within one row; five kinds in fixed shares."""
    config = get_config("two_bridges_2", "paligemma_3b")
    config.steps = 2500
    plan = make_plan(config)
    action = [stream.kind for stream in plan.streams].index("action")
    assert (np.abs(np.cumsum(plan.counts[:, action] - 32)) <= 1).all() and (
        plan.counts.sum(1) == 40
    ).all()
    drawn = dict(
        zip([stream.kind for stream in plan.streams], plan.counts.sum(0) / 8 / 2500, strict=True)
    )
    for kind, share in common.ETC_WEIGHTS.items():
        assert drawn[kind] == pytest.approx(share, abs=1e-3)


def test_two_bridges_adds_answers_and_actions_with_unit_weights():
    config = get_config("two_bridges_2", "tiny")
    plan = make_plan(config)
    action = [stream.kind for stream in plan.streams].index("action")
    text = config.loss.text[0][1] * np.delete(plan.coefficients, action, axis=1).sum(axis=1)
    np.testing.assert_allclose(text, 1, rtol=1e-6)
    fast = config.loss.fast[0][1] * plan.coefficients[:, action]
    np.testing.assert_allclose(fast, 1, rtol=1e-6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


@pytest.mark.parametrize(
    ("recipe", "prompt", "target"),
    [
        ("pi0", "open the door\n", False),
        ("pi05", "Task: open the door, State: {};\nAction: ", False),
        ("pi0_fast", "Task: open the door, State: {};\n", True),
    ],
)
def test_prompts_equal_those_of_openpi(dataset, tmp_path, recipe, prompt, target):
    config = get_config(recipe, "tiny")
    config.update({"init_from": "", "workdir": str(tmp_path)})
    with config.unlocked():
        config.datasets.source = common.dataset(str(dataset), ("front", "wrist"))
    stage = Stage.open(config)
    builder = RowBuilder(
        stage.plan,
        stage.datasets,
        stage.assets,
        stage.sizes,
        RowOptions(
            prompt=config.data.prompt,
            use_fast="fast" in RECIPES[recipe][0],
            mask_padding=config.data.mask_padding,
            loss_form=config.loss.form,
        ),
    )
    rows = [builder(0, n) for n in range(12)]
    row = next(
        row for row in rows if "door" in Tokenizer.load().decode(row["tokens"][row["segment"] > 0])
    )
    [(text, ids)] = segments(row, stage.assets.tokenizer)
    before, _, after = prompt.partition("{}")
    assert text.startswith(before) and text.endswith(after) and bool(ids) == target
    assert row["action_mask"].all() == (recipe != "pi0_fast")


@pytest.mark.parametrize("recipe", ["pi0", "pi0_fast"])
def test_recipe_trains(dataset, tmp_path, recipe):
    """A few steps reduce the loss, with a plain expert and without expert."""
    published = get_config(recipe, "tiny")
    config = nano_config(dataset, tmp_path, data__text_len=112)
    with config.unlocked():
        config.streams = {"action": common.stream("robot", "action", 1.0, extra_segments=0)}
    for group, field in (
        ("model", "expert"),
        ("model", "state"),
        ("model", "image_attends_prompt"),
        ("model", "insulate"),
        ("data", "prompt"),
        ("data", "mask_padding"),
        ("loss", "text"),
        ("loss", "fast"),
        ("loss", "flow"),
        ("loss", "form"),
    ):
        config[group][field] = published[group][field]
    config.steps = config.save_every = 12
    result = train(config)
    actual = [
        json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(actual) == 12 and np.mean(actual[-3:]) < np.mean(actual[:3])
    assert f"loss/{RECIPES[recipe][0][0]}" in result["metrics"]
    saved = config_from_dict(open_checkpoint(tmp_path).meta()["model"])
    assert saved == Stage.open(config).model.config
    assert (saved.expert is None) == (recipe == "pi0_fast")


def test_flow_without_an_expert(tmp_path):
    config = get_config("pi0_fast", "tiny")
    config.loss.flow = common.constant(1.0)
    config.update({"init_from": "", "workdir": str(tmp_path)})
    with pytest.raises(ValueError, match='model.expert is "none", but loss.flow is not 0'):
        make_model(config, inherited_assets(config))
    config.loss.flow = common.constant(0.0)
    config.model.expert = "adaptve"
    with pytest.raises(ValueError, match="unknown model.expert 'adaptve', did you mean 'adaptive'"):
        make_model(config, inherited_assets(config))
