"""FAST: action chunks as tokens, by a cosine transform, rounding and byte-pair merges (arXiv 2501.09747).

The public format is read and written: `tokenizer.json` (byte-level BPE) and `processor_config.json`. Coefficients are
flattened frequency first (all widths of frequency 0, then of frequency 1, ...), shifted by `min_token`, and written as
the characters of those code points.

Axes: P steps of a chunk, A action width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from etils import epath
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


@dataclasses.dataclass(frozen=True)
class FAST:
    """A fitted action tokenizer for chunks float32[P, A], normalised to about [-1, 1]."""

    bpe: Tokenizer
    horizon: int  # P
    action_dim: int  # A
    scale: float  # quantisation: a coefficient's step is 1 / scale
    min_token: int  # the smallest quantised coefficient that the fit saw

    @property
    def vocab_size(self) -> int:
        return self.bpe.get_vocab_size()

    @classmethod
    def fit(cls, chunks: np.ndarray, *, vocab_size: int, scale: float = 10.0) -> FAST:
        """Learns the merges from float[n, P, A].

        Raises ValueError if the coefficients alone need more ids than `vocab_size`, or a chunk is not finite.
        """
        if not np.isfinite(chunks).all():
            raise ValueError("FAST.fit: chunks hold NaN or infinity")
        codes = _quantize(chunks, scale).reshape(len(chunks), -1)
        low, high = int(codes.min()), int(codes.max())
        alphabet = [chr(i) for i in range(high - low + 1)]
        if len(alphabet) > vocab_size:
            raise ValueError(f"FAST.fit: {len(alphabet)} coefficient values do not fit a vocabulary of {vocab_size}: "
                             f"raise the vocabulary or lower scale {scale}")
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False,
                                      initial_alphabet=alphabet, max_token_length=10_000)
        bpe.train_from_iterator(("".join(map(chr, row - low)) for row in codes), trainer)
        return cls(bpe, chunks.shape[1], chunks.shape[2], scale, low)

    def encode(self, chunk: np.ndarray) -> list[int]:
        """float[P, A] to ids. A coefficient below the fit's range is clamped; one above may be lost (no unknown id)."""
        if chunk.shape != (self.horizon, self.action_dim):
            raise ValueError(f"chunk {chunk.shape}, this FAST tokenizer was fitted to {self.horizon, self.action_dim}")
        codes = np.maximum(_quantize(chunk[None], self.scale).reshape(-1) - self.min_token, 0)
        return self.bpe.encode("".join(map(chr, codes))).ids

    def decode(self, ids: Sequence[int]) -> tuple[np.ndarray, bool]:
        """ids to (float32[P, A], True), or (zeros, False) where they do not make a whole chunk."""
        codes = np.array([ord(c) for c in self.bpe.decode(list(ids))], np.float64) + self.min_token
        if codes.size != self.horizon * self.action_dim:
            return np.zeros((self.horizon, self.action_dim), np.float32), False
        coefficients = codes.reshape(self.horizon, self.action_dim) / self.scale
        return idct(coefficients, axis=0, norm="ortho").astype(np.float32), True

    def to_json(self) -> dict:
        """Everything, as JSON: what travels inside a checkpoint."""
        return {"bpe": json.loads(self.bpe.to_str()), **self._processor()}

    @classmethod
    def from_json(cls, data: dict) -> FAST:
        """The inverse of `to_json`."""
        return cls(Tokenizer.from_str(json.dumps(data["bpe"])), data["time_horizon"], data["action_dim"],
                   data["scale"], data["min_token"])

    def save(self, directory: epath.PathLike) -> None:
        """Writes the public format."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(self.bpe.to_str())
        (directory / "processor_config.json").write_text(json.dumps(self._processor(), indent=2))

    @classmethod
    def load(cls, directory: epath.PathLike) -> FAST:
        """Reads the public format. Raises FileNotFoundError naming the missing file."""
        directory = epath.Path(directory)
        config = json.loads((directory / "processor_config.json").read_text())
        return cls.from_json({"bpe": json.loads((directory / "tokenizer.json").read_text()), **config})

    def _processor(self) -> dict:
        return {"processor_class": "UniversalActionProcessor", "scale": self.scale, "vocab_size": self.vocab_size,
                "min_token": self.min_token, "time_horizon": self.horizon, "action_dim": self.action_dim}


def _quantize(chunks: np.ndarray, scale: float) -> np.ndarray:
    """Rounded cosine coefficients over time, int[n, P, A]."""
    return np.around(dct(np.asarray(chunks, np.float64), axis=1, norm="ortho") * scale).astype(int)
