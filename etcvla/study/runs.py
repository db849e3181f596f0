"""The runs of a study as a graph: which config each one has, where it is, what it starts from.

The folder of a run is named by a hash of its config, its parent's hash and the fingerprint of its
data. Cells that share their first stages share these runs, and an edited cell gets new folders for
its own runs only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from etcvla.data.rlds_layout import find_version
from etcvla.errors import UserError
from etcvla.eval.evaluate import EvaluationSpec
from etcvla.eval.trials import EvalProtocol
from etcvla.files import hash_file, hash_json
from etcvla.names import lookup
from etcvla.study.config import RANDOM, RunSpec, StudySpec
from etcvla.train.base_model import find_base
from etcvla.train.checkpoint import find_checkpoint
from etcvla.train.resume import CHANGEABLE_FIELDS, flatten_fields
from etcvla.train.stage import has_dataset

KEY_LENGTH = 12  # hexadecimal digits
RESULT_FILE = "result.json"
# (path of a stage's config file, variant, changes) -> config
LoadStage = Callable[[str, str, Sequence[tuple[str, Any]]], ml_collections.ConfigDict]


@dataclasses.dataclass
class Run:
    """One training run and its evaluation.

    Attributes:
      key: hash that names the folder.
      config: of the stage; its workdir is the folder.
    """

    spec: RunSpec
    seed: int
    key: str
    folder: pathlib.Path
    config: ml_collections.ConfigDict
    parent: Run | None
    evaluation: EvaluationSpec

    def result(self) -> dict[str, Any] | None:
        """Return the content of result.json; None if the run or its evaluation has changed."""
        result = read_result(self.folder, evaluation_key(self.evaluation))
        return result if result and result["key"] == self.key else None


def run_folder(workdir: str, key: str) -> pathlib.Path:
    """Return the folder of the run with this key."""
    return pathlib.Path(workdir) / "runs" / key


def read_result(folder: pathlib.Path, evaluation: str) -> dict[str, Any] | None:
    """Return the results in a run's folder; None if the evaluation with this key has none.

    result.json is written when the run is trained and evaluated.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if result["evaluation"] == evaluation else None


@dataclasses.dataclass
class Graph:
    """All runs of a study.

    Attributes:
      runs: key -> run, in the order in which workers take them.
      cells: (cell, seed) -> its runs, the first one first.
    """

    study: StudySpec
    runs: dict[str, Run]
    cells: dict[tuple[str, int], list[Run]]

    def select(self, chosen: StudySpec) -> Graph:
        """Return the part of the graph that belongs to the cells and seeds of `chosen`."""
        cells = {}
        for (cell, seed), runs in self.cells.items():
            if cell in chosen.cells and seed in chosen.cells[cell].seeds:
                cells[cell, seed] = runs
        keys = {run.key for run in itertools.chain(*cells.values())}
        runs = {key: run for key, run in self.runs.items() if key in keys}
        return Graph(chosen, runs, cells)


def make_graph(study: StudySpec, load_stage: LoadStage, *, named_folders: bool = False) -> Graph:
    """Return the graph of a study's runs.

    Args:
      load_stage: loads a stage's config with changes.
      named_folders: name folders by the run instead of by the hash, for a study of one seed.
    """
    graph = Graph(study, {}, {})
    for cell, seed in _cells_in_order(study):
        parent = None
        chain = []
        for spec in study.chain(cell):
            run = _make_run(study, spec, seed, parent, load_stage)
            if named_folders:
                _move(run, pathlib.Path(study.workdir) / spec.name)
            run = _merge(graph, run)
            chain.append(run)
            parent = run
        graph.cells[cell, seed] = chain
    return graph


def _cells_in_order(study: StudySpec) -> Iterator[tuple[str, int]]:
    """Yield (cell, seed): seeds in turn, so that contrasts have pairs early.

    Cells that no confirmatory contrast needs come last.
    """
    confirmatory = set()
    for contrast in study.contrasts:
        if contrast.block == "confirmatory":
            confirmatory |= {contrast.a, contrast.b}
    first = [cell for cell in study.cells.values() if cell.name in confirmatory]
    last = [cell for cell in study.cells.values() if cell.name not in confirmatory]
    for group in (first, last):
        seeds = sorted(set().union(*(cell.seeds for cell in group)))
        for seed in seeds:
            for cell in group:
                if seed in cell.seeds:
                    yield cell.name, seed


def _make_run(
    study: StudySpec, spec: RunSpec, seed: int, parent: Run | None, load_stage: LoadStage
) -> Run:
    config = stage_config(study, spec, seed, load_stage)
    if parent is not None:
        parent_key = parent.key
        _set_parent(config, str(parent.folder))
    elif spec.init == RANDOM:
        parent_key = ""
        _set_parent(config, "")
    else:
        config.init_from = study.base or config.init_from
        parent_key = weights_fingerprint(config.init_from)
        if parent_key == "missing":
            raise UserError(
                f"runs.{spec.name} starts from {config.init_from}, which does not exist; train it "
                f"with launch/train.py, or change the run's init or the study's base"
            )
    key = run_key(config, parent_key)
    folder = run_folder(study.workdir, key)
    run = Run(spec, seed, key, folder, config, parent, evaluation_spec(study, spec, seed))
    _move(run, folder)
    return run


def _set_parent(config: ml_collections.ConfigDict, init_from: str) -> None:
    config.init_from = init_from
    config.init_config = ""


def _move(run: Run, folder: pathlib.Path) -> None:
    run.folder = folder
    run.config.workdir = str(folder)


def _merge(graph: Graph, run: Run) -> Run:
    """Return the run of the graph with the same key, with both evaluations, or add the run."""
    known = graph.runs.setdefault(run.key, run)
    for field in ("scenes", "interventions"):
        values = dict.fromkeys([*getattr(known.evaluation, field), *getattr(run.evaluation, field)])
        known.evaluation = dataclasses.replace(known.evaluation, **{field: tuple(values)})
    datasets = {**known.evaluation.datasets, **run.evaluation.datasets}
    known.evaluation = dataclasses.replace(known.evaluation, datasets=datasets)
    return known


def stage_config(
    study: StudySpec, spec: RunSpec, seed: int, load_stage: LoadStage
) -> ml_collections.ConfigDict:
    """Return the config of a run's stage with the study's changes, data and seed.

    Datasets that no stream uses are removed. Raises UserError if a stream's dataset is neither in
    the study nor in the stage's config.
    """
    stage, plus, options = spec.stage.partition("+")
    variant = study.variant + plus + options
    config = load_stage(f"configs/{stage}.py", variant, spec.changes)
    config.seed = seed
    datasets = {}
    for stream in config.streams.values():
        name = stream.dataset
        if name in study.datasets:
            datasets[name] = study.dataset(name, seed)
        else:
            datasets[name] = lookup(config.datasets, name, f"dataset in runs.{spec.name}")
    with config.unlocked():
        config.datasets = datasets
    return config


def evaluation_spec(study: StudySpec, spec: RunSpec, seed: int) -> EvaluationSpec:
    """Return what to evaluate a run on."""
    settings = study.eval
    rotation = study.rotation(seed)
    datasets = {}
    for name in spec.questions:
        entry = study.dataset(name, seed)
        datasets[name] = (entry["path"], entry["cameras"])
    protocol = EvalProtocol(
        max_steps=settings.max_steps, replan_steps=settings.replan_steps, workers=settings.workers
    )
    return EvaluationSpec(
        tasks=settings.tasks,
        scenes=tuple(scene.format(rotation=rotation) for scene in spec.scenes),
        interventions=spec.interventions,
        trials=settings.trials,
        intervention_trials=settings.intervention_trials,
        videos=settings.videos,
        questions=settings.questions,
        datasets=datasets,
        protocol=protocol,
        seed=seed,
        simulator=settings.simulator,
    )


def evaluation_key(spec: EvaluationSpec) -> str:
    """Return the hash of everything that an evaluation depends on except the parameters."""
    return _hash(dataclasses.asdict(spec))


def run_key(config: ml_collections.ConfigDict, parent_key: str) -> str:
    """Return the hash of everything that a run's parameters depend on.

    Fields that change nothing that is computed (paths, threads, logging) are left out.
    """
    fields = flatten_fields(json.loads(config.to_json_best_effort()))
    computed = {}
    for name, value in fields.items():
        if not CHANGEABLE_FIELDS.fullmatch(name):
            computed[name] = value
    computed["init_rules"] = fields["init_rules"]
    used = {stream.dataset for stream in config.streams.values()}
    data = {name: data_fingerprint(config.datasets[name].path) for name in sorted(used)}
    return _hash([computed, parent_key, data])


def data_fingerprint(path: str) -> str:
    """Return a hash of the names and sizes of a dataset's files; "missing" if it is not built."""
    if not has_dataset(path):
        return "missing"
    folder = pathlib.Path(str(find_version(path)))
    sizes = {}
    for file in sorted(folder.glob("*")):
        if ".tfrecord" in file.name or file.suffix == ".json":
            sizes[file.name] = file.stat().st_size
    return _hash(sizes)


def weights_fingerprint(path: str) -> str:
    """Return a hash of a checkpoint, base model or released weights; "missing" without any."""
    if not path:
        return ""
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        return checkpoint.content_hash()
    base = find_base(path)
    if base is not None:
        return base.meta["sha256"]
    root = pathlib.Path(path)
    if not root.exists():
        return "missing"
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(f"{file.name} {hash_file(file)}\n".encode())
    return digest.hexdigest()


def _hash(value: Mapping | Sequence) -> str:
    return hash_json(value)[:KEY_LENGTH]
