"""A model that compiles in seconds, with nonzero parameters, and random rows for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from etcvla import batch as batch_lib
from etcvla.models.gemma import GemmaConfig
from etcvla.models.siglip import SigLIPConfig
from etcvla.models.vla import VLA, VLAConfig, init_params

CONFIG = VLAConfig(
    siglip=SigLIPConfig(width=16, depth=2, num_heads=2, mlp_dim=24, patch=14, image_size=28),
    vlm=GemmaConfig(width=24, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=8),
    expert=GemmaConfig(
        width=16, depth=2, mlp_dim=24, num_heads=2, num_kv_heads=1, head_dim=8, adaptive=True
    ),
    vocab_size=64,
    state_dim=3,
    action_dim=5,
    horizon=4,
    state="token",
    insulate=False,
    image_attends_prompt=False,
    dtype="float32",
    remat="none",
    unroll=8,
)
ROWS = 3
PROMPTS = [[2, 11, 12, 3], [2, 20, 21, 22, 23, 24, 3], [2, 3]]
SIZES = {"C": 2, "H": 28, "W": 28, "L": 32, "Q": 3, "P": 4, "A": 5}


def make_model(**changes) -> VLA:
    return VLA(dataclasses.replace(CONFIG, **changes))


def random_params(model: VLA, seed: int = 0, scale: float = 0.25) -> dict:
    """Return random parameters.

    Most of the model does nothing with the zeros of `init_params` (norms, gates).
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(model))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32), shapes
    )
    params["llm"]["embedder"]["input_embedding"] *= 0.25 / scale
    return params


def is_backbone(path: str) -> bool:
    """Return whether a parameter belongs to the tower or the language model."""
    return path.startswith("img/") or (path.startswith("llm/") and "_1" not in path)


def random_rows(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Return random images, states and actions, without text."""
    batch = batch_lib.zeros(B=rows, **SIZES)
    return batch | {
        "images": rng.integers(0, 256, batch["images"].shape).astype(np.uint8),
        "image_mask": np.ones_like(batch["image_mask"]),
        "state": rng.normal(size=batch["state"].shape).astype(np.float32),
        "actions": rng.normal(size=batch["actions"].shape).astype(np.float32),
        "action_mask": np.ones_like(batch["action_mask"]),
        "action_weight": np.ones_like(batch["action_weight"]),
    }


def write_segment(
    batch: dict, row: int, at: int, number: int, prompt: list[int], target: list[int]
) -> slice:
    """Write a segment into the text of a row and return its columns."""
    columns = slice(at, at + len(prompt) + len(target))
    batch["tokens"][row, columns] = prompt + target
    batch["segment"][row, columns] = number
    batch["target"][row, at + len(prompt) : columns.stop] = True
    batch["weight"][row, at + len(prompt) : columns.stop] = 1
    return columns


def acting_rows(rng, *, segments):
    """Return rows with action prompts of different lengths.

    Args:
      segments: add FAST targets and a second segment.
    """
    batch = random_rows(rng, ROWS)
    batch["image_mask"][1, 0] = False
    for row, prompt in enumerate(PROMPTS):
        at = write_segment(batch, row, 0, 1, prompt, [50, 51, 1] if segments else []).stop
        if segments:
            write_segment(batch, row, at, 2, [2, 30, 31, 3], [40, 1])
    batch["action_segment"][:] = 1
    return batch


def noise_and_time(rng, noise_samples):
    """Return R noisy chunks per row and their flow times."""
    return (
        rng.normal(size=(ROWS, noise_samples, SIZES["P"], SIZES["A"])).astype(np.float32),
        rng.uniform(0.1, 1, (ROWS, noise_samples)).astype(np.float32),
    )
