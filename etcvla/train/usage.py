"""Measure how well a run uses its devices, and how much memory it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import numpy as np
import psutil

from etcvla import rules

GIB = 2**30

# Peak FLOP/s in bfloat16 of one JAX device, by the start of its kind's name. Sources:
# TPU: "System architecture" in Google Cloud's documentation (on v2, v3 and 7x a JAX device is one
# of a chip's two cores). GPU: NVIDIA's data sheets, dense. T4 and V100 have no bfloat16: float16.
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
    """Return a device's peak FLOP/s in bfloat16; None if it is not in `PEAK_FLOPS`, as a CPU."""
    for pattern, peak in PEAK_FLOPS:
        if re.match(pattern, device.device_kind):
            return peak
    return None


def utilization(flops: int, steps_per_second: float) -> dict[str, float]:
    """Return the TFLOP/s of one device, and the model FLOPs utilization if its peak is known.

        MFU = FLOPs per step x steps per second / (devices x peak FLOP/s of a device)

    as PaLM defines it (arXiv 2204.02311, appendix B); `etcvla.models.flops` counts the FLOPs of the
    matrix products.
    """
    achieved = flops * steps_per_second / jax.device_count()
    numbers = {"run/tflop_per_second": achieved / 1e12}
    peak = peak_flops(jax.devices()[0])
    if peak:
        numbers["run/mfu"] = achieved / peak
    return numbers


def memory() -> dict[str, float]:
    """Return the GiB in use by this process and its children, and on the fullest local device.

    The device's current and peak use are absent if the backend does not report them.
    """
    numbers = {"run/resident_gib": resident_bytes() / GIB}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    for name, key in (
        ("run/device_gib", "bytes_in_use"),
        ("run/device_peak_gib", "peak_bytes_in_use"),
    ):
        used = [device[key] for device in stats if key in device]
        if used:
            numbers[name] = max(used) / GIB
    return numbers


def resident_bytes() -> int:
    """Return the resident memory of this process and its children, without shared pages.

    Files that are read by mmap are shared pages, which belong to the file cache.
    """
    process = psutil.Process()
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            info = member.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - getattr(info, "shared", 0)
    return total


def tokens_per_row(batch: Mapping[str, np.ndarray], image_tokens: int) -> float:
    """Return the mean number of tokens per row that are not padding.

    Args:
      image_tokens: tokens of one image; absent cameras do not count.
    """
    text = (batch["segment"] > 0).sum()
    images = image_tokens * batch["image_mask"].sum()
    return float(text + images) / len(batch["segment"])
