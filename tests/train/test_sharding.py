"""Shardings of parameters, and equal results on one device and on several."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from etcvla.errors import UserError
from etcvla.models.variants import SIZES, make_config
from etcvla.models.vla import VLA, init_params
from etcvla.rules import path_str
from etcvla.train import sharding
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.loop import train
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import is_backbone
from tests.train.nano import nano_config, read_metrics

# Prints the errors of two batch sizes, trains two steps on meshes of four devices and prints their
# losses, and trains a workdir up to step 2 on eight devices.
ON_EIGHT_DEVICES = """
import itertools, json, sys
import jax
from etcvla.errors import UserError
from etcvla.train import sharding
from etcvla.train.initial import initial_state
from etcvla.train.loop import train
from etcvla.train.step_functions import StepFunctions
from etcvla.train.stage import Stage
from tests.train.nano import nano_config
dataset, workdir = sys.argv[1:]
eight = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
for fields in ({"batch_size": 6}, {"optim__microbatches": 4}):
    try:
        train(nano_config(dataset, workdir + "/none", **eight, **fields))
    except UserError as error:
        print("error:", error)
start = None
for shape in ((4, 1, 1), (1, 4, 1), (1, 2, 2)):
    config = nano_config(dataset, workdir, optim__microbatches=2 if shape[0] == 1 else 1)
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape)), jax.devices()[:4])
    stage = Stage.open(config)
    steps = StepFunctions(stage, mesh)
    if start is None:
        start = jax.device_get(initial_state(stage, steps.optimizer, steps.abstract))
    state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, steps.abstract))
    losses = []
    for batch in itertools.islice(stage.batches(0), 2):
        state, metrics = steps.at(0)(state, sharding.put_batch(batch, mesh, config.batch_size))
        losses.append({name: float(value) for name, value in metrics.items() if not value.ndim})
    print("losses:", json.dumps(losses))
train(nano_config(dataset, workdir, **eight), until=2)
"""


@functools.cache
def param_shapes(size):
    config = make_config(
        size,
        vocab_size=257_152,
        state_dim=32,
        action_dim=32,
        horizon=50,
        state="token",
        insulate=True,
        image_attends_prompt=False,
    )
    params = jax.eval_shape(functools.partial(init_params, VLA(config)))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_str(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("size", sorted(set(SIZES) - {"nano"}))
def test_every_parameter_has_a_sharding_and_large_ones_are_split(size):
    mesh = AbstractMesh((2, 4, 1), sharding.AXES)
    shardings = sharding.param_shardings(param_shapes(size), mesh)
    for path, leaf in param_shapes(size).items():
        spec = shardings[path].spec
        assert len(spec) <= leaf.ndim, path
        if leaf.size > 2_000_000:
            assert "fsdp" in jax.tree.leaves(tuple(spec)), path


def test_full_size_has_the_released_number_of_parameters_and_fits_a_pod():
    shapes = param_shapes("paligemma_3b")
    shardings = sharding.param_shardings(shapes, AbstractMesh((4, 16, 8), sharding.AXES))
    gating = shardings["llm/layers/mlp/gating_einsum"]
    assert gating.spec == PartitionSpec(None, None, "fsdp", "tensor")
    total = sum(leaf.size for leaf in shapes.values())
    backbone = sum(leaf.size for path, leaf in shapes.items() if is_backbone(path))
    tower = sum(leaf.size for path, leaf in shapes.items() if path.startswith("img/"))
    # The released PaliGemma 1 at 224 px: SigLIP, its projection to Gemma's width, and Gemma 2.5B.
    assert backbone == 2_923_335_408
    assert tower == 412_442_352 + 2_361_344
    assert 300e6 < total - backbone < 450e6  # the expert, much of it adaptive norms


@pytest.mark.parametrize(
    ("fsdp", "spec"),
    [(16, (None, None, ("tensor", "fsdp"), None)), (32, (None, "fsdp", "tensor", None))],
)
def test_attention_of_the_tower_is_split_by_heads_if_they_divide(fsdp, spec):
    shapes = param_shapes("paligemma_3b")
    queries = {path: leaf for path, leaf in shapes.items() if path.endswith("query/kernel")}
    shardings = sharding.param_shardings(queries, AbstractMesh((1, fsdp, 1), sharding.AXES))
    assert [query.spec for query in shardings.values()] == [PartitionSpec(*spec)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), r"\{'data': 3, 'fsdp': 1, 'tensor': 1\} does not multiply to 1 devices"),
        ((-1, 2, 1), "does not multiply to 1 devices"),
        ((-1, -1, 1), "only one axis may be -1"),
        ((0, 1, -1), "sizes must be 1 or more"),
    ],
)
def test_a_mesh_must_use_all_devices(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), jax.devices()[:1])


def test_an_empty_batch_is_an_error():
    with pytest.raises(UserError, match="batch_size is 0, expected 1 row or more"):
        sharding.check_batch(0, AbstractMesh((1, 1, 1), sharding.AXES))


def test_a_mesh_that_does_not_divide_a_parameter_is_an_error():
    shapes = param_shapes("paligemma_3b")
    queries = {path: leaf for path, leaf in shapes.items() if "q_einsum" in path}
    message = r"mesh.tensor = 3 does not divide llm/layers/attn/q_einsum/w \[18, 8, 2048"
    with pytest.raises(UserError, match=message):
        sharding.param_shardings(queries, AbstractMesh((1, 1, 3), sharding.AXES))


def test_a_parameter_without_a_rule_is_an_error():
    params = {"head": {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}}
    with pytest.raises(ValueError, match="sharding: no rule matches head/kernel"):
        sharding.param_shardings(params, AbstractMesh((1, 1, 1), sharding.AXES))


def test_results_do_not_depend_on_the_mesh(tmp_path):
    """Four and eight devices log the same losses as one, and one device resumes the run of eight."""
    dataset = write_robot_set(tmp_path / "robot")
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(dataset), str(tmp_path / "eight")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    train(nano_config(dataset, tmp_path / "one"), until=3)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    shards = "is not a multiple of mesh.data x mesh.fsdp = 4"
    assert f"error: batch_size 6 {shards}\n" in output
    assert f"error: batch_size 8 {shards} x optim.microbatches 4\n" in output
    assert open_checkpoint(tmp_path / "eight").step == 2
    train(nano_config(dataset, tmp_path / "eight"), until=3)
    on_one = read_losses(tmp_path / "one")
    on_eight = read_losses(tmp_path / "eight")
    for step in (1, 2, 3):
        assert on_one[step].keys() == on_eight[step].keys()
        assert_close(on_eight[step], on_one[step])
    on_four = [line for line in output.splitlines() if line.startswith("losses:")]
    assert len(on_four) == 3
    for line in on_four:
        for step, losses in enumerate(json.loads(line.removeprefix("losses:")), start=1):
            assert_close(losses, on_one[step])


def assert_close(actual, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)


def read_losses(workdir):
    losses = {}
    for step, line in read_metrics(workdir).items():
        losses[step] = {
            name: value for name, value in line.items() if "loss" in name or name == "grad_norm"
        }
    return losses
