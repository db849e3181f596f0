"""The dataset card: README.md with the YAML head that Hugging Face's Hub reads, and the citation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_builders.tools.publish.summary import DatasetFacts
from etcvla.data.rlds_layout import read_features
from etcvla.etc.items import ETC_KINDS

# The Hub's names of size: https://huggingface.co/docs/hub/datasets-cards
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
OUR_CITATION = """@article{twobridges,
  title={Two Bridges, One Pathway},
  journal={arXiv preprint arXiv:2606.08520},
  url={https://arxiv.org/abs/2606.08520}}"""


def citation(facts: DatasetFacts) -> str:
    """BibTeX: of the data's source, if the builder states one, and of the method behind the items."""
    return (
        "\n\n".join(
            filter(None, [facts.info.get("citation", "").strip(), OUR_CITATION * facts.has_items])
        )
        + "\n"
    )


def card(facts: DatasetFacts, statistics: dict[str, Any], previews: dict[str, Path]) -> str:
    """README.md as text.

    Args:
      statistics: as `DatasetFacts.statistics` returns it.
      previews: split -> Parquet file inside the dataset's folder.
    """
    sections = [
        ("", facts.info.get("description", "").strip()),
        ("Counts", _counts(statistics)),
        ("Items", _items(statistics)),
        ("Where it comes from", _provenance(facts)),
        ("Features", _features(facts)),
        ("Loading it", _loading(facts)),
        ("Files", _FILES),
        ("Licence", facts.license or "Not stated by the dataset's builder; ask its authors."),
        ("Citation", f"```bibtex\n{citation(facts)}```"),
    ]
    body = "\n\n".join(
        f"## {title}\n\n{text}" if title else text for title, text in sections if text
    )
    return f"{_head(facts, statistics, previews)}\n# {facts.name}\n\n{body}\n"


def _head(facts: DatasetFacts, statistics: dict[str, Any], previews: dict[str, Path]) -> str:
    frames = sum(split["frames"] for split in statistics["splits"].values())
    size = next((name for limit, name in _SIZES if frames < limit), "100M<n<1B")
    tasks = ["robotics"] * ("action" in facts.any_split.features) + [
        "visual-question-answering"
    ] * facts.has_items
    # The Hub's licence names are SPDX's in lower case; it knows "other" for the rest.
    known = re.fullmatch(r"(apache|mit|bsd|cc|gpl|lgpl)[a-z0-9.-]*", facts.license.lower())
    lines = [
        "---",
        f"pretty_name: {facts.name}",
        f"license: {known[0] if known else 'other'}",
        "language: [en]",
        f"task_categories: [{', '.join(tasks)}]",
        "tags: [rlds, tfds, embodied, croissant]",
        f"size_categories: ['{size}']",
        "configs:",
        "- config_name: preview",
        "  data_files:",
    ]
    for split, file in previews.items():
        lines += [f"  - split: {split}", f"    path: {file.relative_to(facts.directory)}"]
    return "\n".join([*lines, "---", ""])


def _counts(statistics: dict[str, Any]) -> str:
    rows = [
        (split, f"{row['episodes']:,}", f"{row['frames']:,}", f"{row['items'].get('items', 0):,}")
        for split, row in statistics["splits"].items()
    ]
    text = _table(("split", "episodes", "frames", "items"), rows)
    for key, what in (("episodes_by_scene", "scene"), ("episodes_by_task", "task")):
        counts = {split: row[key] for split, row in statistics["splits"].items() if key in row}
        names = dict.fromkeys(name for found in counts.values() for name in found)
        if names:
            text += "\n\n" + _table(
                (f"episodes by {what}", *counts),
                [(name, *(str(found.get(name, 0)) for found in counts.values())) for name in names],
            )
    return text


def _items(statistics: dict[str, Any]) -> str:
    splits = {split: row["items"] for split, row in statistics["splits"].items() if row["items"]}
    if not splits:
        return ""
    kinds = dict.fromkeys(kind for found in splits.values() for kind in found["by_kind"])
    ordered = sorted(kinds, key=lambda kind: [*ETC_KINDS, kind].index(kind))
    return _table(
        ("kind", *splits),
        [
            (kind, *(f"{found['by_kind'].get(kind, 0):,}" for found in splits.values()))
            for kind in ordered
        ],
    ) + (
        f"\n\nWho stands behind the answers: {_sources(splits.values())}. Per question_type, with the best constant answer and "
        "text lengths: `statistics.json`."
    )


def _sources(reports: Iterable[dict[str, Any]]) -> str:
    counts = sum((Counter(report["by_source"]) for report in reports), Counter())
    return ", ".join(f"{source} ({count:,})" for source, count in counts.most_common())


def _provenance(facts: DatasetFacts) -> str:
    made = dict(facts.made)
    if not made:
        return "The builder left no metadata.json: unknown."
    rows = [(f"version of {name}", version) for name, version in made.pop("versions", {}).items()]
    rows += [(f"config: {name}", _plain(value)) for name, value in made.pop("config", {}).items()]
    tables = {name: made.pop(name) for name in list(made) if isinstance(made[name], dict)}
    return "\n\n".join(
        [
            _table(("what", "value"), [*made.items(), *rows]),
            *(_folded(name, table) for name, table in tables.items() if table),
        ]
    )


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _folded(title: str, table: dict[str, Any]) -> str:
    """A table to open: a row a key, and a column a field where the values have some."""
    first = next(iter(table.values()))
    fields = tuple(first) if isinstance(first, dict) else ()
    rows = [
        (key, *(row[field] for field in fields)) if fields else (key, row)
        for key, row in table.items()
    ]
    text = _table((title, *(fields or ("count",))), rows)
    return f"<details><summary>{title.capitalize()}</summary>\n\n{text}\n\n</details>"


def _features(facts: DatasetFacts) -> str:
    rows = [
        (
            f"`{feature.path}`",
            f"{feature.kind}{' list' * feature.ragged}",
            "x".join("?" if size is None else str(size) for size in feature.shape) or "-",
            feature.doc,
        )
        for group in read_features(facts.directory)
        for feature in group.values()
    ]
    return _table(("feature", "kind", "shape", "meaning"), rows)


def _loading(facts: DatasetFacts) -> str:
    return f"""With TensorFlow Datasets, and nothing else:

```python
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory("path/to/this/folder")
for episode in builder.as_dataset(split="{next(iter(facts.splits))}"):
    for step in episode["steps"]: ...
```

By frame, without TensorFlow: `etcvla.data.rlds.RLDSDataset("path/to/this/folder")`."""


_FILES = """- `*.tfrecord-*`, `features.json`, `dataset_info.json`: the dataset (RLDS by TFDS)
- `statistics.json`: exact mean, std, min, max, 1 % and 99 % quantiles and counts by feature and split, with the hash of
  what was counted; items by grade, kind and question_type
- `metadata.json`: how it was made
- `preview/*.parquet`: a few frames with their items
- `croissant.json`: a description for machines, with the SHA-256 of every file
- `CITATION.bib`"""


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    def line(cells: tuple) -> str:
        return (
            "| "
            + " | ".join(str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells)
            + " |"
        )

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])
