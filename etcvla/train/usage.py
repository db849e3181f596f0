"""How well a run uses its devices, and how much memory it holds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import jax
import psutil

from etcvla import rules
from etcvla.models.flops import count
from etcvla.models.vla import VLA

GIB = 2**30

# FLOP/s in bfloat16 of one JAX device, by the start of its kind's name. TPUs: "System architecture" in Google Cloud's
# documentation (a JAX device of v2, v3 and 7x is one core of a chip's two). GPUs: NVIDIA's data sheets, dense; T4 and
# V100 know no bfloat16, theirs is of float16.
PEAK_FLOPS: rules.Rules = (
    (r"TPU v2", 23e12),
    (r"TPU v3", 61.5e12),
    (r"TPU v4$", 275e12),
    (r"TPU v5 ?(lite|e)", 197e12),
    (r"TPU v5p?$", 459e12),
    (r"TPU v6 ?(lite|e)", 918e12),
    (r"TPU ?7x", 1153.5e12),
    (r"(NVIDIA )?B200", 2250e12),
    (r"(NVIDIA )?H100 PCIe", 756e12),
    (r"(NVIDIA )?(H100|H200|GH200)", 989e12),
    (r"(NVIDIA )?A100", 312e12),
    (r"(NVIDIA )?L40S", 362e12),
    (r"(NVIDIA )?L4$", 121e12),
    (r"(Tesla )?V100", 125e12),
    (r"(Tesla )?T4", 65e12),
)


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s that a device can do in bfloat16; None for a kind that is not in `PEAK_FLOPS`, a CPU among them."""
    return next(
        (peak for pattern, peak in PEAK_FLOPS if re.match(pattern, device.device_kind)), None
    )


def step_flops(step_of: Callable[[VLA], Callable], model: VLA, *args) -> int:
    """FLOPs of one training step that the model needs: what rematerialisation computes again is left out.

    Args:
      step_of: a model's training step. args: the state and the batch, as shapes; those of the whole mesh.
    """
    if (
        model.config.remat != "none"
    ):  # else the very function that is trained with, which JAX has traced already
        model = VLA(dataclasses.replace(model.config, remat="none"))
    return count(step_of(model), *args).total()


def utilization(flops: int, steps_per_second: float) -> dict[str, float]:
    """TFLOP/s of one device, and the share of its peak where that is known:

        MFU = FLOPs of a step x steps a second / (devices x peak FLOP/s of one)

    as PaLM defines it (arXiv 2204.02311, appendix B), with the matrix products counted by `etcvla.models.flops`.
    """
    achieved = flops * steps_per_second / jax.device_count()
    peak = peak_flops(jax.devices()[0])
    return {
        "run/tflop_per_second": achieved / 1e12,
        **({"run/mfu": achieved / peak} if peak else {}),
    }


def memory() -> dict[str, float]:
    """GiB that are in use: by this process and those it started (without what they map from files), and on the fullest
    of its devices, now and at most so far, where the backend tells."""
    out = {"run/resident_gib": resident() / GIB}
    stats = [stat for device in jax.local_devices() if (stat := device.memory_stats())]
    for name, key in {"device_gib": "bytes_in_use", "device_peak_gib": "peak_bytes_in_use"}.items():
        found = [stat[key] for stat in stats if key in stat]
        out |= {f"run/{name}": max(found) / GIB} if found else {}
    return out


def resident() -> int:
    """Bytes of this process and of those that it started, without shared pages: files that are read by mmap are the
    file cache's."""
    process, total = psutil.Process(), 0
    for one in (process, *process.children(recursive=True)):
        try:
            info = one.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - getattr(info, "shared", 0)
    return total


def tokens(batch: Mapping, image_tokens: int) -> float:
    """Tokens a row of a batch that are no padding: of text, and `image_tokens` of every camera that is there."""
    return float((batch["segment"] > 0).sum() + image_tokens * batch["image_mask"].sum()) / len(
        batch["segment"]
    )
