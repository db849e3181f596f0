"""Run a study: cells and seeds, trained and evaluated by any number of workers.

    python launch/study.py --config=configs/study.py:pilot [--workdir=DIR] [--list|--dry|--report]

Start the same command again, on this machine or on others that share the folder, to work in
parallel, and to resume after a kill. See docs/study.md.
"""

import dataclasses
import pathlib

from absl import flags
from ml_collections import config_flags

from etcvla.errors import UserError
from etcvla.pages.study import write_study
from etcvla.study import claims, collect, costs, execute, protocol, results, tables
from etcvla.study.config import StudySpec, parse
from etcvla.study.runs import Graph, make_graph
from etcvla.study.worker import work
from launch import common

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/study.py", "Config file of a study, with a variant after a colon."
)
_WORKDIR = flags.DEFINE_string("workdir", "", 'Folder of the study. "": the config\'s.')
_LIST = flags.DEFINE_bool("list", False, "Print the cells, their state and the remaining time.")
_DRY = flags.DEFINE_bool(
    "dry", False, "Print FLOPs, action rows and ETC segments of each cell, and check the contrasts."
)
_REPORT = flags.DEFINE_bool(
    "report", False, "Write study.csv, runs.csv, summary.json and report.html from what is there."
)
_CELLS = flags.DEFINE_list("cells", [], "Cells to work on or to print; default: all.")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds to work on or to print; default: all.")


def main(_: list[str]) -> None:
    """Do what the flags say."""
    config = _CONFIG.value
    if _WORKDIR.value:
        config.workdir = _WORKDIR.value
    study = parse(config)
    protocol.read_protocol(study)  # raises if the folder belongs to another study
    chosen = study.select(_CELLS.value, _parse_seeds(_SEEDS.value))
    if _REPORT.value:
        results.write_results(study.workdir)
        print(f"report: {write_study(study.workdir)}")
        return
    graph = make_graph(study, common.load_stage)
    if _LIST.value:
        print(tables.state_table(graph.select(chosen)))
    elif _DRY.value:
        by_cell = costs.cell_costs(graph.select(chosen))
        print(tables.costs_table(by_cell))
        costs.check_matched(study, by_cell)
    else:
        datasets = execute.used_datasets(graph.select(chosen))
        execute.build_missing(datasets, pathlib.Path(study.workdir) / "datasets")
        _work(make_graph(study, common.load_stage), chosen)


def _parse_seeds(names: list[str]) -> list[int]:
    """Return the numbers in --seeds. Raises UserError for anything else."""
    for name in names:
        if not name.isdecimal():
            raise UserError(f"--seeds={name}: expected numbers separated by commas, such as 0,1")
    return [int(name) for name in names]


def _work(graph: Graph, chosen: StudySpec) -> None:
    """Write the hypotheses, and do the runs of `chosen` until nothing is left to do.

    Raises UserError if runs failed.
    """
    study = graph.study
    if not protocol.is_written(study):
        by_cell = costs.cell_costs(graph)
        costs.check_matched(study, by_cell)
        matching = {cell: dataclasses.asdict(cost) for cell, cost in by_cell.items()}
        protocol.write_protocol(study, matching)
    collect.save_graph(graph)
    states = work(
        graph.select(chosen), lambda run: execute.execute(run, study, common.train_with_parents)
    )
    failed = [key for key, state in states.items() if state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} runs failed {claims.RETRIES + 1} times; delete the folder `attempts` "
            f"of a run to try it again, after reading it: {study.workdir}/runs/{failed[0]}/attempts"
        )
    print(f"\nall runs are done; --report writes {study.workdir}/report.html", flush=True)


if __name__ == "__main__":
    common.run(main)
