"""Train a stage: exact resumption, lineage, frozen parameters, and configs that are refused."""

import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from etcvla.errors import UserError
from etcvla.models.lora import LoRA, merge
from etcvla.models.siglip import resize_positions
from etcvla.train import sharding
from etcvla.train.checkpoint import CheckpointWriter, open_checkpoint
from etcvla.train.checkpoint_meta import checkpoint_meta
from etcvla.train.initial import initial_state
from etcvla.train.loop import train
from etcvla.train.stage import Stage, missing_paths
from etcvla.train.step_functions import StepFunctions, abstract_state
from tests.data.handmade_rlds import write_robot_set
from tests.train.nano import FROZEN, flatten, nano_config, read_metrics, saved_state

TIMES = ("time", "steps_per_second", "data_wait")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="module")
def parent(dataset, tmp_path_factory):
    """The config of a stage that was trained without interruption."""
    config = nano_config(dataset, tmp_path_factory.mktemp("parent"))
    train(config)
    return config


def state_at_step_0(config):
    stage = Stage.open(config)
    return initial_state(stage, *abstract_state(stage, sharding.make_mesh(config.mesh)))


def select(state, part):
    """Return the leaves of one part of a flat training state, such as "ema"."""
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def assert_bitwise_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def read_results(config):
    """Return the lines of metrics.jsonl by step, without times and memory."""
    results = {}
    for step, line in read_metrics(config.workdir).items():
        results[step] = {
            name: value
            for name, value in line.items()
            if not name.startswith("run/") and name not in TIMES
        }
    return results


def test_training_reduces_the_losses(parent):
    lines = read_results(parent)
    assert lines[6]["loss"] < lines[1]["loss"]
    assert lines[6]["loss/text"] < lines[1]["loss/text"]
    assert {
        "loss/fast",
        "loss/flow",
        "action/loss",
        "action/accuracy",
        "etc/accuracy",
        "grad_norm",
    } <= lines[6].keys()


def test_resuming_repeats_an_uninterrupted_run_bit_for_bit(parent, dataset, tmp_path):
    config = nano_config(dataset, tmp_path, save_every=2, keep=2)
    assert train(config, until=3)["steps"] == 3
    assert open_checkpoint(config.workdir).step == 3
    assert train(config)["steps"] == 6
    assert_bitwise_equal(saved_state(config), saved_state(parent))
    assert read_results(config) == read_results(parent)


def modification_times(folder):
    times = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            times[path] = os.stat(path).st_mtime_ns
    return times


def test_training_a_finished_stage_changes_no_file(parent):
    before = modification_times(parent.workdir)
    assert train(parent) == {"steps": 6, "seconds": 0.0, "metrics": {}}
    assert modification_times(parent.workdir) == before


def test_resuming_with_another_config_is_refused(parent, dataset):
    config = nano_config(dataset, parent.workdir, loss__noise_samples=3, log_every=5)
    message = r"another config.*\n  loss.noise_samples: 2 there, 3 here$"
    with pytest.raises(UserError, match=message):
        train(config)
    with config.unlocked():
        config.loss.noise_samples = 2
        config.datasets.robot.cameras = ("front", "front")
    with pytest.raises(UserError, match="datasets.robot.cameras"):
        train(config)


def test_allowed_fields_may_change_on_resume(parent, dataset, tmp_path):
    workdir = shutil.copytree(parent.workdir, tmp_path / "run")
    config = nano_config(dataset, workdir, steps=7, loss__noise_samples=3, optim__lr=((0.0, 1e-3),))
    message = r"or continue it anyway with --allow=loss.noise_samples,optim.lr,steps\n"
    with pytest.raises(UserError, match=message):
        train(config)
    with pytest.raises(UserError, match="--allow=optim.lr"):
        train(config, allow=["steps", "loss"])
    message = "config field in --allow 'losss.noise_samples', did you mean 'loss.noise_samples'"
    with pytest.raises(ValueError, match=message):
        train(config, allow=["losss.noise_samples"])
    assert train(config, allow=["steps", "loss", "optim.lr"])["steps"] == 7
    assert open_checkpoint(workdir).meta()["config"]["loss"]["noise_samples"] == 3


def test_resuming_on_other_data_is_refused(dataset, tmp_path):
    config = nano_config(shutil.copytree(dataset, tmp_path / "robot"), tmp_path / "run")
    stage = Stage.open(config)
    _, abstract = abstract_state(stage, sharding.make_mesh(config.mesh))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    checkpoints = CheckpointWriter(config.workdir, keep=1)
    checkpoints.save(zeros, checkpoint_meta(stage))
    checkpoints.wait()
    shutil.rmtree(tmp_path / "robot")
    write_robot_set(tmp_path / "robot", episodes=2)
    message = r"(?s)a run on other data.*\n  datasets.robot.episodes: \d there, 2 here"
    with pytest.raises(UserError, match=message):
        train(config)


def test_init_rules_choose_which_parameters_are_loaded(parent, dataset, tmp_path, capsys):
    """The parent is another model: it has an expert, and its state is a token."""
    config = nano_config(
        dataset,
        tmp_path,
        init_from=str(parent.workdir),
        model__expert="none",
        loss__flow=((0.0, 0.0),),
        model__state="text",
        optim__weight_decay=((".*", 0.0),),
    )
    with pytest.raises(UserError) as error:
        state_at_step_0(config)
    lines = str(error.value).splitlines()
    assert lines[1] == "  missing: []"
    assert "'action_in_proj/bias', 'action_in_proj/kernel', 'action_out_proj/bias'" in lines[2]
    assert "init_rules" in lines[-1]

    expert = r"(action|state|time)_.*|llm/.*_1(/.*)?"
    config.init_rules = ((expert, False), ("img/head/.*", False), (".*", True))
    state = state_at_step_0(config)
    output = capsys.readouterr().out
    assert "  fresh: img/head/bias, img/head/kernel\n" in output
    assert "  not loaded: action_in_proj/bias, action_in_proj/kernel" in output
    ema = select(saved_state(parent), "ema")
    for name, value in flatten(state.params).items():
        is_loaded = (value == ema[name]).all()
        assert is_loaded == (not name.startswith("img/head/")), name

    config.init_rules = (("lmm/.*", False), (".*", True))
    with pytest.raises(ValueError, match="init_rules: no parameter matches 'lmm/"):
        state_at_step_0(config)


def test_schedules_change_which_parameters_are_frozen(dataset, tmp_path, monkeypatch):
    """Each set of frozen rules compiles once, also if losses, rates and insulation change too."""
    functions = []
    jit_step = StepFunctions._jit_step

    def record_function(*args):
        functions.append(jit_step(*args))
        return functions[-1]

    monkeypatch.setattr(StepFunctions, "_jit_step", record_function)
    unfreezes = ((0.0, 0.0), (0.5, 0.0), (0.6, 1.0))
    config = nano_config(
        dataset,
        tmp_path,
        model__insulate=((0.0, 1.0), (1.0, 0.5)),
        loss__flow=((0.0, 1.0), (1.0, 2.0)),
        optim__lr_multiple=(("llm/embedder/.*", unfreezes), (FROZEN, 0.0), (".*", 1.0)),
    )
    start = flatten(state_at_step_0(config).params)
    table = "llm/embedder/input_embedding"
    train(config, until=3)
    early = select(saved_state(config), "params")
    np.testing.assert_array_equal(early[table], start[table])
    assert (early["llm/final_norm/scale"] != start["llm/final_norm/scale"]).any()
    train(config)
    assert (select(saved_state(config), "params")[table] != start[table]).any()
    assert [function._cache_size() for function in functions] == [1, 1]


def test_a_stage_starts_from_its_parents_ema(parent, dataset, tmp_path):
    saved = saved_state(parent)
    ema = select(saved, "ema")
    state = state_at_step_0(nano_config(dataset, tmp_path, init_from=parent.workdir))
    assert_bitwise_equal(flatten(state.params), ema)
    assert_bitwise_equal(flatten(state.ema), ema)
    assert state.step == 0
    assert not any(leaf.any() for leaf in flatten(state.opt).values())
    params = select(saved, "params")
    assert any((ema[name] != params[name]).any() for name in ema)  # the average, not the last


def test_lineage_lists_all_parents_and_needs_no_parent_on_resume(parent, dataset, tmp_path):
    origin = str(shutil.copytree(parent.workdir, tmp_path / "parent"))
    config = nano_config(dataset, tmp_path / "child", init_from=origin)
    train(config, until=1)
    shutil.rmtree(origin)
    assert missing_paths(config) == {}
    train(config)
    assert open_checkpoint(config.workdir).meta()["lineage"] == [{"workdir": origin, "step": 6}]
    grandchild = nano_config(dataset, tmp_path / "grandchild", init_from=config.workdir)
    lineage = checkpoint_meta(Stage.open(grandchild))["lineage"]
    assert [entry["step"] for entry in lineage] == [6, 6]
    before = select(saved_state(parent), "ema")
    after = saved_state(config)
    for part in ("params", "ema"):
        trained = select(after, part)
        changed = {name for name in before if (trained[name] != before[name]).any()}
        assert changed == {name for name in before if not re.fullmatch(FROZEN, name)}


def split_adapters(params):
    adapters = {
        name: value for name, value in params.items() if name.endswith(("lora_a", "lora_b"))
    }
    others = {name: value for name, value in params.items() if name not in adapters}
    return others, adapters


def test_adapters_leave_the_base_parameters_unchanged(parent, dataset, tmp_path):
    """The next stage starts from the merged parameters."""
    config = nano_config(
        dataset,
        tmp_path / "child",
        init_from=str(parent.workdir),
        steps=2,
        model__lora=((".*", 2),),
        optim__lr_multiple=((r".*lora_[ab]", 1.0), (".*", 0.0)),
    )
    train(config)
    base = select(saved_state(parent), "ema")
    saved = saved_state(config)
    for part in ("params", "ema"):
        params, adapters = split_adapters(select(saved, part))
        assert_bitwise_equal(params, base)
        assert adapters
        assert all(value.any() for value in adapters.values())  # lora_b starts at zero
    moments = {name for name in saved if name.endswith("/mu")}
    assert {name.rpartition("lora_")[2] for name in moments} == {"a/mu", "b/mu"}

    state = state_at_step_0(nano_config(dataset, tmp_path / "grandchild", init_from=config.workdir))
    merged = merge(unflatten_dict(params | adapters, sep="/"), LoRA(config.model.lora))
    loaded = flatten(state.params)
    for name, value in flatten(merged).items():
        np.testing.assert_allclose(loaded[name], value, atol=1e-6, err_msg=name)
    weight = "llm/layers/mlp/linear"
    assert np.abs(flatten(merged)[weight] - base[weight]).max() > 1e-5


def test_another_resolution_resizes_the_parents_positions(parent, dataset, tmp_path):
    config = nano_config(dataset, tmp_path, init_from=str(parent.workdir), model__image_size=56)
    state = state_at_step_0(config)
    before = select(saved_state(parent), "ema")["img/pos_embedding"]
    assert before.shape[1] == 4
    resized = resize_positions(before, 16)
    np.testing.assert_array_equal(state.params["img"]["pos_embedding"], resized)


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tmp_path, monkeypatch):
    """The checkpoint that was being written is complete."""
    original_batches = Stage.batches

    def batches(stage, start, rows):
        for step, batch in enumerate(original_batches(stage, start, rows), start):
            yield batch | {"actions": batch["actions"] * (np.nan if step == 5 else 1)}

    monkeypatch.setattr(Stage, "batches", batches)
    config = nano_config(dataset, tmp_path, save_every=1)
    with pytest.raises(UserError, match="objective_bridge: the loss is nan at step 6"):
        train(config)
    assert open_checkpoint(config.workdir).step == 5
