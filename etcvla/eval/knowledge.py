"""Compare what checkpoints know: answers by kind, drift of features, and attention to objects.

docs/knowledge.md explains the measures; `etcvla.pages.knowledge` draws the results.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from etcvla.data.stage_dataset import StageDataset
from etcvla.eval import vqa
from etcvla.eval.attention_probes import (
    FEATURES,
    Activations,
    Probe,
    draw_probes,
    patch_coverage,
    record_activations,
)
from etcvla.files import write_atomically
from etcvla.policy import Policy

MEASURES = ("iou", "distance", "inside", "order")  # scores of `score_answer` other than "correct"
BOOTSTRAP_SAMPLES = 1000


class CsvRow(NamedTuple):
    """One number of knowledge.csv; its line begins with the checkpoint."""

    measure: str
    name: str  # "dataset/kind", or a name of FEATURES or READERS
    layer: int | str  # "" for answers
    value: float
    low: float | str = ""  # low to high is the 95 % interval
    high: float | str = ""
    count: int | str = ""  # of answers


def compare_checkpoints(
    checkpoints: Sequence[str],
    datasets: Mapping[str, tuple[StageDataset, StageDataset]],
    *,
    questions: int,
    probes: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Measure every checkpoint.

    Args:
      checkpoints: workdirs, or folders of single checkpoints. CKA is measured against the first.
      datasets: name -> held-out and training split, see `evaluate.open_splits`.
      questions: per kind and dataset.
      probes: frames for features and attention, of the first dataset with actions; 0 for none.

    Returns:
      The content of knowledge.json. Keys of each checkpoint:
      answers: dataset -> kind -> scores of `vqa.score_by_kind`.
      cka: see `cka_by_layer`. attention: see `attention_gains`. Only with probes.
    """
    drawn_probes = []
    with_actions = [
        held_out for held_out, _ in datasets.values() if "action" in held_out.dataset.features
    ]
    if probes and with_actions:
        drawn_probes = draw_probes(with_actions[0], probes)
    drawn_questions = {}
    train_items = {}
    for name, (held_out, training) in datasets.items():
        drawn_questions[name] = vqa.draw_questions(held_out, per_kind=questions, seed=seed)
        train_items[name] = vqa.sample_items(training)
    results = {}
    first_activations = None
    for checkpoint in checkpoints:
        policy = Policy.load(checkpoint)
        answers = {}
        for name in datasets:
            answered = vqa.answer_questions(policy, drawn_questions[name])
            answers[name] = vqa.score_by_kind(answered, train_items[name])
        results[checkpoint] = {"answers": answers}
        if drawn_probes:
            activations = record_activations(policy, drawn_probes, seed=seed)
            first_activations = first_activations or activations
            tokens = policy.config.siglip.tokens
            results[checkpoint] |= {
                "cka": cka_by_layer(activations, first_activations),
                "attention": attention_gains(activations, drawn_probes, tokens, seed=seed),
            }
        accuracies = [f"{name} {vqa.mean_accuracy(kinds):.0%}" for name, kinds in answers.items()]
        print(f"{checkpoint}: {', '.join(accuracies)}", flush=True)
    return results


def cka_by_layer(activations: Activations, reference: Activations) -> dict[str, list[float]]:
    """Return the CKA of features with those of another model: name of FEATURES -> one per layer."""
    similarities = {}
    for name in FEATURES:
        pairs = zip(activations.features[name], reference.features[name], strict=True)
        similarities[name] = [cka(features, other) for features, other in pairs]
    return similarities


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear centred kernel alignment of float[N, D] and float[N, E], N > 3.

    It is 1 if the features are equal up to rotation and scale. This is the CKA of Kornblith et al.
    2019 (arXiv 1905.00414) with the HSIC estimator of Song et al. 2012, which is not biased by
    few samples: unrelated features have 0 in expectation.
    """
    gram_x = _gram(x)
    gram_y = _gram(y)
    cross = _unbiased_hsic(gram_x, gram_y)
    scale = np.sqrt(_unbiased_hsic(gram_x, gram_x) * _unbiased_hsic(gram_y, gram_y))
    return float(cross / scale)


def _gram(x: np.ndarray) -> np.ndarray:
    """Return the Gram matrix float64[N, N] without its diagonal."""
    x = np.asarray(x, np.float64)
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    return gram


def _unbiased_hsic(gram_x: np.ndarray, gram_y: np.ndarray) -> float:
    """Return equation 5 of Song et al. 2012 for Gram matrices with zero diagonals."""
    n = len(gram_x)
    trace = (gram_x * gram_y).sum()
    means = gram_x.sum() * gram_y.sum() / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * gram_x.sum(axis=0) @ gram_y.sum(axis=0)
    return (trace + means - rows) / (n * (n - 3))


def attention_gains(
    activations: Activations, probes: Sequence[Probe], tokens: int, *, seed: int = 0
) -> dict[str, list[dict[str, float]]]:
    """Return how strongly tokens attend to the object, relative to uniform attention.

    The gain is the object's share of the attention to its camera, divided by its share of the
    image's area; 1 is uniform attention.

    Args:
      tokens: I, image tokens of a camera.
      seed: of the bootstrap.

    Returns:
      Name of READERS -> for each layer {"gain", "low", "high", "other_box_gain"}. "low" to "high"
      is the 95 % bootstrap interval over probes. "other_box_gain" is the gain of a box of another
      frame. "action" uses only probes whose instruction names the object.
    """
    areas = np.stack([patch_coverage(probe.box, tokens) for probe in probes]).mean(axis=1)
    other_areas = np.roll(areas, 1)
    in_instruction = np.array([probe.in_instruction for probe in probes])
    gains = {}
    for name, attention in activations.attention.items():
        rows = np.flatnonzero(in_instruction) if name == "action" else np.arange(len(probes))
        gains[name] = []
        if len(rows):
            for layer in attention:
                gain = _attention_gain(layer[rows], areas[rows], other_areas[rows], seed)
                gains[name].append(gain)
    return gains


def _attention_gain(
    attention: np.ndarray, areas: np.ndarray, other_areas: np.ndarray, seed: int
) -> dict[str, float]:
    """Return the gain in one layer.

    Args:
      attention: float[n, 3], see `Activations`.
      areas, other_areas: float[n], shares of the image's area.
    """
    share = attention[:, 0] / attention[:, 2]
    other_share = attention[:, 1] / attention[:, 2]
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, len(areas), (BOOTSTRAP_SAMPLES, len(areas)))
    sampled_gains = share[samples].mean(axis=1) / areas[samples].mean(axis=1)
    low, high = np.percentile(sampled_gains, [2.5, 97.5])
    return {
        "gain": float(share.mean() / areas.mean()),
        "low": float(low),
        "high": float(high),
        "other_box_gain": float(other_share.mean() / other_areas.mean()),
    }


def write_csv(path: epath.PathLike, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the results of `compare_checkpoints` as a table with a line for each number."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["checkpoint", *CsvRow._fields])
    for checkpoint, result in results.items():
        for row in [*_answer_rows(result), *_layer_rows(result)]:
            writer.writerow([checkpoint, *row])
    write_atomically(path, text.getvalue())


def _answer_rows(result: Mapping) -> Iterator[CsvRow]:
    for dataset, by_kind in result["answers"].items():
        for kind, scores in by_kind.items():
            name = f"{dataset}/{kind}"
            count = scores["count"]
            accuracy = (scores["accuracy"], scores["low"], scores["high"])
            yield CsvRow("accuracy", name, "", *accuracy, count)
            for guess in ("majority", "blind"):
                yield CsvRow(f"accuracy of {guess}", name, "", scores[guess], count=count)
            for measure in MEASURES:
                if measure in scores:
                    count = scores[f"{measure}_count"]
                    yield CsvRow(measure, name, "", scores[measure], count=count)


def _layer_rows(result: Mapping) -> Iterator[CsvRow]:
    for name, layers in result.get("cka", {}).items():
        for layer, value in enumerate(layers):
            yield CsvRow("cka", name, layer, value)
    for name, layers in result.get("attention", {}).items():
        for layer, gain in enumerate(layers):
            yield CsvRow("attention gain", name, layer, gain["gain"], gain["low"], gain["high"])
            other_gain = gain["other_box_gain"]
            yield CsvRow("attention gain of another box", name, layer, other_gain)
