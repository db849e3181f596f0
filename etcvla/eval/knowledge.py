"""What training left of what a model knew: its answers by kind, how far its features moved, and where it looks.

Features and attention are what the model sows in the very pass that answers or acts; there is no second one.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from etcvla.data import prompts
from etcvla.data.stage_dataset import ANY_KIND, StageDataset
from etcvla.etc.question_types import BOX, parse_question
from etcvla.etc.score import parse_answer
from etcvla.eval import vqa
from etcvla.models import ops
from etcvla.models.vla import VLA
from etcvla.policy import Policy

BATCH = 32
FORM = "locate_box"  # names a thing, and its answer is the thing's box
FEATURES = (
    "vision",
    "image",
    "text",
)  # the tower's image tokens; the language model's, and those of its question
READERS = (
    "question",
    "answer",
    "action",
)  # whose attention: the question's tokens, the one that answers, the expert's
MEASURES = ("iou", "distance", "inside", "order")  # of `score.score_answer`, beside right or wrong
RESAMPLES = 1000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Probe:
    """A frame with a thing of known place in its first camera."""

    question: str  # that names the thing
    box: np.ndarray  # float32[4], its place (ymin, xmin, ymax, xmax) in [0, 1]
    images: tuple[np.ndarray, ...]  # uint8[H, W, 3] a camera
    instruction: str
    state: np.ndarray  # float32[S]
    told: bool  # whether the instruction speaks of the thing


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a model did at N probes; `depth` is the language model's, but for the tower's features.

    features: by name of FEATURES, float32[depth, N, D], means over tokens.
    looks: by name of READERS, float32[depth, N, 3]: the attention that the thing's patches of the first camera get,
      that those under another probe's box get, and that the whole camera gets. "action" only with an expert.
    """

    features: Mapping[str, np.ndarray]
    looks: Mapping[str, np.ndarray]


def draw_probes(source: StageDataset, count: int) -> list[Probe]:
    """Up to `count` probes, spread evenly over the split. Raises ValueError if nobody asks for a box there."""
    names = [
        *source.item_features,
        *(f"observation/{name}" for name in source.cameras),
        "language_instruction",
        "observation/state",
    ]
    pool, probes = source.candidates(ANY_KIND), []
    for frame in pool[
        np.linspace(0, len(pool) - 1, min(4 * count, len(pool))).astype(int)
    ].tolist():
        facts = source.dataset.frame(frame, names)
        for item in source.items(facts):
            if item.question_type == FORM:
                thing = (parse_question(FORM, item.question) or {}).get("object", "")
                probes.append(
                    Probe(
                        item.question,
                        parse_answer(BOX, item.answer)[0],
                        tuple(facts[f"observation/{name}"] for name in source.cameras),
                        facts["language_instruction"],
                        facts["observation/state"],
                        bool(thing) and thing in facts["language_instruction"],
                    )
                )
                break
    if not probes:
        raise ValueError(
            f"{source.dataset.directory}: no question of the question_type {FORM}, by which attention is probed"
        )
    return [probes[i] for i in np.linspace(0, len(probes) - 1, min(count, len(probes))).astype(int)]


def trace(policy: Policy, probes: Sequence[Probe], *, seed: int = 0) -> Trace:
    """Runs a policy's model on the probes' questions and, if it has an action expert, on their instructions."""
    covers = np.stack([coverage(probe.box, policy.config.siglip.tokens) for probe in probes])
    # The same boxes elsewhere: a model that looks at the middle of all images looks at these as well.
    channels = np.stack([covers, np.roll(covers, 1, axis=0), np.ones_like(covers)], axis=-1)
    asked = [prompts.question(policy.assets.tokenizer, probe.question) for probe in probes]
    parts = _run(policy, probes, asked, channels, None)
    features = {
        name: np.concatenate([part[name] for part in parts], axis=1)[:, : len(probes)]
        for name in FEATURES
    }
    looks = {
        name: np.concatenate([part[name] for part in parts], axis=1)[:, : len(probes)]
        for name in ("question", "answer")
    }
    if policy.assets.action_spec and policy.head == "flow":
        noise = np.random.default_rng(seed).standard_normal(
            (len(probes), 1, policy.config.horizon, policy.config.action_dim), np.float32
        )
        told = policy.action_prompts(
            [probe.instruction for probe in probes], [probe.state for probe in probes]
        )
        parts = _run(policy, probes, told, channels, noise)
        looks["action"] = np.concatenate([part["action"] for part in parts], axis=1)[
            :, : len(probes)
        ]
    return Trace(features, looks)


def _run(policy: Policy, probes, texts, channels, noise) -> list[dict[str, np.ndarray]]:
    """`_sown` of batches that are filled up, so that one shape is compiled."""
    found = []
    for start in range(0, len(probes), BATCH):
        rows = np.arange(start, start + BATCH) % len(probes)
        batch = policy.model_batch(
            [probes[i].images for i in rows],
            [texts[i] for i in rows],
            [probes[i].state for i in rows] if noise is not None else None,
        )
        sown = _sown(
            VLA(policy.config),
            policy.params,
            batch,
            channels[rows],
            None if noise is None else noise[rows],
        )
        found.append(jax.tree.map(np.asarray, sown))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _sown(
    model: VLA,
    params: Any,
    batch: Mapping[str, jax.Array],
    channels: jax.Array,
    noise: jax.Array | None,
) -> dict[str, jax.Array]:
    """Of each layer [depth, B, ..]: the mean features by FEATURES and the attention [3] by READERS."""
    time = (
        None if noise is None else jnp.ones(noise.shape[:2])
    )  # pure noise: all that is known is what is seen
    _, sown = model.apply({"params": params}, batch, None, noise, time, mutable=["intermediates"])
    layers, tower = sown["intermediates"]["llm"]["layers"], sown["intermediates"]["img"]
    tokens, (streams,) = model.config.siglip.tokens, layers["streams"]
    columns = batch["image_mask"].shape[1] * tokens
    there = batch["segment"] > 0
    seen = jnp.pad(channels, ((0, 0), (0, columns - tokens + there.shape[1]), (0, 0)))

    def looks(stream, rows):
        def of_layer(q, keys, mask):
            values = jnp.pad(seen, ((0, 0), (0, keys.shape[1] - seen.shape[1]), (0, 0)))
            values = jnp.broadcast_to(values[:, :, None], (*keys.shape[:3], 3)).astype(jnp.float32)
            # What attention reads of such values is its own sum over the columns that they mark.
            return ops.attend(q, keys, values, mask, model.config.vlm.attn_softcap).mean(axis=2)

        read = jax.vmap(of_layer)(*layers["attn"][f"attention_inputs_{stream}"][0])
        return (read * rows[..., None]).sum(axis=2) / rows.sum(axis=1)[:, None]

    if noise is not None:
        acting = jnp.arange(streams[1].shape[2]) >= streams[1].shape[2] - noise.shape[2]
        return {"action": looks(1, jnp.broadcast_to(acting, (len(channels), len(acting))))}
    asking = jnp.pad(there, ((0, 0), (columns, 0)))
    last = jnp.arange(asking.shape[1]) == columns + there.sum(axis=1, keepdims=True) - 1
    (features,) = tower["Transformer"]["encoderblock"]["tokens"]
    features = features.reshape(len(features), len(there), -1, *features.shape[2:])
    text = (streams[0] * asking[..., None]).sum(axis=2) / asking.sum(axis=1)[:, None]
    return {
        "vision": features[:, :, 0].mean(axis=2),
        "image": streams[0][:, :, :tokens].mean(axis=2),
        "text": text,
        "question": looks(0, asking),
        "answer": looks(0, last),
    }


def coverage(box: np.ndarray, tokens: int) -> np.ndarray:
    """float32[tokens]: the share of each patch of a square image that lies under a box (ymin, xmin, ymax, xmax)."""
    side = round(tokens**0.5)
    low, high = np.arange(side) / side, (np.arange(side) + 1) / side
    y, x = (
        np.clip(np.minimum(high, box[2 + axis]) - np.maximum(low, box[axis]), 0, None) * side
        for axis in (0, 1)
    )
    return np.outer(y, x).ravel().astype(np.float32)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of float[N, D] and float[N, E]: 1 where they agree but for rotation and scale.

    Kornblith et al. 2019 (arXiv 1905.00414), with the estimator of Song et al. 2012 that has no bias from few samples
    (N > 3): unrelated features have 0, give or take.
    """
    grams = [np.asarray(z, np.float64) @ np.asarray(z, np.float64).T for z in (x, y)]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    (xx, xy), (_, yy) = ([_hsic(a, b) for b in grams] for a in grams)
    return float(xy / np.sqrt(xx * yy))


def _hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741, the literature's names
    n = len(k)
    return (
        (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(0) @ l.sum(0)
    ) / (n * (n - 3))


def drift(found: Trace, first: Trace) -> dict[str, list[float]]:
    """CKA with another model's features, by name of FEATURES and layer."""
    return {
        name: [cka(a, b) for a, b in zip(found.features[name], first.features[name], strict=True)]
        for name in FEATURES
    }


def gains(
    found: Trace, probes: Sequence[Probe], tokens: int, *, seed: int = 0
) -> dict[str, list[dict[str, float]]]:
    """How much more than its area the thing gets of the attention to its camera, by name of READERS and layer.

    Returns: {"gain", "low", "high", "other_box_gain"}; 1 is an even look. The interval is a bootstrap's over probes, 95 %;
    "other_box_gain" is the gain of a box from another frame. Actions count probes whose instruction speaks of the thing.
    """
    area = np.stack([coverage(probe.box, tokens) for probe in probes]).mean(axis=1)
    told = np.array([probe.told for probe in probes])
    out = {}
    for name, looks in found.looks.items():
        rows = np.flatnonzero(told) if name == "action" else np.arange(len(probes))
        out[name] = [
            _gain(layer[rows], area[rows], np.roll(area, 1)[rows], seed)
            for layer in looks
            if len(rows)
        ]
    return out


def _gain(looks: np.ndarray, area: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float]:
    share, elsewhere = looks[:, 0] / looks[:, 2], looks[:, 1] / looks[:, 2]
    picks = np.random.default_rng(seed).integers(0, len(area), (RESAMPLES, len(area)))
    low, high = np.percentile(share[picks].mean(axis=1) / area[picks].mean(axis=1), [2.5, 97.5])
    return {
        "gain": float(share.mean() / area.mean()),
        "low": float(low),
        "high": float(high),
        "other_box_gain": float(elsewhere.mean() / other.mean()),
    }


def compare_checkpoints(
    workdirs: Sequence[str],
    sets: Mapping[str, tuple[StageDataset, StageDataset]],
    *,
    questions: int,
    probes: int,
    seed: int,
) -> dict[str, dict]:
    """What each checkpoint knows, the first being what the others are compared with.

    Args:
      sets: name -> what is asked, and what could be learnt by heart.
      questions: a kind and dataset. probes: frames of the first dataset with actions.

    Returns: by workdir {"answers": {dataset: `vqa.scores`}, "cka": `drift`, "attention": `gains`}.
    """
    acting = next(
        (held_out for held_out, _ in sets.values() if "action" in held_out.dataset.features), None
    )
    asked = draw_probes(acting, probes) if acting and probes else []
    drawn = {
        name: vqa.draw_questions(held_out, per_kind=questions, seed=seed)
        for name, (held_out, _) in sets.items()
    }
    learnt = {name: vqa.items_of(training) for name, (_, training) in sets.items()}
    found, first = {}, None
    for workdir in workdirs:
        policy = Policy.load(workdir)
        told = {
            name: vqa.scores(vqa.answer_all(policy, _of_cameras(drawn[name], policy)), learnt[name])
            for name in sets
        }
        found[workdir] = {"answers": told}
        if asked:
            seen = trace(policy, asked, seed=seed)
            first = first or seen
            found[workdir] |= {
                "cka": drift(seen, first),
                "attention": gains(seen, asked, policy.config.siglip.tokens, seed=seed),
            }
        print(
            f"{workdir}: "
            + ", ".join(
                f"{name} {vqa.mean_accuracy(by_kind):.0%}" for name, by_kind in told.items()
            ),
            flush=True,
        )
    return found


def _of_cameras(questions: Sequence[vqa.Question], policy: Policy) -> list[vqa.Question]:
    return [
        dataclasses.replace(question, images=question.images[: policy.num_cameras])
        for question in questions
    ]


def rows_of(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple]:
    """Lines (checkpoint, what, of, layer, value, low, high, count) of what `compare_checkpoints` returns."""
    for workdir, parts in found.items():
        for name, by_kind in parts["answers"].items():
            for kind, s in by_kind.items():
                yield (
                    workdir,
                    "accuracy",
                    f"{name}/{kind}",
                    "",
                    s["accuracy"],
                    s["low"],
                    s["high"],
                    s["count"],
                )
                for guess in ("majority", "blind"):
                    yield (
                        workdir,
                        f"accuracy of {guess}",
                        f"{name}/{kind}",
                        "",
                        s[guess],
                        "",
                        "",
                        s["count"],
                    )
                for measure in MEASURES:
                    if measure in s:
                        yield (
                            workdir,
                            measure,
                            f"{name}/{kind}",
                            "",
                            s[measure],
                            "",
                            "",
                            s[f"{measure}_count"],
                        )
        for name, layers in parts.get("cka", {}).items():
            for i, value in enumerate(layers):
                yield workdir, "cka", name, i, value, "", "", ""
        for name, layers in parts.get("attention", {}).items():
            for i, look in enumerate(layers):
                yield (
                    workdir,
                    "attention gain",
                    name,
                    i,
                    look["gain"],
                    look["low"],
                    look["high"],
                    "",
                )
                yield (
                    workdir,
                    "attention gain elsewhere",
                    name,
                    i,
                    look["other_box_gain"],
                    "",
                    "",
                    "",
                )


def write_csv(path: epath.PathLike, found: Mapping[str, Mapping[str, Any]]) -> None:
    """`rows_of` as a table."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("checkpoint", "what", "of", "layer", "value", "low", "high", "count"))
    writer.writerows(rows_of(found))
    epath.Path(path).write_text(text.getvalue())
