"""Utilization and memory of a run."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from etcvla.train import usage


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", 65e12),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_peak_flops_by_device_kind(kind, peak):
    assert usage.peak_flops(SimpleNamespace(device_kind=kind)) == peak


def test_utilization_follows_its_formula(monkeypatch):
    assert usage.utilization(10**12, 3.0) == {"run/tflop_per_second": 3.0 / jax.device_count()}
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="TPU v4")])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    numbers = usage.utilization(110 * 10**12, 5.0)
    assert numbers == {"run/tflop_per_second": 137.5, "run/mfu": 0.5}


def test_memory_is_that_of_the_fullest_device_and_of_child_processes(monkeypatch):
    stats = [{"bytes_in_use": 2**30, "peak_bytes_in_use": 2**31}, None, {"bytes_in_use": 3 * 2**30}]
    devices = [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    before = usage.memory()
    assert before["run/device_gib"] == 3
    assert before["run/device_peak_gib"] == 2
    child = subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * 3 * 10**8; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    growth = usage.memory()["run/resident_gib"] - before["run/resident_gib"]
    child.communicate(b"\n")
    assert growth > 0.25


def test_padding_and_absent_cameras_do_not_count_as_tokens():
    batch = {
        "segment": np.array([[1, 1, 2, 0], [1, 0, 0, 0]]),
        "image_mask": np.array([[True, True], [True, False]]),
    }
    assert usage.tokens_per_row(batch, 10) == (4 + 3 * 10) / 2
