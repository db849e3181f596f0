"""Compile a stage's training step for a slice, from its config, without data, tokenizer or TPU."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
import tokenizers
from jax.sharding import Mesh

from etcvla import batch as batch_lib
from etcvla.aot.costs import Costs, analyse
from etcvla.data.assets import Assets
from etcvla.data.tokenizer import IdRange, Tokenizer, TokenLayout
from etcvla.etc.items import NUM_LOC
from etcvla.models import flops
from etcvla.train import sharding
from etcvla.train.stage import Stage, make_model, make_plan, row_sizes
from etcvla.train.step_functions import StepFunctions

# PaliGemma's ids (arXiv 2407.07726; big_vision): text, then locations, then segmentation tokens.
PALIGEMMA_TEXT_IDS = 256_000
PALIGEMMA_SEGMENTATION_IDS = 128


class DoesNotFitError(RuntimeError):
    """The compiler failed, because a step needs more memory than a chip has."""

    def __init__(self, needed_gib: float, message: str):
        super().__init__(message)
        self.needed_gib = needed_gib


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one chip by kind, in bytes."""

    arguments: int  # the training state and the batch
    outputs: int
    aliased: int  # outputs that reuse the memory of arguments
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A stage's step, compiled for a mesh."""

    mesh: Mesh
    batch_size: int
    memory: Memory
    costs: Costs  # of one chip in one step
    # FLOPs of one step on all chips, from the jaxpr: what is rematerialized counts twice.
    traced_flops: float
    trace_s: float  # seconds to trace and lower
    compile_s: float  # seconds to trace, lower and compile
    compile_cpu_s: float  # the same in processor time


def planned_stage(config: ml_collections.ConfigDict) -> Stage:
    """Return a stage without datasets, which is all that its training step depends on."""
    assets = Assets(_tokenizer(config.data))
    model = make_model(config, assets)
    return Stage(config, assets, {}, make_plan(config), model, row_sizes(config, model))


def _tokenizer(data: ml_collections.ConfigDict) -> Tokenizer:
    """Return the stage's tokenizer; if its files are missing, PaliGemma's ids without words."""
    if data.tokenizer == "tiny" or Path(data.tokenizer).exists():
        return Tokenizer.load(
            data.tokenizer,
            num_actions=data.fast_vocab,
            layout=data.layout,
            places=data.places,
            question_end=data.question_end,
        )
    segmentation = PALIGEMMA_TEXT_IDS + NUM_LOC
    if data.layout == "openpi":
        action_stop = segmentation
        text_count = PALIGEMMA_TEXT_IDS
    else:
        action_stop = PALIGEMMA_TEXT_IDS
        text_count = PALIGEMMA_TEXT_IDS - data.fast_vocab
    layout = TokenLayout(
        text=IdRange(0, text_count),
        action=IdRange(action_stop - data.fast_vocab, data.fast_vocab),
        loc=IdRange(PALIGEMMA_TEXT_IDS, NUM_LOC),
        seg=IdRange(segmentation, PALIGEMMA_SEGMENTATION_IDS),
        name=data.layout,
        places=data.places,
    )
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), layout, word_start=False)


def compile_step(config: ml_collections.ConfigDict, mesh: Mesh) -> CompiledStep:
    """Compile the step of a stage's config for the devices of a mesh.

    Raises UserError if the batch does not divide among them, DoesNotFitError if memory does not
    suffice.
    """
    sharding.check_batch(config.batch_size, mesh, config.optim.microbatches)
    stage = planned_stage(config)
    start = time.time()
    cpu_start = time.process_time()
    traced = trace_step(stage, mesh)
    lowered = traced.lower()
    trace_s = time.time() - start
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(_needed_gib(str(error)), str(error)) from error
    compile_s = time.time() - start
    compile_cpu_s = time.process_time() - cpu_start
    return CompiledStep(
        mesh=mesh,
        batch_size=config.batch_size,
        memory=_memory(program),
        costs=analyse(_hlo_text(program, lowered), mesh.size),
        traced_flops=flops.count_jaxpr(traced.jaxpr.jaxpr).total(),
        trace_s=trace_s,
        compile_s=compile_s,
        compile_cpu_s=compile_cpu_s,
    )


def trace_step(stage: Stage, mesh: Mesh) -> jax.stages.Traced:
    """Trace a stage's first training step on a mesh."""
    steps = StepFunctions(stage, mesh)
    batch = sharding.abstract_batch(zero_rows(stage), mesh, stage.config.batch_size)
    return steps.at(0).trace(steps.abstract, batch)


def useful_flops(config: ml_collections.ConfigDict, mesh: Mesh) -> int:
    """Return the FLOPs of one step without what is rematerialized, as MFU counts them."""
    stage = planned_stage(config)
    return StepFunctions(stage, mesh).count_flops(zero_rows(stage), 0)


def zero_rows(stage: Stage) -> dict[str, np.ndarray]:
    """Return a batch of one row of zeros, of the stage's sizes."""
    sizes = stage.sizes
    return batch_lib.zeros(
        B=1,
        C=sizes.num_cameras,
        H=sizes.image_size,
        W=sizes.image_size,
        L=sizes.text_len,
        Q=sizes.state_dim,
        K=sizes.actions_per_row,
        P=sizes.horizon,
        A=sizes.action_dim,
    )


def _hlo_text(program: jax.stages.Compiled, lowered: jax.stages.Lowered) -> str:
    """Return the compiled program's HLO.

    If libtpu is newer than jaxlib, jaxlib may not be able to read what it compiles (such as the
    asynchronous copies of v5p and v6e). Then libtpu compiles once more and writes the text itself.
    """
    try:
        return program.as_text()
    except jax.errors.JaxRuntimeError:
        with tempfile.TemporaryDirectory() as folder:
            lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            (path,) = Path(folder).glob("*.after_codegen.txt")
            return path.read_text()


def _memory(program: jax.stages.Compiled) -> Memory:
    stats = program.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def _needed_gib(message: str) -> float:
    """Return the memory that a compiler's error message names.

    It says "Used 20.5G of 15.75G hbm" or "(20.5G) exceeds available HBM (15.75G)".
    """
    match = re.search(r"(?:Used |\()([\d.]+)([KMGT])\)?(?: of| exceeds)", message)
    if not match:
        return float("nan")
    gib = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
    return float(match[1]) * gib[match[2]]
