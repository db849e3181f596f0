"""Shared by the scripts: process setup, error messages, configs, training with parent stages."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import logging as python_logging
import os
import pathlib
import platform
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from etils import epath

from configs import common as fields
from etcvla.errors import UserError
from etcvla.eval.in_loop import make_evaluation
from etcvla.names import lookup
from etcvla.pages.first_batch import draw_batch
from etcvla.pages.plan import plot_plan
from etcvla.results_schema import BASE_DATA
from etcvla.train.hosts import all_hosts_agree, log_on_host0
from etcvla.train.loop import train
from etcvla.train.monitor import MonitorOptions
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import build_datasets, make_plan, missing_paths

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Parameters of glibc's mallopt(3) by number. Sizes are in bytes.
MALLOC_OPTIONS = {
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD
    -2: 2**28,  # M_TOP_PAD
    -3: 2**25,  # M_MMAP_THRESHOLD, the largest that glibc accepts
    -8: 1,  # M_ARENA_MAX
}
MONITOR_OPTIONS = MonitorOptions(evaluation=make_evaluation, draw_first_batch=draw_batch)


def setup() -> None:
    """Configure this process: quiet libraries, memory, and a cache of compiled functions."""
    keep_freed_memory()
    logging.set_verbosity(logging.WARNING)
    python_logging.getLogger("gcsfs").setLevel("CRITICAL")  # it logs tracebacks of errors it raises
    logging.get_absl_handler().addFilter(is_shown)
    # Use the same bucket backend whether or not TensorFlow is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    default_cache = pathlib.Path.home() / ".cache" / "etcvla" / "jax"
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default_cache))
    jax.config.update("jax_compilation_cache_dir", cache)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the system.

    XLA's CPU backend allocates its buffers anew at every step. Faulting the pages in again took a
    fifth of the time of a small model's step. The maximum of resident memory stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in MALLOC_OPTIONS.items():
        libc.mallopt(option, value)


def is_shown(record: python_logging.LogRecord) -> bool:
    """Return whether to print a log record.

    A failed save raises one error in the main thread; the tracebacks that orbax's threads log for
    it are dropped.
    """
    return not (record.exc_info and "/orbax/" in record.pathname)


def run(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main` after parsing its flags.

    A UserError ends the process with its one-line message. Any other exception is a bug and shows
    its traceback.
    """

    def _main(argv: list[str]) -> None:
        setup()
        try:
            main(argv)
        except UserError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    app.run(_main, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse flags as absl does; report a wrong flag, config file or config field in one line."""
    try:
        return flags.FLAGS(argv)
    except UserError as error:  # raised by a config file
        sys.exit(f"error: {error}")
    except KeyError as error:  # ml_collections: the name in --config.NAME.FIELD that does not exist
        name, *suggestion = str(error.args[0]).splitlines()
        name = name.strip("'\"")
        fix = suggestion[0] if suggestion else "configs/common.py lists the fields"
        sys.exit(f"error: unknown config field {name!r}; {fix}")
    except (AttributeError, TypeError, flags.Error) as error:
        sys.exit("error: " + _one_line(error))


def _one_line(error: Exception) -> str:
    """Return the lines of a flag error that name the problem and the nearest name."""
    lines = str(error).replace("\\n", "\n").strip().splitlines()
    informative = []
    for line in lines:
        if "Error: " in line or "Did you mean" in line:
            # A config file's exception arrives as text with its class in front.
            informative.append(re.sub(r"^[\w.]*Error: ", "", line.strip("'\" ")))
    return " ".join(informative or lines)


def load_config(path: str, variant: str) -> ml_collections.ConfigDict:
    """Return the config that the file at `path`, relative to the project, defines for a variant."""
    spec = importlib.util.spec_from_file_location("stage_config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def load_stage(
    path: str, variant: str, changes: Sequence[tuple[str, Any]]
) -> ml_collections.ConfigDict:
    """Return a stage's config as `load_config`, with (dotted field, value) changes applied."""
    config = load_config(path, variant)
    fields.override(config, dict(changes))
    return config


def check_out_file(path: str) -> None:
    """Raise UserError if the folder of the output file in --out does not exist."""
    if path and not pathlib.Path(path).resolve().parent.is_dir():
        raise UserError(f"--out={path}: its folder does not exist; create it first")


def question_datasets(names: Sequence[str], root: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the datasets of held-out questions: name -> (path, cameras).

    Args:
      names: tabletop_vqa, shapes, a role of the tabletop (demos, etc, ood), a scene of Meta-World
        (source, target), or the folder (with a slash) of a dataset with the cameras front and
        wrist.
      root: folder of the embedded datasets.

    Raises UserError for an unknown name.
    """
    datasets = {BASE_DATA: fields.tabletop_vqa(root), "shapes": fields.shapes(root)}
    for role in fields.TABLETOP_EPISODES:
        datasets[role] = fields.tabletop(role, root=root)
    for scene in ("source", "target"):
        datasets[scene] = fields.metaworld(scene, root=root)
    for name in names:
        if os.sep in name:
            datasets[name] = fields.dataset(name, ("front", "wrist"))
    chosen = {}
    for name in names:
        entry = lookup(datasets, name, "--datasets")
        chosen[name] = (entry["path"], entry["cameras"])
    return chosen


def train_with_parents(
    config: ml_collections.ConfigDict,
    allow: Sequence[str] = (),
    options: MonitorOptions = MONITOR_OPTIONS,
) -> dict:
    """Train a stage; first print its plan, build missing datasets, train a missing parent.

    Host 0 builds the datasets, draws the plan and prints; the other hosts wait for the datasets.

    Args:
      allow: config fields that may differ from those of the run that is resumed.

    Returns: as `etcvla.train.loop.train`.
    """
    plan = make_plan(config)
    is_host0 = jax.process_index() == 0
    log_on_host0(plan_table(config, plan))
    if is_host0:
        build_datasets(config)
    all_hosts_agree(True)  # barrier: host 0 has built the datasets
    build_datasets(config)
    if "init_from" in missing_paths(config):
        _train_parent(config, options)
    result = train(config, allow=allow, options=options)
    if is_host0:
        plot_plan(config, plan, epath.Path(config.workdir) / "plan.png")
    return result


def _train_parent(config: ml_collections.ConfigDict, options: MonitorOptions) -> None:
    """Train the stage that `config.init_from` names, into that folder."""
    log_on_host0(
        f"{config.stage}: {config.init_from} is missing; training {config.init_config} first"
    )
    parent = load_config(config.init_config, config.variant)
    parent.workdir = config.init_from
    train_with_parents(parent, options=dataclasses.replace(options, profile=""))
