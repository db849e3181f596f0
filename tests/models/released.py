"""The fixtures of released implementations: our model, parameters and batch for each."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from flax.traverse_util import unflatten_dict

from etcvla import batch as batch_lib
from etcvla.models import pretrained
from etcvla.models.gemma import GemmaConfig
from etcvla.models.siglip import SigLIPConfig
from etcvla.models.vla import VLA, VLAConfig
from tests.golden_dir import ROOT, kind_of

SWITCHES = {
    "insulate": False,
    "image_attends_prompt": True,
    "dtype": "float32",
    "remat": "none",
    "unroll": 8,
}


def load_openpi(folder: str | Path) -> SimpleNamespace:
    """Load an openpi fixture: folder, model, params, batch, inputs, outputs."""
    folder = ROOT / folder
    inputs, outputs = arrays(folder)
    config = openpi_config(folder)
    if (folder / "checkpoint").exists():
        params, _ = pretrained.load(folder / "checkpoint", config)
    else:
        params = openpi_arrays(folder)
    cameras = [key.removeprefix("image/") for key in inputs if key.startswith("image/")]
    images = np.stack([inputs[f"image/{camera}"] for camera in cameras], axis=1)
    batch = make_batch(images, inputs["tokenized_prompt"], inputs["tokenized_prompt_mask"], config)
    batch |= {
        "image_mask": np.stack([inputs[f"image_mask/{camera}"] for camera in cameras], axis=1),
        "action_segment": np.ones((len(images), 1), np.int32),
        "state": inputs["state"],
        "actions": inputs["actions"][:, None],
        "action_mask": np.ones(inputs["actions"][:, None].shape, bool),
    }
    return SimpleNamespace(
        folder=folder, model=VLA(config), params=params, batch=batch, inputs=inputs, outputs=outputs
    )


def load_paligemma(folder: str | Path) -> SimpleNamespace:
    """Load a PaliGemma fixture: folder, model, params, batch, prompt_batch, inputs, outputs."""
    folder = ROOT / folder
    inputs, outputs = arrays(folder)
    if kind_of(folder) == "paligemma_bv":
        images = inputs["image"]
        text = inputs["text"]
        suffix = inputs["mask_loss"] > 0
        present = text.astype(bool)  # only padding has id 0
    else:
        images = inputs["pixel_values_nhwc"]
        first = int(inputs["num_image_tokens"])
        text = inputs["input_ids"][:, first:]
        present = inputs["attention_mask"][:, first:] > 0
        suffix = inputs["token_type_ids"][:, first:] > 0
    config = paligemma_config(folder)
    params, _ = pretrained.load(weights_of(folder), config)
    batch = make_batch(images[:, None], text, present, config) | {"target": suffix}
    prompt = present & ~suffix
    prompt_batch = make_batch(images[:, None], text * prompt, prompt, config)
    return SimpleNamespace(
        folder=folder,
        model=VLA(config),
        params=params,
        batch=batch,
        prompt_batch=prompt_batch,
        inputs=inputs,
        outputs=outputs,
    )


def arrays(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the arrays of inputs.npz and outputs.npz."""
    return dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))


def make_batch(
    images: np.ndarray, text: np.ndarray, present: np.ndarray, cfg: VLAConfig
) -> dict[str, np.ndarray]:
    """Make a batch of one segment per row.

    The arguments are float[B, C, height, width, 3] in [-1, 1], int[B, L] and bool[B, L].
    """
    b, c, h, w, _ = images.shape
    batch = batch_lib.zeros(
        B=b, C=c, H=h, W=w, L=text.shape[1], Q=cfg.state_dim, P=cfg.horizon, A=cfg.action_dim
    )
    pixels = np.round((images + 1) * 127.5).astype(np.uint8)
    return batch | {
        "images": pixels,
        "image_mask": np.ones((b, c), bool),
        "tokens": text.astype(np.int32),
        "segment": present.astype(np.int32),
    }


def openpi_config(folder: Path) -> VLAConfig:
    """Return the model of an openpi fixture, from config.json.

    If the fixture has no expert, the model gets one that is never run.
    """
    c = json.loads((folder / "config.json").read_text())
    tower = SigLIPConfig(
        **{name: c["siglip"][name] for name in ("width", "depth", "num_heads", "mlp_dim")},
        patch=c["siglip"]["patch_size"][0],
        image_size=c["image_resolution"],
    )
    expert = GemmaConfig(**c.get("action_expert", c["vlm"]), adaptive=c["model"] == "pi05")
    return VLAConfig(
        tower,
        GemmaConfig(**c["vlm"]),
        expert,
        c["vocab_size"],
        c["action_dim"],
        c["action_dim"],
        c["action_horizon"],
        state="token" if c["model"] == "pi0" else "text",
        **SWITCHES,
    )


def openpi_arrays(folder: Path) -> dict:
    """Return the tree of params.npz, which has the names of openpi."""
    return unflatten_dict(
        {
            name.removeprefix("PaliGemma/"): value
            for name, value in np.load(folder / "params.npz").items()
        },
        sep="/",
    )


def weights_of(folder: Path) -> Path:
    """Return the path of the weights of a PaliGemma fixture."""
    return folder / "checkpoint.npz" if kind_of(folder) == "paligemma_bv" else folder


def paligemma_config(folder: Path) -> VLAConfig:
    """Return the model of a PaliGemma fixture, with an expert that is never run."""
    checkpoint = pretrained.find(weights_of(folder))
    sizes = {"siglip": {}, "vlm": {}}
    for field, value in checkpoint.sizes.items():
        part, _, name = field.partition(".")
        if part in sizes:
            sizes[part][name] = value
    tower = sizes["siglip"]
    vlm = sizes["vlm"]
    images = next(
        value
        for name, value in np.load(folder / "inputs.npz").items()
        if name in ("image", "pixel_values_nhwc")
    )
    table = next(
        tensor
        for name, tensor in checkpoint.tensors.items()
        if name.endswith(("input_embedding", "embed_tokens.weight"))
    )
    return VLAConfig(
        SigLIPConfig(**tower | {"image_size": images.shape[1]}),
        GemmaConfig(**vlm),
        GemmaConfig(**vlm),
        table.shape[0],
        1,
        1,
        1,
        state="text",
        **SWITCHES,
    )
