"""The step that a stage trains with, compiled for a slice: from its config, without data, tokenizer or TPU."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from pathlib import Path

import jax
import ml_collections
import tokenizers
from jax.sharding import Mesh, NamedSharding

from etcvla import batch as batch_lib
from etcvla.aot.costs import Costs, analyse
from etcvla.data.assets import Assets
from etcvla.data.tokenizer import IdRange, Tokenizer, TokenLayout
from etcvla.etc.items import NUM_LOC
from etcvla.models import flops
from etcvla.train import sharding
from etcvla.train.loop import abstract_state, make_step
from etcvla.train.stage import Stage, make_model, make_plan, row_sizes
from etcvla.train.usage import step_flops

# PaliGemma's ids (arXiv 2407.07726; big_vision): 256,000 of text, then the locations, then the segmentation tokens.
PALIGEMMA_TEXT, PALIGEMMA_SEG = 256_000, 128


class DoesNotFitError(RuntimeError):
    """The compiler gave up: a step needs more memory than a chip has."""

    def __init__(self, needed_gib: float, message: str):
        super().__init__(message)
        self.needed_gib = needed_gib


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of one chip, in bytes, by kind."""

    arguments: int  # the training state and the batch
    outputs: int
    aliased: int  # outputs that lie where arguments lay
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A stage's step on a mesh."""

    mesh: Mesh
    batch_size: int
    memory: Memory
    costs: Costs  # of one chip and one step
    traced_flops: (
        float  # of all chips and one step, from the jaxpr: what is rematerialised counts twice
    )
    trace_s: float  # seconds, of tracing and lowering
    compile_s: float  # seconds, of tracing, lowering and compiling
    compile_cpu_s: float  # the same of processor time


def planned_stage(config: ml_collections.ConfigDict) -> Stage:
    """The stage as far as its config tells, which is all that its step depends on."""
    assets = Assets(_tokenizer(config.data))
    model = make_model(config, assets)
    return Stage(config, assets, {}, make_plan(config), model, row_sizes(config, model))


def _tokenizer(data: ml_collections.ConfigDict) -> Tokenizer:
    """The stage's; where PaliGemma's files are not at hand, its ids without its words."""
    if data.tokenizer == "tiny" or Path(data.tokenizer).exists():
        return Tokenizer.load(data.tokenizer, num_actions=data.fast_vocab, layout=data.layout)
    seg = PALIGEMMA_TEXT + NUM_LOC
    stop, text = (
        (seg, PALIGEMMA_TEXT)
        if data.layout == "openpi"
        else (PALIGEMMA_TEXT, PALIGEMMA_TEXT - data.fast_vocab)
    )
    layout = TokenLayout(
        text=IdRange(0, text),
        action=IdRange(stop - data.fast_vocab, data.fast_vocab),
        loc=IdRange(PALIGEMMA_TEXT, NUM_LOC),
        seg=IdRange(seg, PALIGEMMA_SEG),
        name=data.layout,
    )
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), layout, word_start=False)


def compile_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Compiled:
    """Compiles the step of a stage's config for the devices of a mesh.

    Raises ValueError for a batch that does not divide among them; DoesNotFitError.
    """
    sharding.check_batch(config.batch_size, mesh, config.optim.microbatches)
    stage = planned_stage(config)
    began, cpu_began = time.time(), time.process_time()
    traced = _trace(stage, mesh)
    lowered = traced.lower()
    trace_s = time.time() - began
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(_needed_gib(str(error)), str(error)) from error
    compile_s, cpu_s = time.time() - began, time.process_time() - cpu_began
    return Compiled(
        mesh,
        config.batch_size,
        _memory(program),
        analyse(_text(program, lowered), mesh.size),
        flops.count_jaxpr(traced.jaxpr.jaxpr).total(),
        trace_s,
        compile_s,
        cpu_s,
    )


def _text(program: jax.stages.Compiled, lowered: jax.stages.Lowered) -> str:
    """The compiled program's HLO.

    libtpu may be newer than jaxlib, whose reader then refuses what it does not know (as the asynchronous copies of v5p
    and v6e): libtpu compiles once more and writes the text itself.
    """
    try:
        return program.as_text()
    except jax.errors.JaxRuntimeError:
        with tempfile.TemporaryDirectory() as folder:
            lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            (path,) = Path(folder).glob("*.after_codegen.txt")
            return path.read_text()


def useful_flops(config: ml_collections.ConfigDict, mesh: Mesh) -> int:
    """FLOPs of one step without what is rematerialised: those that model FLOPs utilisation counts."""
    stage = planned_stage(config)
    optimizer, abstract = abstract_state(stage, mesh)
    return step_flops(
        lambda model: make_step(stage, optimizer, abstract, model=model),
        stage.model,
        abstract,
        abstract_batch(stage, mesh),
    )


def _trace(stage: Stage, mesh: Mesh):
    optimizer, abstract = abstract_state(stage, mesh)
    return make_step(stage, optimizer, abstract).trace(abstract, abstract_batch(stage, mesh))


def abstract_batch(stage: Stage, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch's shapes, and where it lies."""
    sizes, where = stage.sizes, NamedSharding(mesh, sharding.BATCH_SPEC)
    row = batch_lib.zeros(
        B=1,
        C=sizes.num_cameras,
        H=sizes.image_size,
        W=sizes.image_size,
        L=sizes.text_len,
        Q=sizes.state_dim,
        P=sizes.horizon,
        A=sizes.action_dim,
    )
    return {
        name: jax.ShapeDtypeStruct(
            (stage.config.batch_size, *value.shape[1:]), value.dtype, sharding=where
        )
        for name, value in row.items()
    }


def _memory(program: jax.stages.Compiled) -> Memory:
    stats = program.memory_analysis()
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )


def _needed_gib(message: str) -> float:
    """From the compiler's words "Used 20.5G of 15.75G hbm" or "(20.5G) exceeds available HBM (15.75G)"."""
    units = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
    found = re.search(r"(?:Used |\()([\d.]+)([KMGT])\)?(?: of| exceeds)", message)
    return float(found[1]) * units[found[2]] if found else float("nan")
