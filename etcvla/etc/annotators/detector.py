"""Objects found by a zero-shot detector of `transformers` (OWL-ViT, OWLv2, Grounding DINO)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.geometry import iou

SAME = 0.5  # IoU from which two boxes are one thing
RIVAL = 0.8  # of the best score: another thing with this much makes a name ambiguous


class Detector:
    """Calls give at most one box a noun; what is not found, or found twice, is NaN."""

    def __init__(
        self, path: str, *, cache: AnswerCache, threshold: float = 0.2, device: str = "cpu"
    ):
        """Loads a model directory (or Hub name) with its processor.

        Raises ImportError that names the extra, and OSError where there is no such model.
        """
        try:
            import torch  # noqa: F401
            from transformers import pipeline
        except ImportError as error:
            raise ImportError(
                "a detector needs transformers and torch: pip install 'etcvla[annotate]'"
            ) from error
        self._pipeline = pipeline("zero-shot-object-detection", model=path, device=device)
        self._stop = (
            "." if "dino" in self._pipeline.model.config.model_type else ""
        )  # DINO's labels end in one
        self.name, self.threshold, self._cache = Path(path).name, threshold, cache

    def __call__(self, image: np.ndarray, nouns: Sequence[str]) -> np.ndarray:
        """float32[N, 4] boxes (ymin, xmin, ymax, xmax) in [0, 1] of N nouns in uint8[H, W, 3]."""
        key = AnswerCache.key(
            "detector", self.name, repr(self.threshold), *nouns, repr(image.shape), image.tobytes()
        )
        found = self._cache.get(key)
        if found is None:
            found = self._detect(image, nouns)
            self._cache.put(key, found, model=self.name, nouns=list(nouns))
        boxes = [[box for noun, *box in found if noun == name] for name in nouns]
        return np.array(
            [best_box(np.array(rows, np.float64).reshape(-1, 5)) for rows in boxes], np.float32
        )

    def _detect(self, image: np.ndarray, nouns: Sequence[str]) -> list[list]:
        """[noun, score, ymin, xmin, ymax, xmax] of all that is found."""
        height, width = image.shape[:2]
        labels = {noun + self._stop: noun for noun in nouns}
        results = self._pipeline(
            Image.fromarray(image), candidate_labels=list(labels), threshold=self.threshold
        )
        return [
            [
                labels[result["label"]],
                float(result["score"]),
                *np.clip(
                    [
                        box["ymin"] / height,
                        box["xmin"] / width,
                        box["ymax"] / height,
                        box["xmax"] / width,
                    ],
                    0,
                    1,
                ).tolist(),
            ]
            for result in results
            for box in (result["box"],)
        ]


def best_box(found: np.ndarray) -> np.ndarray:
    """The box float[4] of rows (score, box) float[n, 5]; NaN without any, and where two places score alike."""
    if not len(found):
        return np.full(4, np.nan)
    best = found[found[:, 0].argmax()]
    elsewhere = iou(found[:, 1:], best[1:]) < SAME
    if (found[elsewhere, 0] > RIVAL * best[0]).any() or (best[3:] <= best[1:3]).any():
        return np.full(4, np.nan)
    return best[1:]
