"""Which code produced a result: package versions and the git commit."""

from __future__ import annotations

import importlib.metadata
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import etcvla

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A training run's numbers depend on these packages.
RUN_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Return package name -> installed version; "not installed" for a package without metadata."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def run_versions() -> dict[str, str]:
    """Return the versions of etcvla and of the packages that a run's numbers depend on."""
    return {"etcvla": etcvla.__version__, **package_versions(RUN_PACKAGES)}


def python_version() -> str:
    """Return this interpreter's version, such as "3.11.7"."""
    return ".".join(str(part) for part in sys.version_info[:3])


def git_commit() -> str:
    """Return the commit hash of etcvla's checkout; "unknown" outside of one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT
        )
    except FileNotFoundError:  # git is not installed
        return "unknown"
    return done.stdout.strip() or "unknown"
