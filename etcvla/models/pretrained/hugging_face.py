"""PaliGemma as a Hugging Face directory: config.json and one or several safetensors files.

Three generations of names are read. The first one, of the released checkpoints, is the one in the
table and in exports; all versions of transformers read it.

  released:  vision_tower.vision_model.*, language_model.model.*, multi_modal_projector.*
  5.x:       vision_tower.*, language_model.model.*, multi_modal_projector.*
  4.5x:      model.vision_tower.vision_model.*, model.language_model.*,
             model.multi_modal_projector.*, lm_head.*
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from etcvla.errors import UserError
from etcvla.files import write_json
from etcvla.models.pretrained import safetensors
from etcvla.models.pretrained.layout import FileTensor, ParamEntry, ReleasedCheckpoint, Shapes
from etcvla.models.vla import VLAConfig

log = logging.getLogger(__name__)
FORMAT = "Hugging Face PaliGemma"
# Rows of the embedding table beyond the vocabulary; the first one is the placeholder of an image.
PADDING = 64
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

# (regex, replacement), applied in order, that turn any generation of names into the released one.
_RELEASED_NAMES = (
    (r"^model\.(?=vision_tower|language_model|multi_modal)", ""),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
_BUFFERS = r".*(position_ids|rotary_emb\.inv_freq)"  # constants in older files
_TOKENIZER_FILES = r".*(token|process|template).*\.(json|model|jinja)"

_EMBEDDING = "language_model.model.embed_tokens.weight"
_HEAD = "language_model.lm_head.weight"
_TOWER = "vision_tower.vision_model"
_VISION_LAYER = f"{_TOWER}.encoder.layers.{{}}"
_TEXT_LAYER = "language_model.model.layers.{}"
_OUR_BLOCK = "img/Transformer/encoderblock"
_OUR_ATTENTION = f"{_OUR_BLOCK}/MultiHeadDotProductAttention_0"
_OUR_MLP = f"{_OUR_BLOCK}/MlpBlock_0"
_OUR_LAYER = "llm/layers"

# (tensor, our parameter, axes of both[, index after the layer]). {} is the layer, which is the
# first axis of our parameter.
_VISION = (
    (f"{_TOWER}.embeddings.patch_embedding.weight", "img/embedding/kernel", "d c h w -> h w c d"),
    (f"{_TOWER}.embeddings.patch_embedding.bias", "img/embedding/bias", "d -> d"),
    (f"{_TOWER}.embeddings.position_embedding.weight", "img/pos_embedding", "i d -> i d", 0),
    (f"{_TOWER}.post_layernorm.weight", "img/Transformer/encoder_norm/scale", "d -> d"),
    (f"{_TOWER}.post_layernorm.bias", "img/Transformer/encoder_norm/bias", "d -> d"),
    ("multi_modal_projector.linear.weight", "img/head/kernel", "e d -> d e"),
    ("multi_modal_projector.linear.bias", "img/head/bias", "e -> e"),
    (f"{_VISION_LAYER}.layer_norm1.weight", f"{_OUR_BLOCK}/LayerNorm_0/scale", "d -> d"),
    (f"{_VISION_LAYER}.layer_norm1.bias", f"{_OUR_BLOCK}/LayerNorm_0/bias", "d -> d"),
    (f"{_VISION_LAYER}.layer_norm2.weight", f"{_OUR_BLOCK}/LayerNorm_1/scale", "d -> d"),
    (f"{_VISION_LAYER}.layer_norm2.bias", f"{_OUR_BLOCK}/LayerNorm_1/bias", "d -> d"),
    (
        f"{_VISION_LAYER}.self_attn.q_proj.weight",
        f"{_OUR_ATTENTION}/query/kernel",
        "(n h) d -> d n h",
    ),
    (
        f"{_VISION_LAYER}.self_attn.k_proj.weight",
        f"{_OUR_ATTENTION}/key/kernel",
        "(n h) d -> d n h",
    ),
    (
        f"{_VISION_LAYER}.self_attn.v_proj.weight",
        f"{_OUR_ATTENTION}/value/kernel",
        "(n h) d -> d n h",
    ),
    (f"{_VISION_LAYER}.self_attn.q_proj.bias", f"{_OUR_ATTENTION}/query/bias", "(n h) -> n h"),
    (f"{_VISION_LAYER}.self_attn.k_proj.bias", f"{_OUR_ATTENTION}/key/bias", "(n h) -> n h"),
    (f"{_VISION_LAYER}.self_attn.v_proj.bias", f"{_OUR_ATTENTION}/value/bias", "(n h) -> n h"),
    (
        f"{_VISION_LAYER}.self_attn.out_proj.weight",
        f"{_OUR_ATTENTION}/out/kernel",
        "d (n h) -> n h d",
    ),
    (f"{_VISION_LAYER}.self_attn.out_proj.bias", f"{_OUR_ATTENTION}/out/bias", "d -> d"),
    (f"{_VISION_LAYER}.mlp.fc1.weight", f"{_OUR_MLP}/Dense_0/kernel", "f d -> d f"),
    (f"{_VISION_LAYER}.mlp.fc2.weight", f"{_OUR_MLP}/Dense_1/kernel", "d f -> f d"),
    (f"{_VISION_LAYER}.mlp.fc1.bias", f"{_OUR_MLP}/Dense_0/bias", "f -> f"),
    (f"{_VISION_LAYER}.mlp.fc2.bias", f"{_OUR_MLP}/Dense_1/bias", "d -> d"),
)
_LANGUAGE = (
    (_EMBEDDING, "llm/embedder/input_embedding", "v d -> v d"),
    ("language_model.model.norm.weight", "llm/final_norm/scale", "d -> d"),
    (f"{_TEXT_LAYER}.input_layernorm.weight", f"{_OUR_LAYER}/pre_attention_norm/scale", "d -> d"),
    (f"{_TEXT_LAYER}.self_attn.q_proj.weight", f"{_OUR_LAYER}/attn/q_einsum/w", "(n h) d -> n d h"),
    (
        f"{_TEXT_LAYER}.self_attn.k_proj.weight",
        f"{_OUR_LAYER}/attn/kv_einsum/w",
        "(k h) d -> k d h",
        0,
    ),
    (
        f"{_TEXT_LAYER}.self_attn.v_proj.weight",
        f"{_OUR_LAYER}/attn/kv_einsum/w",
        "(k h) d -> k d h",
        1,
    ),
    (
        f"{_TEXT_LAYER}.self_attn.o_proj.weight",
        f"{_OUR_LAYER}/attn/attn_vec_einsum/w",
        "d (n h) -> n h d",
    ),
    (f"{_TEXT_LAYER}.mlp.gate_proj.weight", f"{_OUR_LAYER}/mlp/gating_einsum", "f d -> d f", 0),
    (f"{_TEXT_LAYER}.mlp.up_proj.weight", f"{_OUR_LAYER}/mlp/gating_einsum", "f d -> d f", 1),
    (f"{_TEXT_LAYER}.mlp.down_proj.weight", f"{_OUR_LAYER}/mlp/linear", "d f -> f d"),
)
# `post_attention_layernorm` is another norm in Gemma 2 than in Gemma 1.
_GEMMA1 = (
    (
        f"{_TEXT_LAYER}.post_attention_layernorm.weight",
        f"{_OUR_LAYER}/pre_ffw_norm/scale",
        "d -> d",
    ),
)
_GEMMA2 = (
    (
        f"{_TEXT_LAYER}.post_attention_layernorm.weight",
        f"{_OUR_LAYER}/post_attention_norm/scale",
        "d -> d",
    ),
    (
        f"{_TEXT_LAYER}.pre_feedforward_layernorm.weight",
        f"{_OUR_LAYER}/pre_ffw_norm/scale",
        "d -> d",
    ),
    (
        f"{_TEXT_LAYER}.post_feedforward_layernorm.weight",
        f"{_OUR_LAYER}/post_ffw_norm/scale",
        "d -> d",
    ),
)


def table(shapes: Shapes) -> list[ParamEntry]:
    """List the tensors of the PaliGemma (1 or 2) whose backbone's parameters have these shapes."""
    is_gemma2 = f"{_OUR_LAYER}/post_ffw_norm/scale" in shapes
    entries = []
    for name, path, pattern, *index in _VISION + _LANGUAGE + (_GEMMA2 if is_gemma2 else _GEMMA1):
        if "{}" in name:
            for layer in range(shapes[path][0]):
                entries.append(ParamEntry(name.format(layer), path, (layer, *index), pattern))
        else:
            entries.append(ParamEntry(name, path, tuple(index), pattern))
    return entries


def backbone(shapes: Shapes) -> list[str]:
    """List our parameters that a PaliGemma has: the tower and the language model."""
    return sorted({entry.path for entry in table(shapes)})


# Field of our config -> (its name in config.json, transformers' default). Without a name, all
# models of this kind have the default.
_VISION_FIELDS = {
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "mlp_dim": ("intermediate_size", 3072),
    "patch": ("patch_size", 16),
    "image_size": ("image_size", 224),
}
_TEXT_FIELDS = {
    "gemma": {
        "width": ("hidden_size", 3072),
        "depth": ("num_hidden_layers", 28),
        "mlp_dim": ("intermediate_size", 24_576),
        "num_heads": ("num_attention_heads", 16),
        "num_kv_heads": ("num_key_value_heads", 16),
        "head_dim": ("head_dim", 256),
        "query_pre_attn_scalar": ("head_dim", 256),
        "attn_softcap": (None, 0.0),
        "final_softcap": (None, 0.0),
        "post_norms": (None, False),
        "window": (None, 0),
    },
    "gemma2": {
        "width": ("hidden_size", 2304),
        "depth": ("num_hidden_layers", 26),
        "mlp_dim": ("intermediate_size", 9216),
        "num_heads": ("num_attention_heads", 8),
        "num_kv_heads": ("num_key_value_heads", 4),
        "head_dim": ("head_dim", 256),
        "query_pre_attn_scalar": ("query_pre_attn_scalar", 256),
        "attn_softcap": ("attn_logit_softcapping", 50.0),
        "final_softcap": ("final_logit_softcapping", 30.0),
        "post_norms": (None, True),
        "window": ("sliding_window", 4096),
    },
}


# Values of every released PaliGemma for which our model has no field.
_FIXED = {
    "text_config": {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6},
    "vision_config": {"layer_norm_eps": 1e-6},
}


def open_checkpoint(directory: epath.Path) -> ReleasedCheckpoint:
    """Read config.json and the headers.

    Raises: UserError for a missing shard, another architecture, an incomplete file, or an output
      layer that differs from the embedding table.
    """
    sizes = _read_sizes(directory / CONFIG)
    tensors = {}
    actual_names = {}
    for file in _files(directory):
        for name, tensor in safetensors.read(file).items():
            if re.fullmatch(_BUFFERS, name):
                continue
            released = _released_name(name)
            if released in tensors:
                raise UserError(
                    f"{directory}: {name} and {actual_names[released]} are the same parameter"
                )
            tensors[released] = tensor
            actual_names[released] = name
    _drop_head(tensors, directory)
    return ReleasedCheckpoint(directory, FORMAT, tensors, sizes, table, actual_names, PADDING)


def _files(directory: epath.Path) -> list[epath.Path]:
    """List the safetensors files."""
    index = directory / INDEX
    if not index.exists():
        return [directory / MODEL]
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise UserError(f"{index} names {', '.join(missing)}, which {directory} does not have")
    return [directory / name for name in names]


def _released_name(name: str) -> str:
    for pattern, replacement in _RELEASED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _drop_head(tensors: dict[str, FileTensor], directory: epath.Path) -> None:
    """Remove the output layer, which must equal the embedding table.

    A checkpoint may hold either or both.
    """
    head = tensors.pop(_HEAD, None)
    if head is None:
        return
    embedding = tensors.setdefault(_EMBEDDING, head)
    if not embedding.equals(head):
        raise UserError(
            f"{directory}: lm_head differs from the embedding table; this model shares the two"
        )


def _read_sizes(path: epath.Path) -> dict[str, float]:
    """Return the fields of our config that config.json specifies.

    Raises: UserError for another architecture.
    """
    if not path.exists():
        log.warning("%s does not exist: the numbers of heads are not checked", path)
        return {}
    config = json.loads(path.read_text())
    text = config.get("text_config", {})
    vision = config.get("vision_config", {})
    model_type = config.get("model_type")
    text_type = text.get("model_type", "gemma")
    if model_type != "paligemma" or text_type not in _TEXT_FIELDS:
        raise UserError(
            f"{path} describes a {model_type!r} model with text_config.model_type {text_type!r}, "
            f"expected 'paligemma' with {' or '.join(map(repr, _TEXT_FIELDS))}"
        )
    for part, fixed in _FIXED.items():
        values = config.get(part, {})
        values = values | (values.get("rope_parameters") or {})  # newer files have rope_theta here
        for name, value in fixed.items():
            if values.get(name, value) != value:
                raise UserError(f"{path}: {part}.{name} is {values[name]}, expected {value}")
    sizes = {}
    for field, (name, default) in _VISION_FIELDS.items():
        sizes[f"siglip.{field}"] = vision.get(name, default)
    for field, (name, default) in _TEXT_FIELDS[text_type].items():
        value = text.get(name, default)
        sizes[f"vlm.{field}"] = 0 if value is None else value  # None: no soft cap
    return sizes


def export(
    params: Mapping,
    config: VLAConfig,
    directory: epath.Path,
    tokenizer_dir: epath.Path | None,
    shard_bytes: int,
) -> None:
    """Write the backbone (in its own dtype), config.json and the tokenizer's files."""
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    tensors = {}
    for entry in table({path: leaf.shape for path, leaf in leaves.items()}):
        leaf = leaves[entry.path]
        tensors[entry.name] = (entry.file_shape(leaf.shape), [entry.view(leaf)])
    tensors[_EMBEDDING] = _pad_embedding(leaves["llm/embedder/input_embedding"])
    _save_shards(directory, tensors, shard_bytes)
    dtype = leaves["llm/final_norm/scale"].dtype.name
    write_json(directory / CONFIG, _config_json(config, dtype))
    if tokenizer_dir is None:
        return
    for file in tokenizer_dir.iterdir():
        if re.fullmatch(_TOKENIZER_FILES, file.name):
            file.copy(directory / file.name)


def _pad_embedding(embedding: np.ndarray) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Append the rows that transformers keeps for the placeholder of an image.

    They hold the mean of the table, which is never the most likely token.
    """
    vocab_size, width = embedding.shape
    mean = embedding.mean(0, dtype=np.float32).astype(embedding.dtype)
    padding = np.broadcast_to(mean, (PADDING, width))
    return (vocab_size + PADDING, width), [embedding, padding]


def _save_shards(directory: epath.Path, tensors: Mapping, shard_bytes: int) -> None:
    """Write the tensors into files of at most `shard_bytes`, with an index if there are several."""
    shards = []
    remaining = 0
    total = 0
    for name, (shape, arrays) in tensors.items():
        size = sum(array.nbytes for array in arrays)
        if not shards or size > remaining:
            shards.append({})
            remaining = shard_bytes
        shards[-1][name] = (shape, arrays)
        remaining -= size
        total += size
    if len(shards) == 1:
        safetensors.save(directory / MODEL, shards[0])
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        safetensors.save(directory / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / INDEX, index)


def _text_config(config: VLAConfig, kind: str) -> dict[str, Any]:
    """Return the fields of text_config. Raises UserError if no model of this kind has ours."""
    vlm = config.vlm
    if not vlm.query_pre_attn_scalar:
        vlm = dataclasses.replace(vlm, query_pre_attn_scalar=vlm.head_dim)
    fields = {}
    unsupported = []
    for field, (name, default) in _TEXT_FIELDS[kind].items():
        value = getattr(vlm, field)
        if name:
            fields[name] = value or None
        elif value != default:
            unsupported.append(f"vlm.{field} = {value}")
    if unsupported:
        raise UserError(f"no {kind} has {', '.join(unsupported)}")
    return fields


def _config_json(config: VLAConfig, dtype: str) -> dict[str, Any]:
    """Return the contents of config.json."""
    vocab = config.vocab_size
    width = config.vlm.width
    act = "gelu_pytorch_tanh"
    kind = "gemma2" if config.vlm.post_norms else "gemma"
    text = _text_config(config, kind)
    vision = {name: getattr(config.siglip, field) for field, (name, _) in _VISION_FIELDS.items()}
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "torch_dtype": dtype,
        "vocab_size": vocab,
        "image_token_index": vocab,
        "hidden_size": width,
        "projection_dim": width,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "text_config": {
            **text,
            **_FIXED["text_config"],
            "model_type": kind,
            "vocab_size": vocab + PADDING,
            "hidden_act": act,
            "hidden_activation": act,
            "tie_word_embeddings": True,
            "num_image_tokens": config.siglip.tokens,
        },
        "vision_config": {
            **vision,
            **_FIXED["vision_config"],
            "model_type": "siglip_vision_model",
            "projection_dim": width,
            "hidden_act": act,
            "vision_use_head": False,
        },
    }
