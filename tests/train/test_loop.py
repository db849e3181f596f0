"""Training a stage: exact resumption, lineage, frozen parameters, and runs that must not go on."""

import json
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
from etcvla.rules import path_str
from etcvla.train import loop, sharding
from etcvla.train.checkpoint import CheckpointWriter, open_checkpoint
from etcvla.train.checkpoint_meta import checkpoint_meta
from etcvla.train.initial import initial_state
from etcvla.train.loop import abstract_state, train
from etcvla.train.stage import Stage, missing_paths
from tests.data.handmade_rlds import write_robot_set
from tests.train.nano import FROZEN, nano_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="module")
def parent(dataset, tmp_path_factory):
    """The config of a stage that was trained without a stop."""
    config = nano_config(dataset, tmp_path_factory.mktemp("parent"))
    train(config)
    return config


def saved_state(config):
    """The newest checkpoint's training state, as numpy arrays by path."""
    _, abstract = abstract_state(Stage.open(config), sharding.make_mesh(config.mesh))
    return flat(open_checkpoint(config.workdir).train_state(abstract))


def flat(tree):
    return {
        path_str(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def lines(config):
    """metrics.jsonl by step, without what the format_duration says."""
    with open(f"{config.workdir}/metrics.jsonl") as file:
        return {
            line.pop("step"): {
                k: v
                for k, v in line.items()
                if not k.startswith("run/") and k not in ("time", "steps_per_second", "data_wait")
            }
            for line in map(json.loads, file)
        }


def test_training_learns(parent):
    first, last = lines(parent)[1], lines(parent)[6]
    assert last["loss"] < first["loss"] and last["loss/text"] < first["loss/text"]
    assert {
        "loss/fast",
        "loss/flow",
        "action/loss",
        "action/accuracy",
        "etc/accuracy",
        "grad_norm",
    } <= last.keys()


def test_a_run_stopped_half_way_ends_in_the_same_bits(parent, dataset, tmp_path):
    config = nano_config(
        dataset, tmp_path, save_every=2, keep=2
    )  # how often it is saved changes nothing
    assert train(config, until=3)["steps"] == 3
    assert open_checkpoint(config.workdir).step == 3
    assert train(config)["steps"] == 6
    assert_same_bits(saved_state(parent), saved_state(config))
    assert lines(parent) == lines(config)


def test_a_finished_stage_is_left_alone(parent):
    files = [
        os.path.join(folder, name) for folder, _, names in os.walk(parent.workdir) for name in names
    ]
    before = {path: os.stat(path).st_mtime_ns for path in files}
    assert train(parent) == {"steps": 6, "seconds": 0.0, "metrics": {}}
    assert {path: os.stat(path).st_mtime_ns for path in files} == before


def test_a_workdir_of_another_config_is_refused(parent, dataset):
    other = nano_config(dataset, parent.workdir, loss__noise_samples=3, log_every=5)
    with pytest.raises(
        ValueError, match=r"another config.*\n  loss.noise_samples: 2 there, 3 here$"
    ):
        train(other)
    with other.unlocked():
        other.loss.noise_samples, other.datasets.robot.cameras = 2, ("front", "front")
    with pytest.raises(ValueError, match="datasets.robot.cameras"):
        train(other)


def test_what_is_allowed_by_name_may_differ(parent, dataset, tmp_path):
    workdir = shutil.copytree(parent.workdir, tmp_path / "run")
    config = nano_config(dataset, workdir, steps=7, loss__noise_samples=3, optim__lr=((0.0, 1e-3),))
    with pytest.raises(
        ValueError, match=r"or continue it anyway with --allow=loss.noise_samples,optim.lr,steps\n"
    ):
        train(config)
    with pytest.raises(ValueError, match="--allow=optim.lr"):
        train(config, allow=["steps", "loss"])
    with pytest.raises(
        ValueError,
        match="unknown config field in --allow 'losss.noise_samples', did you mean 'loss.noise_samples'",
    ):
        train(config, allow=["losss.noise_samples"])
    assert train(config, allow=["steps", "loss", "optim.lr"])["steps"] == 7
    assert open_checkpoint(workdir).meta()["config"]["loss"]["noise_samples"] == 3


def test_other_data_at_the_same_place_is_refused(dataset, tmp_path):
    config = nano_config(shutil.copytree(dataset, tmp_path / "robot"), tmp_path / "run")
    checkpoints, (stage, abstract) = CheckpointWriter(config.workdir, keep=1), opened(config)
    checkpoints.save(
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract), checkpoint_meta(stage)
    )
    checkpoints.wait()
    shutil.rmtree(tmp_path / "robot")
    write_robot_set(tmp_path / "robot", episodes=2)
    with pytest.raises(
        ValueError, match=r"(?s)a run on other data.*\n  datasets.robot.episodes: \d there, 2 here"
    ):
        train(config)


def opened(config):
    stage = Stage.open(config)
    return stage, abstract_state(stage, sharding.make_mesh(config.mesh))[1]


def test_a_stage_takes_what_it_is_told_to(parent, dataset, tmp_path, capsys):
    """Another model's parameters in part, with what is fresh and what stays behind said by name."""
    fields = {
        "init_from": str(parent.workdir),
        "model__expert": "none",
        "loss__flow": ((0.0, 0.0),),
        "model__state": "text",
        "optim__weight_decay": ((".*", 0.0),),
    }
    config = nano_config(dataset, tmp_path, **fields)
    with pytest.raises(ValueError) as error:
        step_zero(config)
    told = str(error.value).splitlines()
    assert told[1] == "  missing: []" and "init_rules" in told[-1]
    assert "'action_in_proj/bias', 'action_in_proj/kernel', 'action_out_proj/bias'" in told[2]
    expert = r"(action|state|time)_.*|llm/.*_1(/.*)?"
    config.init_rules = ((expert, False), ("img/head/.*", False), (".*", True))
    state, before = step_zero(config), saved_state(parent)
    told = capsys.readouterr().out.splitlines()
    assert "  fresh: img/head/bias, img/head/kernel" in told
    assert any(
        line.startswith("  not loaded: action_in_proj/bias, action_in_proj/kernel") for line in told
    )
    for name, value in flat(state.params).items():
        assert (value == before[f"ema/{name}"]).all() == (not name.startswith("img/head/")), name
    config.init_rules = (("lmm/.*", False), (".*", True))
    with pytest.raises(ValueError, match="init_rules: no parameter matches 'lmm/"):
        step_zero(config)


def step_zero(config):
    stage = Stage.open(config)
    return initial_state(stage, *abstract_state(stage, sharding.make_mesh(config.mesh)))


def test_what_is_frozen_may_change_at_knots(dataset, tmp_path, monkeypatch):
    """And costs a compilation a frozen set, also where losses, rates and insulation change beside it."""
    made, make = [], loop.make_step
    monkeypatch.setattr(loop, "make_step", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    thaws = ((0.0, 0.0), (0.5, 0.0), (0.6, 1.0))
    ramps = {"model__insulate": ((0.0, 1.0), (1.0, 0.5)), "loss__flow": ((0.0, 1.0), (1.0, 2.0))}
    config = nano_config(
        dataset,
        tmp_path,
        **ramps,
        optim__lr_multiple=(("llm/embedder/.*", thaws), (FROZEN, 0.0), (".*", 1.0)),
    )
    start = flat(step_zero(config).params)
    train(config, until=3)
    early, table = saved_state(config), "llm/embedder/input_embedding"
    np.testing.assert_array_equal(early[f"params/{table}"], start[table])
    assert (early["params/llm/final_norm/scale"] != start["llm/final_norm/scale"]).any()
    train(config)
    assert (saved_state(config)[f"params/{table}"] != start[table]).any()
    assert len(made) == 2 and [step._cache_size() for step in made] == [1, 1]


def test_a_stage_takes_its_parents_average_and_says_so(parent, dataset, tmp_path):
    origin = str(shutil.copytree(parent.workdir, tmp_path / "parent"))
    config = nano_config(dataset, tmp_path / "child", init_from=origin)
    stage = Stage.open(config)
    optimizer, abstract = abstract_state(stage, sharding.make_mesh(config.mesh))
    state, saved = initial_state(stage, optimizer, abstract), saved_state(parent)
    ema = {
        name.removeprefix("ema/"): value for name, value in saved.items() if name.startswith("ema/")
    }
    assert_same_bits(ema, flat(state.params))
    assert_same_bits(ema, flat(state.ema))
    assert state.step == 0 and not any(leaf.any() for leaf in flat(state.opt).values())
    assert any(
        (ema[name] != saved[f"params/{name}"]).any() for name in ema
    )  # an average, not the last parameters

    train(config, until=1)
    shutil.rmtree(origin)  # a child that has begun needs its parent no more
    assert missing_paths(config) == {}
    train(config)
    assert open_checkpoint(config.workdir).meta()["lineage"] == [{"workdir": origin, "step": 6}]
    grandchild = nano_config(dataset, tmp_path / "grandchild", init_from=config.workdir)
    assert [p["step"] for p in checkpoint_meta(Stage.open(grandchild))["lineage"]] == [6, 6]
    trained = saved_state(config)
    for part in ("params", "ema"):
        moved = {name for name, value in ema.items() if (trained[f"{part}/{name}"] != value).any()}
        assert moved == {
            name for name in ema if not re.fullmatch(FROZEN, name)
        }  # what is frozen keeps its bits


def test_adapters_leave_what_they_adapt_in_its_bits(parent, dataset, tmp_path):
    """And the stage after takes their sum."""
    config = nano_config(
        dataset,
        tmp_path / "child",
        init_from=str(parent.workdir),
        steps=2,
        model__lora=((".*", 2),),
        optim__lr_multiple=((r".*lora_[ab]", 1.0), (".*", 0.0)),
    )
    train(config)
    before, saved = saved_state(parent), saved_state(config)
    ema = {
        name.removeprefix("ema/"): value
        for name, value in before.items()
        if name.startswith("ema/")
    }
    for part in ("params", "ema"):
        params = {
            name.removeprefix(f"{part}/"): x
            for name, x in saved.items()
            if name.startswith(f"{part}/")
        }
        adapters = {
            name: params.pop(name) for name in list(params) if name.endswith(("lora_a", "lora_b"))
        }
        assert_same_bits(ema, params)
        assert adapters and all(
            x.any() for x in adapters.values()
        )  # those that start at zero have moved
    assert {name.rpartition("lora_")[2] for name in saved if name.endswith("/mu")} == {
        "a/mu",
        "b/mu",
    }

    stage = Stage.open(nano_config(dataset, tmp_path / "grandchild", init_from=config.workdir))
    state = initial_state(stage, *abstract_state(stage, sharding.make_mesh(config.mesh)))
    merged = merge(unflatten_dict({**params, **adapters}, sep="/"), LoRA(config.model.lora))
    for name, value in flat(merged).items():
        np.testing.assert_allclose(flat(state.params)[name], value, atol=1e-6, err_msg=name)
    assert (
        np.abs(merged["llm"]["layers"]["mlp"]["linear"] - ema["llm/layers/mlp/linear"]).max() > 1e-5
    )


def test_a_stage_at_another_resolution_resizes_its_parents_positions(parent, dataset, tmp_path):
    config = nano_config(dataset, tmp_path, init_from=str(parent.workdir), model__image_size=56)
    stage = Stage.open(config)
    state = initial_state(stage, *abstract_state(stage, sharding.make_mesh(config.mesh)))
    found, before = (
        state.params["img"]["pos_embedding"],
        saved_state(parent)["ema/img/pos_embedding"],
    )
    np.testing.assert_array_equal(found, resize_positions(before, 16))
    assert stage.sizes.image_size == 56 and before.shape[1] == 4


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tmp_path, monkeypatch):
    """The checkpoint that was being written when it happened is whole."""
    batches = Stage.batches

    def poisoned(stage, start, rows):
        for step, batch in enumerate(batches(stage, start, rows), start):
            yield batch | {"actions": batch["actions"] * (np.nan if step == 5 else 1)}

    monkeypatch.setattr(Stage, "batches", poisoned)
    config = nano_config(dataset, tmp_path, save_every=1)
    with pytest.raises(UserError, match="objective_bridge: the loss is nan at step 6"):
        train(config)
    assert open_checkpoint(config.workdir).step == 5
