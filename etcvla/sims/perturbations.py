"""Perturbations of an evaluation: one of seven axes at one of three strengths.

The axes are those of LIBERO-Plus (arXiv 2510.13626). A perturbation is a function of axis, strength
and seed: the seed draws its direction, the strength sets its size. Its name is "axis:strength",
such as "camera:2"; "" means none.

Added objects are rendered but not simulated, so they distract the policy without blocking the
robot.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from etcvla.errors import UserError
from etcvla.names import lookup
from etcvla.sims.perturbed_appearance import APPEARANCE_AXES

if TYPE_CHECKING:
    from etcvla.sims.environment import Environment

AXES = {
    "camera": "the front camera is turned around the scene by 6, 14, 25 degrees and up or down by "
    "3, 7, 12 degrees, and moved 5, 12, 20 % nearer or farther",
    "light": "the lights are dimmed to 75, 50, 30 % and increasingly colored",
    "texture": "the table has another color; a pattern; a pattern, with room and objects tinted",
    "noise": "images have Gaussian noise of 8, 20, 40 grey levels and a blur of 0, 0.5, 1 % of the "
    "width",
    "layout": "1, 3, 5 objects are added; free objects are moved by 0, 2, 4 cm",
    "robot": "the hand starts 2, 4, 7 cm from its usual position, never lower",
    "language": "the instruction has a polite frame; other verbs; both, and a sentence around it",
}
STRENGTHS = (1, 2, 3)
# Sizes by strength. Index 0 is no perturbation.
_HAND_OFFSETS = (0, 0.02, 0.04, 0.07)  # metres
_OBJECT_SHIFTS = (0, 0, 0.02, 0.04)  # metres
_NOISE_LEVELS = (0, 8, 20, 40)  # grey levels, standard deviation
_BLUR_RADII = (0, 0, 0.005, 0.01)  # share of the image width

_POLITE_FRAMES = ("please {}", "could you {}", "robot, {}", "i want you to {}", "go ahead and {}")
_SENTENCES = (
    "we are tidying up here. {}, and then stop",
    "there may be other things around; {} all the same",
    "listen carefully: {}. nothing else needs to be done",
    "{}, that is all for today",
)
# Verb -> synonyms. A verb that begins another verb comes after it.
_SYNONYMS = {
    "pick up": ("grab", "lift", "take"),
    "pick": ("grab", "take"),
    "put": ("set", "lay", "deposit"),
    "place": ("set", "lay", "deposit"),
    "open": ("pull open", "get open"),
    "close": ("shut", "get shut"),
    "push": ("shove", "nudge"),
    "pull": ("draw", "tug"),
    "press": ("push down", "hit"),
    "turn on": ("switch on", "start"),
    "turn off": ("switch off", "stop"),
    "turn": ("rotate", "twist"),
    "reach": ("move the hand to", "get to"),
    "insert": ("stick", "slot"),
    "move": ("bring", "shift"),
    "slide": ("glide", "shift"),
    "lock": ("bolt", "secure"),
    "rotate": ("turn", "twist"),
}
_VERB_PATTERN = re.compile("|".join(rf"\b{verb}\b" for verb in _SYNONYMS), re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One axis at one strength; see the module docstring.

    An episode calls `reset` once, `rewrite_instruction` once, and `perturb_observation` for every
    observation.
    """

    axis: str = ""
    strength: int = 0

    @classmethod
    def parse(cls, name: str) -> Perturbation:
        """Return the perturbation of this name.

        Raises UserError, with the nearest axis, for an unknown name.
        """
        if not name:
            return cls()
        axis, _, strength = name.partition(":")
        lookup(AXES, axis, "perturbation axis")
        if not strength.isdecimal() or int(strength) not in STRENGTHS:
            raise UserError(
                f"perturbation {name!r}: its strength is one of {STRENGTHS}, as in {axis}:1"
            )
        return cls(axis, int(strength))

    def reset(self, env: Environment, seed: int) -> None:
        """Reset an environment with this perturbation applied."""
        rng = self._rng(seed)
        hand = None
        if self.axis == "robot":
            hand = _direction(rng) * _HAND_OFFSETS[self.strength]
        shift = _OBJECT_SHIFTS[self.strength] if self.axis == "layout" else 0.0
        env.reset(seed, hand=hand, shift=shift)
        condition = None
        if self.axis in APPEARANCE_AXES:
            condition = APPEARANCE_AXES[self.axis](rng, self.strength)
        env.set_appearance(condition, seed)

    def perturb_observation(
        self, observation: dict[str, Any], key: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return the observation as the policy gets it.

        Args:
          observation: as `Environment.observe` returns it.
          key: (seed, step), which seeds the noise.
        """
        if self.axis != "noise":
            return observation
        rng = np.random.default_rng([*key, self.strength])
        images = {}
        for name, image in observation["images"].items():
            images[name] = _add_noise(rng, image, self.strength)
        return {**observation, "images": images}

    def rewrite_instruction(self, instruction: str, seed: int) -> str:
        """Return the instruction as the policy gets it."""
        if self.axis != "language":
            return instruction
        return _paraphrase(self._rng(seed), instruction, self.strength)

    def _rng(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(self.axis.encode()), self.strength])


def _direction(rng: np.random.Generator) -> np.ndarray:
    """Draw a unit vector float[3] that does not point downwards."""
    vector = rng.standard_normal(3)
    vector[2] = abs(vector[2])
    return vector / np.linalg.norm(vector)


def _add_noise(rng: np.random.Generator, image: np.ndarray, strength: int) -> np.ndarray:
    """Blur an image uint8[H, W, 3] and add Gaussian noise."""
    blur = ImageFilter.GaussianBlur(_BLUR_RADII[strength] * image.shape[1])
    blurred = np.asarray(Image.fromarray(image).filter(blur), np.float32)
    noise = _NOISE_LEVELS[strength] * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)


def _paraphrase(rng: np.random.Generator, instruction: str, strength: int) -> str:
    # Both are drawn at every strength, so that strengths share them.
    polite_frame = str(rng.choice(_POLITE_FRAMES))
    sentence = str(rng.choice(_SENTENCES))
    text = instruction.rstrip(".")
    if strength >= 2:
        text = _replace_verbs(rng, text)
    if strength != 2:
        text = polite_frame.format(text)
    if strength == 3:
        text = sentence.format(text)
    return text


def _replace_verbs(rng: np.random.Generator, text: str) -> str:
    """Replace every verb that has synonyms by a random one of them."""

    def _synonym(match: re.Match) -> str:
        return str(rng.choice(_SYNONYMS[match[0].lower()]))

    return _VERB_PATTERN.sub(_synonym, text)
