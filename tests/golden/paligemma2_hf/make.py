"""Make this folder's numbers: a tiny random PaliGemma 2, inputs, Hugging Face's outputs.

python tests/golden/paligemma2_hf/make.py

Requires transformers 5.23.0, torch 2.13.0 (CPU), numpy 2.4.
"""

import pathlib
import sys

import numpy as np
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

FOLDER = pathlib.Path(__file__).parent
PATCH, SIDE, VOCAB, SEED = 14, 3, 320, 23
IMAGE = VOCAB  # the placeholder's id
NUM_IMAGE, NEW = SIDE**2, 8
PROMPTS, SUFFIXES = (5, 8, 6), (9, 4, 11)
CONFIG = {
    "vision_config": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "image_size": PATCH * SIDE,
        "patch_size": PATCH,
        "vision_use_head": False,
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "model_type": "gemma2",
        "hidden_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "intermediate_size": 72,
        "query_pre_attn_scalar": 20,
        "sliding_window": 10,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 1.5,
        "vocab_size": VOCAB + 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
    },
    "projection_dim": 40,
    "hidden_size": 40,
    "vocab_size": VOCAB,
    "image_token_index": IMAGE,
}


def make_model(**text) -> PaliGemmaForConditionalGeneration:
    """Return a model without zeros, with queries and keys large enough for the soft caps.

    Args:
      text: settings of the language model that are to be others.
    """
    config = PaliGemmaConfig(
        **{**CONFIG, "text_config": CONFIG["text_config"] | text},
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"
    model = PaliGemmaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            std = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.25 if "norm" in name else 0.1
            if "q_proj.weight" in name or "k_proj.weight" in name:
                std *= 1.5
            centre = 1.0 if "layer_norm" in name and weight.ndim == 1 and "weight" in name else 0.0
            if "embed" in name:
                std = 0.08
            weight.copy_(centre + std * torch.randn(weight.shape, generator=generator))
    return model


def make_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """See README.md."""
    rows, columns = (
        len(PROMPTS),
        NUM_IMAGE + max(p + s for p, s in zip(PROMPTS, SUFFIXES, strict=True)),
    )
    start = NUM_IMAGE + max(PROMPTS)
    pixels = rng.integers(0, 256, (rows, PATCH * SIDE, PATCH * SIDE, 3))
    x = {
        "pixel_values_nhwc": (pixels / np.float32(127.5) - 1).astype(np.float32),
        **{
            name: np.zeros((rows, columns), np.int32)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        },
        "prompt_len": np.int32(PROMPTS),
        "suffix_len": np.int32(SUFFIXES),
        "num_image_tokens": np.int32(NUM_IMAGE),
        **{
            f"gen_{name}": np.zeros((rows, start), np.int32)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        },
    }
    x["pixel_values_nchw"] = np.ascontiguousarray(x["pixel_values_nhwc"].transpose(0, 3, 1, 2))
    x["position_ids"] = np.broadcast_to(
        np.arange(1, columns + 1, dtype=np.int32), (rows, columns)
    ).copy()
    for row, (prompt, suffix) in enumerate(zip(PROMPTS, SUFFIXES, strict=True)):
        end = NUM_IMAGE + prompt
        text = [2, *rng.integers(3, VOCAB, prompt - 1), *rng.integers(3, VOCAB, suffix - 1), 1]
        ids = np.int32([IMAGE] * NUM_IMAGE + text)
        x["input_ids"][row, : len(ids)] = ids
        x["attention_mask"][row, : len(ids)] = 1
        x["token_type_ids"][row, end : len(ids)] = 1
        x["gen_input_ids"][row, start - end :] = ids[:end]
        x["gen_attention_mask"][row, start - end :] = 1
    return x


def run(model, x: dict[str, np.ndarray], dtype=torch.float32) -> dict[str, np.ndarray]:
    """The forward pass over prompt and suffix."""
    t = {name: torch.from_numpy(np.asarray(value)) for name, value in x.items()}
    pixels = t["pixel_values_nchw"].to(dtype)
    vision = model.model.vision_tower(pixels).last_hidden_state
    features = model.model.get_image_features(pixels).pooler_output
    out = model(
        input_ids=t["input_ids"].long(),
        pixel_values=pixels,
        attention_mask=t["attention_mask"].long(),
        token_type_ids=t["token_type_ids"].long(),
        output_hidden_states=True,
    )
    real = t["attention_mask"].bool()[..., None]
    return {
        "vision_last_hidden_state": vision,
        "image_features": features,
        "text_logits": torch.where(real, out.logits, 0)[:, NUM_IMAGE:],
        "last_hidden_state": torch.where(real, out.hidden_states[-1], 0),
    }


def masks(model, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bool[B, Q, K]: what the layers of both kinds see."""
    types, attention = (
        torch.from_numpy(x[name]).long() for name in ("token_type_ids", "attention_mask")
    )
    arguments = {
        "config": model.config.text_config,
        "inputs_embeds": torch.zeros(*types.shape, 1),
        "attention_mask": attention,
        "past_key_values": None,
        "block_sequence_ids": torch.where(types == 0, 0, -1),
    }
    return {
        name: (make(**arguments)[:, 0] == 0).numpy()
        for name, make in (
            ("attn_mask_4d", create_causal_mask),
            ("attn_mask_4d_sliding", create_sliding_window_causal_mask),
        )
    }


def expected_masks(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same by the rule that README.md states."""
    column = np.arange(x["input_ids"].shape[1])
    causal = column[None, :] <= column[:, None]
    near = column[None, :] > column[:, None] - CONFIG["text_config"]["sliding_window"]
    prefix = x["token_type_ids"] == 0
    both = prefix[:, :, None] & prefix[:, None, :]
    real = x["attention_mask"][:, None, :] > 0
    return {
        "attn_mask_4d": (causal | both) & real,
        "attn_mask_4d_sliding": ((causal & near) | both) & real,
    }


def generate(model, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Greedy tokens from a cache, left padding, no stop at eos."""
    t = {
        name: torch.from_numpy(x[f"gen_{name}"]).long()
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    model.generation_config.eos_token_id = None
    out = model.generate(
        **t,
        pixel_values=torch.from_numpy(x["pixel_values_nchw"]),
        max_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return {
        "generated_ids": out.sequences[:, t["input_ids"].shape[1] :].int(),
        "generated_logits": torch.stack(out.logits, dim=1),
    }


def uncached(model, x: dict[str, np.ndarray], generated: np.ndarray) -> np.ndarray:
    """Return the logits of the generated tokens, each row alone, without padding and cache."""
    rows = []
    for row, prompt in enumerate(PROMPTS):
        end = NUM_IMAGE + prompt
        ids = np.concatenate([x["input_ids"][row, :end], generated[row, :-1]])[None]
        types = (np.arange(ids.shape[1]) >= end)[None]
        alone = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": types,
            "pixel_values_nchw": x["pixel_values_nchw"][row : row + 1],
        }
        rows.append(run(model, alone)["text_logits"][0, prompt - 1 :])
    return np.stack(rows)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model, x = make_model(), make_inputs(np.random.default_rng(SEED))
    found = {name: value.numpy() for name, value in (run(model, x) | generate(model, x)).items()}
    x |= masks(model, x)
    for name, mask in expected_masks(x).items():
        real = x["attention_mask"].astype(bool)
        assert (mask == x[name])[real].all(), name
    top = np.sort(found["generated_logits"], axis=-1)
    print("generated", found["generated_ids"].tolist())
    print("smallest gap of generated logits", (top[..., -1] - top[..., -2]).min())
    print(
        "cached - uncached",
        np.abs(uncached(model, x, found["generated_ids"]) - found["generated_logits"]).max(),
    )
    exact = run(make_model().double(), x, torch.float64)["text_logits"].numpy()
    print("float32 - float64", np.abs(exact - found["text_logits"]).max())
    for name, value in {
        "sliding_window": 4096,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": 12,
    }.items():
        other = run(make_model(**{name: value}), x)["text_logits"].numpy()
        print(f"{name} = {value} moves the logits by", np.abs(other - found["text_logits"]).max())
    if "--check" not in sys.argv:
        model.generation_config.eos_token_id = 1
        model.save_pretrained(FOLDER)
        np.savez_compressed(FOLDER / "inputs.npz", **x)
        np.savez_compressed(FOLDER / "outputs.npz", **found)


if __name__ == "__main__":
    main()
