"""Compiles a stage's training step for a TPU slice, on a machine without a TPU, and says what it would do there.

    python launch/aot_compile.py --config=configs/published/pi0.py:paligemma_3b --topology=v5e:4x4 [--json=FILE]
        [--config.batch_size=128 --config.mesh.fsdp=16 ...]

Needs the extra `aot` (libtpu), and neither dataset nor tokenizer. Prints memory a chip, FLOPs, bytes of memory and of
each kind of collective with loops multiplied out, the roofline's bound, and the largest batch that fits (estimated by
compiling another one; --nolargest leaves that out). Exits with 1 if the step does not fit. docs/tpu.md explains.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from etcvla.aot import report
from etcvla.aot.chips import Slice
from launch import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A stage's config file, with its variant after a colon."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "The slice, such as v5e:4x4, v6e:8x8, v4:4x4x4 or v5p:4x4x4."
)
_JSON = flags.DEFINE_string("json", "", "Where the numbers go as JSON, if anywhere.")
_LARGEST = flags.DEFINE_bool(
    "largest", True, "Estimate the largest batch that fits, which compiles once more."
)


def main(_):
    jax.config.update("jax_platforms", "cpu")  # libtpu would look for a TPU
    jax.config.update("jax_enable_compilation_cache", False)  # compile_s is of a compilation
    target = Slice.parse(_TOPOLOGY.value)
    if _JSON.value and not Path(_JSON.value).resolve().parent.is_dir():
        raise ValueError(f"--json={_JSON.value}: its directory does not exist; make it first")
    result = report.report(_CONFIG.value, target, largest=_LARGEST.value)
    print(report.table(result), flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(result, indent=2))
    if not result["fits"]:
        sys.exit(
            f"error: {result['stage']} with batch_size {result['batch_size']} needs "
            f"{result['memory_gib_per_chip']:.2f} GiB a chip, {result['topology']} has {result['hbm_gib']:.2f}"
        )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    common.run(main)
