"""Studies: cells that differ in one thing, several seeds, and contrasts that are fixed in advance.

    python launch/study.py --config=configs/study.py:pilot
    python launch/study.py --config=configs/study.py:bridges

"bridges" asks whether bridging a VLM to actions helps to act on words without demonstrations, on
the tabletop. Its confirmatory arms:
AN: actions only.  MN: actions and replay of the base model's data.  EN: actions and ETC.
EY: stage 1 and stage 2 with ETC.  RY: the same with replay.  AY: stage 1, then actions only.
"pilot" has two of these arms and two seeds, about an hour on two cores.

docs/study.md explains the fields and how to write a study of your own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from configs import common, distribution_bridge
from etcvla.errors import UserError
from etcvla.etc.items import GRADES
from etcvla.sims.tabletop.words import TIERS, tier_words
from etcvla.study.config import BASE, RANDOM

VARIANT = "tabletop"  # of the stages' configs
ROTATIONS = 6  # of the held-out words; a seed has rotation seed % ROTATIONS
BATCH = 16  # rows per step in all stages
STAGE1_STEPS = 2000
ACTION_ROWS = 48_000  # of stage 2 in every arm
STAGE3_ACTION_ROWS = 12_000
LONG_ACTION_ROWS = 174_800  # with as many FLOPs on actions alone as RY has in both stages
STAGE1_EXTRA = 7  # ETC segments beside the first of a row, in stage 1
EXTRA = 4  # the same in stages 2 and 3
# Text tokens of a row, by the number of its extra segments. Padding costs as much as text.
TEXT_LEN = {0: 64, EXTRA: 112, STAGE1_EXTRA: 144}
INSTRUCTIONS = 5  # of an action row: its own and those that name the other objects
CONFIRMATORY_SEEDS = tuple(range(6))
EXPLORATORY_SEEDS = (0, 1, 2)

SCENES = tuple(tier + "{rotation}" for tier in TIERS)
QUESTIONS = ("tabletop_vqa", "etc")
# Language controls, for the arms that the first hypothesis compares.
INTERVENTIONS = ("right", "no_instruction", "wrong_instruction", "blank_image")

Share = float | tuple[tuple[float, float], ...]  # a number, or a schedule over the run's progress
Changes = Mapping[str, Any]  # dotted field of a stage's config -> value


def run(
    stage: str,
    init: str,
    changes: Changes,
    *,
    questions: tuple[str, ...] = QUESTIONS,
    scenes: tuple[str, ...] = (),
    interventions: tuple[str, ...] = ("right",),
) -> dict[str, Any]:
    """Return one training run.

    Args:
      stage: name of its config file, without ".py"; options of the variant follow after "+".
      init: name of the run that it starts from, `BASE` (the study's base) or `RANDOM`.
      changes: such as {"streams.etc.weight": ((0.0, 0.5),)}.
      questions: datasets whose held-out questions it answers.
      scenes: where it acts; "{rotation}" is the seed's rotation.
      interventions: what the policy gets there (etcvla/results_schema.py lists them).
    """
    return {
        "stage": stage,
        "init": init,
        "changes": tuple(changes.items()),
        "questions": questions,
        "scenes": scenes,
        "interventions": interventions,
    }


def cell(name: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return a cell: the run of this name, after the runs that it starts from, for each seed."""
    return {"name": name, "run": name, "seeds": seeds}


def contrast(name: str, a: str, b: str, metric: str, tier: str, **options: Any) -> dict[str, Any]:
    """Return the contrast a - b of two cells.

    Args:
      metric: a name in `etcvla.study.config.METRICS`.
      tier: tiers joined by "+"; ":both" after them keeps trials whose target has two new words.
      options: margin, block and matched, see `etcvla.study.config.Contrast`.
    """
    return {"name": name, "a": a, "b": b, "metric": metric, "tier": tier, **options}


def gate(name: str, score: str, tier: str, low: float, **options: Any) -> dict[str, Any]:
    """Return a gate: a score of the action-only arm that is at least `low`.

    Args:
      score: a name in `etcvla.study.config.METRICS`.
      options: high, minus and intervention, see `etcvla.study.config.Gate`.
    """
    return {"name": name, "cell": "AN", "metric": score, "tier": tier, "low": low, **options}


def mixture(
    *,
    action: Share = 0.0,
    etc: Share = 0.0,
    replay: Share = 0.0,
    ood: Share = 0.0,
    extra: int = EXTRA,
    grades: Collection[str] = tuple(GRADES.values()),
) -> dict[str, Any]:
    """Return the streams of a run, as changes.

    Args:
      action, etc, replay, ood: shares of the objective and of the rows.
      extra: ETC segments beside the first segment of a row. Actions have some if there is ETC.
      grades: grades of ETC (etcvla/etc/items.py).
    """
    kinds = {kind: share for kind, share in common.ETC_WEIGHTS.items() if GRADES[kind] in grades}
    streams = {}
    extra_weights = {}
    if action:
        action_extra = extra if etc else 0
        streams["action"] = common.stream("demos", "action", action, action_extra)
    if etc:
        for kind, share in kinds.items():
            weight = common.scale(common.as_schedule(etc), share / sum(kinds.values()))
            streams[f"etc_{kind}"] = common.stream("etc", kind, weight, extra)
            extra_weights[kind] = share
    if replay:
        streams["replay"] = common.stream("tabletop_vqa", "any", replay, extra)
        extra_weights |= common.TABLETOP_VQA_WEIGHTS
    if ood:
        streams["ood"] = common.stream("ood", "any", ood, extra)
    return {
        "streams": streams,
        "extra_segment_weights": extra_weights,
        "data.text_len": TEXT_LEN[extra],
        "batch_size": BATCH,
    }


def mean_share(share: Share) -> float:
    """Return the mean of a share over the run's progress."""
    points = common.as_schedule(share)
    points = (*points, (1.0, points[-1][1]))
    area = 0.0
    for (start, first), (stop, last) in itertools.pairwise(points):
        area += (stop - start) * (first + last) / 2
    return area


def stage1(init: str, changes: Changes | None = None, **shares: Any) -> dict[str, Any]:
    """Return a run of stage 1: ETC, alone or with replay. `shares`: see `mixture`."""
    fixed = {"steps": STAGE1_STEPS, **mixture(extra=STAGE1_EXTRA, **shares)}
    return run("distribution_bridge", init, {**fixed, **(changes or {})})


def stage2(
    init: str,
    *,
    changes: Changes | None = None,
    interventions: tuple[str, ...] = ("right",),
    stage: str = "objective_bridge",
    rows: int = ACTION_ROWS,
    **shares: Any,
) -> dict[str, Any]:
    """Return a run that learns to act, with as many steps as `rows` action rows need.

    Args:
      shares: see `mixture`; that of `action` must be given.
    """
    fixed = mixture(**shares)
    fixed["data.actions_per_row"] = INSTRUCTIONS
    fixed["loss.noise_samples"] = INSTRUCTIONS
    fixed["steps"] = round(rows / (BATCH * mean_share(shares["action"])))
    if set(fixed["streams"]) == {"action"}:
        fixed["loss.text"] = common.constant(0.0)
        fixed["data.text_len"] = TEXT_LEN[0]
    changes = {**fixed, **(changes or {})}
    return run(stage, init, changes, scenes=SCENES, interventions=interventions)


def stage3(init: str, *, ood: float = 0.0, etc: float = 0.25, **options: Any) -> dict[str, Any]:
    """Return a run of stage 3.

    Args:
      ood: share of the ETC that has the words of tier N.
      etc: share of ETC, and of replay. The remaining share is that of actions.
    """
    return stage2(
        init,
        stage="retentive_adapt",
        rows=STAGE3_ACTION_ROWS,
        action=1 - 2 * etc,
        etc=etc * (1 - ood),
        ood=etc * ood,
        replay=etc,
        **options,
    )


def with_renamed_words(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a run with the ETC of the datasets that `renamed` makes."""
    for stream in dict(fields["changes"])["streams"].values():
        if stream["dataset"] in ("demos", "etc"):
            stream["dataset"] += "_renamed"
    return fields


ETC = {"action": 0.5, "etc": 0.5}
REPLAY = {"action": 0.5, "replay": 0.5}
ETC_AND_REPLAY = {"action": 0.5, "etc": 0.25, "replay": 0.25}
LORA = {
    "model.lora": ((".*", 16),),
    "optim.lr_multiple": ((r".*lora_[ab]", 1.0), (".*", 0.0)),
}
# What happens to the rows of the token table that no answer uses; the default protects them.
TIED = {"optim.vocabulary": "train"}
FROZEN_WORDS = {"optim.vocabulary": "freeze"}

# Confirmatory arms and what they start from.
ARMS = {
    "E1": stage1(BASE, etc=1.0),
    "R1": stage1(BASE, etc=0.5, replay=0.5),
    "AN": stage2(BASE, action=1.0, interventions=INTERVENTIONS),
    "MN": stage2(BASE, **REPLAY),
    "EN": stage2(BASE, **ETC),
    "EY": stage2("E1", **ETC),
    "RY": stage2("R1", **ETC_AND_REPLAY, interventions=INTERVENTIONS),
    "AY": stage2("E1", action=1.0),
    "RY_ood0": stage3("RY"),
    "RY_ood6": stage3("RY", ood=0.06),
}
CONFIRMATORY = ("AN", "RY", "MN", "EY", "EN", "AY", "RY_ood0", "RY_ood6")
# In the order in which they are tested.
HYPOTHESES = (
    contrast("1 bridging", "RY", "AN", "intention", "C:both", margin=8.0),
    contrast("2 coupling to trajectories", "RY", "MN", "intention", "B+C", margin=8.0),
    contrast("3 OOD ETC", "RY_ood6", "RY_ood0", "intention", "N", margin=8.0),
    contrast("4 stage 1 first", "EY", "EN", "intention", "C:both", margin=8.0),
)
# Hypothesis 3 also needs that acting on A is not worse by 5 points.
CONDITION_OF_3 = contrast(
    "3 keeps A", "RY_ood6", "RY_ood0", "intention", "A", margin=-5.0, block="condition of 3"
)
GATES = (
    gate("G1 acts on A", "intention", "A", 0.7),
    gate("G1 no instruction", "intention", "A", 0.15, high=0.25, intervention="no_instruction"),
    gate("G1 follows wrong words", "language", "A", 0.5, intervention="wrong_instruction"),
    gate("G2 new words are harder", "intention", "C:none", 0.15, minus="C:both"),
)

# Stages on and off: "_off" is a stage 3 on actions alone, as the stage 2 of AN and AY is.
STAGE_CELLS = {}
for _arm in ("AN", "AY", "EN", "EY"):
    STAGE_CELLS[f"{_arm}_off"] = stage2(
        _arm, action=1.0, stage="retentive_adapt", rows=STAGE3_ACTION_ROWS
    )
    STAGE_CELLS[f"{_arm}_on"] = stage3(_arm, ood=0.06)

OTHER_CELLS = {
    "AN_long": stage2(BASE, action=1.0, rows=LONG_ACTION_ROWS),
    "EN_scene": stage2(BASE, **ETC, grades=("scene_grounding",)),
    "EN_task": stage2(BASE, **ETC, grades=("task_oriented",)),
    "EN_trajectory": stage2(BASE, **ETC, grades=("action_aligned",)),
    "RY_ood20": stage3("RY", ood=0.2),
    "RY_ood50": stage3("RY", ood=0.5),
    # ETC falls from 80 % to 40 % of the objective; its mean share is that of EN.
    "EN_ramp": stage2(BASE, action=((0.0, 0.2), (0.5, 0.6)), etc=((0.0, 0.8), (0.5, 0.4))),
    # Each question has a row of its own, and so a forward pass of its own.
    "EN_two_passes": stage2(BASE, **ETC, extra=0),
    "EY_lora1": stage1(BASE, etc=1.0, changes=LORA),
    "EY_lora": stage2("EY_lora1", **ETC),
    "RY_renamed1": with_renamed_words(stage1(BASE, etc=0.5, replay=0.5)),
    "RY_renamed": with_renamed_words(stage2("RY_renamed1", **ETC_AND_REPLAY)),
    "RY_random1": stage1(RANDOM, etc=0.5, replay=0.5),
    "RY_random": stage2("RY_random1", **ETC_AND_REPLAY),
    "AN_random": stage2(RANDOM, action=1.0),
    "EY_tied1": stage1(BASE, etc=1.0, changes=TIED),
    "EY_tied": stage2("EY_tied1", **ETC, changes=TIED),
    "EY_frozen1": stage1(BASE, etc=1.0, changes=FROZEN_WORDS),
    "EY_frozen": stage2("EY_frozen1", **ETC, changes=FROZEN_WORDS),
    "EN_insulated": stage2(BASE, **ETC, changes={"model.insulate": common.constant(1.0)}),
}
# Block -> (name, a, b): intention on C, with Holm's correction within the block.
EXPLORATORY = {
    "stages": (
        ("1 before actions", "AY_off", "AN_off"),
        ("1 before ETC", "EY_off", "EN_off"),
        ("2", "EN_off", "AN_off"),
        ("3 after actions", "AN_on", "AN_off"),
        ("3 after 1 and 2", "EY_on", "EY_off"),
        ("all", "EY_on", "AN_off"),
    ),
    "grade of ETC": (
        ("scene", "EN_scene", "AN"),
        ("task", "EN_task", "AN"),
        ("trajectory", "EN_trajectory", "AN"),
    ),
    "OOD ratio": (("20 %", "RY_ood20", "RY_ood0"), ("50 %", "RY_ood50", "RY_ood0")),
    "schedule": (("ramp - constant", "EN_ramp", "EN"),),
    "packing": (("packed rows - two passes", "EN", "EN_two_passes"),),
    "stage 1": (("LoRA - all parameters", "EY_lora", "EY"),),
    "negative controls": (
        ("renamed ETC", "RY_renamed", "AN"),
        ("random base", "RY_random", "AN_random"),
        ("replay alone", "MN", "AN"),
    ),
    "vocabulary": (
        ("protected - tied", "EY", "EY_tied"),
        ("frozen - tied", "EY_frozen", "EY_tied"),
    ),
    "insulation": (("on - off", "EN_insulated", "EN"),),
}


def exploratory_contrasts() -> list[dict[str, Any]]:
    """Return the contrasts of `EXPLORATORY`, and hypothesis 1 at equal FLOPs."""
    block = "equal FLOPs"
    contrasts = [contrast(block, "RY", "AN_long", "intention", "C", block=block, matched="flops")]
    for block, rows in EXPLORATORY.items():
        for name, a, b in rows:
            contrasts.append(contrast(f"{block}: {name}", a, b, "intention", "C", block=block))
    return contrasts


def renamed(entry: Mapping[str, Any], rotation: int) -> dict[str, Any]:
    """Return a dataset whose ETC means other words: each noun and color is called the next one.

    The words are those of tiers A and B, so that ETC does not use the words of tier C.
    """
    known = tier_words("A", rotation)
    bridged = tier_words("B", rotation)
    pairs = []
    for words in (known.nouns + bridged.nouns, known.colors + bridged.colors):
        pairs += zip(words, words[1:] + words[:1], strict=True)
    return {**entry, "rename": tuple(pairs)}


def datasets() -> dict[str, tuple[dict[str, Any], ...]]:
    """Return name -> one dataset per rotation of the held-out words."""
    by_name: dict[str, list[dict[str, Any]]] = {"tabletop_vqa": [common.tabletop_vqa()]}
    for role in ("demos", "etc", "ood"):
        entries = [common.tabletop(role, rotation) for rotation in range(ROTATIONS)]
        by_name[role] = entries
        by_name[f"{role}_renamed"] = [renamed(entry, i) for i, entry in enumerate(entries)]
    return {name: tuple(entries) for name, entries in by_name.items()}


def empty_study(name: str) -> ml_collections.ConfigDict:
    """Return a study on the tabletop without cells."""
    c = ml_collections.ConfigDict()
    c.name = name  # the folder of a study keeps it, and refuses another one
    c.workdir = f"runs/{name}"  # shared by all workers
    c.variant = VARIANT
    # Weights that runs with init `BASE` start from: a workdir or a file, as `init_from` of a stage.
    c.base = distribution_bridge.get_config(VARIANT).init_from
    # Name -> one entry per rotation. They replace the datasets of the stages' configs.
    c.datasets = ml_collections.ConfigDict(datasets())
    c.general = ("tabletop_vqa",)  # datasets of general questions, which do not count as ETC
    # What the cells of a contrast have in common: "action_rows" or "flops".
    c.matched = "action_rows"
    c.runs = ml_collections.ConfigDict()  # name -> `run`
    c.cells = ()  # of `cell`, in the order of the report
    c.contrasts = ()  # of `contrast`
    c.gates = ()  # of `gate`

    c.eval = ml_collections.ConfigDict()
    c.eval.simulator = "tabletop"  # of the tasks and scenes
    c.eval.tasks = ("touch",)
    c.eval.trials = 600  # episodes per task and scene; five in turn name the objects of a layout
    c.eval.intervention_trials = 100  # the same for each intervention other than "right"
    c.eval.max_steps = 30  # control steps before an episode counts as failed
    c.eval.replan_steps = 5  # control steps between two queries of the policy
    c.eval.workers = 4  # simulator processes
    c.eval.questions = 200  # questions per kind and dataset
    c.eval.videos = 5  # trials per task, scene and intervention that are kept as GIF
    return c


def bridges() -> ml_collections.ConfigDict:
    """Return the study of the hypotheses, with all exploratory cells."""
    c = empty_study("bridges")
    c.runs = ml_collections.ConfigDict({**ARMS, **STAGE_CELLS, **OTHER_CELLS})
    cells = [cell(name, CONFIRMATORY_SEEDS) for name in CONFIRMATORY]
    for name, entry in {**STAGE_CELLS, **OTHER_CELLS}.items():
        if entry["scenes"]:
            cells.append(cell(name, EXPLORATORY_SEEDS))
    c.cells = tuple(cells)
    c.contrasts = (*HYPOTHESES, CONDITION_OF_3, *exploratory_contrasts())
    c.gates = GATES
    return c


def pilot() -> ml_collections.ConfigDict:
    """Return a study of two arms and two seeds, with fewer episodes."""
    c = empty_study("pilot")
    c.runs = ml_collections.ConfigDict({name: ARMS[name] for name in ("R1", "RY", "AN")})
    c.cells = (cell("AN", (0, 1)), cell("RY", (0, 1)))
    c.contrasts = HYPOTHESES[:1]
    c.gates = GATES
    c.eval.trials = 200
    return c


STUDIES = {"pilot": pilot, "bridges": bridges}


def get_config(variant: str = "pilot") -> ml_collections.ConfigDict:
    """Return a study's config. Raises UserError for an unknown name."""
    if variant not in STUDIES:
        raise UserError(
            f"configs/study.py: unknown study {variant!r}; choose from {', '.join(STUDIES)}"
        )
    c = STUDIES[variant]()
    c.lock()
    return c
