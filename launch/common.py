"""What the scripts share: setting up JAX, errors for people, and training a stage with what it stands on."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging as python_logging
import os
import pathlib
import signal
import sys
from collections.abc import Sequence

import jax
import ml_collections
from absl import app, flags, logging
from etils import epath

from configs import common as fields
from etcvla.eval.in_loop import make_evaluation
from etcvla.names import lookup
from etcvla.pages.first_batch import draw_batch
from etcvla.pages.plan import plot_plan
from etcvla.train.hosts import all_hosts_agree, log_on_host0
from etcvla.train.loop import train
from etcvla.train.monitor import MonitorOptions
from etcvla.train.plan_table import plan_table
from etcvla.train.stage import build_datasets, make_plan, missing_paths

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHOWN = MonitorOptions(evaluation=make_evaluation, draw_first_batch=draw_batch)
USER_ERRORS = (
    FileNotFoundError,
    ValueError,
    KeyError,
    FloatingPointError,
    OSError,
    RuntimeError,
    ImportError,
)


def setup() -> None:
    """Once a process: quiet libraries, and a compilation cache, so that a second run starts at once."""
    logging.set_verbosity(logging.WARNING)
    python_logging.getLogger("gcsfs").setLevel("CRITICAL")  # it logs a traceback of what it raises
    logging.get_absl_handler().addFilter(shown)
    os.environ.setdefault(
        "EPATH_USE_TF", "false"
    )  # buckets as datasets have them, also where TensorFlow is installed
    cache = os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "etcvla" / "jax")
    )
    jax.config.update("jax_compilation_cache_dir", cache)


def shown(record: python_logging.LogRecord) -> bool:
    """Whether a log record is for people: orbax's threads log a traceback each of what is one error in the end."""
    return not (record.exc_info and "/orbax/" in record.pathname)


def run(main) -> None:
    """absl's app.run, but what a user can mend is one message without a traceback (ETCVLA_DEBUG=1 shows it)."""

    def guarded(argv):
        setup()
        try:
            main(argv)
        except USER_ERRORS as error:
            if os.environ.get("ETCVLA_DEBUG"):
                raise
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            sys.exit(f"error: {message}")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv):
    """absl's parsing; a config file's own error and an unknown key (with its did-you-mean) are one message."""
    try:
        return flags.FLAGS(argv)
    except KeyError as error:  # the name of a group that a --config.GROUP.FIELD lacks
        sys.exit("error: unknown config field " + " ".join(str(error.args[0]).splitlines()))
    except (AttributeError, TypeError, flags.Error) as error:
        lines = str(error).replace("\\n", "\n").strip().splitlines()
        told = [
            line.strip("'\" ") for line in lines if "Error: " in line or "Did you mean" in line
        ] or lines
        sys.exit("error: " + " ".join(told))


def load_config(path: str, variant: str) -> ml_collections.ConfigDict:
    """The config that a stage's file makes for a variant; `path` is relative to the project."""
    spec = importlib.util.spec_from_file_location("stage_config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def question_sets(names: Sequence[str], root: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Where held-out questions come from: name -> path and cameras.

    Args:
      names: shapes, source, target, or the directory (with a slash) of a set with the cameras front and wrist.
      root: where the embedded datasets lie.

    Raises ValueError for another name.
    """
    known = {"shapes": fields.shapes(root)} | {
        name: fields.metaworld(name, root=root) for name in ("source", "target")
    }
    known |= {name: fields.dataset(name, ("front", "wrist")) for name in names if "/" in name}
    return {
        name: (found["path"], found["cameras"])
        for name in names
        for found in [lookup(known, name, "--datasets")]
    }


def train_with_parents(
    config: ml_collections.ConfigDict, allow: Sequence[str] = (), options: MonitorOptions = SHOWN
) -> dict:
    """Trains a stage; first prints its plan, builds missing datasets, and trains the missing stage before it.

    Of several processes, the first builds, plots and speaks.
    """
    plan, first = make_plan(config), jax.process_index() == 0
    log_on_host0(plan_table(config, plan))
    if first:
        build_datasets(config)
    all_hosts_agree(True)  # the others wait for what is built
    build_datasets(config)
    if "init_from" in missing_paths(config):
        log_on_host0(
            f"{config.stage}: {config.init_from} is missing, training it first: {config.init_config}"
        )
        parent = load_config(config.init_config, config.variant)
        parent.workdir = config.init_from
        train_with_parents(parent, options=dataclasses.replace(options, profile=""))
    result = train(config, allow=allow, options=options)
    if first:
        plot_plan(plan, epath.Path(config.workdir) / "plan.png", f"{config.stage}:{config.variant}")
    return result
