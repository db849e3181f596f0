"""Write checkpoints of every released format without the code under test."""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from tests.golden_dir import models
from tests.models.released import openpi_config, paligemma_config


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read float32 tensors: a length, a JSON header, the data."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    return {
        name: np.frombuffer(data[start:][slice(*entry["data_offsets"])], "<f4").reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write float32 tensors."""
    header = {}
    data = b""
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": tensor.shape,
            "data_offsets": [len(data), len(data) + tensor.nbytes],
        }
        data += tensor.tobytes()
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


@dataclasses.dataclass
class HuggingFace:
    """A Hugging Face fixture: its arrays by name, and a function that writes such arrays."""

    folder: Path
    dropped = "vision_tower.post_layernorm.bias"
    reshaped = "multi_modal_projector.linear.weight"
    paths = "img/Transformer/encoder_norm/bias", "img/head/kernel"  # our names of the two

    @property
    def config(self):
        return paligemma_config(self.folder)

    def arrays(self):
        return read_safetensors(self.folder / "model.safetensors")

    def write(self, tensors, directory):
        directory.mkdir()
        write_safetensors(directory / "model.safetensors", tensors)
        (directory / "config.json").write_text((self.folder / "config.json").read_text())
        return directory


@dataclasses.dataclass
class BigVision:
    """A big_vision fixture; as `HuggingFace`."""

    folder: Path
    dropped = "params/llm/final_norm/scale"
    reshaped = "params/img/head/kernel"
    paths = "llm/final_norm/scale", "img/head/kernel"

    @property
    def config(self):
        return paligemma_config(self.folder)

    def arrays(self):
        return dict(np.load(self.folder / "checkpoint.npz"))

    def write(self, tensors, directory):
        path = directory.with_suffix(".npz")
        np.savez(path, **tensors)
        return path


@dataclasses.dataclass
class OpenPi:
    """A pi0 fixture; as `HuggingFace`."""

    folder: Path
    dropped = "state_proj/bias"
    reshaped = "PaliGemma/llm/layers/mlp_1/linear"
    paths = "state_proj/bias", "llm/layers/mlp_1/linear"

    @property
    def config(self):
        return openpi_config(self.folder)

    def arrays(self):
        return dict(np.load(self.folder / "params.npz"))

    def write(self, tensors, directory):
        tree = unflatten_dict(
            {f"params/{name}/value": tensor for name, tensor in tensors.items()}, sep="/"
        )
        ocp.PyTreeCheckpointer().save((directory / "params").resolve(), tree)
        return directory


def is_gemma2(folder: Path) -> bool:
    """Return whether a Hugging Face fixture is a PaliGemma 2."""
    return json.loads((folder / "config.json").read_text())["text_config"]["model_type"] == "gemma2"


# One fixture of each kind, if there is any.
HUGGING_FACE = [HuggingFace(folder) for folder in models("paligemma_hf") if not is_gemma2(folder)][
    :1
]
BIG_VISION = [BigVision(folder) for folder in models("paligemma_bv")][:1]
OPENPI = [OpenPi(folder) for folder in models("pi0")][:1]
