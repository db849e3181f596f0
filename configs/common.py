"""Config fields of every stage, with their defaults and meaning. A stage's file sets what differs.

Schedules are points ((progress, value), ...) over the stage's progress in [0, 1], joined by
straight lines. Rules are ordered (regex, value) lists over parameter paths: the first full match
gives the value, and every parameter must match.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
import numpy as np

from etcvla.errors import UserError
from etcvla.etc.items import ETC_KINDS
from etcvla.loss_forms import EXTRA_WEIGHT
from etcvla.schedule import value_at
from etcvla.sims.metaworld.tasks import DEMO_TASKS as METAWORLD_TASKS
from etcvla.sims.metaworld.tasks import MT10 as MT10_TASKS

# Share of each ETC kind in the paper's mixture (docs/etc_dataset.md describes the kinds).
ETC_WEIGHTS = dict(zip(ETC_KINDS, (0.24, 0.14, 0.22, 0.14, 0.26), strict=True))

# Scene conditions (etcvla/sims/conditions.py) of the out-of-distribution ETC that is used for
# training.
OOD_CONDITIONS = ("evening", "checker_table", "side_camera", "recolored", "clutter")

# Sizes of rows with about ten short questions about the tabletop.
TABLETOP_TEXT_LEN = 160
TABLETOP_MAX_TARGETS = 64
# Relative weight of each kind of question about pictures of the tabletop.
TABLETOP_VQA_WEIGHTS = {
    "name": 2.0,
    "point": 1.0,
    "box": 1.0,
    "attribute": 1.0,
    "count": 1.0,
    "relation": 1.0,
    "caption": 1.0,
}

# Share of the objective that replayed base data has.
REPLAY_SHARE = 0.1

# Demonstrations per task that the embedded datasets have by default.
DEFAULT_EPISODES = {"source": 30, "target": 10}

# The same for the roles of the tabletop's datasets.
TABLETOP_EPISODES = {"demos": 1200, "etc": 600, "ood": 400}

# What each variant changes in all stages. A stage's file has a table of the same form for itself.
BASE_VARIANTS: dict[str, dict[str, Any]] = {
    # The model size is the variant's name. `tiny` trains in minutes on two CPU cores.
    "tiny": {"data.places": "cell", "data.question_end": ""},
    # The tiny model on the tabletop (etcvla/sims/tabletop), which has one camera. Rows hold many
    # short questions.
    "tabletop": {
        "model.size": "tiny",
        "data.places": "cell",
        "data.question_end": "",
        "data.num_cameras": 1,
        "data.text_len": TABLETOP_TEXT_LEN,
        "data.max_targets": TABLETOP_MAX_TARGETS,
    },
    # The paper's optimizer, PaliGemma's tokenizer and a mesh for a pod.
    "paligemma_3b": {
        "model.state": "text",
        "model.state_dim": 32,
        "model.action_dim": 32,
        "data.tokenizer": "checkpoints/paligemma_tokenizer",
        "data.prompt": "pi05",
        "data.text_len": 256,
        "data.max_targets": 160,
        "data.fast_vocab": 1024,
        "data.threads": 16,
        "loss.noise_samples": 1,
        "optim.lr": ((0.0, 0.0), (0.01, 2.5e-5), (1.0, 2.5e-6)),
        "optim.weight_decay": ((".*", 1e-10),),
        "optim.ema": 0.999,
        "augment.shift": 8,
        "mesh.fsdp": 16,
        "log_every": 100,
        "save_every": 5000,
        "keep": 3,
    },
}
VARIANTS = ("tiny", "paligemma_3b")  # of the stages that have no other


def base(
    stage: str, variant: str, variants: Collection[str] = VARIANTS
) -> ml_collections.ConfigDict:
    """Return the config that all stages share, locked, before the stage's file changes it.

    Args:
      variants: the stage's variants, keys of `BASE_VARIANTS`.

    Raises UserError for a variant that the stage does not have.
    """
    if variant not in variants:
        raise UserError(
            f"configs/{stage}.py: unknown variant {variant!r}; choose from {', '.join(variants)}"
        )
    c = ml_collections.ConfigDict()
    c.stage = stage
    c.variant = variant
    # Seed of the mixture plan, the initialisation and all noise.
    c.seed = 0
    # Folder of checkpoints, logs and pictures. A run that it contains is resumed.
    c.workdir = f"runs/{variant}/{stage}"
    # Where the parameters come from: a workdir (the EMA of its newest checkpoint), "base" (the
    # small model that ships with the package) or the folder of another base model, or released
    # weights (a Hugging Face directory, big_vision's .npz, openpi's params). "": random parameters.
    c.init_from = ""
    # Rules over the parameters of both models: True loads a parameter from init_from, False
    # initialises it.
    c.init_rules = ((".*", True),)
    # Config file of the stage that produces init_from. That stage is trained first if init_from is
    # missing.
    c.init_config = ""
    c.steps = 0  # optimizer steps
    c.batch_size = 0  # rows (one row is one frame) per step over all devices and hosts
    _add_model_fields(c)
    _add_data_fields(c)
    _add_loss_fields(c)
    _add_optimizer_fields(c)
    _add_run_fields(c)
    c.lock()
    override(c, BASE_VARIANTS[variant])
    return c


def _add_model_fields(c: ml_collections.ConfigDict) -> None:
    c.model = ml_collections.ConfigDict()
    # Name of a size in etcvla/models/variants.py.
    c.model.size = c.variant
    # Image height and width in pixels, a multiple of the vision tower's patch. 0: the size's own
    # resolution.
    c.model.image_size = 0
    # Proprioception: "token" is one token before the actions; "text" adds none (data.prompt may
    # write it as text).
    c.model.state = "token"
    # How the action expert reads the flow time: "adaptive" norms (pi0.5), "plain": its tokens
    # (pi0). "none": no expert.
    c.model.expert = "adaptive"
    # Schedule: share of the expert's gradient that is stopped at the backbone's keys and values, 0
    # (none) to 1 (all).
    c.model.insulate = constant(1.0)
    # Image tokens attend to the prompt, as in released PaliGemma. Requires extra_segments = 0 in
    # every stream.
    c.model.image_attends_prompt = False
    # Absent cameras take positions too, as in pi0-FAST's training.
    c.model.count_absent_cameras = False
    # Rules over projections: rank of the LoRA adapter, 0 for none. See `lora` below and
    # etcvla/models/lora.py.
    c.model.lora = ()
    c.model.lora_scale = 1.0  # alpha / rank of all adapters
    c.model.state_dim = 4  # S, width of proprioception; narrower datasets are padded
    c.model.action_dim = 4  # A, width of actions; narrower datasets are padded
    c.model.horizon = 10  # P, steps of an action chunk


def _add_data_fields(c: ml_collections.ConfigDict) -> None:
    c.datasets = ml_collections.ConfigDict()  # name -> path, cameras and more; see `dataset`
    c.streams = ml_collections.ConfigDict()  # name -> dataset, kind, weight and more; see `stream`
    # Relative weight of each kind among the extra segments of a row.
    c.extra_segment_weights = ml_collections.ConfigDict(ETC_WEIGHTS)

    c.data = ml_collections.ConfigDict()
    c.data.tokenizer = "tiny"  # the embedded tokenizer, or the path of a PaliGemma tokenizer
    # Layout of the token ids: "disjoint", or "openpi" for weights trained with it
    # (etcvla/data/tokenizer.py).
    c.data.layout = "disjoint"
    # Notation of points for the model: "pair" (y token and x token, as in PaliGemma) or "cell" (one
    # token of a 32 x 32 grid, etcvla/etc/places.py). Datasets always hold pairs.
    c.data.places = "pair"
    # Text between a question and its answer. The small models learn to read places several times
    # faster without the newline of PaliGemma.
    c.data.question_end = "\n"
    c.data.prompt = "pi0"  # format of the action prompt, a name in etcvla/data/prompts.py
    c.data.text_len = 80  # L, text tokens per row
    c.data.max_targets = 40  # predicted tokens per row, at most
    c.data.num_cameras = 2  # C
    # K, action segments of an action row: the episode's own instruction, and K - 1 of the frame's
    # relabels (other instructions and their actions), where the dataset has them.
    c.data.actions_per_row = 1
    c.data.norm = "quantile"  # normalisation of state and actions: "quantile", "zscore" or "none"
    # No flow loss on action dimensions that a dataset lacks and on steps past the end of an
    # episode.
    c.data.mask_padding = True
    # Folder of a fitted FAST tokenizer. "": fit one to the stage's actions.
    c.data.fast = ""
    c.data.fast_vocab = 256  # size of the FAST vocabulary
    # A damaged record: "raise" stops the run with an error, "skip" leaves it out and counts it.
    c.data.on_damaged = "raise"
    c.data.threads = 2  # threads that build batches, per process that builds batches
    c.data.workers = 0  # processes that build batches; 0: the trainer's own threads
    c.data.prefetch = 4  # batches built ahead

    c.augment = ml_collections.ConfigDict()
    c.augment.shift = 4  # largest shift of an image in pixels; <loc> tokens move with it
    c.augment.color = 0.15  # largest relative change of brightness and contrast


def _add_loss_fields(c: ml_collections.ConfigDict) -> None:
    c.loss = ml_collections.ConfigDict()
    # "share": a stream's weight is its share of the objective. "objectives" (the paper): text, FAST
    # and flow are each a mean over their tokens or values in the batch. "openpi": the mean over
    # rows of each row's own mean. In the last two a stream's weight is its share of the rows.
    c.loss.form = "share"
    # Schedules of loss weights.
    c.loss.text = constant(1.0)  # next-token loss of answers
    c.loss.fast = constant(0.0)  # next-token loss of FAST action tokens
    c.loss.flow = constant(0.0)  # flow-matching loss of the action expert
    c.loss.z = constant(0.0)  # squared log of the softmax sum (PaLM uses 1e-4); bounds the logits
    # Next-token loss of answers about one place, predicted from the image token there alone. It
    # speeds up the first training of small models (etcvla/train/image_targets.py).
    c.loss.image = constant(0.0)
    # R, noise samples per row, a multiple of data.actions_per_row. They share the prefix, so more
    # of them cost little.
    c.loss.noise_samples = 4


def _add_optimizer_fields(c: ml_collections.ConfigDict) -> None:
    c.optim = ml_collections.ConfigDict()
    c.optim.kind = "adamw"  # or "adafactor"
    c.optim.lr = ((0.0, 0.0), (0.05, 2e-3), (1.0, 5e-5))  # schedule of the learning rate
    # Rules: factor on the learning rate, a number or a schedule. Parameters are frozen while it is
    # 0.
    c.optim.lr_multiple = ((".*", 1.0),)
    # Rules: weight decay. Biases, norms and embeddings have none.
    c.optim.weight_decay = (
        (r".*(bias|scale|pos_embedding|input_embedding)", 0.0),
        (".*", 1e-4),
    )
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.mu_dtype = "float32"  # dtype of the first moment
    c.optim.nu_dtype = "float32"  # dtype of AdamW's second moment
    c.optim.clip = 1.0  # largest global gradient norm
    # Parts of a batch that are computed one after another; the gradient is that of the whole batch.
    c.optim.microbatches = 1
    # A loss or gradient that is not finite: "stop" the run, or "skip" the step and count it.
    c.optim.on_nonfinite = "stop"
    # Rows of the token table that no answer of the stage uses. The softmax of each answer moves
    # them, which destroys words that the stage does not train. "protect": no gradient from the
    # softmax; "freeze": no gradient; "train": the whole gradient (etcvla/train/vocabulary.py).
    c.optim.vocabulary = "protect"
    c.optim.ema = 0.99  # decay of the moving average of the parameters


def _add_run_fields(c: ml_collections.ConfigDict) -> None:
    c.mesh = ml_collections.ConfigDict()  # devices along each axis; -1: all remaining devices
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.log_every = 20  # steps between log lines
    c.save_every = 200  # steps between checkpoints; the last step is always saved
    c.keep = 1  # newest checkpoints that are kept
    c.keep_every = 0  # steps between checkpoints that are kept for good; 0: none

    # Evaluation of the EMA parameters during training, on the datasets' split "val".
    c.eval = ml_collections.ConfigDict()
    c.eval.at_progress = ()  # progress values at which to evaluate, such as (0.25, 0.5, 1.0)
    c.eval.batches = 4  # batches that the held-out losses average over
    c.eval.questions = 16  # questions per kind and dataset; 0: none
    c.eval.suite = ""  # benchmark of launch/evaluate.py to run as well; "": none
    c.eval.tasks = ()  # tasks of the suite by name or number; (): all
    c.eval.trials = 2  # episodes per task
    c.eval.workers = 2  # simulator processes
    c.eval.simulator_python = ""  # interpreter that has the simulator; "": the trainer's own


def override(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> None:
    """Set fields of a locked config by their dotted names, such as {"optim.clip": 0.5}.

    Entries of `datasets` and `streams` may be new; every other field must exist.

    Raises UserError naming an unknown field.
    """
    for name, value in changes.items():
        *group_names, field = name.split(".")
        group = config
        for group_name in group_names:
            if group_name not in group:
                raise UserError(f"unknown config field {name!r}: there is no {group_name!r}")
            group = group[group_name]
        is_new_entry = group_names in (["datasets"], ["streams"])
        if field not in group and not is_new_entry:
            raise UserError(f"unknown config field {name!r}; known: {', '.join(group)}")
        with config.unlocked():
            group[field] = value


def constant(value: float) -> tuple:
    """Return the schedule that is `value` throughout."""
    return ((0.0, value),)


def scale(schedule: tuple, factor: float) -> tuple:
    """Return the schedule with every value multiplied by `factor`."""
    return tuple((progress, value * factor) for progress, value in schedule)


def as_schedule(value: float | tuple) -> tuple:
    """Return a schedule: `value` itself, or the constant one for a number."""
    return value if isinstance(value, tuple) else constant(value)


def warmup_cosine(
    peak: float, end: float, *, warmup: int, steps: int, pieces: int = 32
) -> tuple[tuple[float, float], ...]:
    """Return openpi's learning rate as a schedule.

    It rises over `warmup` steps to `peak` and then falls along half a cosine to `end` at `steps`.
    With 32 straight pieces the schedule differs from the cosine by less than a thousandth of the
    peak.
    """
    start = warmup / steps
    points = [(0.0, peak / (warmup + 1))]
    for i in range(pieces + 1):
        fraction = i / pieces
        progress = start + (1 - start) * fraction
        rate = end + (peak - end) * (1 + math.cos(math.pi * fraction)) / 2
        points.append((progress, rate))
    return tuple(points)


def stream(
    dataset: str,
    kind: str,
    weight: float | tuple,
    extra_segments: int,
    loss_weight: float | tuple = 1.0,
) -> dict[str, Any]:
    """Return one stream of the mixture.

    Args:
      dataset: name of an entry of `datasets`.
      kind: what its rows train: "action", an ETC kind, or "any" kind of item.
      weight: share of the objective relative to the other streams, a number or a schedule.
      extra_segments: further ETC items of the same frame that are added to each row.
      loss_weight: factor on the stream's share, a number or a schedule, such as 0.1 for a stream
        that should count less than its rows.
    """
    return {
        "dataset": dataset,
        "kind": kind,
        "weight": as_schedule(weight),
        "extra_segments": extra_segments,
        # Schedule: share of the batch's rows, if it differs from the weight. (): the weight.
        "rows": (),
        "loss_weight": as_schedule(loss_weight),
        # Coefficient of an action row's extra segments, relative to its action.
        "extra_weight": EXTRA_WEIGHT,
    }


def etc_streams(dataset: str, share: float | tuple, extra_segments: int) -> dict[str, dict]:
    """Return one stream per ETC kind; their weights add up to `share`, split as in the paper."""
    streams = {}
    for kind, fraction in ETC_WEIGHTS.items():
        weight = scale(as_schedule(share), fraction)
        streams[f"{dataset}_{kind}"] = stream(dataset, kind, weight, extra_segments)
    return streams


def shared_etc_streams(
    datasets: tuple[str, ...], share: float | tuple, extra_segments: int
) -> dict[str, dict]:
    """Return the streams of `etc_streams` of several datasets, which get equal shares."""
    part = scale(as_schedule(share), 1 / len(datasets))
    streams = {}
    for name in datasets:
        streams |= etc_streams(name, part, extra_segments)
    return streams


def parse_variant(stage: str, variant: str, options: tuple[str, ...]) -> tuple[str, list[str]]:
    """Split "VARIANT+OPTION+..." into the variant and its options.

    Raises UserError for an option that is not one of `options`.
    """
    variant, *chosen = variant.split("+")
    for option in chosen:
        if option not in options:
            raise UserError(
                f"configs/{stage}.py: unknown option {option!r} after +; choose from "
                f"{', '.join(options)}"
            )
    return variant, chosen


def add_replay(c: ml_collections.ConfigDict, share: float = REPLAY_SHARE) -> None:
    """Replay the base model's data in a stage: the answers of the stage use other words.

    The stream `replay` gets `share` of the objective; the others keep their ratios.
    """
    if c.variant == "paligemma_3b":
        name = "web_vqa"
        entry = dataset("data/web_vqa", ("image",))
        kind_weights = {}
        extra_segments = 0
    else:
        name = "tabletop_vqa"
        entry = tabletop_vqa()
        kind_weights = TABLETOP_VQA_WEIGHTS
        extra_segments = 10 if c.variant == "tabletop" else 4
    points = set()
    for other in c.streams.values():
        points.update(progress for progress, _ in other.weight)
    weight = []
    for progress in sorted(points):
        total = sum(value_at(other.weight, progress, np) for other in c.streams.values())
        weight.append((progress, float(total) * share / (1 - share)))
    override(c, {f"datasets.{name}": entry})
    add_streams(c, {"replay": stream(name, "any", tuple(weight), extra_segments)})
    with c.unlocked():
        c.extra_segment_weights.update(kind_weights)


def has_replay(variant: str, options: Collection[str]) -> bool:
    """Return whether a stage replays the base model's data.

    Full size does unless "no_replay" is among the options: PaliGemma knows many words that no
    answer of a stage contains. The other variants do with "replay".
    """
    if variant == "paligemma_3b":
        return "no_replay" not in options
    return "replay" in options


def add_streams(config: ml_collections.ConfigDict, streams: Mapping[str, dict]) -> None:
    """Add streams to the mixture of a locked config."""
    override(config, {f"streams.{name}": entry for name, entry in streams.items()})


def action_only(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the changes that leave a stage nothing but its action stream, without ETC."""
    action = stream(config.streams.action.dataset, "action", 1.0, extra_segments=0)
    return {"loss.text": constant(0.0), "streams": {"action": action}}


def openpi_optimizer(c: ml_collections.ConfigDict) -> None:
    """Set openpi's default training settings.

    Source: TrainConfig, CosineDecaySchedule and AdamW in openpi's
    src/openpi/training/{config,optimizer}.py.
    """
    c.optim.lr = warmup_cosine(2.5e-5, 2.5e-6, warmup=1000, steps=30_000)
    c.optim.weight_decay = ((".*", 1e-10),)
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.clip = 1.0
    c.optim.vocabulary = "train"
    c.optim.ema = 0.99
    c.steps = 30_000
    c.batch_size = 32
    c.mesh.fsdp = 8


def lora(c: ml_collections.ConfigDict, rank: int) -> None:
    """Add a LoRA adapter of `rank` to every projection and train nothing else."""
    c.model.lora = ((".*", rank),)
    c.optim.lr_multiple = ((r".*lora_[ab]", 1.0), (".*", 0.0))


def dataset(
    path: str,
    cameras: tuple[str, ...],
    build: tuple[str, ...] = (),
    adapter: str = "own",
    rename: tuple[tuple[str, str], ...] = (),
) -> dict[str, Any]:
    """Return one entry of `datasets`.

    Args:
      path: TFDS directory (a version folder or its parent), or the URL of one (gs://).
      cameras: image features without "observation/". ETC coordinates refer to the first one.
      build: module and arguments of the command that builds a missing dataset. (): a missing
        dataset is an error.
      adapter: how its features are read, a name in etcvla/data/adapters or a JSON file of the
        same fields.
      rename: (word, other word) pairs; the words are replaced in questions and answers, not in
        instructions.
    """
    return {
        "path": path,
        "cameras": cameras,
        "build": build,
        "adapter": adapter,
        "rename": rename,
    }


def metaworld(
    scene: str,
    *,
    tasks: tuple[str, ...] = METAWORLD_TASKS,
    episodes: int = 0,
    root: str = "data",
) -> dict[str, Any]:
    """Return the embedded Meta-World demonstrations of one scene, "source" or "target".

    The folder's name contains what differs from the default tasks and number of episodes, as the
    builder names it.

    Args:
      episodes: training episodes per task; 0: `DEFAULT_EPISODES`.
      root: folder of the embedded datasets.
    """
    episodes = episodes or DEFAULT_EPISODES[scene]
    name = scene
    if tasks == MT10_TASKS:
        name += "_mt10"
    elif tasks != METAWORLD_TASKS:
        name += "_" + "+".join(tasks)
    if episodes != DEFAULT_EPISODES[scene]:
        name += f"_{episodes}ep"
    build = (
        "data_builders.metaworld_etc",
        f"--scene={scene}",
        f"--tasks={','.join(tasks)}",
        f"--episodes={episodes}",
        f"--out={root}",
    )
    return dataset(f"{root}/metaworld_etc/{name}", ("front", "wrist"), build)


def metaworld_ood(
    scene: str, *, conditions: tuple[str, ...] = OOD_CONDITIONS, root: str = "data"
) -> dict[str, Any]:
    """Return out-of-distribution ETC: recorded states under other conditions, without actions.

    Args:
      conditions: training conditions of etcvla/sims/conditions.py.
      root: folder of the embedded datasets.
    """
    build = (
        "data_builders.metaworld_etc",
        f"--scene={scene}",
        f"--conditions={','.join(conditions)}",
        f"--out={root}",
    )
    path = f"{root}/metaworld_etc/{scene}_ood_{'+'.join(conditions)}"
    return dataset(path, ("front", "wrist"), build)


def shapes(root: str = "data") -> dict[str, Any]:
    """Return the embedded dataset of 2-D shapes, a substitute for web images."""
    build = ("data_builders.shapes_vqa", f"--out={root}")
    return dataset(f"{root}/shapes_vqa/default", ("image",), build)


def tabletop(
    role: str, rotation: int = 0, *, episodes: int = 0, root: str = "data"
) -> dict[str, Any]:
    """Return an embedded dataset of the tabletop's task "touch".

    Args:
      role: "demos" (words of tier A, with actions), "etc" (A and B, without actions) or "ood" (A
        and N, without actions).
      rotation: of the words of the tiers, see `etcvla.sims.tabletop.words`.
      episodes: training episodes; 0: the role's default.
      root: folder of the embedded datasets.
    """
    build = (
        "data_builders.tabletop_etc",
        f"--role={role}",
        f"--rotation={rotation}",
        f"--episodes={episodes}",
        f"--out={root}",
    )
    name = f"{role}_r{rotation}"
    if episodes not in (0, TABLETOP_EPISODES[role]):
        name += f"_{episodes}ep"
    return dataset(f"{root}/tabletop_etc/{name}", ("front",), build)


def tabletop_vqa(root: str = "data", *, episodes: int = 0) -> dict[str, Any]:
    """Return the embedded pictures of the tabletop without its robot, with questions.

    Args:
      root: folder of the embedded datasets.
      episodes: training pictures; 0: the default. The held-out pictures are the same.
    """
    name = f"{episodes}ep" if episodes else "default"
    size = (f"--episodes={episodes}",) if episodes else ()
    build = ("data_builders.tabletop_vqa", *size, f"--out={root}")
    return dataset(f"{root}/tabletop_vqa/{name}", ("image",), build)
