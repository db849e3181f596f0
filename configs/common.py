"""The fields that every stage has, each with what it means. A stage's file sets what differs.

Schedules are points: ((progress, value), ...) over the stage, piecewise linear. Rules are ordered (regex, value) lists
over parameter paths; the first full match wins and every parameter must match one.
"""

from __future__ import annotations

import math

import ml_collections

from etcvla.etc.items import ETC_KINDS

VARIANTS = ("tiny", "paligemma_3b")
# The paper's weights of the ETC kinds.
ETC_WEIGHTS = dict(zip(ETC_KINDS, (0.24, 0.14, 0.22, 0.14, 0.26), strict=True))

METAWORLD_TASKS = (
    "reach",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "window-close",
)
MT10_TASKS = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)


# Looks of OOD ETC that training may see.
OOD_CONDITIONS = ("evening", "checker_table", "side_camera", "recolored", "clutter")


def constant(value: float) -> tuple:
    """Knots that never change."""
    return ((0.0, value),)


def warmup_cosine(peak: float, end: float, *, warmup: int, steps: int, pieces: int = 32) -> tuple:
    """openpi's schedule as points: `warmup` steps up to `peak`, then half a cosine down to `end` at `steps`.

    So many straight `pieces` stray from the cosine by less than a thousandth of the peak.
    """
    start, falls = warmup / steps, [i / pieces for i in range(pieces + 1)]
    return (
        (0.0, peak / (warmup + 1)),
        *(
            (start + (1 - start) * t, end + (peak - end) * (1 + math.cos(math.pi * t)) / 2)
            for t in falls
        ),
    )


def stream(dataset: str, kind: str, weight: float | tuple, extra_segments: int) -> dict:
    """One stream of the mixture: rows of `kind` ("action", an ETC kind, or "any") from `dataset`.

    Args:
      weight: share of the batch's rows relative to the other streams, a number or points.
      extra_segments: how many further ETC items of the same frame ride along as segments of their own.
    """
    points = weight if isinstance(weight, tuple) else constant(weight)
    return {"dataset": dataset, "kind": kind, "weight": points, "extra_segments": extra_segments}


def etc_streams(dataset: str, share: float | tuple, extra_segments: int) -> dict:
    """One stream for each ETC kind; together they weigh `share`, split as in the paper."""
    points = share if isinstance(share, tuple) else constant(share)
    return {
        f"{dataset}_{kind}": stream(
            dataset, kind, tuple((t, w * part) for t, w in points), extra_segments
        )
        for kind, part in ETC_WEIGHTS.items()
    }


def base(stage: str, variant: str) -> ml_collections.ConfigDict:
    """A stage's config before the stage's own file sets what differs.

    Raises ValueError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"configs/{stage}.py: no variant {variant!r}; choose from {', '.join(VARIANTS)}"
        )
    c = ml_collections.ConfigDict()
    c.stage = stage
    c.variant = variant
    c.seed = 0  # of the plan, initialisation and all noise
    c.workdir = f"runs/{variant}/{stage}"  # checkpoints, logs, pictures; a run in it is resumed
    # What this stage starts from: a workdir (its newest checkpoint's EMA) or released weights (Hugging Face directory,
    # big_vision .npz, openpi's params); "" for random parameters.
    c.init_from = ""
    c.init_rules = (
        (".*", True),
    )  # rules over parameters of both: True is taken from there, False starts anew
    c.init_config = (
        ""  # config file of the stage that makes `init_from`, trained first if that is missing
    )
    c.steps = 0  # optimizer steps
    c.batch_size = 0  # rows (looks) a step, over all devices and hosts

    c.model = ml_collections.ConfigDict()
    c.model.size = variant  # a name in etcvla/models/variants.py
    c.model.image_size = 0  # pixels, a multiple of the tower's patch; 0: the size's own
    c.model.state = (
        "token"  # proprioception: "token" before the actions; "text": none, data.prompt may say it
    )
    c.model.expert = (
        "adaptive"  # the flow's time enters its norms (pi0.5); "plain": its tokens (pi0); "none"
    )
    # The share of the expert's gradient that stops at the backbone's keys and values: points, 1 all of it, 0 nothing.
    c.model.insulate = constant(1.0)
    c.model.image_attends_prompt = (
        False  # images read the prompt, as released PaliGemma; then extra_segments must be 0
    )
    c.model.count_absent_cameras = (
        False  # absent cameras take positions too, as pi0-FAST was trained
    )
    c.model.lora = ()  # rules over projections, rank of the adapter or 0; see `lora` and etcvla/models/lora.py
    c.model.lora_scale = 1.0  # of all adapters: alpha / rank
    c.model.state_dim = 4  # S, width of proprioception; narrower datasets are padded
    c.model.action_dim = 4  # A, width of actions; narrower datasets are padded
    c.model.horizon = 10  # P, steps of an action chunk

    c.datasets = ml_collections.ConfigDict()  # name -> path, cameras, build; see `dataset`
    c.streams = (
        ml_collections.ConfigDict()
    )  # name -> dataset, kind, weight, extra_segments; see `stream`
    c.extra_segment_weights = ml_collections.ConfigDict(
        ETC_WEIGHTS
    )  # relative weight of each kind among extra_segments

    c.data = ml_collections.ConfigDict()
    c.data.tokenizer = "tiny"  # embedded name, or the path of a PaliGemma tokenizer
    c.data.layout = "disjoint"  # of its ids; "openpi" for weights that were trained so (etcvla/data/tokenizer.py)
    c.data.prompt = "pi0"  # how actions are asked for: a name of FORMATS in etcvla/data/prompts.py
    c.data.text_len = 80  # L, tokens of text a row
    c.data.max_targets = 40  # predicted tokens a row
    c.data.num_cameras = 2  # C
    c.data.norm = "quantile"  # of state and actions: "quantile", "zscore" or "none"
    c.data.mask_padding = (
        True  # no flow loss on widths that a dataset lacks and on steps past an episode's end
    )
    c.data.fast = ""  # folder of a fitted FAST tokenizer; "" fits one to the stage's actions
    c.data.fast_vocab = 256  # ids of the FAST action vocabulary
    c.data.on_damaged = (
        "raise"  # what to do about damaged records: stop with an error, or "skip" and count them
    )
    c.data.threads = 2  # threads that build batches, in each process that does
    c.data.workers = 0  # processes that build batches; 0: the trainer's own threads
    c.data.prefetch = 4  # batches that lie ready

    _training(c)
    if variant == "paligemma_3b":
        _full_size(c)
    return c.lock()


def _training(c: ml_collections.ConfigDict) -> None:
    """The fields of losses, optimizer, augmentation, devices and bookkeeping."""
    c.loss = ml_collections.ConfigDict()
    c.loss.text = constant(1.0)  # next token on answers
    c.loss.fast = constant(0.0)  # next token on FAST action tokens
    c.loss.flow = constant(0.0)  # flow matching on the action expert
    c.loss.z = constant(
        0.0
    )  # squared log of the softmax's sum (PaLM has 1e-4): keeps logits from drifting
    c.loss.mean = (
        "token"  # text and FAST losses are means over tokens; "segment": over segments' own means
    )
    c.loss.noise_samples = (
        4  # noise samples an action chunk: they share the prefix, so they are nearly free
    )

    c.optim = ml_collections.ConfigDict()
    c.optim.kind = "adamw"  # or "adafactor"
    c.optim.lr = ((0.0, 0.0), (0.05, 2e-3), (1.0, 5e-5))  # peak after a warm-up, then down
    c.optim.lr_multiple = (
        (".*", 1.0),
    )  # rules, of numbers or points; what is 0 for a while is frozen that long
    c.optim.weight_decay = (  # rules; biases, norms and embeddings are left alone
        (r".*(bias|scale|pos_embedding|input_embedding)", 0.0),
        (".*", 1e-4),
    )
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.mu_dtype = "float32"  # of the first moment
    c.optim.nu_dtype = "float32"  # of AdamW's second moment
    c.optim.clip = 1.0  # largest global gradient norm
    c.optim.microbatches = (
        1  # parts of a batch that are computed one after another; the gradient is the whole batch's
    )
    c.optim.on_nonfinite = (
        "stop"  # at a loss or gradient that is not finite: "stop", or "skip" the step and count it
    )
    c.optim.ema = 0.99  # decay of the parameters' moving average

    c.augment = ml_collections.ConfigDict()
    c.augment.shift = 4  # pixels; <loc> tokens move along
    c.augment.color = 0.15  # relative change of brightness and contrast

    c.mesh = ml_collections.ConfigDict()  # devices along each axis; -1: the rest
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.log_every = 20  # steps between log lines
    c.save_every = 200  # steps between checkpoints; the last step is always saved
    c.keep = 1  # checkpoints kept
    c.keep_every = 0  # steps; checkpoints so far apart are kept for good. 0: none

    c.eval = (
        ml_collections.ConfigDict()
    )  # of the moving average, on the datasets' held-out split, while it trains
    c.eval.at_progress = ()  # shares of the steps after which it is evaluated, as (0.25, 0.5, 1.0); () for never
    c.eval.batches = 4  # over which the held-out losses are means
    c.eval.questions = 16  # a kind and dataset that are asked; 0 for none
    c.eval.suite = ""  # a benchmark of launch/evaluate.py that is acted in as well; "" for none
    c.eval.tasks = ()  # of the suite, by name or number; () for all
    c.eval.trials = 2  # a task
    c.eval.workers = 2  # simulator processes
    c.eval.simulator_python = ""  # the Python that has the simulator; "" is the trainer's


def openpi_optimizer(c: ml_collections.ConfigDict) -> None:
    """What openpi trains with unless a config of its own says otherwise.

    TrainConfig, CosineDecaySchedule and AdamW of its src/openpi/training/{config,optimizer}.py.
    """
    c.optim.lr = warmup_cosine(2.5e-5, 2.5e-6, warmup=1000, steps=30_000)
    c.optim.weight_decay = ((".*", 1e-10),)
    c.optim.b1, c.optim.b2, c.optim.eps, c.optim.clip, c.optim.ema = 0.9, 0.95, 1e-8, 1.0, 0.99
    c.steps = 30_000
    c.batch_size = 32
    c.mesh.fsdp = 8


def _full_size(c: ml_collections.ConfigDict) -> None:
    """What every stage changes at full size: the paper's optimizer, PaliGemma's tokenizer, a pod's mesh."""
    c.model.state = "text"
    c.model.state_dim = 32
    c.model.action_dim = 32
    c.data.tokenizer = "checkpoints/paligemma_tokenizer"
    c.data.prompt = "pi05"
    c.data.text_len = 256
    c.data.max_targets = 160
    c.data.fast_vocab = 1024
    c.data.threads = 16
    c.optim.lr = ((0.0, 0.0), (0.01, 2.5e-5), (1.0, 2.5e-6))
    c.optim.weight_decay = ((".*", 1e-10),)
    c.optim.ema = 0.999
    c.augment.shift = 8
    c.loss.noise_samples = 1
    c.mesh.fsdp = 16
    c.log_every = 100
    c.save_every = 5000
    c.keep = 3


def lora(c: ml_collections.ConfigDict, rank: int) -> None:
    """An adapter on every projection, and nothing else trained."""
    c.model.lora = ((".*", rank),)
    c.optim.lr_multiple = ((r".*lora_[ab]", 1.0), (".*", 0.0))


def dataset(
    path: str, cameras: tuple[str, ...], build: tuple[str, ...] = (), adapter: str = "own"
) -> dict:
    """One dataset.

    Args:
      path: TFDS directory (version folder or its parent), or a URL of one (gs://).
      cameras: image features without "observation/"; the first is the view that ETC speaks of.
      build: module and arguments that build it if it is missing; () makes that an error.
      adapter: how it is read, a name of ADAPTERS in etcvla/data/adapters.py, or a JSON file of its fields.
    """
    return {"path": path, "cameras": cameras, "build": build, "adapter": adapter}


def metaworld(
    scene: str, *, tasks: tuple[str, ...] = METAWORLD_TASKS, episodes: int = 0, root: str = "data"
) -> dict:
    """The embedded demonstrations of one scene ("source" or "target").

    Args:
      episodes: training episodes a task; 0: the scene's own number. The builder names a dataset by what differs.
    """
    default = {"source": 30, "target": 10}[scene]
    episodes = episodes or default
    name = scene
    if tasks != METAWORLD_TASKS:
        name += "_mt10" if tasks == MT10_TASKS else "_" + "+".join(tasks)
    if episodes != default:
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
) -> dict:
    """Recorded states of the embedded demonstrations in other looks: ETC without actions.

    Args:
      conditions: names of etcvla/sims/conditions.py, for training.
    """
    build = (
        "data_builders.metaworld_etc",
        f"--scene={scene}",
        f"--condition={','.join(conditions)}",
        f"--out={root}",
    )
    return dataset(
        f"{root}/metaworld_etc/{scene}_ood_{'+'.join(conditions)}", ("front", "wrist"), build
    )


def shapes(root: str = "data") -> dict:
    """The embedded stand-in for web images."""
    return dataset(
        f"{root}/shapes_vqa/default", ("image",), ("data_builders.shapes_vqa", f"--out={root}")
    )
