"""Every stage's config, in every variant, is complete, locked, and makes a plan."""

import functools
import importlib

import jax
import numpy as np
import pytest

from configs import common
from etcvla import rules
from etcvla.errors import UserError
from etcvla.models.vla import init_params
from etcvla.train.optim import make_optimizer
from etcvla.train.plan_shares import plan_shares
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import inherited_assets, make_model, make_plan, missing_paths, row_sizes
from etcvla.train.step import StepSettings, active_losses

STAGES = ("vlm_pretrain", "distribution_bridge", "objective_bridge", "retentive_adapt")


def stage_module(stage):
    return importlib.import_module(f"configs.{stage}")


def get_config(stage, variant):
    return stage_module(stage).get_config(variant)


@pytest.fixture(
    params=[(stage, variant) for stage in STAGES for variant in stage_module(stage).VARIANTS],
    ids="-".join,
)
def config(request):
    return get_config(*request.param)


def test_config_is_complete(config):
    assert config.is_locked
    assert config.steps > 0
    assert config.batch_size > 0
    assert config.workdir == f"runs/{config.variant}/{config.stage}"
    with config.unlocked():
        # Schedules are over progress, so fewer steps have the same shape.
        config.steps = min(config.steps, 3000)
    plan = make_plan(config)
    assert plan.counts.sum() == plan.steps * plan.batch_size
    table = plan_table(config, plan)
    assert all(name in table for name in config.streams)
    assert all(field in table for field in missing_paths(config))
    has_actions = any(stream.kind == "action" for stream in config.streams.values())
    expected_losses = ["text"]
    if has_actions:
        expected_losses += ["flow"] if config.variant == "tabletop" else ["fast", "flow"]
    if config.stage == "vlm_pretrain" and config.variant == "tiny":
        expected_losses += ["image"]
    assert active_losses(StepSettings.from_config(config, 0)) == expected_losses
    for dataset in config.datasets.values():
        assert 1 <= len(dataset.cameras) <= config.data.num_cameras
    for stream in config.streams.values():
        assert stream.dataset in config.datasets


def test_rules_match_the_models_parameters(config):
    """The tiny tokenizer replaces PaliGemma's: its size changes no parameter name."""
    common.override(
        config,
        {
            "init_from": "",
            "workdir": "nowhere",
            "data.tokenizer": "tiny",
            "data.fast_vocab": 256,
        },
    )
    model = make_model(config, inherited_assets(config))
    params = jax.eval_shape(functools.partial(init_params, model))
    make_optimizer(config.optim, config.steps, params)
    decay = rules.assign(config.optim.weight_decay, params, "optim.weight_decay")
    assert decay["llm"]["layers"]["mlp"]["linear"] > 0
    assert row_sizes(config, model).image_size == model.config.siglip.image_size
    assert config.data.max_targets < config.data.text_len


@pytest.mark.parametrize("stage", STAGES[1:])
def test_tabletop_stages_have_one_model_and_one_base(stage):
    config = get_config(stage, "tabletop")
    base = get_config("vlm_pretrain", "tiny")
    assert config.model.size == base.model.size
    assert config.data.places == base.data.places
    assert config.data.num_cameras == base.data.num_cameras
    if stage == STAGES[1]:
        assert config.init_from == "base"
    else:
        assert config.init_from == get_config(STAGES[STAGES.index(stage) - 1], "tabletop").workdir


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_starts_from_the_previous_one(stage):
    config = get_config(stage, "tiny")
    if stage == STAGES[0]:
        assert config.init_from == ""
        assert config.init_config == ""
        return
    parent = get_config(STAGES[STAGES.index(stage) - 1], "tiny")
    if stage == STAGES[1]:
        assert (config.init_from, config.init_config) == ("base", "")
    else:
        assert config.init_from == parent.workdir
        assert config.init_config == f"configs/{parent.stage}.py"
    assert config.model.to_dict() == parent.model.to_dict()
    assert config.data.tokenizer == parent.data.tokenizer


def test_retentive_adaptation_can_train_adapters_alone():
    config = get_config("retentive_adapt", "tiny+lora")
    assert config.variant == "tiny"
    assert config.workdir == "runs/tiny/retentive_adapt_lora"
    common.override(config, {"init_from": ""})
    model = make_model(config, inherited_assets(config))
    params = jax.eval_shape(functools.partial(init_params, model))
    multiples = rules.assign(config.optim.lr_multiple, params, "optim.lr_multiple")
    by_path = {}
    for path, multiple in jax.tree_util.tree_flatten_with_path(multiples)[0]:
        by_path[rules.path_str(path)] = multiple
    trained = {path for path, multiple in by_path.items() if multiple}
    assert trained == {path for path in by_path if "lora" in path}
    assert by_path["llm/layers/mlp_1/linear_lora_b"] == 1
    assert by_path["img/head/kernel"] == 0


def test_ood_option_takes_a_share_of_the_etc_rows():
    config = get_config("retentive_adapt", "tiny+ood")
    plain = get_config("retentive_adapt", "tiny")
    assert config.streams.ood.weight[0][1] == pytest.approx(0.2 * 0.06)
    assert config.streams.action.weight == plain.streams.action.weight
    total = sum(stream.weight[0][1] for stream in config.streams.values())
    assert total == pytest.approx(1.0)


def test_unknown_variants_and_options_are_named():
    with pytest.raises(
        UserError, match="retentive_adapt.py: unknown option 'lara' after .;.*lora, ood"
    ):
        get_config("retentive_adapt", "tiny+lara")
    with pytest.raises(
        UserError, match="objective_bridge.py: unknown variant 'tinny';.*tiny, tabletop"
    ):
        get_config("objective_bridge", "tinny")
    with pytest.raises(UserError, match="recipe.py: unknown variant 'dem'; choose from demo, meta"):
        get_config("recipe", "dem")


def test_a_misspelled_field_is_an_error():
    config = get_config("objective_bridge", "tiny")
    with pytest.raises(AttributeError, match=r"(?s)lr_mutiple.*lr_multiple"):
        config.optim.lr_mutiple = ((".*", 1.0),)
    with pytest.raises(UserError, match="unknown config field 'optim.lr_mutiple'"):
        common.override(config, {"optim.lr_mutiple": ((".*", 1.0),)})
    with pytest.raises(UserError, match="unknown config field 'optin.lr': there is no 'optin'"):
        common.override(config, {"optin.lr": 0.1})


def test_override_reaches_nested_fields():
    config = get_config("objective_bridge", "tiny")
    common.override(config, {"streams.action.weight": common.constant(0.5), "steps": 7})
    assert config.streams.action.weight == ((0.0, 0.5),)
    assert config.steps == 7
    assert config.is_locked


def test_mixture_has_the_papers_weights():
    """ETC kinds have the paper's shares, and the action share follows its schedule."""
    stage1 = make_plan(get_config("distribution_bridge", "tiny"))
    shares = {}
    for stream, weight in zip(stage1.streams, stage1.row_shares[0], strict=True):
        shares[stream.name.removeprefix("source_")] = weight
    assert shares == pytest.approx(
        {
            "spatial_understanding": 0.24,
            "goal_description": 0.14,
            "affordance": 0.22,
            "task_planning": 0.14,
            "trajectory": 0.26,
        }
    )
    stage2 = make_plan(get_config("objective_bridge", "tiny"))
    action = [stream.kind for stream in stage2.streams].index("action")
    np.testing.assert_allclose(stage2.row_shares[[0, -1], action], [0.2, 0.8], atol=1e-6)


def loss_of_actions(config):
    """Return the planned shares of actions in rows, segments and loss, each [steps]."""
    shares = plan_shares(config, make_plan(config))
    return [
        values[:, shares.is_action].sum(axis=1)
        for values in (shares.rows, shares.segments, shares.loss)
    ]


def test_objective_bridge_shifts_the_loss_from_answers_to_actions():
    """The numbers of the docstring of configs/objective_bridge.py."""
    config = get_config("objective_bridge", "tiny")
    _, _, loss = loss_of_actions(config)
    np.testing.assert_allclose(loss[[0, -1]], [1 - 0.804, 1 - 0.259], atol=5e-4)
    assert (np.diff(loss) >= -1e-6).all()
    assert loss[config.steps // 4] == pytest.approx(0.5 / 1.05, abs=1e-3)


def test_paper_option_has_four_action_rows_for_each_etc_row_and_unit_weights():
    config = get_config("objective_bridge", "tiny+paper")
    assert config.loss.form == "objectives"
    rows, segments, loss = loss_of_actions(config)
    np.testing.assert_allclose(rows, 0.8, atol=1e-6)
    np.testing.assert_allclose(segments, 0.8, atol=1e-6)
    np.testing.assert_allclose(loss, 0.5, atol=1e-6)
    weights = {config.loss.text, config.loss.fast, config.loss.flow}
    assert weights == {common.constant(1.0)}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_replay_takes_its_share_of_the_objective(stage):
    config = get_config(stage, "tiny+replay")
    plain = get_config(stage, "tiny")
    assert config.workdir == f"{plain.workdir}_replay"
    plan = make_plan(config)
    replay = [stream.name for stream in plan.streams].index("replay")
    np.testing.assert_allclose(plan.coefficients[:, replay], 0.1, atol=1e-6)
    others = np.delete(plan.coefficients, replay, axis=1)
    np.testing.assert_allclose(others, 0.9 * make_plan(plain).coefficients, atol=1e-6)
    assert config.extra_segment_weights.name > 0
    assert "replay" in get_config(stage, "paligemma_3b").streams
    assert "replay" not in get_config(stage, "paligemma_3b+no_replay").streams


@pytest.mark.parametrize("variant", stage_module("recipe").VARIANTS)
def test_recipe_runs_start_from_the_base_and_from_each_other(variant):
    recipe = get_config("recipe", variant)
    assert recipe.is_locked
    assert recipe.order == STAGES[1:]
    inits = [recipe.runs[name].init for name in recipe.order]
    assert inits == ["base", *recipe.order[:-1]]
    for name in recipe.order:
        stage, plus, options = recipe.runs[name].stage.partition("+")
        config = get_config(stage, recipe.variant + plus + options)
        used = {stream.dataset for stream in config.streams.values()}
        assert used | set(recipe.runs[name].questions) <= set(recipe.episodes)


def test_recipes_differ_in_simulator_and_tasks():
    demo = get_config("recipe", "demo")
    assert [scene[0] for scene in demo.runs.objective_bridge.scenes] == list("APBCN")
    assert demo.arms.action_only and demo.eval.simulator == "tabletop"
    mt10 = get_config("recipe", "mt10")
    assert mt10.tasks == common.MT10_TASKS
    assert mt10.steps.objective_bridge == 2000


@pytest.mark.parametrize("scene", ["source", "target"])
@pytest.mark.parametrize(
    "tasks", [common.METAWORLD_TASKS, common.MT10_TASKS, ("reach", "door-open")]
)
@pytest.mark.parametrize("episodes", [0, 2, 10, 30])
def test_config_and_builder_agree_on_the_dataset_name(scene, tasks, episodes):
    builder = pytest.importorskip("data_builders.metaworld_etc.metaworld_etc_dataset_builder")
    path = common.metaworld(scene, tasks=tasks, episodes=episodes)["path"]
    name = builder.MetaWorldConfig(scene=scene, tasks=tasks, episodes=episodes).name
    assert path == f"data/metaworld_etc/{name}"
