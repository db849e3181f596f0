"""What an evaluation changes, one axis at a time, as LIBERO-Plus does (arXiv 2510.13626): seven axes, three strengths.

A perturbation is a function of (axis, strength, seed): its direction is drawn by the seed, how far it goes is the
strength's. Names are "axis:strength", such as "camera:2"; "" is none.

Added things are drawn and not simulated: they draw the eye and stand in nobody's way.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from etcvla.names import lookup
from etcvla.sims.perturbed_appearance import APPEARANCE_AXES

if TYPE_CHECKING:  # one simulator does without the other's packages
    from etcvla.sims.environment import Environment

AXES = {
    "camera": "the front camera goes around and up or down by 6 and 3, 14 and 7, 25 and 12 degrees, and 5, 12, 20 % "
    "nearer or farther",
    "light": "lamps at 75, 50, 30 %, and ever more coloured",
    "texture": "the table top in another colour; in a pattern; and a pattern with room and things tinted",
    "noise": "images with Gaussian noise of 8, 20, 40 grey levels, blurred by 0, 0.5, 1 % of the width",
    "layout": "1, 3, 5 things are added; things that lie free are moved by 0, 2, 4 cm",
    "robot": "the hand starts 2, 4, 7 cm elsewhere, never lower",
    "language": "the instruction in a frame of politeness; with other verbs; both, and a sentence around it",
}
STRENGTHS = (1, 2, 3)
_POLITE = ("please {}", "could you {}", "robot, {}", "i want you to {}", "go ahead and {}")
_AROUND = (
    "we are tidying up here. {}, and then stop",
    "there may be other things around; {} all the same",
    "listen carefully: {}. nothing else needs to be done",
    "{}, that is all for today",
)
_VERBS = (
    ("pick up", ("grab", "lift", "take")),
    ("pick", ("grab", "take")),
    ("put", ("set", "lay", "deposit")),
    ("place", ("set", "lay", "deposit")),
    ("open", ("pull open", "get open")),
    ("close", ("shut", "get shut")),
    ("push", ("shove", "nudge")),
    ("pull", ("draw", "tug")),
    ("press", ("push down", "hit")),
    ("turn on", ("switch on", "start")),
    ("turn off", ("switch off", "stop")),
    ("turn", ("rotate", "twist")),
    ("reach", ("move the hand to", "get to")),
    ("insert", ("stick", "slot")),
    ("move", ("bring", "shift")),
    ("slide", ("glide", "shift")),
    ("lock", ("bolt", "secure")),
    ("rotate", ("turn", "twist")),
)


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """See the module docstring. An episode: `reset`, and then `say` for the words and `show` for every look."""

    axis: str = ""
    strength: int = 0

    @classmethod
    def parse(cls, name: str) -> Perturbation:
        """Raises ValueError, with the nearest axis, for a name that is none."""
        if not name:
            return cls()
        axis, _, strength = name.partition(":")
        lookup(AXES, axis, "perturbation axis")
        if not strength.isdecimal() or int(strength) not in STRENGTHS:
            raise ValueError(
                f"perturbation {name!r}: its strength is one of {STRENGTHS}, as in {axis}:1"
            )
        return cls(axis, int(strength))

    def reset(self, env: Environment, seed: int) -> None:
        """Resets an environment, as it always is but for this."""
        rng = self._random(seed)
        env.reset(
            seed,
            hand=_direction(rng) * (0, 0.02, 0.04, 0.07)[self.strength]
            if self.axis == "robot"
            else None,
            shift=(0, 0, 0.02, 0.04)[self.strength] if self.axis == "layout" else 0.0,
        )
        env.set_appearance(
            APPEARANCE_AXES[self.axis](rng, self.strength, env.orbit)
            if self.axis in APPEARANCE_AXES
            else None,
            seed,
        )

    def perturb_observation(self, observation: dict, key: tuple[int, ...]) -> dict:
        """An observation as the policy gets it; `key` is (seed, step)."""
        if self.axis != "noise":
            return observation
        rng = np.random.default_rng([*key, self.strength])
        return observation | {
            "images": {
                name: _spoil(rng, image, self.strength)
                for name, image in observation["images"].items()
            }
        }

    def rewrite_instruction(self, instruction: str, seed: int) -> str:
        """The instruction as the policy gets it."""
        return (
            _paraphrase(self._random(seed), instruction, self.strength)
            if self.axis == "language"
            else instruction
        )

    def _random(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(self.axis.encode()), self.strength])


def _direction(rng: np.random.Generator) -> np.ndarray:
    """float[3] of length 1, not downwards."""
    vector = rng.standard_normal(3)
    vector[2] = abs(vector[2])
    return vector / np.linalg.norm(vector)


def _spoil(rng: np.random.Generator, image: np.ndarray, strength: int) -> np.ndarray:
    radius = (0, 0.005, 0.01)[strength - 1] * image.shape[1]
    blurred = np.asarray(
        Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)), np.float32
    )
    noise = (8, 20, 40)[strength - 1] * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)


def _paraphrase(rng: np.random.Generator, instruction: str, strength: int) -> str:
    polite, around = str(rng.choice(_POLITE)), str(rng.choice(_AROUND))
    text = instruction.rstrip(".") if strength == 1 else _other_verbs(rng, instruction.rstrip("."))
    text = polite.format(text) if strength != 2 else text
    return around.format(text) if strength == 3 else text


def _other_verbs(rng: np.random.Generator, text: str) -> str:
    """Every verb that has a synonym in its place, the first one that fits."""
    table = dict(_VERBS)
    pattern = "|".join(rf"\b{verb}\b" for verb in table)
    return re.sub(
        pattern, lambda found: str(rng.choice(table[found[0].lower()])), text, flags=re.IGNORECASE
    )
