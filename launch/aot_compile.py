"""Compile a stage's training step for a TPU slice, without a TPU, and print its cost.

    python launch/aot_compile.py --config=configs/published/pi0.py:paligemma_3b \\
        --topology=v5e:4x4 [--out=FILE] [--config.batch_size=128 --config.mesh.fsdp=16 ...]

Requires the extra `aot` (libtpu), but neither dataset nor tokenizer. Prints memory per chip, FLOPs,
bytes of memory and of each kind of collective with loops multiplied out, the roofline bound, and an
estimate of the largest batch that fits (from a second compilation; --nolargest skips it). Exits
with 1 if the step does not fit. docs/full_size_tpu.md explains it.
"""

from __future__ import annotations

import sys

import jax
from absl import flags
from ml_collections import config_flags

from etcvla.aot import report
from etcvla.aot.chips import Slice
from etcvla.files import write_json
from launch import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of a stage, with a variant after a colon."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "The slice, such as v5e:4x4, v6e:8x8, v4:4x4x4 or v5p:4x4x4."
)
_OUT = flags.DEFINE_string("out", "", "JSON file for the numbers.")
_LARGEST = flags.DEFINE_bool(
    "largest", True, "Estimate the largest batch that fits, by a second compilation."
)


def main(_: list[str]) -> None:
    """Compile and print the report."""
    jax.config.update("jax_platforms", "cpu")  # libtpu would search for a TPU
    jax.config.update("jax_enable_compilation_cache", False)  # compile_s is a full compilation
    target = Slice.parse(_TOPOLOGY.value)
    common.check_out_file(_OUT.value)
    result = report.report(_CONFIG.value, target, largest=_LARGEST.value)
    print(report.table(result), flush=True)
    if _OUT.value:
        write_json(_OUT.value, result)
    if not result["fits"]:
        sys.exit(
            f"error: {result['stage']} with batch_size {result['batch_size']} needs "
            f"{result['memory_gib_per_chip']:.2f} GiB per chip, {result['topology']} has "
            f"{result['hbm_gib']:.2f}"
        )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    common.run(main)
