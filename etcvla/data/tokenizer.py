"""Text to ids and back: the one place that knows where text, actions and locations live in the vocabulary.

Two tokenizers share the interface: the embedded `tiny` (byte-level BPE, 2,688 ids) and a released PaliGemma's.
`<locNNNN>` and `<segNNN>` in a text are always single ids; action ids are never made from text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import tokenizers

from etcvla.names import lookup

NUM_LOC, NUM_SEG = 1024, 128
LAYOUTS = {
    "disjoint": "every range keeps to itself",
    "openpi": "actions share ids with locations, as openpi's do",
}
EMBEDDED = {"tiny": Path(__file__).parent / "assets" / "tiny_tokenizer.json"}
_FORMAT = "etcvla-tokenizer-1"
_SPATIAL = re.compile(r"(<loc(?:0\d{3}|10[01]\d|102[0-3])>|<seg(?:0\d\d|1[01]\d|12[0-7])>)")


class IdRange(NamedTuple):
    """A run of ids: [offset, offset + count)."""

    offset: int
    count: int

    @property
    def stop(self) -> int:
        return self.offset + self.count

    def contains(self, token: int) -> bool:
        return self.offset <= token < self.stop


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Which ids mean what. The special ids lie in `text`; the spans are disjoint, or ValueError.

    `text` holds every id that text may become, so a model that decodes free text masks nothing else out.

    `name` is "disjoint", or "openpi" for the checkpoints of that project, which count FAST tokens down from the last id
    before `<seg000>` and so share ids with the locations (and the rarest text): there an id is an action by its place
    in the sequence alone.
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

    def __post_init__(self):
        lookup(LAYOUTS, self.name, "token layout")
        for name in ("text", "action", "loc", "seg"):
            object.__setattr__(self, name, IdRange(*getattr(self, name)))
        if (self.loc.count, self.seg.count) != (NUM_LOC, NUM_SEG):
            raise ValueError(
                f"layout: {self.loc.count} loc and {self.seg.count} seg ids, not {NUM_LOC} and {NUM_SEG}"
            )
        if self.action.count < 1 or self.text.count < 1:
            raise ValueError(
                f"layout: no room for actions {tuple(self.action)} beside text {tuple(self.text)} "
                "(offset, count); fewer FAST tokens fit"
            )
        if self.name == "openpi" and self.action.stop != self.seg.offset:
            raise ValueError(
                f"layout openpi: actions end at {self.action.stop}, expected {self.seg.offset}, where "
                "segmentation tokens begin"
            )
        self._check_disjoint()
        specials = (self.pad, self.eos, self.bos, self.unk)
        if len(set(specials)) < 4 or not all(map(self.text.contains, specials)):
            raise ValueError(
                f"layout: pad, eos, bos, unk = {specials} must be four ids of text {self.text}"
            )

    def _check_disjoint(self) -> None:
        ordered = sorted(
            (item for item in self.ranges.items() if self.name != "openpi" or item[0] != "action"),
            key=lambda item: item[1].offset,
        )
        for (name, span), (next_name, next_span) in zip(ordered, ordered[1:], strict=False):
            if span.stop > next_span.offset:
                raise ValueError(f"layout: {name} ids {span} overlap {next_name} ids {next_span}")

    @property
    def ranges(self) -> dict[str, IdRange]:
        return {"text": self.text, "action": self.action, "loc": self.loc, "seg": self.seg}

    def action_id(self, token: int) -> int:
        """The id of a FAST token."""
        return self.action.stop - 1 - token if self.name == "openpi" else self.action.offset + token

    def action_token(self, token: int) -> int:
        """The FAST token of an id, the inverse of `action_id`."""
        return self.action.stop - 1 - token if self.name == "openpi" else token - self.action.offset

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs at least."""
        return max(span.stop for span in self.ranges.values())

    def kind(self, token: int) -> str:
        """The name of the span that holds `token` (not "action" where others hold it too); ValueError if none does."""
        for name in ("text", "loc", "seg", "action"):
            if self.ranges[name].contains(token):
                return name
        raise ValueError(f"token id {token} lies in no span of {self.ranges}")

    def describe(self) -> str:
        """A table for the log."""
        rows = [
            f"{name:<8}{span.offset:>8} ..{span.stop - 1:>8}{span.count:>9} ids"
            for name, span in self.ranges.items()
        ]
        return "\n".join(
            [
                *rows,
                f"pad {self.pad}, eos {self.eos}, bos {self.bos}, unk {self.unk}; "
                f"vocabulary {self.vocab_size}; layout {self.name}: {LAYOUTS[self.name]}",
            ]
        )


class Tokenizer:
    """Text to ids and back. Make one by `load`, or by `from_json` from a checkpoint.

    Args:
      backend: the text part; its ids must lie in `layout.text`, those that do not become `unk`.
      layout: where everything lies.
      word_start: encode a text as if it stood after a space, so that an answer's first word is the same token as
        that word inside a question. False for released tokenizers, which were not trained so.
    """

    def __init__(self, backend: tokenizers.Tokenizer, layout: TokenLayout, *, word_start: bool):
        self._backend = backend
        self._backend.encode_special_tokens = True  # "<eos>" typed by a user is text, not the end
        self._word_start = word_start
        self.layout = layout
        self._encode_text = functools.lru_cache(1 << 14)(
            self._encode_text
        )  # questions repeat, encoding is slow

    def __reduce__(self):
        return Tokenizer.from_json, (self.to_json(),)

    @classmethod
    def load(
        cls, name_or_path: str = "tiny", *, num_actions: int = 2048, layout: str = "disjoint"
    ) -> Tokenizer:
        """Loads a tokenizer.

        Args:
          name_or_path: "tiny"; a file written by `to_json`; or PaliGemma's tokenizer.json, its SentencePiece file
            (*.model, read by transformers: `pip install etcvla[hf]`), or the directory of either.
          num_actions: size of the FAST vocabulary, where a PaliGemma tokenizer must make room for it.
          layout: a name of `LAYOUTS`, where it is PaliGemma's.

        Raises:
          FileNotFoundError: nothing there. ValueError: not a tokenizer of these kinds, or not of this layout.
        """
        lookup(LAYOUTS, layout, "token layout")
        path = _find(name_or_path)
        try:
            if path.suffix == ".model":
                return cls._paligemma(_sentencepiece(path), num_actions, layout)
            text = path.read_text(encoding="utf-8")
            if json.loads(text).get("format") != _FORMAT:
                return cls._paligemma(tokenizers.Tokenizer.from_str(text), num_actions, layout)
            loaded = cls.from_json(text)
        except ImportError:
            raise
        except Exception as error:  # the libraries behind raise nothing narrower
            raise ValueError(f"tokenizer: cannot use {path}: {error}") from error
        if loaded.layout.name != layout:
            raise ValueError(
                f"tokenizer: {path} has the layout {loaded.layout.name!r}, expected {layout!r}"
            )
        return loaded

    @classmethod
    def _paligemma(cls, backend: tokenizers.Tokenizer, num_actions: int, layout: str) -> Tokenizer:
        # Released weights keep their ids. The rarest text ids give way to actions; the location tokens, which
        # PaliGemma was trained on and ETC answers use, do not.
        loc, seg = (
            _run(backend, pattern, count)
            for pattern, count in (("<loc{:04d}>", NUM_LOC), ("<seg{:03d}>", NUM_SEG))
        )
        spatial = min(loc.offset, seg.offset)
        text, stop = (
            (spatial, seg.offset) if layout == "openpi" else (spatial - num_actions, spatial)
        )
        return cls(
            backend,
            TokenLayout(
                text=IdRange(0, text),
                action=IdRange(stop - num_actions, num_actions),
                loc=loc,
                seg=seg,
                name=layout,
                **{name: _id(backend, f"<{name}>") for name in ("pad", "eos", "bos", "unk")},
            ),
            word_start=False,
        )

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of `text`; `<locNNNN>` and `<segNNN>` become their own ids, everything else text ids."""
        ids = [self.layout.bos] if bos else []
        for piece in self._pieces(text):
            if _SPATIAL.fullmatch(piece):
                ids.append(getattr(self.layout, piece[1:4]).offset + int(piece[4:-1]))
            else:
                ids += self._encode_text(piece)
        return ids + [self.layout.eos] if eos else ids

    def text_pieces(self, text: str) -> list[str]:
        """What the backend is given of a text, to train it on."""
        return [piece for piece in self._pieces(text) if not _SPATIAL.fullmatch(piece)]

    def _pieces(self, text: str) -> list[str]:
        first, *rest = _SPATIAL.split(text)
        if (
            self._word_start and first and not first.startswith("\n")
        ):  # a newline ends prompts, and is no word
            first = " " + first
        return [piece for piece in (first, *rest) if piece]

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return tuple(
            token if self.layout.text.contains(token) else self.layout.unk for token in ids
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without pad, bos and eos; actions read `<actNNNN>`. The inverse of `encode`.

        Raises ValueError for an id outside every span.
        """
        skipped = {self.layout.pad, self.layout.bos, self.layout.eos}
        kept = [token for token in map(int, ids) if token not in skipped]
        text = "".join(self._decode_runs(kept))
        starts_word = self._word_start and kept and self.layout.text.contains(kept[0])
        return text.removeprefix(" ") if starts_word else text

    def _decode_runs(self, ids: Sequence[int]) -> Iterator[str]:
        for kind, run in groupby(ids, self.layout.kind):
            if kind == "text":
                yield self._backend.decode(list(run), skip_special_tokens=False)
            else:
                offset, width = self.layout.ranges[kind].offset, 3 if kind == "seg" else 4
                yield from (f"<{kind[:3]}{token - offset:0{width}d}>" for token in run)

    def action_ids(self, fast_tokens: Sequence[int]) -> list[int]:
        """Ids of FAST tokens 0 .. layout.action.count - 1; ValueError for a token outside."""
        count = self.layout.action.count
        if any(not 0 <= token < count for token in fast_tokens):
            raise ValueError(
                f"FAST tokens must be in [0, {count}), got {min(fast_tokens)} .. {max(fast_tokens)}"
            )
        return [self.layout.action_id(int(token)) for token in fast_tokens]

    def action_tokens(self, ids: Sequence[int]) -> list[int]:
        """FAST tokens of action ids, the inverse of `action_ids`; ValueError for an id that is no action."""
        outside = [int(token) for token in ids if not self.layout.action.contains(token)]
        if outside:
            raise ValueError(
                f"not action ids {tuple(self.layout.action)} (offset, count): {outside[:8]}"
            )
        return [self.layout.action_token(int(token)) for token in ids]

    def describe(self, text: str) -> str:
        """The layout's table, and the ids of a text and of the first and last of everything."""
        last = self.layout.action.count - 1
        examples = {
            repr(text): self.encode(text, bos=True, eos=True),
            f"FAST 0 {last}": self.action_ids([0, last]),
            "<loc0000> <loc1023>": [self.layout.loc.offset, self.layout.loc.stop - 1],
            "<seg000> <seg127>": [self.layout.seg.offset, self.layout.seg.stop - 1],
        }
        return "\n".join(
            [self.layout.describe(), *(f"{what}: {ids}" for what, ids in examples.items())]
        )

    def to_json(self) -> str:
        """Everything that `from_json` needs: it travels inside the checkpoint."""
        return json.dumps(
            {
                "format": _FORMAT,
                "layout": dataclasses.asdict(self.layout),
                "word_start": self._word_start,
                "backend": json.loads(self._backend.to_str()),
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The inverse of `to_json`; ValueError for other JSON."""
        saved = json.loads(text)
        if saved.get("format") != _FORMAT:
            raise ValueError(f"tokenizer: format {saved.get('format')!r}, expected {_FORMAT!r}")
        backend = tokenizers.Tokenizer.from_str(json.dumps(saved["backend"]))
        return cls(backend, TokenLayout(**saved["layout"]), word_start=saved["word_start"])


def _find(name_or_path: str) -> Path:
    """The tokenizer's file; FileNotFoundError if there is none."""
    path = EMBEDDED.get(name_or_path, Path(name_or_path))
    if path.is_dir():
        found = [
            path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).exists()
        ]
        if not found:
            raise FileNotFoundError(f"tokenizer: no tokenizer.json or tokenizer.model in {path}")
        return found[0]
    if not path.exists():
        raise FileNotFoundError(
            f"tokenizer: no file {path}; give one of {sorted(EMBEDDED)} or a path to a "
            "tokenizer.json or tokenizer.model"
        )
    return path


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise ValueError(
            f"no token {token}, so it is not PaliGemma's (plain Gemma has no location tokens)"
        )
    return found


def _run(backend: tokenizers.Tokenizer, pattern: str, count: int) -> IdRange:
    """The ids of `count` numbered tokens, which must follow one another."""
    span = IdRange(_id(backend, pattern.format(0)), count)
    for i in range(count):
        if (found := _id(backend, pattern.format(i))) != span.offset + i:
            raise ValueError(
                f"{pattern.format(i)} has id {found}, expected {span.offset + i}: one id after another"
            )
    return span


def _sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """A Gemma SentencePiece file as a `tokenizers` backend."""
    try:
        import sentencepiece  # noqa: F401 -- transformers needs it here, and says so by asking for something else
        from transformers import GemmaTokenizerFast
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs transformers and sentencepiece: `pip install etcvla[hf]`; a "
            "tokenizer.json needs neither"
        ) from error
    with (
        tempfile.TemporaryDirectory() as directory
    ):  # transformers knows the file by this name alone
        shutil.copy(path, Path(directory) / "tokenizer.model")
        return GemmaTokenizerFast.from_pretrained(
            directory, local_files_only=True
        ).backend_tokenizer
