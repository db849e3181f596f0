"""Croissant 1.0: a machine-readable description of a dataset's files and of the preview's columns.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_builders.tools.publish import CROISSANT, STATISTICS
from data_builders.tools.publish.preview import COLUMNS
from data_builders.tools.publish.summary import DatasetSummary
from etcvla.errors import UserError
from etcvla.files import hash_file

# Short names of the specification.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TYPES = {"image": "sc:ImageObject", "step": "sc:Integer", "action": "sc:Float"}
_FORMATS = {".parquet": "application/x-parquet", ".json": "application/json"}
_DESCRIBED_FILES = (
    "features.json",
    "dataset_info.json",
    "metadata.json",
    "LICENSE",
    STATISTICS,
)


def describe(dataset: DatasetSummary, previews: Mapping[str, Path]) -> dict[str, Any]:
    """Return the JSON-LD document, with every file of the dataset and its SHA-256.

    Args:
      previews: split -> Parquet file in the dataset's folder.
    """
    directory = dataset.directory
    files = {*directory.glob("*.tfrecord*"), *directory.glob("*.array_record*")}
    files |= set(previews.values())
    for name in _DESCRIBED_FILES:
        if (directory / name).exists():
            files.add(directory / name)
    record_sets = []
    for split, file in previews.items():
        record_sets.append(_record_set(split, str(file.relative_to(directory))))
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": dataset.name.replace("/", "-"),
        "description": dataset.info.get("description", ""),
        "version": dataset.info["version"],
        "license": dataset.license or "unknown",
        "url": dataset.url,
        "distribution": [_file_object(directory, file) for file in sorted(files)],
        "recordSet": record_sets,
    }
    optional = {
        "citeAs": dataset.info.get("citation"),
        "datePublished": dataset.metadata.get("date"),
    }
    return document | {name: value for name, value in optional.items() if value}


def find_damage(directory: Path) -> list[str]:
    """Return the problems of a published dataset: missing files, and files that differ.

    Raises UserError if the dataset is not published.
    """
    document = directory / CROISSANT
    if not document.exists():
        raise UserError(
            f"{document} is missing: `python -m data_builders.tools.publish --data={directory}` "
            "writes it"
        )
    problems = []
    for entry in json.loads(document.read_text(encoding="utf-8"))["distribution"]:
        file = directory / entry["contentUrl"]
        if not file.exists():
            problems.append(f"{file} is missing")
            continue
        digest = hash_file(file)
        if digest != entry["sha256"]:
            problems.append(f"{file} has SHA-256 {digest}, not {entry['sha256']}")
    return problems


def _file_object(directory: Path, file: Path) -> dict[str, Any]:
    name = str(file.relative_to(directory))
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "sha256": hash_file(file),
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": _FORMATS.get(file.suffix, "application/octet-stream"),
    }


def _record_set(split: str, file: str) -> dict[str, Any]:
    name = f"preview_{split}"
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"Some frames of the split {split}; one row per item.",
        "field": [_field(name, file, column, doc) for column, (_, doc) in COLUMNS.items()],
    }


def _field(record_set: str, file: str, column: str, doc: str) -> dict[str, Any]:
    source = {"fileObject": {"@id": file}, "extract": {"column": column}}
    if column == "image":
        source["transform"] = {"jsonPath": "bytes"}
    field = {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column}",
        "name": column,
        "description": doc,
        "dataType": _TYPES.get(column, "sc:Text"),
        "source": source,
    }
    if column == "action":
        field["repeated"] = True
    return field
