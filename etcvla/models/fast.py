"""FAST: action chunks as tokens, by a cosine transform, rounding and byte-pair merges (arXiv 2501.09747).

The public format is read and written: `tokenizer.json` (byte-level BPE) and `processor_config.json`. Coefficients are
flattened frequency first (all widths of frequency 0, then of frequency 1, ...), shifted by `min_token`, and written as
the characters of those code points.

Axes: B chunks, P steps of a chunk, A action width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

_LOST = "\ufffd"  # what a byte-level decoder writes for half a character


class Decoded(NamedTuple):
    """What ids say: a chunk, or that they say none."""

    chunk: np.ndarray  # float32[P, A], or float32[B, P, A] of a batch; zeros where not `ok`
    ok: np.ndarray  # bool[], or bool[B]: the ids make a whole chunk. What is not ok nobody chose: wait, or ask again.


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
            raise ValueError(
                f"FAST.fit: {len(alphabet)} coefficient values do not fit a vocabulary of {vocab_size}: "
                f"raise the vocabulary or lower scale {scale}"
            )
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.post_processor = processors.ByteLevel(trim_offsets=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=alphabet,
            max_token_length=10_000,
        )
        bpe.train_from_iterator(("".join(map(chr, row - low)) for row in codes), trainer)
        return cls(bpe, chunks.shape[1], chunks.shape[2], scale, low)

    def encode(self, chunk: np.ndarray) -> list[int]:
        """float[P, A] to ids. A coefficient below the fit's range is clamped; one above may be lost (no unknown id)."""
        if chunk.shape != (self.horizon, self.action_dim):
            raise ValueError(
                f"chunk {chunk.shape}, this FAST tokenizer was fitted to {self.horizon, self.action_dim}"
            )
        codes = np.maximum(_quantize(chunk[None], self.scale).reshape(-1) - self.min_token, 0)
        return self.bpe.encode("".join(map(chr, codes))).ids

    def decode(self, ids: Sequence[int]) -> Decoded:
        """ids to a chunk; whatever a model wrote, it raises nothing (see `Decoded.ok`)."""
        chunks, ok = self.decode_batch([ids])
        return Decoded(chunks[0], ok[0])

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> Decoded:
        """B rows of ids, each of its own length, to B chunks and which of them are whole."""
        known = [all(0 <= token < self.vocab_size for token in row) for row in rows]
        texts = self.bpe.decode_batch(
            [list(map(int, row)) if ok else [] for row, ok in zip(rows, known, strict=True)]
        )
        size = self.horizon * self.action_dim
        ok = np.array([len(text) == size and _LOST not in text for text in texts], bool)
        codes = np.zeros((len(rows), size))
        for row in np.flatnonzero(ok):
            codes[row] = [ord(c) + self.min_token for c in texts[row]]
        chunks = idct(
            codes.reshape(-1, self.horizon, self.action_dim) / self.scale, axis=1, norm="ortho"
        )
        return Decoded(chunks.astype(np.float32), ok)

    def to_json(self) -> dict:
        """Everything, as JSON: what travels inside a checkpoint."""
        return {"bpe": json.loads(self.bpe.to_str()), **self._processor()}

    @classmethod
    def from_json(cls, data: dict) -> FAST:
        """The inverse of `to_json`."""
        return cls(
            Tokenizer.from_str(json.dumps(data["bpe"])),
            data["time_horizon"],
            data["action_dim"],
            data["scale"],
            data["min_token"],
        )

    def save(self, directory: epath.PathLike) -> None:
        """Writes the public format: the files of `UniversalActionProcessor.save_pretrained`."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(self.bpe.to_str())
        for name, content in {
            "processor_config": self._processor(),
            "tokenizer_config": _TOKENIZER_CONFIG,
            "special_tokens_map": {},
        }.items():
            (directory / f"{name}.json").write_text(json.dumps(content, indent=2))

    @classmethod
    def load(
        cls, directory: epath.PathLike, *, horizon: int | None = None, action_dim: int | None = None
    ) -> FAST:
        """Reads the public format.

        Args:
          horizon, action_dim: P and A, where the file leaves them open, as the universal tokenizer's does.

        Raises FileNotFoundError naming the missing file; ValueError for one of another kind or of other sizes.
        """
        directory = epath.Path(directory)
        config, bpe = (
            _read(directory / name) for name in ("processor_config.json", "tokenizer.json")
        )
        if lacking := {"scale", "min_token", "time_horizon", "action_dim"} - config.keys():
            raise ValueError(
                f"{directory}/processor_config.json has no {', '.join(sorted(lacking))}: it is not of a "
                f"FAST tokenizer (its processor_class is {config.get('processor_class')!r})"
            )
        for field, asked in (("time_horizon", horizon), ("action_dim", action_dim)):
            if config[field] is None and asked is None:
                raise ValueError(
                    f"{directory}/processor_config.json leaves {field} open: name the size of a chunk"
                )
            if None not in (config[field], asked) and config[field] != asked:
                raise ValueError(
                    f"{directory}/processor_config.json: {field} is {config[field]}, expected {asked}"
                )
            config[field] = config[field] or asked
        try:
            return cls.from_json({**config, "bpe": bpe})
        except Exception as error:  # the library behind raises nothing narrower
            raise ValueError(f"{directory}/tokenizer.json: {error}") from error

    def _processor(self) -> dict:
        return {
            "processor_class": "UniversalActionProcessor",
            "scale": self.scale,
            "vocab_size": self.vocab_size,
            "min_token": self.min_token,
            "time_horizon": self.horizon,
            "action_dim": self.action_dim,
        }


# Without a clean-up of spaces: they are coefficients.
_TOKENIZER_CONFIG = {
    "added_tokens_decoder": {},
    "clean_up_tokenization_spaces": False,
    "extra_special_tokens": {},
    "processor_class": "UniversalActionProcessor",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def _read(path: epath.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"FAST: no file {path}; expected a folder with processor_config.json and tokenizer.json"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _quantize(chunks: np.ndarray, scale: float) -> np.ndarray:
    """Rounded cosine coefficients over time, int[n, P, A]."""
    return np.around(dct(np.asarray(chunks, np.float64), axis=1, norm="ortho") * scale).astype(int)
