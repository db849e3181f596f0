"""Typed view of a study's config (configs/study.py), checked for what cannot work."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from etcvla import sims
from etcvla.errors import UserError
from etcvla.names import lookup

# `RunSpec.init` of a run that starts from what its stage's config names in init_from.
BASE = "base"
# `RunSpec.init` of a run that starts from random parameters.
RANDOM = "random"
MATCHED = ("flops", "action_rows")  # what the cells of a contrast can have in common
# "language" compares trials of one layout that name different objects.
METRICS = ("intention", "success", "progress", "language")
_TIER_SCENE = re.compile(r"([A-Z])(\d+)")


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One training run of a cell, without its seed."""

    name: str
    stage: str  # config file without ".py"; options of its variant follow after "+"
    init: str  # name of the run that it starts from, `BASE` or `RANDOM`
    changes: tuple[tuple[str, Any], ...] = ()  # (dotted field of the stage's config, value)
    questions: tuple[str, ...] = ()  # datasets whose held-out questions it answers
    scenes: tuple[str, ...] = ()  # where it acts; "{rotation}" is the seed's rotation
    interventions: tuple[str, ...] = ("right",)  # what the policy gets there


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm of the study: a run, after the runs that it starts from, once for each seed."""

    name: str
    run: str  # name of its last run
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A comparison of two cells that is fixed before they are evaluated: a - b."""

    name: str
    a: str
    b: str
    metric: str  # one of `METRICS`
    tier: str  # tiers joined by "+"; ":both" after them: trials whose target has two new words
    margin: float = 0.0  # smallest difference that matters, percentage points
    block: str = "confirmatory"  # tested in fixed order; other blocks: Holm's correction
    matched: str = ""  # one of `MATCHED`; "": the study's


@dataclasses.dataclass(frozen=True)
class Gate:
    """A condition that a cell's score must meet before the contrasts mean anything."""

    name: str
    cell: str
    metric: str  # one of `METRICS`
    tier: str  # as `Contrast.tier`
    low: float  # range of the score, in [0, 1]
    high: float = 1.0
    minus: str = ""  # tier whose score is subtracted; "": none
    intervention: str = "right"


@dataclasses.dataclass(frozen=True)
class StudySpec:
    """A study. `parse` makes one from a config.

    Attributes:
      base: weights that runs with init `BASE` start from; "": those of their stage's config.
      datasets: name -> one entry per rotation (`configs.common.dataset`); they replace the
        datasets of the same name in the stages' configs.
      general: datasets of general questions; what is drawn from them does not count as ETC.
      eval: settings of the evaluation, see configs/study.py.
    """

    name: str
    workdir: str
    variant: str
    runs: Mapping[str, RunSpec]
    cells: Mapping[str, Cell]
    contrasts: tuple[Contrast, ...]
    gates: tuple[Gate, ...]
    matched: str
    base: str
    datasets: Mapping[str, Sequence[Mapping[str, Any]]]
    general: tuple[str, ...]
    eval: ml_collections.ConfigDict

    def chain(self, cell: str) -> list[RunSpec]:
        """Return the runs of a cell, the first one first."""
        runs = []
        name = self.cells[cell].run
        while name not in (BASE, RANDOM):
            runs.append(self.runs[name])
            name = self.runs[name].init
        return runs[::-1]

    def rotation(self, seed: int) -> int:
        """Return the rotation of the held-out words for a seed."""
        return seed % max([1, *map(len, self.datasets.values())])

    def dataset(self, name: str, seed: int) -> Mapping[str, Any]:
        """Return a dataset's entry for a seed. Raises UserError for an unknown name."""
        entries = lookup(self.datasets, name, "dataset in the study's `questions`")
        return entries[seed % len(entries)]

    def select(self, cells: Sequence[str] = (), seeds: Sequence[int] = ()) -> StudySpec:
        """Return the study with some of its cells and seeds; (): all of them.

        Raises UserError for a cell or a seed that it does not have.
        """
        for cell in cells:
            lookup(self.cells, cell, "cell in --cells")
        chosen = {}
        for name in cells or self.cells:
            cell = self.cells[name]
            kept = tuple(seed for seed in cell.seeds if not seeds or seed in seeds)
            chosen[name] = dataclasses.replace(cell, seeds=kept)
        unknown = sorted(set(seeds).difference(*(cell.seeds for cell in self.cells.values())))
        if unknown:
            raise UserError(f"--seeds: no cell has the seed {unknown[0]}; add it to config.cells")
        return dataclasses.replace(self, cells=chosen)


def parse(config: ml_collections.ConfigDict) -> StudySpec:
    """Return the typed and checked view of a study's config.

    Raises UserError for a run that starts from an unknown run, a cell of an unknown run, a repeated
    seed, and a contrast that cannot be computed.
    """
    runs = {}
    for name, fields in config.runs.items():
        runs[name] = RunSpec(name, **fields)
    cells = [Cell(**fields) for fields in config.cells]
    contrasts = [Contrast(**fields) for fields in config.contrasts]
    _check_names("cells", cells)
    _check_names("contrasts", contrasts)
    study = StudySpec(
        name=config.name,
        workdir=config.workdir,
        variant=config.variant,
        runs=runs,
        cells={cell.name: cell for cell in cells},
        contrasts=tuple(contrasts),
        gates=tuple(Gate(**fields) for fields in config.gates),
        matched=config.matched,
        base=config.base,
        datasets=config.datasets,
        general=tuple(config.general),
        eval=config.eval,
    )
    _check(study)
    return study


def split_scene(scene: str) -> tuple[str, int]:
    """Return the tier and the rotation of a scene: ("C", 2) of "C2", ("source", 0) of "source"."""
    match = _TIER_SCENE.fullmatch(scene)
    return (match[1], int(match[2])) if match else (scene, 0)


def _check_names(field: str, entries: Sequence[Cell | Contrast]) -> None:
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{field}: {name!r} is there twice; rename one")


def _check(study: StudySpec) -> None:
    if "://" in study.workdir:
        raise UserError(
            f"workdir {study.workdir}: workers claim runs with files in a folder that they share; "
            "choose a local or mounted folder"
        )
    lookup(dict.fromkeys(MATCHED), study.matched, "value of `matched`")
    for run in study.runs.values():
        _check_parents(study, run)
    for cell in study.cells.values():
        lookup(study.runs, cell.run, f"run in cells.{cell.name}")
        repeated = [seed for seed in cell.seeds if cell.seeds.count(seed) > 1]
        if repeated:
            raise UserError(f"cells.{cell.name}.seeds has {repeated[0]} twice; remove one")
    for contrast in study.contrasts:
        _check_contrast(study, contrast)
    for gate in study.gates:
        _check_gate(study, gate)


def _check_parents(study: StudySpec, run: RunSpec) -> None:
    """Raise UserError if the runs before a run do not exist or form a circle."""
    seen = []
    while run.init not in (BASE, RANDOM):
        seen.append(run.name)
        run = lookup(study.runs, run.init, f"run in runs.{run.name}.init")
        if run.name in seen:
            raise UserError(f"runs.{run.name}.init: the runs {', '.join(seen)} form a circle")


def _check_contrast(study: StudySpec, contrast: Contrast) -> None:
    where = f"contrast {contrast.name!r}"
    for name in (contrast.a, contrast.b):
        _check_score(study, name, contrast.metric, contrast.tier, where)
    if contrast.matched:
        lookup(dict.fromkeys(MATCHED), contrast.matched, f"value of `matched` in {where}")
    shared = set(study.cells[contrast.a].seeds) & set(study.cells[contrast.b].seeds)
    if not shared:
        raise UserError(f"{where}: its cells share no seed; give both the same seeds")


def _check_gate(study: StudySpec, gate: Gate) -> None:
    where = f"gate {gate.name!r}"
    for tier in (gate.tier, gate.minus or gate.tier):
        _check_score(study, gate.cell, gate.metric, tier, where)
    interventions = study.runs[study.cells[gate.cell].run].interventions
    lookup(dict.fromkeys(interventions), gate.intervention, f"intervention in {where}")


def _check_score(study: StudySpec, cell: str, metric: str, tier: str, where: str) -> None:
    """Raise UserError if the evaluation of a cell does not give a score."""
    run = study.runs[lookup(study.cells, cell, f"cell in {where}").run]
    lookup(dict.fromkeys(METRICS), metric, f"metric in {where}")
    tiers, _, novelty = tier.partition(":")
    with_layouts = {split_scene(scene.format(rotation=0))[0] for scene in run.scenes}
    missing = set(tiers.split("+")) - with_layouts
    if missing or not study.eval.trials:
        raise UserError(
            f"{where}: tier {tier!r} has no layouts in cell {cell}; add it to "
            f"runs.{run.name}.scenes and set eval.trials"
        )
    simulator = sims.get(study.eval.simulator)
    if (metric == "language" or novelty) and simulator.trials_per_layout == 1:
        raise UserError(
            f"{where}: metric {metric!r} on {tier!r} needs layouts in which each object is named "
            f"in turn, which {simulator.name} does not have; choose success"
        )
