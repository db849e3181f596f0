"""Compile a stage's step from its config, on this machine and, if installed, with libtpu."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs.published import pi0, pi0_fast
from etcvla.aot import compile as aot
from etcvla.errors import UserError
from etcvla.train import sharding
from tests.train.nano import nano_config

ROOT = Path(__file__).resolve().parent.parent.parent


def make_mesh():
    return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def test_full_size_step_needs_no_files_and_has_the_expected_flops():
    """The benchmark against openpi, which has its own step, counts the same FLOPs per sample."""
    config = pi0.get_config("paligemma_3b")
    config.data.num_cameras = 3
    config.batch_size = 1
    stage = aot.planned_stage(config)
    assert stage.model.config.vocab_size == 257_152
    layout = stage.assets.tokenizer.layout
    assert (layout.loc.offset, layout.action.stop, layout.seg.stop) == (256_000, 256_000, 257_152)
    rows = aot.zero_rows(stage)
    assert rows["images"].shape == (1, 3, 224, 224, 3)
    assert rows["actions"].shape == (1, 1, 50, 32)
    traced = aot.trace_step(stage, make_mesh())
    assert 14.5e12 < aot.flops.count_jaxpr(traced.jaxpr.jaxpr).total() < 14.95e12
    # Rematerialization repeats a layer's forward pass, except for its last product.
    assert aot.useful_flops(config, make_mesh()) == pytest.approx(12.09e12, rel=0.01)


def test_openpi_layout_puts_actions_before_the_segmentation_tokens():
    layout = aot.planned_stage(pi0_fast.get_config("paligemma_3b")).assets.tokenizer.layout
    assert layout.name == "openpi"
    assert layout.action.stop == layout.seg.offset == 257_024


def test_a_step_compiled_for_this_machine_has_the_traced_flops(tmp_path):
    step = aot.compile_step(nano_config(tmp_path, tmp_path), make_mesh())
    assert step.memory.arguments >= step.memory.aliased > 0  # the state's memory is reused
    assert step.costs.flops == pytest.approx(step.traced_flops, rel=0.02)
    assert not step.costs.wire_bytes and not step.costs.unknown_loops


def test_a_batch_that_does_not_divide_is_an_error(tmp_path):
    config = nano_config(tmp_path, tmp_path, batch_size=3)
    mesh = jax.sharding.AbstractMesh((2, 1, 1), sharding.AXES)
    with pytest.raises(UserError, match="batch_size 3 is not a multiple"):
        aot.compile_step(config, mesh)


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (900.00G) exceeds available HBM (15.75G).",
            900,
        ),
        ("Ran out of memory in memory space hbm. Used 20.53G of 15.75G hbm.", 20.53),
    ],
)
def test_needed_memory_is_read_from_the_compiler_error(message, gib):
    assert aot._needed_gib(message) == gib


class UnreadableProgram:
    """A program whose text jaxlib cannot read."""

    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure async-update instruction")


class Lowered:
    """Writes dump files when it is compiled, as libtpu does."""

    def compile(self, compiler_options):
        assert compiler_options["xla_dump_hlo_as_text"]
        folder = Path(compiler_options["xla_dump_to"])
        for stage in ("before_optimizations", "after_optimizations", "after_codegen"):
            (folder / f"module_0000.jit_step.{stage}.txt").write_text(stage)


def test_unreadable_program_is_read_from_the_compiler_dump():
    assert aot._hlo_text(UnreadableProgram(), Lowered()) == "after_codegen"


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "launch/aot_compile.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=900,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e:4"], "do not determine the shape\n"),
        (["--topology=v5e:2x2", "--out=/nowhere/x.json"], "--out=/nowhere/x.json: "),
    ],
)
def test_flag_errors_are_raised_before_compiling(flags, message):
    done = launch("--config=configs/objective_bridge.py:tiny", *flags)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_libtpu_compiles_the_sharded_step(tmp_path):
    """On four chips of v5e, the compiled FLOPs are those traced: no chip repeats work."""
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
    result = json.loads(out.read_text())
    assert result["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert result["tflop_per_sample_compiled"] == pytest.approx(result["tflop_per_sample"], rel=0.1)
    assert result["wire_gb_per_step"]["all-gather"] > 0
    assert result["unknown_loops"] == []
    assert "MFU" in done.stdout
