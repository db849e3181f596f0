"""A worker: takes runs of a study one after another until nothing is left that it can do.

Workers only share the folder of the study. To work in parallel, start the same command several
times, on any machine that has the folder. A worker may be killed at any moment: training resumes
from its last checkpoint, an evaluation from its last episode.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import jax

from etcvla.files import write_json
from etcvla.study import claims
from etcvla.study.claims import DEFAULT_TIMING, Timing
from etcvla.study.runs import RESULT_FILE, Graph, Run, evaluation_key

POLL_SECONDS = 10.0  # between checks of the runs that other workers have
Execute = Callable[[Run], dict[str, Any]]  # trains and evaluates a run; returns its results


def run_state(run: Run, timing: Timing = DEFAULT_TIMING) -> str:
    """Return "done", "running", "failed", "blocked" (its parent failed) or "waiting"."""
    if run.result() is not None:
        return "done"
    own = claims.state(run.folder, timing)
    if own != "waiting" or run.parent is None:
        return own
    is_blocked = run_state(run.parent, timing) in ("failed", "blocked")
    return "blocked" if is_blocked else "waiting"


def work(
    graph: Graph,
    execute: Execute,
    *,
    timing: Timing = DEFAULT_TIMING,
    poll_seconds: float = POLL_SECONDS,
) -> dict[str, str]:
    """Do all runs that no other worker does; return when each is done, failed or blocked.

    A run that fails is tried again up to `claims.RETRIES` times; the others go on.

    Returns: key -> state of each run.
    """
    while True:
        states = {key: run_state(run, timing) for key, run in graph.runs.items()}
        ready = [run for run in graph.runs.values() if _is_ready(run, states)]
        if not ready:
            if "running" not in states.values():
                return states
            time.sleep(poll_seconds)
            continue
        for run in ready:
            if _take(run, execute, timing):
                break  # start from the first run again: this one may have made it ready


def _is_ready(run: Run, states: dict[str, str]) -> bool:
    """Return whether a run waits for nothing but a worker."""
    parent_done = run.parent is None or states[run.parent.key] == "done"
    return states[run.key] == "waiting" and parent_done


def _take(run: Run, execute: Execute, timing: Timing) -> bool:
    """Claim a run and do it; return False if another worker was faster."""
    claim = claims.claim(run.folder, timing)
    if claim is None:
        return False
    print(f"\n=== {run.spec.name}, seed {run.seed}: {run.folder} ===", flush=True)
    try:
        with claim:
            if run.result() is None:  # else another worker finished it in the meantime
                result = execute(run)
                write_json(run.folder / RESULT_FILE, {**describe(run), **result})
    except Exception as error:  # the other runs continue after any failure
        print(f"{run.folder} failed: {error}; {run.folder}/attempts has the traceback", flush=True)
    jax.clear_caches()  # compiled steps of this run, which the next one compiles from the cache
    gc.collect()
    return True


def describe(run: Run) -> dict[str, Any]:
    """Return the part of result.json that is known before the run."""
    return {
        "name": run.spec.name,
        "stage": run.spec.stage,
        "seed": run.seed,
        "key": run.key,
        "parent": run.parent.key if run.parent else "",
        "init": run.spec.init,
        "changes": [[name, str(value)] for name, value in run.spec.changes],
        "steps": run.config.steps,
        "evaluation": evaluation_key(run.evaluation),
    }
