"""Croissant 1.0: a description of a dataset's files and of the preview's columns that machines read.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from data_builders.tools.publish import CROISSANT, STATISTICS
from data_builders.tools.publish.preview import COLUMNS
from data_builders.tools.publish.summary import DatasetFacts

# The vocabulary of the specification: what a short name stands for.
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


def describe(facts: DatasetFacts, previews: dict[str, Path]) -> dict[str, Any]:
    """The JSON-LD document. Every file of the dataset is in it with its SHA-256.

    Args:
      previews: split -> Parquet file inside the dataset's folder.
    """
    told = ("features.json", "dataset_info.json", "metadata.json", "LICENSE", STATISTICS)
    files = sorted(
        {
            *facts.directory.glob("*.tfrecord*"),
            *facts.directory.glob("*.array_record*"),
            *previews.values(),
            *(file for name in told if (file := facts.directory / name).exists()),
        }
    )
    optional = {"citeAs": facts.info.get("citation"), "datePublished": facts.made.get("date")}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": facts.name.replace("/", "-"),
        "description": facts.info.get("description", ""),
        "version": facts.info["version"],
        "license": facts.license or "unknown",
        "url": facts.url,
        **{name: value for name, value in optional.items() if value},
        "distribution": [_file(facts.directory, file) for file in files],
        "recordSet": [
            _records(split, file.relative_to(facts.directory)) for split, file in previews.items()
        ],
    }


def damaged(directory: Path) -> list[str]:
    """The files of a published dataset that are missing, or are not what they were when it was published.

    Raises FileNotFoundError if it has not been published.
    """
    document = directory / CROISSANT
    if not document.exists():
        raise FileNotFoundError(
            f"{document} is missing: `python -m data_builders.tools.publish {directory}` writes it"
        )
    wrong = []
    for told in json.loads(document.read_text(encoding="utf-8"))["distribution"]:
        file = directory / told["contentUrl"]
        if not file.exists():
            wrong.append(f"{file} is missing")
        elif (digest := _sha256(file)) != told["sha256"]:
            wrong.append(f"{file} has SHA-256 {digest}, not {told['sha256']}")
    return wrong


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _file(directory: Path, file: Path) -> dict[str, Any]:
    name = str(file.relative_to(directory))
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "sha256": _sha256(file),
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": _FORMATS.get(file.suffix, "application/octet-stream"),
    }


def _records(split: str, file: Path) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": f"preview_{split}",
        "name": f"preview_{split}",
        "description": f"Some frames of the split {split} with their items, one row an item.",
        "field": [_field(split, str(file), name, doc) for name, (_, doc) in COLUMNS.items()],
    }


def _field(split: str, file: str, name: str, doc: str) -> dict[str, Any]:
    source = {"fileObject": {"@id": file}, "extract": {"column": name}}
    if name == "image":
        source["transform"] = {"jsonPath": "bytes"}
    field = {
        "@type": "cr:Field",
        "@id": f"preview_{split}/{name}",
        "name": name,
        "description": doc,
        "dataType": _TYPES.get(name, "sc:Text"),
        "source": source,
    }
    return field | ({"repeated": True} if name == "action" else {})
