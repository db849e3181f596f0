"""PaliGemma as a Hugging Face directory: config.json and one or several safetensors files, read and written.

Three generations of names are read; the first, of the released checkpoints, is what the table has, what is written,
and what every version of transformers takes:
  released:  vision_tower.vision_model.*        language_model.model.*   multi_modal_projector.*
  5.x:       vision_tower.*                     language_model.model.*   multi_modal_projector.*
  4.5x:      model.vision_tower.vision_model.*  model.language_model.*   model.multi_modal_projector.*   lm_head.*
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from etcvla.models.pretrained import safetensors
from etcvla.models.pretrained.layout import Checkpoint, DecoderLayout, ParamEntry, Shapes
from etcvla.models.vla import VLAConfig

log = logging.getLogger(__name__)
FORMAT = "Hugging Face PaliGemma"
PADDING = 64  # rows of the embedding table beyond the vocabulary, of which the first is the image's placeholder
MODEL, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"

_RELEASED_NAMES = (  # (regex, what it becomes), one after another
    (r"^model\.(?=vision_tower|language_model|multi_modal)", ""),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
_BUFFERS = r".*(position_ids|rotary_emb\.inv_freq)"  # older files hold these constants too

_EMBEDDING, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_LAYER, _OURS = "language_model.model.layers.{}", "llm/layers"
_BLOCK, _OUR_BLOCK = "vision_tower.vision_model.encoder.layers.{}", "img/Transformer/encoderblock"
_HEADS, _QKV = f"{_OUR_BLOCK}/MultiHeadDotProductAttention_0", ("query", "key", "value")


def _norm(name: str, path: str) -> tuple:
    return (f"{name}.weight", f"{path}/scale", "d -> d"), (f"{name}.bias", f"{path}/bias", "d -> d")


# (tensor, our parameter, the axes of both, index after the layer). {} is the layer: our axis 0.
_VISION = (
    (
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "img/embedding/kernel",
        "d c h w -> h w c d",
    ),
    ("vision_tower.vision_model.embeddings.patch_embedding.bias", "img/embedding/bias", "d -> d"),
    (
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "img/pos_embedding",
        "i d -> i d",
        0,
    ),
    *_norm("vision_tower.vision_model.post_layernorm", "img/Transformer/encoder_norm"),
    ("multi_modal_projector.linear.weight", "img/head/kernel", "e d -> d e"),
    ("multi_modal_projector.linear.bias", "img/head/bias", "e -> e"),
    *_norm(f"{_BLOCK}.layer_norm1", f"{_OUR_BLOCK}/LayerNorm_0"),
    *_norm(f"{_BLOCK}.layer_norm2", f"{_OUR_BLOCK}/LayerNorm_1"),
    *(
        (f"{_BLOCK}.self_attn.{x[0]}_proj.weight", f"{_HEADS}/{x}/kernel", "(n h) d -> d n h")
        for x in _QKV
    ),
    *((f"{_BLOCK}.self_attn.{x[0]}_proj.bias", f"{_HEADS}/{x}/bias", "(n h) -> n h") for x in _QKV),
    (f"{_BLOCK}.self_attn.out_proj.weight", f"{_HEADS}/out/kernel", "d (n h) -> n h d"),
    (f"{_BLOCK}.self_attn.out_proj.bias", f"{_HEADS}/out/bias", "d -> d"),
    *(
        (
            f"{_BLOCK}.mlp.fc{i + 1}.weight",
            f"{_OUR_BLOCK}/MlpBlock_0/Dense_{i}/kernel",
            "f d -> d f",
        )
        for i in (0, 1)
    ),
    *(
        (f"{_BLOCK}.mlp.fc{i + 1}.bias", f"{_OUR_BLOCK}/MlpBlock_0/Dense_{i}/bias", "f -> f")
        for i in (0, 1)
    ),
)
_LANGUAGE = (
    (_EMBEDDING, "llm/embedder/input_embedding", "v d -> v d"),
    ("language_model.model.norm.weight", "llm/final_norm/scale", "d -> d"),
    (f"{_LAYER}.input_layernorm.weight", f"{_OURS}/pre_attention_norm/scale", "d -> d"),
    (f"{_LAYER}.self_attn.q_proj.weight", f"{_OURS}/attn/q_einsum/w", "(n h) d -> n d h"),
    (f"{_LAYER}.self_attn.k_proj.weight", f"{_OURS}/attn/kv_einsum/w", "(k h) d -> k d h", 0),
    (f"{_LAYER}.self_attn.v_proj.weight", f"{_OURS}/attn/kv_einsum/w", "(k h) d -> k d h", 1),
    (f"{_LAYER}.self_attn.o_proj.weight", f"{_OURS}/attn/attn_vec_einsum/w", "d (n h) -> n h d"),
    (f"{_LAYER}.mlp.gate_proj.weight", f"{_OURS}/mlp/gating_einsum", "f d -> d f", 0),
    (f"{_LAYER}.mlp.up_proj.weight", f"{_OURS}/mlp/gating_einsum", "f d -> d f", 1),
    (f"{_LAYER}.mlp.down_proj.weight", f"{_OURS}/mlp/linear", "d f -> f d"),
)
_GEMMA1 = ((f"{_LAYER}.post_attention_layernorm.weight", f"{_OURS}/pre_ffw_norm/scale", "d -> d"),)
_GEMMA2 = (  # the same name is another norm here
    (f"{_LAYER}.post_attention_layernorm.weight", f"{_OURS}/post_attention_norm/scale", "d -> d"),
    (f"{_LAYER}.pre_feedforward_layernorm.weight", f"{_OURS}/pre_ffw_norm/scale", "d -> d"),
    (f"{_LAYER}.post_feedforward_layernorm.weight", f"{_OURS}/post_ffw_norm/scale", "d -> d"),
)


def table(shapes: Shapes) -> list[ParamEntry]:
    """Every tensor of the PaliGemma (1 or 2) whose backbone's parameters have these shapes."""
    rows = _VISION + _LANGUAGE + (_GEMMA2 if f"{_OURS}/post_ffw_norm/scale" in shapes else _GEMMA1)
    out = []
    for name, path, pattern, *part in rows:
        layers = range(shapes[path][0]) if "{}" in name else [None]
        out += [
            ParamEntry(
                name.format(layer), path, (*(() if layer is None else (layer,)), *part), pattern
            )
            for layer in layers
        ]
    return out


def backbone(shapes: Shapes) -> list[str]:
    """Our parameters that a PaliGemma has: the tower and the language model."""
    return sorted({entry.path for entry in table(shapes)})


# Our config's field -> its name in config.json, and what holds where that says nothing (transformers' defaults).
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


# What is the same in every released PaliGemma, so that our model has no field for it.
_FIXED = {
    "text_config": {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6},
    "vision_config": {"layer_norm_eps": 1e-6},
}


def open_checkpoint(directory: epath.Path) -> Checkpoint:
    """Reads config.json and the headers.

    Raises FileNotFoundError for a shard that is not there, ValueError for another architecture, a file that is not
    whole, or an output layer that is not the embedding table.
    """
    sizes = _sizes(directory / CONFIG)
    tensors, actual = {}, {}
    for file in _files(directory):
        for name, tensor in safetensors.read(file).items():
            if re.fullmatch(_BUFFERS, name):
                continue
            released = _released_name(name)
            if released in tensors:
                raise ValueError(
                    f"{directory}: {name} and {actual[released]} are the same parameter"
                )
            tensors[released], actual[released] = tensor, name
    _untie(tensors, directory)
    return Checkpoint(directory, FORMAT, tensors, sizes, table, actual, PADDING)


def _files(directory: epath.Path) -> list[epath.Path]:
    if not (directory / INDEX).exists():
        return [directory / MODEL]
    names = sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))
    absent = [name for name in names if not (directory / name).exists()]
    if absent:
        raise FileNotFoundError(
            f"{directory / INDEX} names {', '.join(absent)}, which {directory} does not have"
        )
    return [directory / name for name in names]


def _released_name(name: str) -> str:
    return functools.reduce(lambda name, rule: re.sub(*rule, name), _RELEASED_NAMES, name)


def _untie(tensors: dict[str, DecoderLayout], directory: epath.Path) -> None:
    """Leaves the embedding table alone of it and the output layer, which must be one."""
    head = tensors.pop(_HEAD, None)
    if head is not None and not tensors.setdefault(_EMBEDDING, head).same_as(head):
        raise ValueError(
            f"{directory}: lm_head is not the embedding table; here they are one parameter"
        )


def _sizes(path: epath.Path) -> dict[str, float]:
    """The fields of our config that config.json tells. Raises ValueError for another architecture's."""
    if not path.exists():
        log.warning("%s is not there: the numbers of heads are taken on trust", path)
        return {}
    config = json.loads(path.read_text())
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    kind = (config.get("model_type"), text.get("model_type", "gemma"))
    if kind[0] != "paligemma" or kind[1] not in _TEXT_FIELDS:
        raise ValueError(
            f"{path} describes a {kind[0]!r} model with text_config.model_type {kind[1]!r}, expected "
            f"'paligemma' with {' or '.join(map(repr, _TEXT_FIELDS))}"
        )
    for part, fixed in _FIXED.items():
        found = config.get(part, {})
        found = found | (found.get("rope_parameters") or {})  # where newer files have rope_theta
        for name, value in fixed.items():
            if found.get(name, value) != value:
                raise ValueError(f"{path}: {part}.{name} is {found[name]}, expected {value}")
    values = {
        f"{part}.{field}": found.get(name, default)
        for part, found, fields in (
            ("siglip", vision, _VISION_FIELDS),
            ("vlm", text, _TEXT_FIELDS[kind[1]]),
        )
        for field, (name, default) in fields.items()
    }
    return {
        field: 0 if value is None else value for field, value in values.items()
    }  # a soft cap that is off


def export(
    params: Mapping,
    config: VLAConfig,
    directory: epath.Path,
    tokenizer_dir: epath.Path | None,
    shard_bytes: int,
) -> None:
    """Writes the backbone, in its own dtype, with config.json and the tokenizer's files into a directory."""
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    tensors = {
        entry.name: (entry.file_shape(leaves[entry.path].shape), [entry.view(leaves[entry.path])])
        for entry in table({path: leaf.shape for path, leaf in leaves.items()})
    }
    tensors[_EMBEDDING] = _padded(tensors[_EMBEDDING][1][0])
    _save_shards(directory, tensors, shard_bytes)
    dtype = leaves["llm/final_norm/scale"].dtype.name
    (directory / CONFIG).write_text(json.dumps(_config_json(config, dtype), indent=2))
    for file in tokenizer_dir.iterdir() if tokenizer_dir else ():
        if re.fullmatch(r".*(token|process|template).*\.(json|model|jinja)", file.name):
            file.copy(directory / file.name)


def _padded(embedding: np.ndarray) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """With the rows that transformers keeps for the image's placeholder: the mean, which is never the likeliest."""
    mean = np.broadcast_to(
        embedding.mean(0, dtype=np.float32).astype(embedding.dtype), (PADDING, embedding.shape[1])
    )
    return (len(embedding) + PADDING, embedding.shape[1]), [embedding, mean]


def _save_shards(directory: epath.Path, tensors: Mapping, shard_bytes: int) -> None:
    shards, room = [], 0
    for name, (_, parts) in tensors.items():
        size = sum(part.nbytes for part in parts)
        if not shards or size > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensors[name]
        room -= size
    names = (
        [MODEL]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        safetensors.save(directory / name, shard)
    if len(shards) > 1:
        total = sum(part.nbytes for _, parts in tensors.values() for part in parts)
        where = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        (directory / INDEX).write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2)
        )


def _config_json(config: VLAConfig, dtype: str) -> dict[str, Any]:
    vocab, width, act = config.vocab_size, config.vlm.width, "gelu_pytorch_tanh"
    kind = "gemma2" if config.vlm.post_norms else "gemma"
    vlm = dataclasses.replace(
        config.vlm, query_pre_attn_scalar=config.vlm.query_pre_attn_scalar or config.vlm.head_dim
    )
    fields = _TEXT_FIELDS[kind].items()
    odd = [
        f"vlm.{field} = {getattr(vlm, field)}"
        for field, (name, value) in fields
        if name is None and getattr(vlm, field) != value
    ]
    if odd:
        raise ValueError(f"no {kind} has {', '.join(odd)}")
    text = {name: getattr(vlm, field) or None for field, (name, _) in fields if name}
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
