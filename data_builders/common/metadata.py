"""metadata.json: how a dataset was built."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etcvla.provenance import git_commit, package_versions


def build_metadata(
    config: Mapping[str, Any], packages: Sequence[str], seeding: str
) -> dict[str, Any]:
    """Return what metadata.json says about a build: date, commit, seeding, config, versions.

    Args:
      config: the builder's config; empty values are left out.
      packages: packages whose versions change the data.
      seeding: how random numbers are seeded, in words.
    """
    recorded_config = {}
    for name, value in config.items():
        if value not in (None, "", [], ()):
            recorded_config[name] = _without_folders(value)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git_commit(),
        "seeding": seeding,
        "config": recorded_config,
        "package_versions": package_versions(sorted({*packages, "tensorflow-datasets"})),
    }


def _without_folders(value: Any) -> Any:
    """Return the file name of an absolute path, because its folders belong to this machine."""
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name
    return value
