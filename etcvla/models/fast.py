"""FAST tokenizer of action chunks (arXiv 2501.09747).

A chunk is encoded by a cosine transform, rounding and byte-pair merges.

The public format is read and written: `tokenizer.json` (byte-level BPE) and
`processor_config.json`. Coefficients are flattened frequency first (all dimensions of frequency 0,
then of frequency 1, ...), shifted by `min_token`, and written as the characters with those code
points.

Axes: B batch, P action horizon, A action width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from etcvla.errors import UserError

_REPLACEMENT = "\ufffd"  # a byte-level decoder writes it for an incomplete character
_PROCESSOR_FILE = "processor_config.json"
_TOKENIZER_FILE = "tokenizer.json"
# Spaces are coefficients, so they must not be cleaned up.
_TOKENIZER_CONFIG = {
    "added_tokens_decoder": {},
    "clean_up_tokenization_spaces": False,
    "extra_special_tokens": {},
    "processor_class": "UniversalActionProcessor",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


class Decoded(NamedTuple):
    """Action chunks that were decoded from token ids."""

    chunk: np.ndarray  # float32[P, A], or float32[B, P, A] for a batch; zeros if not `ok`
    # bool[], or bool[B] for a batch: the ids form a whole chunk. If False, the actions are invalid:
    # do not execute them; wait, or query the policy again.
    ok: np.ndarray


@dataclasses.dataclass(frozen=True)
class FAST:
    """A fitted action tokenizer for chunks float32[P, A] that are normalized to about [-1, 1]."""

    bpe: Tokenizer
    horizon: int  # P
    action_dim: int  # A
    scale: float  # a quantized coefficient is the coefficient times `scale`, rounded
    min_token: int  # smallest quantized coefficient in the data of the fit

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.bpe.get_vocab_size()

    @classmethod
    def fit(cls, chunks: np.ndarray, *, vocab_size: int, scale: float = 10.0) -> FAST:
        """Learn the merges from chunks float[B, P, A].

        Raises: UserError if a chunk is not finite, or if the coefficients alone need more ids than
          `vocab_size`.
        """
        if not np.isfinite(chunks).all():
            raise UserError("FAST.fit: chunks hold NaN or infinity")
        codes = _quantize(chunks, scale).reshape(len(chunks), -1)
        low = int(codes.min())
        high = int(codes.max())
        alphabet = [chr(i) for i in range(high - low + 1)]
        if len(alphabet) > vocab_size:
            raise UserError(
                f"FAST.fit: {len(alphabet)} coefficient values do not fit a vocabulary of "
                f"{vocab_size}: raise the vocabulary or lower scale {scale}"
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
        bpe.train_from_iterator((_to_text(row - low) for row in codes), trainer)
        return cls(bpe, chunks.shape[1], chunks.shape[2], scale, low)

    def encode(self, chunk: np.ndarray) -> list[int]:
        """Encode a chunk float[P, A] as token ids.

        A coefficient below the range of the fit is clamped. One above it may be dropped, because
        the vocabulary has no id for unknown characters.
        """
        if chunk.shape != (self.horizon, self.action_dim):
            raise ValueError(
                f"chunk {chunk.shape}, this FAST tokenizer was fitted to "
                f"{self.horizon, self.action_dim}"
            )
        codes = _quantize(chunk[None], self.scale).reshape(-1) - self.min_token
        return self.bpe.encode(_to_text(np.maximum(codes, 0))).ids

    def decode(self, ids: Sequence[int]) -> Decoded:
        """Decode token ids to one chunk; see `decode_batch`."""
        chunks, ok = self.decode_batch([ids])
        return Decoded(chunks[0], ok[0])

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> Decoded:
        """Decode B rows of token ids, of any lengths, to chunks.

        Accepts any ids that a model may generate and never raises; `Decoded.ok` says which rows
        form a whole chunk.
        """
        valid_rows = []
        for row in rows:
            is_valid = all(0 <= token < self.vocab_size for token in row)
            valid_rows.append([int(token) for token in row] if is_valid else [])
        texts = self.bpe.decode_batch(valid_rows)
        size = self.horizon * self.action_dim
        ok = np.array([len(text) == size and _REPLACEMENT not in text for text in texts], bool)
        codes = np.zeros((len(rows), size))
        for row in np.flatnonzero(ok):
            codes[row] = [ord(character) + self.min_token for character in texts[row]]
        coefficients = codes.reshape(-1, self.horizon, self.action_dim) / self.scale
        chunks = idct(coefficients, axis=1, norm="ortho")
        return Decoded(chunks.astype(np.float32), ok)

    def to_json(self) -> dict[str, Any]:
        """Return the whole tokenizer as JSON values; a checkpoint stores them."""
        return {"bpe": json.loads(self.bpe.to_str()), **self._processor_config()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FAST:
        """Build the tokenizer from the values of `to_json`."""
        bpe = Tokenizer.from_str(json.dumps(data["bpe"]))
        return cls(bpe, data["time_horizon"], data["action_dim"], data["scale"], data["min_token"])

    def save(self, directory: epath.PathLike) -> None:
        """Write the public format, i.e. the files of `UniversalActionProcessor.save_pretrained`."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _TOKENIZER_FILE).write_text(self.bpe.to_str())
        contents = {
            _PROCESSOR_FILE: self._processor_config(),
            "tokenizer_config.json": _TOKENIZER_CONFIG,
            "special_tokens_map.json": {},
        }
        for name, content in contents.items():
            (directory / name).write_text(json.dumps(content, indent=2))

    @classmethod
    def load(
        cls, directory: epath.PathLike, *, horizon: int | None = None, action_dim: int | None = None
    ) -> FAST:
        """Read the public format.

        Args:
          directory: folder with `processor_config.json` and `tokenizer.json`.
          horizon: P. Needed if the file does not set it, as in the universal tokenizer.
          action_dim: A. Likewise.

        Raises: UserError for a missing file, a file of another kind, or other sizes than these.
        """
        directory = epath.Path(directory)
        config = _read_json(directory / _PROCESSOR_FILE)
        bpe = _read_json(directory / _TOKENIZER_FILE)
        missing = {"scale", "min_token", "time_horizon", "action_dim"} - config.keys()
        if missing:
            raise UserError(
                f"{directory}/{_PROCESSOR_FILE} has no {', '.join(sorted(missing))}: it does not "
                f"describe a FAST tokenizer (processor_class is {config.get('processor_class')!r})"
            )
        for field, expected in (("time_horizon", horizon), ("action_dim", action_dim)):
            config[field] = _resolve_size(directory, field, config[field], expected)
        try:
            return cls.from_json({**config, "bpe": bpe})
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise UserError(f"{directory}/{_TOKENIZER_FILE}: {error}") from error

    def _processor_config(self) -> dict[str, Any]:
        return {
            "processor_class": "UniversalActionProcessor",
            "scale": self.scale,
            "vocab_size": self.vocab_size,
            "min_token": self.min_token,
            "time_horizon": self.horizon,
            "action_dim": self.action_dim,
        }


def _resolve_size(
    directory: epath.Path, field: str, value: int | None, expected: int | None
) -> int:
    """Return a size of the chunk, from the file or as expected. Raises UserError if they differ."""
    if value is None and expected is None:
        raise UserError(
            f"{directory}/{_PROCESSOR_FILE} does not set {field}: give the size of a chunk"
        )
    if value is not None and expected is not None and value != expected:
        raise UserError(f"{directory}/{_PROCESSOR_FILE}: {field} is {value}, expected {expected}")
    return value or expected


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"FAST: no file {path}; expected a folder with {_PROCESSOR_FILE} and {_TOKENIZER_FILE}"
        ) from None
    except ValueError as error:  # not JSON, or not text
        raise UserError(f"{path} is not JSON: {error}") from error


def _quantize(chunks: np.ndarray, scale: float) -> np.ndarray:
    """Return the rounded cosine coefficients over time, int[B, P, A]."""
    coefficients = dct(np.asarray(chunks, np.float64), axis=1, norm="ortho")
    return np.around(coefficients * scale).astype(int)


def _to_text(codes: np.ndarray) -> str:
    """Return the characters with these code points."""
    return "".join(chr(code) for code in codes)
