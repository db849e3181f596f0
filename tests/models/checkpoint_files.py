"""Checkpoints of every released format from plain arrays, written without the code under test."""

import json
import struct
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from tests.golden_dir import models
from tests.models.released import openpi_arrays, openpi_config, paligemma_config


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """float32 tensors by name: a length, a JSON header, the data."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    return {name: np.frombuffer(data[start:][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
            for name, entry in header.items()}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """float32 tensors."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + tensor.nbytes]}
        data += tensor.tobytes()
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


class HuggingFace:
    """The first Hugging Face fixture of PaliGemma 1 as arrays by name, and how such arrays are written."""

    folder = next(path for path in models("paligemma_hf") if "gemma2" not in (path / "config.json").read_text())
    config = paligemma_config(folder, json.loads((folder / "config.json").read_text())["vision_config"]["image_size"])
    dropped, reshaped = "vision_tower.post_layernorm.bias", "multi_modal_projector.linear.weight"
    paths = "img/Transformer/encoder_norm/bias", "img/head/kernel"

    def arrays(self):
        return read_safetensors(self.folder / "model.safetensors")

    def write(self, tensors, directory):
        directory.mkdir()
        write_safetensors(directory / "model.safetensors", tensors)
        (directory / "config.json").write_text((self.folder / "config.json").read_text())
        return directory


class BigVision:
    """The first big_vision fixture."""

    folder = models("paligemma_bv")[0]
    config = paligemma_config(folder / "checkpoint.npz", np.load(folder / "inputs.npz")["image"].shape[1])
    dropped, reshaped = "params/llm/final_norm/scale", "params/img/head/kernel"
    paths = "llm/final_norm/scale", "img/head/kernel"

    def arrays(self):
        return dict(np.load(self.folder / "checkpoint.npz"))

    def write(self, tensors, directory):
        path = directory.with_suffix(".npz")
        np.savez(path, **tensors)
        return path


class OpenPi:
    """The first fixture of pi0."""

    folder = models("pi0")[0]
    config = openpi_config(folder)
    dropped, reshaped = "state_proj/bias", "PaliGemma/llm/layers/mlp_1/linear"
    paths = "state_proj/bias", "llm/layers/mlp_1/linear"

    def arrays(self):
        return dict(np.load(self.folder / "params.npz"))

    def write(self, tensors, directory):
        tree = unflatten_dict({f"params/{name}/value": tensor for name, tensor in tensors.items()}, sep="/")
        ocp.PyTreeCheckpointer().save((directory / "params").resolve(), tree)
        return directory


__all__ = ["BigVision", "HuggingFace", "OpenPi", "openpi_arrays", "read_safetensors", "write_safetensors"]
