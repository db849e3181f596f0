"""Slices, the roofline of a compiled step, and what is printed of it."""

import json
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from etcvla.aot import chips, report
from etcvla.aot.chips import Slice
from etcvla.aot.compile import Compiled, DoesNotFitError, Memory
from etcvla.aot.costs import Collective, Costs
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
        ("v4:8x8x8", "512 chips, at most 256"),
    ],
)
def test_a_slice_that_there_is_not(name, message):
    with pytest.raises(ValueError, match=message):
        Slice.parse(name)


@pytest.mark.parametrize(
    ("found", "said", "error", "message"),
    [
        (None, "", RuntimeError, r"pip install 'etcvla\[aot\]'"),
        (
            True,
            "ABORTED: Internal error when accessing libtpu multi-process lockfile.",
            RuntimeError,
            "one process at a",
        ),
        (
            True,
            "INVALID_ARGUMENT: layout is not divisible",
            ValueError,
            "--topology=v5e:3x5: INVALID_ARGUMENT",
        ),
    ],
)
def test_a_compiler_that_is_not_to_be_had(monkeypatch, found, said, error, message):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(chips.topologies, "get_topology_desc", refuse)
    with pytest.raises(error, match=message):
        Slice.parse("v5e:3x5").devices()


def test_a_slice_and_its_links():
    small, pod, cube = map(Slice.parse, ("v5e:4x4", "v5e:16x16", "v5p:4x4x8"))
    assert (small.chips, pod.chips, cube.chips, str(cube)) == (16, 256, 128, "v5p:4x4x8")
    line = np.array([(0, 0), (0, 1), (0, 2), (0, 3)])
    square = np.array([(x, y) for x in range(4) for y in range(4)])
    assert small.bandwidth(line) == 50e9  # the last chip of a line has one link along it
    assert small.bandwidth(square) == 2 * 50e9
    assert pod.bandwidth(np.array([(0, y) for y in range(16)])) == 2 * 50e9  # a ring has two
    assert pod.bandwidth(np.array([(0, y) for y in range(8)])) == 50e9  # half a ring is a line
    assert cube.bandwidth(np.array([(0, 0, z) for z in range(8)])) == 2 * 100e9
    assert (
        Slice.parse("v4:2x2x4").bandwidth(np.array([(0, 0, z) for z in range(4)])) == 50e9
    )  # no whole cube, no ring


class FakeChip(SimpleNamespace):
    def __hash__(self):
        return self.id


@pytest.mark.parametrize(("mesh", "block"), [((4, 16, 1), (8, 2)), ((-1, 64, 1), (8, 8))])
def test_a_mesh_axis_is_a_block_of_neighbours_on_any_chip(mesh, block):
    """On v6e too, where 16 chips are part of an axis of 8 x 8."""
    devices = [
        FakeChip(
            id=i,
            coords=(i % 8, i // 8, 0),
            core_on_chip=0,
            platform="tpu",
            device_kind="TPU v6 lite",
            process_index=i // 4,
            slice_index=0,
        )
        for i in range(64)
    ]
    made = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)), devices)
    coords = np.array([device.coords for device in made.devices[0, :, 0]])
    assert sorted(len(set(coords[:, axis].tolist())) for axis in range(2)) == sorted(block)


def compiled(**costs):
    devices = np.array([SimpleNamespace(coords=(x, y, 0)) for x in range(4) for y in range(4)])
    mesh = SimpleNamespace(
        devices=devices.reshape(1, 16, 1), size=16, shape={"data": 1, "fsdp": 16, "tensor": 1}
    )
    memory = Memory(
        arguments=4 * GIB, outputs=3 * GIB, aliased=3 * GIB, temporaries=2 * GIB, code=GIB // 4
    )
    return Compiled(
        mesh,
        batch_size=32,
        memory=memory,
        costs=Costs(**costs),
        traced_flops=32 * 15e12,
        trace_s=10.0,
        compile_s=130.0,
        compile_cpu_s=120.0,
    )


def test_the_roofline_is_the_slowest_of_three():
    wire = Counter(
        {
            Collective("all-gather", "{}"): 5e9,
            Collective("reduce-scatter", "{}"): 5e9,
            Collective("collective-permute", ""): 1e9,
        }
    )
    found = report.describe(
        compiled(flops=30e12, hbm_bytes=81.9e9, wire_bytes=wire),
        Slice.parse("v5e:4x4"),
        useful=32 * 11e12,
    )
    assert found["memory_gib_per_chip"] == 6.25 and found["fits"]
    assert found["seconds"] == pytest.approx(
        {"compute": 30 / 197, "memory": 0.1, "interconnect": 0.1 + 0.02}
    )
    assert found["bound"] == "compute"
    assert found["mfu_bound"] == pytest.approx(
        32 * 11 / 16 / 30
    )  # 22 of 30 TFLOP a chip are useful
    assert found["tflop_per_sample"] == 15 and found["tflop_per_sample_compiled"] == pytest.approx(
        15
    )
    assert found["wire_gb_per_step"] == {
        "all-gather": 5.0,
        "reduce-scatter": 5.0,
        "collective-permute": 1.0,
    }


def test_a_replicated_step_shows():
    """Every chip doing all the work: compiled FLOPs are sixteen times those of the jaxpr."""
    found = report.describe(compiled(flops=32 * 15e12), Slice.parse("v5e:4x4"), useful=32 * 11e12)
    assert found["tflop_per_sample_compiled"] == 16 * found["tflop_per_sample"]
    assert found["mfu_bound"] == pytest.approx(11 / 15 / 16)


def test_the_largest_batch_lies_on_a_line():
    assert report.fit_batch({32: 5.0, 64: 6.0}, 16, 15.75) == {
        "largest_batch": 32 * 11 + 16 * 1,
        "memory_gib_per_row": pytest.approx(0.5),
    }
    assert report.fit_batch({64: 6.0, 32: 5.0}, 16, 15.75)["largest_batch"] % 16 == 0
    assert report.fit_batch({16: 20.0, 32: 21.0}, 16, 15.75)["largest_batch"] == 0


def test_a_step_that_does_not_fit(monkeypatch):
    """The report has the compiler's number, and the batch that would fit, from one and two rows a chip."""

    def compile_step(config, mesh):
        gib = 4.0 + config.batch_size / 16
        if gib > 15.75:
            raise DoesNotFitError(gib, "Used 20.0G of 15.75G hbm")
        return SimpleNamespace(
            batch_size=config.batch_size, memory=SimpleNamespace(total=gib * GIB)
        )

    from configs.published import pi0

    config = pi0.get_config("paligemma_3b")
    config.batch_size = 256
    monkeypatch.setattr(report, "compile_step", compile_step)
    monkeypatch.setattr(report, "versions", dict)
    monkeypatch.setattr(Slice, "devices", lambda self: [None] * 16)
    monkeypatch.setattr(
        report.sharding,
        "make_mesh",
        lambda sizes, devices: SimpleNamespace(shape={"data": 1, "fsdp": 16, "tensor": 1}),
    )
    found = report.report(config, Slice.parse("v5e:4x4"))
    assert not found["fits"] and found["memory_gib_per_chip"] == 20.0
    assert found["largest_batch"] == 11 * 16
    assert "does not fit: 20.00 GiB a chip of 15.75" in report.table(
        found
    ) and "about 176 rows" in report.table(found)


def test_what_is_printed():
    found = {
        "stage": "pi0",
        "variant": "paligemma_3b",
        "topology": "v5e:4x4",
        "chips": 16,
        "batch_size": 32,
        "hbm_gib": 15.75,
        "largest_batch": 480,
        **report.describe(
            compiled(flops=30e12, hbm_bytes=1e9, unknown_loops=["while.7"]),
            Slice.parse("v5e:4x4"),
            1e12,
        ),
    }
    text = report.table(json.loads(json.dumps(found)))
    for expected in (
        "6.25 GiB of 15.75",
        "temporaries 2.00",
        "15 as traced",
        "bound by compute",
        "about 480 rows",
        "GB on the wire: none",
        "turns are unknown: while.7",
        "130 s (10 of them tracing)",
    ):
        assert expected in text, expected
