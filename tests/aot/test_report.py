"""Slices, the roofline of a compiled step, and the printed report."""

import json
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.published import pi0
from etcvla.aot import chips, report
from etcvla.aot.chips import Slice
from etcvla.aot.compile import CompiledStep, DoesNotFitError, Memory
from etcvla.aot.costs import Collective, Costs
from etcvla.errors import UserError
from etcvla.train import sharding
from etcvla.train.usage import GIB


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:4x4", "unknown TPU in --topology 'v5', did you mean 'v5[ep]'"),
        ("h100:8", "known: v4, v5e, v5p, v6e"),
        ("v5e:16", "expected 2 sizes, as in v5e:4x4"),
        ("v5e-16", "unknown TPU"),
        ("v5p:4x4", "expected 3 sizes, as in v5p:4x4x4"),
        ("v6e:4x0", "expected 2 sizes"),
        ("v4:8x8x8", "512 chips; at most 256"),
    ],
)
def test_malformed_topology_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        Slice.parse(name)


@pytest.mark.parametrize(
    ("libtpu", "compiler_error", "message"),
    [
        (None, "", r"pip install 'etcvla\[aot\]'"),
        (
            True,
            "ABORTED: Internal error when accessing libtpu multi-process lockfile.",
            "one process at a",
        ),
        (
            True,
            "INVALID_ARGUMENT: layout is not divisible",
            "--topology=v5e:3x5: INVALID_ARGUMENT",
        ),
    ],
)
def test_unavailable_compiler_is_an_error(monkeypatch, libtpu, compiler_error, message):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(compiler_error)

    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: libtpu)
    monkeypatch.setattr(chips.topologies, "get_topology_desc", fail)
    with pytest.raises(UserError, match=message):
        Slice.parse("v5e:3x5").devices()


def line(axis, length):
    """Positions of `length` chips along the last of three axes, or of two if `axis` is 1."""
    coords = np.zeros((length, axis + 1), int)
    coords[:, axis] = np.arange(length)
    return coords


def test_bandwidth_depends_on_rings_and_lines():
    small = Slice.parse("v5e:4x4")
    pod = Slice.parse("v5e:16x16")
    cube = Slice.parse("v5p:4x4x8")
    assert (small.chips, pod.chips, cube.chips, str(cube)) == (16, 256, 128, "v5p:4x4x8")
    assert small.bandwidth(line(1, 4)) == 50e9  # the last chip of a line has one link
    square = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2)
    assert small.bandwidth(square) == 2 * 50e9
    assert pod.bandwidth(line(1, 16)) == 2 * 50e9  # each chip of a ring has two links
    assert pod.bandwidth(line(1, 8)) == 50e9  # half a ring is a line
    assert cube.bandwidth(line(2, 8)) == 2 * 100e9
    partial_cube = Slice.parse("v4:2x2x4")
    assert partial_cube.bandwidth(line(2, 4)) == 50e9  # a ring needs whole cubes


class FakeChip(SimpleNamespace):
    def __hash__(self):
        return self.id


@pytest.mark.parametrize(("mesh", "block"), [((4, 16, 1), (8, 2)), ((-1, 64, 1), (8, 8))])
def test_mesh_axes_are_blocks_of_neighbours(mesh, block):
    """On v6e as well, where 16 chips are a part of 8 x 8."""
    devices = []
    for i in range(64):
        device = FakeChip(
            id=i,
            coords=(i % 8, i // 8, 0),
            core_on_chip=0,
            platform="tpu",
            device_kind="TPU v6 lite",
            process_index=i // 4,
            slice_index=0,
        )
        devices.append(device)
    grid = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)), devices)
    coords = np.array([device.coords for device in grid.devices[0, :, 0]])
    assert sorted(len(np.unique(coords[:, axis])) for axis in range(2)) == sorted(block)


def make_step(**costs):
    """A compiled step on 4 x 4 chips with fsdp 16."""
    coords = np.stack(np.meshgrid(np.arange(4), np.arange(4), [0], indexing="ij"), axis=-1)
    devices = np.array([SimpleNamespace(coords=tuple(c)) for c in coords.reshape(-1, 3)])
    mesh = SimpleNamespace(
        devices=devices.reshape(1, 16, 1), size=16, shape={"data": 1, "fsdp": 16, "tensor": 1}
    )
    memory = Memory(
        arguments=4 * GIB, outputs=3 * GIB, aliased=3 * GIB, temporaries=2 * GIB, code=GIB // 4
    )
    return CompiledStep(
        mesh,
        batch_size=32,
        memory=memory,
        costs=Costs(**costs),
        traced_flops=32 * 15e12,
        trace_s=10.0,
        compile_s=130.0,
        compile_cpu_s=120.0,
    )


def test_the_slowest_resource_bounds_the_step():
    wire_bytes = Counter(
        {
            Collective("all-gather", "{}"): 5e9,
            Collective("reduce-scatter", "{}"): 5e9,
            Collective("collective-permute", ""): 1e9,
        }
    )
    step = make_step(flops=30e12, hbm_bytes=81.9e9, wire_bytes=wire_bytes)
    result = report.describe(step, Slice.parse("v5e:4x4"), useful=32 * 11e12)
    assert result["memory_gib_per_chip"] == 6.25 and result["fits"]
    seconds = {"compute": 30 / 197, "memory": 0.1, "interconnect": 0.1 + 0.02}
    assert result["seconds"] == pytest.approx(seconds)
    assert result["bound"] == "compute"
    assert result["mfu_bound"] == pytest.approx(32 * 11 / 16 / 30)  # 22 of 30 TFLOP are useful
    assert result["tflop_per_sample"] == 15
    assert result["tflop_per_sample_compiled"] == pytest.approx(15)
    assert result["wire_gb_per_step"] == {
        "all-gather": 5.0,
        "reduce-scatter": 5.0,
        "collective-permute": 1.0,
    }


def test_compiled_flops_show_a_replicated_step():
    """If every chip does all the work, compiled FLOPs are sixteen times those traced."""
    step = make_step(flops=32 * 15e12)
    result = report.describe(step, Slice.parse("v5e:4x4"), useful=32 * 11e12)
    assert result["tflop_per_sample_compiled"] == 16 * result["tflop_per_sample"]
    assert result["mfu_bound"] == pytest.approx(11 / 15 / 16)


def test_largest_batch_is_extrapolated_from_two_batches():
    assert report.fit_batch({32: 5.0, 64: 6.0}, 16, 15.75) == {
        "largest_batch": 32 * 11 + 16 * 1,
        "memory_gib_per_row": pytest.approx(0.5),
    }
    assert report.fit_batch({64: 6.0, 32: 5.0}, 16, 15.75)["largest_batch"] % 16 == 0
    assert report.fit_batch({16: 20.0, 32: 21.0}, 16, 15.75)["largest_batch"] == 0


def test_a_step_that_does_not_fit_gets_the_batch_that_would_fit(monkeypatch):
    """It is estimated from one and two rows per chip."""

    def compile_step(config, mesh):
        gib = 4.0 + config.batch_size / 16
        if gib > 15.75:
            raise DoesNotFitError(gib, "Used 20.0G of 15.75G hbm")
        memory = SimpleNamespace(total=gib * GIB)
        return SimpleNamespace(batch_size=config.batch_size, memory=memory)

    def make_mesh(sizes, devices):
        return SimpleNamespace(shape={"data": 1, "fsdp": 16, "tensor": 1})

    config = pi0.get_config("paligemma_3b")
    config.batch_size = 256
    monkeypatch.setattr(report, "compile_step", compile_step)
    monkeypatch.setattr(Slice, "devices", lambda self: [None] * 16)
    monkeypatch.setattr(report.sharding, "make_mesh", make_mesh)
    result = report.report(config, Slice.parse("v5e:4x4"))
    assert not result["fits"] and result["memory_gib_per_chip"] == 20.0
    assert result["largest_batch"] == 11 * 16
    text = report.table(result)
    assert "does not fit: 20.00 GiB per chip of 15.75" in text
    assert "about 176 rows" in text


def test_the_table_shows_every_number():
    step = make_step(flops=30e12, hbm_bytes=1e9, unknown_loops=["while.7"])
    result = {
        "stage": "pi0",
        "variant": "paligemma_3b",
        "topology": "v5e:4x4",
        "chips": 16,
        "batch_size": 32,
        "hbm_gib": 15.75,
        "largest_batch": 480,
        **report.describe(step, Slice.parse("v5e:4x4"), 1e12),
    }
    text = report.table(json.loads(json.dumps(result)))
    for expected in (
        "6.25 GiB of 15.75",
        "temporaries 2.00",
        "15 as traced",
        "bound by compute",
        "about 480 rows",
        "GB on the wire: none",
        "loops of unknown length: while.7",
        "130 s (10 of them tracing)",
    ):
        assert expected in text, expected
