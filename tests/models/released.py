"""The fixtures of released implementations as our model, parameters and batch. All sizes are read off the fixtures."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from etcvla import batch as batch_lib
from etcvla.models.gemma import GemmaConfig
from etcvla.models.siglip import SigLIPConfig
from etcvla.models.vla import VLA, VLAConfig
from tests.golden_dir import ROOT


def load_openpi(name: str) -> SimpleNamespace:
    """A flow-matching fixture: folder, model, params, batch (of the flow's inputs), inputs, outputs."""
    folder = ROOT / name
    inputs, outputs = (dict(np.load(folder / f"{part}.npz")) for part in ("inputs", "outputs"))
    params = nested(dict(np.load(folder / "params.npz")))
    params = {**{key: value for key, value in params.items() if key != "PaliGemma"}, **params["PaliGemma"]}
    cameras = [key.removeprefix("image/") for key in inputs if key.startswith("image/")]
    images = np.stack([inputs[f"image/{camera}"] for camera in cameras], axis=1)
    model = model_of(params, images, inputs["actions"], inputs["state"])
    batch = make_batch(images, inputs["tokenized_prompt"], inputs["tokenized_prompt_mask"], model)
    batch |= {"image_mask": np.stack([inputs[f"image_mask/{camera}"] for camera in cameras], axis=1),
              "action_segment": np.ones(len(images), np.int32), "state": inputs["state"], "actions": inputs["actions"],
              "action_mask": np.ones(inputs["actions"].shape, bool)}
    return SimpleNamespace(folder=folder, model=model, params=params, batch=batch, inputs=inputs, outputs=outputs)


def load_paligemma(name: str) -> SimpleNamespace:
    """A PaliGemma fixture: model, params, batch (prompt and suffix), prompt_batch, inputs, outputs."""
    folder = ROOT / name
    inputs, outputs = (dict(np.load(folder / f"{part}.npz")) for part in ("inputs", "outputs"))
    if (folder / "checkpoint.npz").exists():
        params = nested(dict(np.load(folder / "checkpoint.npz")))["params"]
        images, text, suffix = inputs["image"], inputs["text"], inputs["mask_loss"] > 0
        present = text.astype(bool)  # of all ids, only padding is 0
    else:
        params = from_hugging_face(folder)
        images, first = inputs["pixel_values_nhwc"], int(inputs["num_image_tokens"])
        text, present = inputs["input_ids"][:, first:], inputs["attention_mask"][:, first:] > 0
        suffix = inputs["token_type_ids"][:, first:] > 0
    model = model_of(params, images[:, None], np.zeros((1, 1, 1)), np.zeros((1, 1)))
    batch = make_batch(images[:, None], text, present, model) | {"target": suffix}
    prompt = present & ~suffix
    prompt_batch = make_batch(images[:, None], text * prompt, prompt, model)
    return SimpleNamespace(model=model, params=params, batch=batch, prompt_batch=prompt_batch, inputs=inputs,
                           outputs=outputs)


def make_batch(images: np.ndarray, text: np.ndarray, present: np.ndarray, model: VLA) -> dict[str, np.ndarray]:
    """One segment a row: float[B, C, H, W, 3] in [-1, 1], int[B, L], bool[B, L]."""
    cfg = model.config
    b, c, h, w, _ = images.shape
    batch = batch_lib.zeros(B=b, C=c, H=h, W=w, L=text.shape[1], S=cfg.state_dim, P=cfg.horizon, A=cfg.action_dim)
    pixels = np.round((images + 1) * 127.5).astype(np.uint8)
    return batch | {"images": pixels, "image_mask": np.ones((b, c), bool), "tokens": text.astype(np.int32),
                    "segment": present.astype(np.int32)}


def model_of(params: dict, images: np.ndarray, actions: np.ndarray, state: np.ndarray) -> VLA:
    """The model whose parameters these are; without an expert among them, one stands in that is never run."""
    patch = params["img"]["embedding"]["kernel"]
    block = params["img"]["Transformer"]["encoderblock"]
    depth, _, heads, _ = block["MultiHeadDotProductAttention_0"]["query"]["kernel"].shape
    siglip = SigLIPConfig(patch.shape[-1], depth, heads, block["MlpBlock_0"]["Dense_0"]["kernel"].shape[-1],
                          patch.shape[0], images.shape[2])
    layers = params["llm"]["layers"]
    expert = gemma_of(layers, "_1" if "mlp_1" in layers else "")
    return VLA(VLAConfig(
        siglip, gemma_of(layers, ""), expert, len(params["llm"]["embedder"]["input_embedding"]), state.shape[-1],
        actions.shape[-1], actions.shape[-2], state="token" if "state_proj" in params else "text", insulate=False,
        image_attends_prompt=True, dtype="float32", remat="none", unroll=8))


def gemma_of(layers: dict, suffix: str) -> GemmaConfig:
    depth, heads, width, head_dim = layers["attn"][f"q_einsum{suffix}"]["w"].shape
    return GemmaConfig(width, depth, layers[f"mlp{suffix}"]["linear"].shape[1], heads,
                       layers["attn"][f"kv_einsum{suffix}"]["w"].shape[2], head_dim,
                       adaptive="scale" not in layers[f"pre_attention_norm{suffix}"])


def nested(flat: dict[str, np.ndarray]) -> dict:
    """{"a/b": x} as {"a": {"b": x}}."""
    out = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return out


def from_hugging_face(folder: Path) -> dict:
    """model.safetensors in our layout: linear weights transposed, layers stacked, heads on an axis of their own."""
    config = json.loads((folder / "config.json").read_text())
    tensors = read_safetensors(folder / "model.safetensors")
    heads = config["vision_config"]["num_attention_heads"]
    text = config["text_config"]
    n, k, h = text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]

    def stack(template, change=lambda x: x.T):
        found = [template.format(i) for i in range(len(tensors)) if template.format(i) in tensors]
        return np.stack([change(tensors[name]) for name in found])

    def dense(prefix, kernel=lambda x: x.T, bias=lambda x: x):
        return {"kernel": stack(f"{prefix}.weight", kernel), "bias": stack(f"{prefix}.bias", bias)}

    def norm(prefix):
        return {"scale": stack(f"{prefix}.weight"), "bias": stack(f"{prefix}.bias")}

    vision, language = "vision_tower.encoder.layers.{}.", "language_model.model.layers.{}."

    def split(name):
        return dense(f"{vision}self_attn.{name}_proj", lambda x: x.T.reshape(len(x), heads, -1),
                     lambda x: x.reshape(heads, -1))

    def to_heads(name, count):
        return stack(f"{language}self_attn.{name}_proj.weight", lambda x: x.reshape(count, h, -1).swapaxes(1, 2))

    out = dense(f"{vision}self_attn.out_proj", lambda x: x.T.reshape(heads, -1, len(x)))
    patch = "vision_tower.embeddings.patch_embedding"
    return {
        "img": {
            "embedding": {"kernel": tensors[f"{patch}.weight"].transpose(2, 3, 1, 0), "bias": tensors[f"{patch}.bias"]},
            "pos_embedding": tensors["vision_tower.embeddings.position_embedding.weight"][None],
            "Transformer": {
                "encoderblock": {
                    "LayerNorm_0": norm(f"{vision}layer_norm1"), "LayerNorm_1": norm(f"{vision}layer_norm2"),
                    "MultiHeadDotProductAttention_0": {
                        "query": split("q"), "key": split("k"), "value": split("v"), "out": out},
                    "MlpBlock_0": {"Dense_0": dense(f"{vision}mlp.fc1"), "Dense_1": dense(f"{vision}mlp.fc2")}},
                "encoder_norm": {"scale": tensors["vision_tower.post_layernorm.weight"],
                                 "bias": tensors["vision_tower.post_layernorm.bias"]}},
            "head": {"kernel": tensors["multi_modal_projector.linear.weight"].T,
                     "bias": tensors["multi_modal_projector.linear.bias"]}},
        "llm": {
            "embedder": {"input_embedding": tensors["language_model.model.embed_tokens.weight"]},
            "final_norm": {"scale": tensors["language_model.model.norm.weight"]},
            "layers": {
                "pre_attention_norm": {"scale": stack(f"{language}input_layernorm.weight")},
                "pre_ffw_norm": {"scale": stack(f"{language}post_attention_layernorm.weight")},
                "attn": {
                    "q_einsum": {"w": to_heads("q", n)},
                    "kv_einsum": {"w": np.stack([to_heads("k", k), to_heads("v", k)], axis=1)},
                    "attn_vec_einsum": {"w": stack(f"{language}self_attn.o_proj.weight",
                                                   lambda x: x.T.reshape(n, h, -1))}},
                "mlp": {"gating_einsum": np.stack([stack(f"{language}mlp.{name}_proj.weight")
                                                   for name in ("gate", "up")], axis=1),
                        "linear": stack(f"{language}mlp.down_proj.weight")}}},
    }


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """float32 tensors by name: a length, a JSON header, the data."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    return {name: np.frombuffer(data[start:][slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
            for name, entry in header.items()}
