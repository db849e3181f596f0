"""A stage's step from its config alone: compiled for this machine's devices, and by libtpu where that is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs.published import pi0, pi0_fast
from etcvla.aot import compile as aot
from etcvla.train import sharding
from tests.train.nano import nano_config

ROOT = Path(__file__).resolve().parent.parent.parent


def one_device():
    return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def test_the_full_size_needs_neither_data_nor_tokenizer_and_has_its_flops():
    """FLOPs of a training sample of pi0, as the benchmark against openpi counts them, which builds its own step."""
    config = pi0.get_config("paligemma_3b")
    config.data.num_cameras, config.batch_size = 3, 1
    stage = aot.planned_stage(config)
    assert stage.model.config.vocab_size == 257_152
    layout = stage.assets.tokenizer.layout
    assert (layout.loc.offset, layout.action.stop, layout.seg.stop) == (256_000, 256_000, 257_152)
    batch = aot.abstract_batch(stage, one_device())
    assert batch["images"].shape == (1, 3, 224, 224, 3) and batch["actions"].shape == (1, 50, 32)
    assert (
        14.5e12
        < aot.flops.count_jaxpr(aot._trace(stage, one_device()).jaxpr.jaxpr).total()
        < 14.95e12
    )
    # A layer's forward pass twice, but for its last product, which the backward pass does not need.
    assert aot.useful_flops(config, one_device()) == pytest.approx(12.09e12, rel=0.01)


def test_openpis_layout_counts_actions_down_from_the_segmentation_tokens():
    layout = aot.planned_stage(pi0_fast.get_config("paligemma_3b")).assets.tokenizer.layout
    assert layout.name == "openpi" and layout.action.stop == layout.seg.offset == 257_024


def test_compiled_here_it_costs_what_it_should(tmp_path):
    config = nano_config(tmp_path, tmp_path)
    compiled = aot.compile_step(config, one_device())
    assert (
        compiled.memory.arguments >= compiled.memory.aliased > 0
    )  # the state's memory is given back
    assert compiled.costs.flops == pytest.approx(compiled.traced_flops, rel=0.02)
    assert not compiled.costs.wire_bytes and not compiled.costs.unknown_loops


def test_a_batch_that_does_not_divide(tmp_path):
    config = nano_config(tmp_path, tmp_path, batch_size=3)
    mesh = jax.sharding.AbstractMesh((2, 1, 1), sharding.AXES)
    with pytest.raises(ValueError, match="batch_size 3 is not a multiple"):
        aot.compile_step(config, mesh)


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (900.00G) exceeds "
            "available HBM (15.75G).",
            900,
        ),
        ("Ran out of memory in memory space hbm. Used 20.53G of 15.75G hbm.", 20.53),
    ],
)
def test_the_compilers_words_hold_the_number(message, gib):
    assert aot._needed_gib(message) == gib


class Program:
    """One whose text jaxlib does not understand."""

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure async-update instruction")


class Lowered:
    """What libtpu dumps of it."""

    def compile(self, compiler_options):
        assert compiler_options["xla_dump_hlo_as_text"]
        for stage in ("before_optimizations", "after_optimizations", "after_codegen"):
            (
                Path(compiler_options["xla_dump_to"]) / f"module_0000.jit_step.{stage}.txt"
            ).write_text(stage)


def test_a_program_that_jaxlib_cannot_read_is_read_from_the_compilers_dump():
    assert aot._text(Program(), Lowered()) == "after_codegen"


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "launch/aot_compile.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=900,
    )


def test_errors_before_anything_is_compiled():
    done = launch("--config=configs/objective_bridge.py:tiny", "--topology=v5e:4")
    assert done.returncode == 1 and done.stderr.endswith("which leaves the shape open\n"), (
        done.stderr
    )
    done = launch(
        "--config=configs/objective_bridge.py:tiny", "--topology=v5e:2x2", "--out=/nowhere/x.json"
    )
    assert (
        done.returncode == 1
        and "--out=/nowhere/x.json: its folder does not exist" in done.stderr
    )


def test_libtpu_compiles_the_sharded_step(tmp_path):
    """The tiny stage over four chips of v5e: what is traced is what is compiled, and nothing is computed twice."""
    pytest.importorskip("libtpu")
    out = tmp_path / "report.json"
    done = launch(
        "--config=configs/objective_bridge.py:tiny",
        "--topology=v5e:2x2",
        "--config.mesh.fsdp=4",
        f"--out={out}",
        "--nolargest",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert found["tflop_per_sample_compiled"] == pytest.approx(found["tflop_per_sample"], rel=0.1)
    assert found["wire_gb_per_step"]["all-gather"] > 0 and found["unknown_loops"] == []
    assert "MFU" in done.stdout
