"""Text to ids and back; the layout of text, actions and locations in the vocabulary.

There are two tokenizers: the embedded `tiny` (byte-level BPE, 2,688 ids) and released PaliGemma
ones. `<locNNNN>` and `<segNNN>` in a text are always single ids; action ids never result from
text.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers

from etcvla.errors import UserError
from etcvla.etc.items import NUM_LOC
from etcvla.etc.places import LOC_TOKEN, PLACES, cells_to_pairs, pairs_to_cells
from etcvla.names import lookup

NUM_SEG = 128
LAYOUTS = {
    "disjoint": "all ranges are disjoint",
    "openpi": "actions share ids with locations, as in openpi",
}
EMBEDDED = {"tiny": Path(__file__).parent / "assets" / "tiny_tokenizer.json"}
_FORMAT = "etcvla-tokenizer-1"
_SPATIAL = re.compile(rf"({LOC_TOKEN}|<seg(?:0\d\d|1[01]\d|12[0-7])>)")


class IdRange(NamedTuple):
    """The token ids offset .. offset + count - 1."""

    offset: int
    count: int

    @property
    def stop(self) -> int:
        """The first id after the range."""
        return self.offset + self.count

    def contains(self, token: int) -> bool:
        """Return whether an id is in the range."""
        return self.offset <= token < self.stop


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """The meaning of each token id.

    `text` contains the special ids and every id that text may become, so a model that decodes free
    text masks out all other ids.

    Attributes:
      text, action, loc, seg: ranges of text, FAST tokens, locations and segmentation tokens.
      pad, eos, bos, unk: special ids.
      name: "disjoint", or "openpi" for openpi's checkpoints: they count FAST tokens down from the
        last id before `<seg000>`, so that actions share ids with the locations (and the rarest
        text). With that layout only an id's position in the sequence shows that it is an action.
      places: notation of points, a name of `etcvla.etc.places.PLACES`.
      question_end: text between a question and its answer.

    Raises UserError if the ranges overlap, are empty or have the wrong size.
    """

    text: IdRange
    action: IdRange
    loc: IdRange
    seg: IdRange
    pad: int = 0
    eos: int = 1
    bos: int = 2
    unk: int = 3
    name: str = "disjoint"
    places: str = "pair"
    question_end: str = "\n"

    def __post_init__(self):
        lookup(LAYOUTS, self.name, "token layout")
        lookup(PLACES, self.places, "data.places")
        for name in ("text", "action", "loc", "seg"):
            object.__setattr__(self, name, IdRange(*getattr(self, name)))  # JSON has lists
        if (self.loc.count, self.seg.count) != (NUM_LOC, NUM_SEG):
            raise UserError(
                f"layout: {self.loc.count} loc and {self.seg.count} seg ids, "
                f"expected {NUM_LOC} and {NUM_SEG}"
            )
        if self.action.count < 1 or self.text.count < 1:
            raise UserError(
                f"layout: no room for actions {tuple(self.action)} beside text {tuple(self.text)} "
                "(offset, count); use fewer FAST tokens"
            )
        if self._is_openpi and self.action.stop != self.seg.offset:
            raise UserError(
                f"layout openpi: actions end at {self.action.stop}, expected {self.seg.offset}, "
                "where segmentation tokens begin"
            )
        self._check_disjoint()
        specials = {"pad": self.pad, "eos": self.eos, "bos": self.bos, "unk": self.unk}
        ids = set(specials.values())
        if len(ids) < len(specials) or not all(self.text.contains(token) for token in ids):
            raise UserError(f"layout: {specials} must be four different ids of text {self.text}")

    def _check_disjoint(self) -> None:
        ranges = self.ranges
        if self._is_openpi:
            del ranges["action"]
        ordered = sorted(ranges.items(), key=lambda item: item[1].offset)
        for (name, id_range), (next_name, next_range) in itertools.pairwise(ordered):
            if id_range.stop > next_range.offset:
                raise UserError(
                    f"layout: {name} ids {id_range} overlap {next_name} ids {next_range}"
                )

    @property
    def _is_openpi(self) -> bool:
        return self.name == "openpi"

    @property
    def ranges(self) -> dict[str, IdRange]:
        """The ranges by name."""
        return {"text": self.text, "action": self.action, "loc": self.loc, "seg": self.seg}

    def action_id(self, token: int) -> int:
        """Return the id of a FAST token."""
        return self.action.stop - 1 - token if self._is_openpi else self.action.offset + token

    def action_token(self, token_id: int) -> int:
        """Return the FAST token of an id; the inverse of `action_id`."""
        last = self.action.stop - 1
        return last - token_id if self._is_openpi else token_id - self.action.offset

    @property
    def vocab_size(self) -> int:
        """The least number of rows of an embedding table."""
        return max(id_range.stop for id_range in self.ranges.values())

    def kind(self, token: int) -> str:
        """Return the name of the range with an id; "action" only if no other range has it.

        Raises ValueError if no range has it.
        """
        for name in ("text", "loc", "seg", "action"):
            if self.ranges[name].contains(token):
                return name
        raise ValueError(f"token id {token} is in no range of {self.ranges}")

    def describe(self) -> str:
        """Return a table for the log."""
        lines = [
            f"{name:<8}{id_range.offset:>8} ..{id_range.stop - 1:>8}{id_range.count:>9} ids"
            for name, id_range in self.ranges.items()
        ]
        lines.append(
            f"pad {self.pad}, eos {self.eos}, bos {self.bos}, unk {self.unk}; "
            f"vocabulary {self.vocab_size}; layout {self.name}: {LAYOUTS[self.name]}"
        )
        lines.append(f"places {self.places}: {PLACES[self.places]}")
        return "\n".join(lines)


class Tokenizer:
    """Text to ids and back. Make one with `load`, or with `from_json` from a checkpoint.

    Args:
      backend: the tokenizer of text; its ids outside `layout.text` become `unk`.
      layout: the ranges of ids.
      word_start: encode a text as if a space came before it, so that the first word of an answer is
        the same token as inside a question. False for released tokenizers, whose models were not
        trained that way.
    """

    def __init__(self, backend: tokenizers.Tokenizer, layout: TokenLayout, *, word_start: bool):
        self._backend = backend
        self._backend.encode_special_tokens = True  # "<eos>" in a user's text is text, not the end
        self._word_start = word_start
        self.layout = layout
        # Questions repeat, and encoding is slow.
        self._encode_text = functools.lru_cache(1 << 14)(self._encode_text)

    def __reduce__(self):
        return Tokenizer.from_json, (self.to_json(),)

    @classmethod
    def load(
        cls,
        name_or_path: str = "tiny",
        *,
        num_actions: int = 2048,
        layout: str = "disjoint",
        places: str = "pair",
        question_end: str = "\n",
    ) -> Tokenizer:
        """Load a tokenizer.

        Args:
          name_or_path: "tiny"; a file written by `to_json`; or PaliGemma's tokenizer.json or
            SentencePiece file (*.model, which needs `pip install etcvla[hf]`), or a folder with one
            of them.
          num_actions: size of the FAST vocabulary that a PaliGemma tokenizer makes room for.
          layout: a name of `LAYOUTS`, for a PaliGemma tokenizer.
          places: notation of points, a name of `PLACES`.
          question_end: text between a question and its answer; PaliGemma's is a newline.

        Raises UserError if there is no such file, or it is not a tokenizer of these kinds or
        layout.
        """
        lookup(LAYOUTS, layout, "token layout")
        loaded = cls._read(_find_file(name_or_path), num_actions, layout)
        token_layout = dataclasses.replace(loaded.layout, places=places, question_end=question_end)
        return cls(loaded._backend, token_layout, word_start=loaded._word_start)

    @classmethod
    def _read(cls, path: Path, num_actions: int, layout: str) -> Tokenizer:
        """Read one of the files that `load` accepts."""
        try:
            if path.suffix == ".model":
                return cls._paligemma(_sentencepiece(path), num_actions, layout)
            text = path.read_text(encoding="utf-8")
            if json.loads(text).get("format") != _FORMAT:
                return cls._paligemma(tokenizers.Tokenizer.from_str(text), num_actions, layout)
            loaded = cls.from_json(text)
        except Exception as error:  # the tokenizers library raises plain Exception for a bad file
            raise UserError(f"tokenizer: cannot use {path}: {error}") from error
        if loaded.layout.name != layout:
            raise UserError(
                f"tokenizer: {path} has the layout {loaded.layout.name!r}, expected {layout!r}"
            )
        return loaded

    @classmethod
    def _paligemma(cls, backend: tokenizers.Tokenizer, num_actions: int, layout: str) -> Tokenizer:
        """Make room for actions in a PaliGemma tokenizer; released weights keep all other ids.

        Actions replace the rarest text ids. They do not replace the location tokens, which
        PaliGemma was trained on and ETC answers use.
        """
        loc = _consecutive_ids(backend, "<loc{:04d}>", NUM_LOC)
        seg = _consecutive_ids(backend, "<seg{:03d}>", NUM_SEG)
        spatial = min(loc.offset, seg.offset)
        action_stop = seg.offset if layout == "openpi" else spatial
        num_text = spatial if layout == "openpi" else spatial - num_actions
        specials = {name: _token_id(backend, f"<{name}>") for name in ("pad", "eos", "bos", "unk")}
        token_layout = TokenLayout(
            text=IdRange(0, num_text),
            action=IdRange(action_stop - num_actions, num_actions),
            loc=loc,
            seg=seg,
            name=layout,
            **specials,
        )
        return cls(backend, token_layout, word_start=False)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the ids of a text; `<locNNNN>` and `<segNNN>` become their own ids.

        With `layout.places` "cell", each pair of `<locNNNN>` becomes one id. Raises UserError for
        an odd number of them.
        """
        ids = [self.layout.bos] if bos else []
        if self.layout.places == "cell":
            text = pairs_to_cells(text)
        for piece in self._pieces(text):
            if _SPATIAL.fullmatch(piece):
                kind = piece[1:4]  # "loc" or "seg"
                ids.append(self.layout.ranges[kind].offset + int(piece[4:-1]))
            else:
                ids += self._encode_text(piece)
        if eos:
            ids.append(self.layout.eos)
        return ids

    def text_pieces(self, text: str) -> list[str]:
        """Return the parts of a text that the backend encodes, to train it on them."""
        return [piece for piece in self._pieces(text) if not _SPATIAL.fullmatch(piece)]

    def _pieces(self, text: str) -> list[str]:
        """Split a text at its spatial tokens, which become pieces of their own."""
        first, *rest = _SPATIAL.split(text)
        # A newline at the start ends a prompt; it does not start a word.
        if self._word_start and first and not first.startswith("\n"):
            first = " " + first
        return [piece for piece in (first, *rest) if piece]

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids = self._backend.encode(text, add_special_tokens=False).ids
        layout = self.layout
        return tuple(token if layout.text.contains(token) else layout.unk for token in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids without pad, bos and eos; the inverse of `encode`.

        Actions become `<actNNNN>`, and a cell becomes the pair of its centre. Raises ValueError for
        an id in no range.
        """
        layout = self.layout
        skipped = {layout.pad, layout.bos, layout.eos}
        tokens = [int(token) for token in ids]
        tokens = [token for token in tokens if token not in skipped]
        text = "".join(self._decode_runs(tokens))
        if self._word_start and tokens and layout.text.contains(tokens[0]):
            return text.removeprefix(" ")
        return text

    def _decode_runs(self, ids: Sequence[int]) -> Iterator[str]:
        """Yield the text of each run of ids of one kind."""
        for kind, run in itertools.groupby(ids, self.layout.kind):
            if kind == "text":
                yield self._backend.decode(list(run), skip_special_tokens=False)
                continue
            offset = self.layout.ranges[kind].offset
            digits = 3 if kind == "seg" else 4
            text = "".join(f"<{kind[:3]}{token - offset:0{digits}d}>" for token in run)
            is_cells = kind == "loc" and self.layout.places == "cell"
            yield cells_to_pairs(text) if is_cells else text

    def action_ids(self, fast_tokens: Sequence[int]) -> list[int]:
        """Return the ids of FAST tokens. Raises ValueError outside 0 .. layout.action.count - 1."""
        count = self.layout.action.count
        if any(not 0 <= token < count for token in fast_tokens):
            raise ValueError(
                f"FAST tokens must be in [0, {count}), got {min(fast_tokens)} .. {max(fast_tokens)}"
            )
        return [self.layout.action_id(int(token)) for token in fast_tokens]

    def action_tokens(self, ids: Sequence[int]) -> list[int]:
        """Return the FAST tokens of action ids; the inverse of `action_ids`.

        Raises ValueError for an id that is not an action.
        """
        ids = [int(token) for token in ids]
        outside = [token for token in ids if not self.layout.action.contains(token)]
        if outside:
            raise ValueError(
                f"not action ids {tuple(self.layout.action)} (offset, count): {outside[:8]}"
            )
        return [self.layout.action_token(token) for token in ids]

    def describe(self, text: str) -> str:
        """Return the layout's table, the ids of a text, and the first and last id of each range."""
        layout = self.layout
        last = layout.action.count - 1
        examples = {
            repr(text): self.encode(text, bos=True, eos=True),
            f"FAST 0 {last}": self.action_ids([0, last]),
            "<loc0000> <loc1023>": [layout.loc.offset, layout.loc.stop - 1],
            "<seg000> <seg127>": [layout.seg.offset, layout.seg.stop - 1],
        }
        lines = [f"{name}: {ids}" for name, ids in examples.items()]
        return "\n".join([layout.describe(), *lines])

    def to_json(self) -> str:
        """Return the tokenizer as JSON, which every checkpoint contains."""
        content = {
            "format": _FORMAT,
            "layout": dataclasses.asdict(self.layout),
            "word_start": self._word_start,
            "backend": json.loads(self._backend.to_str()),
        }
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Return the tokenizer of `to_json`. Raises UserError for other JSON."""
        content = json.loads(text)
        if content.get("format") != _FORMAT:
            raise UserError(f"tokenizer: format {content.get('format')!r}, expected {_FORMAT!r}")
        backend = tokenizers.Tokenizer.from_str(json.dumps(content["backend"]))
        return cls(backend, TokenLayout(**content["layout"]), word_start=content["word_start"])


def _find_file(name_or_path: str) -> Path:
    """Return the tokenizer's file. Raises UserError if there is none."""
    path = EMBEDDED.get(name_or_path, Path(name_or_path))
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).exists():
                return path / name
        raise UserError(f"tokenizer: no tokenizer.json or tokenizer.model in {path}")
    if not path.exists():
        raise UserError(
            f"tokenizer: no file {path}; give one of {sorted(EMBEDDED)} or a path to a "
            "tokenizer.json or tokenizer.model"
        )
    return path


def _token_id(backend: tokenizers.Tokenizer, token: str) -> int:
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise UserError(
            f"no token {token}, so it is not PaliGemma's (plain Gemma has no location tokens)"
        )
    return token_id


def _consecutive_ids(backend: tokenizers.Tokenizer, pattern: str, count: int) -> IdRange:
    """Return the ids of `count` numbered tokens. Raises UserError if they are not consecutive."""
    first = _token_id(backend, pattern.format(0))
    for i in range(count):
        token_id = _token_id(backend, pattern.format(i))
        if token_id != first + i:
            raise UserError(
                f"{pattern.format(i)} has id {token_id}, expected {first + i}: "
                "the ids must be consecutive"
            )
    return IdRange(first, count)


def _sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """Convert a Gemma SentencePiece file to a `tokenizers` backend."""
    try:
        # transformers needs sentencepiece here, but its error names another package.
        import sentencepiece  # noqa: F401
        from transformers import GemmaTokenizerFast
    except ImportError as error:
        raise UserError(
            f"reading {path} needs transformers and sentencepiece: `pip install etcvla[hf]`; "
            "a tokenizer.json needs neither"
        ) from error
    # transformers finds the file only by this name.
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(path, Path(directory) / "tokenizer.model")
        loaded = GemmaTokenizerFast.from_pretrained(directory, local_files_only=True)
        return loaded.backend_tokenizer
