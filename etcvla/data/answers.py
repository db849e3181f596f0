"""Find the token ids that the answers of a stage may contain."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.data.plan import Stream
from etcvla.data.row_options import RowOptions
from etcvla.data.stage_dataset import ACTION_KIND, ANY_KIND, StageDataset
from etcvla.data.tokenizer import Tokenizer
from etcvla.etc.places import LOC_TOKEN

_PLACES = re.compile(f"(?:{LOC_TOKEN})+")
_ANY_PLACE = "<loc0000><loc0000>"


def find_answer_ids(
    streams: Sequence[Stream],
    datasets: Mapping[str, StageDataset],
    assets: Assets,
    options: RowOptions,
) -> np.ndarray:
    """Return the sorted token ids that the targets of a stage's rows may contain, int64[N].

    If an answer contains a place, all location ids are included, because augmentation moves places.
    """
    is_answer = np.zeros(assets.tokenizer.layout.vocab_size, bool)
    for stream in streams:
        stage_dataset = datasets[stream.dataset]
        if stream.kind == ACTION_KIND:
            is_answer[_action_ids(stage_dataset, assets, options)] = True
        kinds, table = _answer_table(stage_dataset, assets.tokenizer)
        for kind, ids in zip(kinds, table, strict=True):
            if _is_asked(stream, kind, options):
                is_answer |= ids
    return np.flatnonzero(is_answer)


def _is_asked(stream: Stream, kind: str, options: RowOptions) -> bool:
    """Return whether rows of the stream may contain items of a kind."""
    if stream.kind in (ANY_KIND, kind):
        return True
    return stream.extra_segments > 0 and options.extra_segment_weights.get(kind, 0) > 0


def _action_ids(stage_dataset: StageDataset, assets: Assets, options: RowOptions) -> list[int]:
    """Return the target ids of action segments: FAST tokens and subtasks."""
    tokenizer = assets.tokenizer
    ids = []
    if options.use_fast:
        ids += prompts.action_vocabulary(
            tokenizer, prompt=options.prompt, fast_vocab=assets.fast.vocab_size
        )
    if options.format.subtask:
        for subtask in sorted(stage_dataset.subtasks()):
            ids += tokenizer.encode(subtask, eos=True)
    return ids


def _answer_table(
    stage_dataset: StageDataset, tokenizer: Tokenizer
) -> tuple[list[str], np.ndarray]:
    """Return (kinds of items, bool[kinds, V]: the ids that answers of each kind contain)."""
    if not stage_dataset.item_features:
        return [], np.zeros((0, tokenizer.layout.vocab_size), bool)

    def _make() -> tuple[dict, list[np.ndarray]]:
        answers = _distinct_answers(stage_dataset)
        kinds = sorted(answers)
        table = np.zeros((len(kinds), tokenizer.layout.vocab_size), bool)
        for i, kind in enumerate(kinds):
            for answer in answers[kind]:
                table[i, tokenizer.encode(answer, eos=True)] = True
        layout = tokenizer.layout
        has_place = table[:, layout.loc.offset : layout.loc.stop].any(axis=1)
        table[has_place, layout.loc.offset : layout.loc.stop] = True
        return {"kinds": kinds}, [table]

    digest = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:12]
    about, (table,) = stage_dataset.dataset.cache.get(f"etc/answers-{digest}.table", _make)
    return about["kinds"], table


def _distinct_answers(stage_dataset: StageDataset) -> dict[str, set[str]]:
    """Return the answers of each kind, with every place replaced by the same one."""
    answers = defaultdict(set)
    columns = [stage_dataset.dataset.column(f"etc/{name}") for name in ("kind", "answer")]
    for kinds, texts in zip(*columns, strict=True):
        for kind, text in zip(kinds, texts, strict=True):
            answers[kind].add(_PLACES.sub(_ANY_PLACE, text))
    return answers
