"""Every stage's config, in every variant, builds, is locked, and makes a plan."""

import functools
import importlib

import jax
import numpy as np
import pytest

from configs import common
from etcvla import rules
from etcvla.models.vla import init_params
from etcvla.train.optim import make_optimizer
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import inherited_assets, make_model, make_plan, missing_paths, row_sizes
from etcvla.train.step import StepSettings, active_losses

STAGES = ("vlm_pretrain", "distribution_bridge", "objective_bridge", "retentive_adapt")


def get_config(stage, variant):
    return importlib.import_module(f"configs.{stage}").get_config(variant)


@pytest.fixture(
    params=[(stage, variant) for stage in STAGES for variant in common.VARIANTS], ids="-".join
)
def config(request):
    return get_config(*request.param)


def test_a_stage_is_whole(config):
    assert config.is_locked and config.steps > 0 and config.batch_size > 0
    assert config.workdir == f"runs/{config.variant}/{config.stage}"
    with config.unlocked():
        config.steps = min(
            config.steps, 3000
        )  # the schedule's shape is over progress, so fewer steps show it too
    plan = make_plan(config)
    assert plan.counts.sum() == plan.steps * plan.batch_size
    table = plan_table(config, plan)
    assert all(name in table for name in config.streams) and all(
        f in table for f in missing_paths(config)
    )
    settings = StepSettings.from_config(config, 0)
    acts = any(stream.kind == "action" for stream in config.streams.values())
    assert active_losses(settings) == (["text", "fast", "flow"] if acts else ["text"])
    for dataset in config.datasets.values():
        assert 1 <= len(dataset.cameras) <= config.data.num_cameras
    for stream in config.streams.values():
        assert stream.dataset in config.datasets


def test_its_rules_fit_its_model(config):
    """The tiny tokenizer stands in where PaliGemma's is not at hand: its size changes no parameter's name."""
    with config.unlocked():
        config.update({"init_from": "", "workdir": "nowhere"})
        config.data.update({"tokenizer": "tiny", "fast_vocab": 256})
    model = make_model(config, inherited_assets(config))
    params = jax.eval_shape(functools.partial(init_params, model))
    make_optimizer(config.optim, config.steps, params)
    decay = rules.assign(config.optim.weight_decay, params, "optim.weight_decay")
    assert decay["llm"]["layers"]["mlp"]["linear"] > 0
    assert row_sizes(config, model).image_size == model.config.siglip.image_size
    assert config.data.max_targets < config.data.text_len


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_starts_from_is_what_the_one_before_leaves(stage):
    config = get_config(stage, "tiny")
    if stage == STAGES[0]:
        assert config.init_from == config.init_config == ""
        return
    before = get_config(STAGES[STAGES.index(stage) - 1], "tiny")
    assert config.init_from == before.workdir and config.init_config == f"configs/{before.stage}.py"
    assert (
        config.model.to_dict() == before.model.to_dict()
        and config.data.tokenizer == before.data.tokenizer
    )


def test_retention_can_train_adapters_alone():
    config = get_config("retentive_adapt", "tiny+lora")
    assert config.variant == "tiny" and config.workdir == "runs/tiny/retentive_adapt_lora"
    with config.unlocked():
        config.init_from = ""
    params = jax.eval_shape(
        functools.partial(init_params, make_model(config, inherited_assets(config)))
    )
    multiples = rules.assign(config.optim.lr_multiple, params, "optim.lr_multiple")
    trained = {
        rules.path_str(path): multiple
        for path, multiple in jax.tree_util.tree_flatten_with_path(multiples)[0]
    }
    assert {path for path, multiple in trained.items() if multiple} == {
        path for path in trained if "lora" in path
    }
    assert trained["llm/layers/mlp_1/linear_lora_b"] == 1 and trained["img/head/kernel"] == 0
    with pytest.raises(
        ValueError, match="retentive_adapt.py: no way to adapt 'lara'; after . there are lora, ood"
    ):
        get_config("retentive_adapt", "tiny+lara")


def test_a_typo_is_an_error_with_the_right_name():
    config = get_config("objective_bridge", "tiny")
    with pytest.raises(AttributeError, match=r"(?s)lr_mutiple.*lr_multiple"):
        config.optim.lr_mutiple = ((".*", 1.0),)
    with pytest.raises(
        ValueError, match="objective_bridge.py: no variant 'tinny'; choose from tiny, paligemma_3b"
    ):
        get_config("objective_bridge", "tinny")


def test_the_papers_mixture():
    """ETC kinds share their stage as in the paper, and actions take over as the schedule says."""
    bridge = make_plan(get_config("distribution_bridge", "tiny"))
    share = {
        stream.name.removeprefix("source_"): weight
        for stream, weight in zip(bridge.streams, bridge.weights[0], strict=True)
    }
    assert share == pytest.approx(
        {
            "spatial_understanding": 0.24,
            "goal_description": 0.14,
            "affordance": 0.22,
            "task_planning": 0.14,
            "trajectory": 0.26,
        }
    )
    plan = make_plan(get_config("objective_bridge", "tiny"))
    action = [stream.kind for stream in plan.streams].index("action")
    np.testing.assert_allclose(plan.weights[[0, -1], action], [0.6, 0.8], atol=1e-6)


@pytest.mark.parametrize("scene", ["source", "target"])
@pytest.mark.parametrize(
    "tasks", [common.METAWORLD_TASKS, common.MT10_TASKS, ("reach", "door-open")]
)
@pytest.mark.parametrize("episodes", [0, 2, 10, 30])
def test_a_config_looks_where_the_builder_builds(scene, tasks, episodes):
    builder = pytest.importorskip("data_builders.metaworld_etc.metaworld_etc_dataset_builder")
    path = common.metaworld(scene, tasks=tasks, episodes=episodes)["path"]
    assert (
        path
        == f"data/metaworld_etc/{builder.MetaWorldConfig(scene=scene, tasks=tasks, episodes=episodes).name}"
    )
