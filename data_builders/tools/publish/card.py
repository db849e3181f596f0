"""The dataset card (README.md) for Hugging Face's Hub, and the citation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from data_builders.common.tables import markdown_table
from data_builders.tools.publish.summary import PAPER, DatasetSummary
from etcvla.data.rlds_layout import read_features
from etcvla.etc.items import ETC_KINDS

# The Hub's size categories: https://huggingface.co/docs/hub/datasets-cards
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
_METHOD_CITATION = f"""@article{{twobridges,
  title={{Two Bridges, One Pathway}},
  journal={{arXiv preprint arXiv:2606.08520}},
  url={{{PAPER}}}}}"""
_FILES = """\
- `*.tfrecord-*`, `features.json`, `dataset_info.json`: the dataset (RLDS by TFDS)
- `statistics.json`: exact mean, std, min, max, 1 % and 99 % quantiles and counts by feature and
  split, with a hash of the counted values; items by grade, kind and question type
- `metadata.json`: how the dataset was built
- `preview/*.parquet`: some frames with their items
- `croissant.json`: machine-readable description with the SHA-256 of every file
- `CITATION.bib`"""


def bibtex(dataset: DatasetSummary) -> str:
    """Return the citations of the data's source, if known, and of the method behind the items."""
    entries = [dataset.info.get("citation", "").strip()]
    if dataset.has_items:
        entries.append(_METHOD_CITATION)
    return "\n\n".join(entry for entry in entries if entry) + "\n"


def make_card(
    dataset: DatasetSummary, statistics: Mapping[str, Any], previews: Mapping[str, Path]
) -> DatasetCard:
    """Return the card: metadata for the Hub, and a description.

    Args:
      statistics: as `DatasetSummary.statistics` returns it.
      previews: split -> Parquet file in the dataset's folder.
    """
    sections = {
        "": dataset.info.get("description", "").strip(),
        "Counts": _counts_section(statistics),
        "Items": _items_section(statistics),
        "Provenance": _provenance_section(dataset),
        "Features": _features_section(dataset),
        "Loading": _loading_section(dataset),
        "Files": _FILES,
        "License": dataset.license or "Not stated by the dataset's builder; ask its authors.",
        "Citation": f"```bibtex\n{bibtex(dataset)}```",
    }
    paragraphs = [f"# {dataset.name}"]
    for title, text in sections.items():
        if text:
            paragraphs.append(f"## {title}\n\n{text}" if title else text)
    body = "\n\n".join(paragraphs)
    card_data = _card_data(dataset, statistics, previews)
    return DatasetCard(f"---\n{card_data.to_yaml()}\n---\n\n{body}\n")


def _card_data(
    dataset: DatasetSummary, statistics: Mapping[str, Any], previews: Mapping[str, Path]
) -> DatasetCardData:
    frames = sum(split["frames"] for split in statistics["splits"].values())
    tasks = []
    if dataset.has_actions:
        tasks.append("robotics")
    if dataset.has_items:
        tasks.append("visual-question-answering")
    data_files = []
    for split, file in previews.items():
        data_files.append({"split": split, "path": str(file.relative_to(dataset.directory))})
    # The Hub's names of licenses are SPDX identifiers in lower case, and "other".
    license_name = dataset.license.lower()
    is_known = re.fullmatch(r"(apache|mit|bsd|cc|gpl|lgpl)[a-z0-9.-]*", license_name)
    return DatasetCardData(
        pretty_name=dataset.name,
        license=license_name if is_known else "other",
        language=["en"],
        task_categories=tasks,
        tags=["rlds", "tfds", "embodied", "croissant"],
        size_categories=[next(name for limit, name in _SIZES if frames < limit)],
        configs=[{"config_name": "preview", "data_files": data_files}],
    )


def _counts_section(statistics: Mapping[str, Any]) -> str:
    splits = statistics["splits"]
    rows = []
    for name, split in splits.items():
        counts = (split["episodes"], split["frames"], split["items"].get("items", 0))
        rows.append([name, *(f"{count:,}" for count in counts)])
    tables = [markdown_table(["split", "episodes", "frames", "items"], rows)]
    for key in ("scene", "task"):
        counts = {}
        for name, split in splits.items():
            if f"episodes_by_{key}" in split:
                counts[name] = split[f"episodes_by_{key}"]
        if counts:
            tables.append(_count_table(f"episodes by {key}", counts))
    return "\n\n".join(tables)


def _items_section(statistics: Mapping[str, Any]) -> str:
    kinds = {}
    sources: Counter[str] = Counter()
    for name, split in statistics["splits"].items():
        if split["items"]:
            kinds[name] = split["items"]["by_kind"]
            sources.update(split["items"]["by_source"])
    if not kinds:
        return ""
    origins = ", ".join(f"{source} ({count:,})" for source, count in sources.most_common())
    return (
        f"{_count_table('kind', kinds, first=ETC_KINDS)}\n\n"
        f"Origin of the answers: {origins}. `statistics.json` has counts by question type, the "
        "best constant answers and text lengths."
    )


def _count_table(
    title: str, counts: Mapping[str, Mapping[str, int]], first: Sequence[str] = ()
) -> str:
    """Return a table with a row per name and a column per split.

    Args:
      counts: split -> name -> count.
      first: names whose rows come first.
    """
    names: list[str] = []
    for split_counts in counts.values():
        names += [name for name in split_counts if name not in names]
    ordered = [name for name in first if name in names]
    ordered += [name for name in names if name not in first]
    rows = []
    for name in ordered:
        rows.append([name, *(f"{column.get(name, 0):,}" for column in counts.values())])
    return markdown_table([title, *counts], rows)


def _provenance_section(dataset: DatasetSummary) -> str:
    if not dataset.metadata:
        return "The builder wrote no metadata.json."
    rows = []
    tables = []
    for key, value in dataset.metadata.items():
        if key == "package_versions":
            rows += [[f"version of {name}", version] for name, version in value.items()]
        elif key == "config":
            rows += [[f"config: {name}", _plain_text(entry)] for name, entry in value.items()]
        elif isinstance(value, dict):
            tables.append(_folded_table(key.replace("_", " "), value))
        else:
            rows.append([key, value])
    return "\n\n".join([markdown_table(["key", "value"], rows), *tables])


def _plain_text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _folded_table(title: str, entries: Mapping[str, Any]) -> str:
    """Return a collapsed table with a row per key; fields of dictionaries are columns."""
    if not entries:
        return ""
    first = next(iter(entries.values()))
    columns = list(first) if isinstance(first, dict) else []
    rows = []
    for key, value in entries.items():
        cells = [value[column] for column in columns] if columns else [value]
        rows.append([key, *cells])
    table = markdown_table([title, *(columns or ["count"])], rows)
    return f"<details><summary>{title.capitalize()}</summary>\n\n{table}\n\n</details>"


def _features_section(dataset: DatasetSummary) -> str:
    step_features, episode_features = read_features(dataset.directory)
    rows = []
    for feature in [*step_features.values(), *episode_features.values()]:
        shape = ["?" if size is None else str(size) for size in feature.shape]
        kind = f"{feature.kind} list" if feature.ragged else feature.kind
        rows.append([f"`{feature.path}`", kind, "x".join(shape) or "-", feature.doc])
    return markdown_table(["feature", "kind", "shape", "meaning"], rows)


def _loading_section(dataset: DatasetSummary) -> str:
    split = next(iter(dataset.splits))
    return f"""With TensorFlow Datasets alone:

```python
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory("path/to/this/folder")
for episode in builder.as_dataset(split="{split}"):
    for step in episode["steps"]: ...
```

By frame, without TensorFlow: `etcvla.data.rlds.RLDSDataset("path/to/this/folder")`."""
