"""Where parameters lie, and that it changes no number: the same run on one device and on a mesh of eight."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from etcvla.models.variants import SIZES, make_config
from etcvla.models.vla import VLA, init_params
from etcvla.rules import path_str
from etcvla.train import sharding
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.loop import train
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import is_backbone
from tests.train.nano import nano_config

ON_EIGHT = """
import json, sys
import jax
from tests.train.nano import nano_config
from etcvla.train import sharding
from etcvla.train.initial import initial_state
from etcvla.train.loop import abstract_state, make_step, train
from etcvla.train.stage import Stage
dataset, workdir = sys.argv[1:]
for fields in ({"batch_size": 6}, {"optim__microbatches": 4}):
    try:
        train(nano_config(dataset, workdir + "/none", mesh__data=2, mesh__fsdp=2, mesh__tensor=2, **fields))
    except ValueError as error:
        print("error:", error)
start = None
for shape in ((4, 1, 1), (1, 4, 1), (1, 2, 2)):
    config = nano_config(dataset, workdir, optim__microbatches=2 if shape[0] == 1 else 1)
    stage, mesh = Stage.open(config), sharding.make_mesh(dict(zip(sharding.AXES, shape)), jax.devices()[:4])
    optimizer, abstract = abstract_state(stage, mesh)
    start = start or jax.device_get(initial_state(stage, optimizer, abstract))
    state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, abstract))
    step, losses = make_step(stage, optimizer, abstract), []
    for _, batch in zip(range(2), stage.batches(0)):
        state, metrics = step(state, sharding.put_batch(batch, mesh, config.batch_size))
        losses.append({name: float(value) for name, value in metrics.items() if not value.ndim})
    print("losses:", json.dumps(losses))
train(nano_config(dataset, workdir, mesh__data=2, mesh__fsdp=2, mesh__tensor=2), until=2)
"""


@functools.cache
def shapes(size):
    model = VLA(
        make_config(
            size,
            vocab_size=257_152,
            state_dim=32,
            action_dim=32,
            horizon=50,
            state="token",
            insulate=True,
            image_attends_prompt=False,
        )
    )
    found = jax.eval_shape(functools.partial(init_params, model))
    return {path_str(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}


@pytest.mark.parametrize("size", sorted(set(SIZES) - {"nano"}))
def test_every_parameter_of_every_size_has_a_place(size):
    mesh = AbstractMesh((2, 4, 1), sharding.AXES)
    places = sharding.param_shardings(shapes(size), mesh)
    for path, leaf in shapes(size).items():
        spec = places[path].spec
        if leaf.size > 2_000_000:  # what is large lies in pieces, an axis of D at least
            assert "fsdp" in jax.tree.leaves(tuple(spec)), path
        assert len(spec) <= leaf.ndim, path


def test_the_full_size_lies_on_a_pod_and_weighs_what_it_should():
    full = shapes("paligemma_3b")
    places = sharding.param_shardings(full, AbstractMesh((4, 16, 8), sharding.AXES))
    assert places["llm/layers/mlp/gating_einsum"].spec == PartitionSpec(
        None, None, "fsdp", "tensor"
    )
    counts = {path: leaf.size for path, leaf in full.items()}
    backbone = sum(count for path, count in counts.items() if is_backbone(path))
    tower = sum(count for path, count in counts.items() if path.startswith("img/"))
    # The released PaliGemma 1 at 224 px: SigLIP and what projects it to Gemma's width, Gemma's 2.5 B.
    assert backbone == 2_923_335_408 and tower == 412_442_352 + 2_361_344
    assert (
        300e6 < sum(counts.values()) - backbone < 450e6
    )  # adaptive norms are a good part of the expert


@pytest.mark.parametrize(
    ("fsdp", "spec"),
    [(16, (None, None, ("tensor", "fsdp"), None)), (32, (None, "fsdp", "tensor", None))],
)
def test_the_towers_attention_lies_by_heads_where_there_are_enough(fsdp, spec):
    tree = {
        path: leaf for path, leaf in shapes("paligemma_3b").items() if path.endswith("query/kernel")
    }
    places = sharding.param_shardings(tree, AbstractMesh((1, fsdp, 1), sharding.AXES))
    assert [place.spec for place in places.values()] == [PartitionSpec(*spec)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), r"mesh: \{'data': 3, 'fsdp': 1, 'tensor': 1\} does not multiply to 1 devices"),
        ((-1, 2, 1), "does not multiply to 1 devices"),
        ((-1, -1, 1), "only one axis may be -1"),
        ((0, 1, -1), "sizes must be 1 or more"),
    ],
)
def test_a_mesh_that_is_not_the_devices(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), jax.devices()[:1])


def test_a_batch_without_rows():
    with pytest.raises(ValueError, match="batch_size is 0, expected 1 row or more"):
        sharding.check_batch(0, AbstractMesh((1, 1, 1), sharding.AXES))


def test_a_mesh_that_does_not_divide_a_parameter():
    with pytest.raises(
        ValueError,
        match=r"mesh.tensor = 3 does not divide llm/layers/attn/q_einsum/w \[18, 8, 2048",
    ):
        sharding.param_shardings(
            {path: leaf for path, leaf in shapes("paligemma_3b").items() if "q_einsum" in path},
            AbstractMesh((1, 1, 3), sharding.AXES),
        )


def test_a_parameter_that_no_rule_places():
    with pytest.raises(ValueError, match="sharding: no rule matches head/kernel"):
        sharding.param_shardings(
            {"head": {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}},
            AbstractMesh((1, 1, 1), sharding.AXES),
        )


def test_a_mesh_changes_no_number(tmp_path):
    """Steps on four devices and on eight log what they do on one, and one device takes the run of eight up."""
    dataset = write_robot_set(tmp_path / "robot")
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    eight = subprocess.Popen(
        [sys.executable, "-c", ON_EIGHT, str(dataset), str(tmp_path / "eight")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    train(nano_config(dataset, tmp_path / "one"), until=3)
    out, errors = eight.communicate()
    assert eight.returncode == 0, errors
    assert "error: batch_size 6 is not a multiple of mesh.data x mesh.fsdp = 4\n" in out
    assert (
        "error: batch_size 8 is not a multiple of mesh.data x mesh.fsdp = 4 x optim.microbatches 4\n"
        in out
    )
    assert open_checkpoint(tmp_path / "eight").step == 2
    train(nano_config(dataset, tmp_path / "eight"), until=3)
    one, other = (metrics(tmp_path / name) for name in ("one", "eight"))
    for step in (1, 2, 3):
        assert one[step].keys() == other[step].keys()
        assert_close(other[step], one[step])
    on_four = [
        json.loads(line.removeprefix("losses:"))
        for line in out.splitlines()
        if line.startswith("losses:")
    ]
    assert len(on_four) == 3
    for losses in on_four:
        for step, found in enumerate(losses, 1):
            assert_close(found, one[step])


def assert_close(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def metrics(workdir):
    with open(workdir / "metrics.jsonl") as file:
        lines = {line["step"]: line for line in map(json.loads, file)}
    return {
        step: {name: value for name, value in line.items() if "loss" in name or name == "grad_norm"}
        for step, line in lines.items()
    }
