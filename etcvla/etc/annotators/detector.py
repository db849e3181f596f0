"""Find objects with a zero-shot detector of `transformers` (OWL-ViT, OWLv2, Grounding DINO)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from etcvla.errors import UserError
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.geometry import iou

SAME_OBJECT = 0.5  # IoU from which two boxes are the same object
RIVAL = 0.8  # another object with this fraction of the best score makes a noun ambiguous


class Detector:
    """Finds at most one box per noun. The box is NaN if the noun is not found or is ambiguous."""

    def __init__(self, path: str, *, cache: AnswerCache, threshold: float = 0.2):
        """Load a model with its processor.

        Args:
          path: model directory, or a name on the Hugging Face hub.
          cache: of the detections.
          threshold: minimal score of a detection.

        Raises UserError if transformers or torch is missing, OSError if there is no such model.
        """
        try:
            import torch  # noqa: F401
            from transformers import pipeline
        except ImportError as error:
            raise UserError(
                "a detector needs transformers and torch: pip install 'etcvla[annotate]'"
            ) from error
        self._pipeline = pipeline("zero-shot-object-detection", model=path, device="cpu")
        # Labels of Grounding DINO end in a full stop.
        self._suffix = "." if "dino" in self._pipeline.model.config.model_type else ""
        self.name = Path(path).name
        self.threshold = threshold
        self._cache = cache

    def __call__(self, image: np.ndarray, nouns: Sequence[str]) -> np.ndarray:
        """Return the boxes of N nouns, float32[N, 4] (ymin, xmin, ymax, xmax) in [0, 1].

        Args:
          image: uint8[H, W, 3].
          nouns: the objects to find.
        """
        key = AnswerCache.key(
            "detector", self.name, repr(self.threshold), *nouns, repr(image.shape), image.tobytes()
        )
        detections = self._cache.get(key)
        if detections is None:
            detections = self._detect(image, nouns)
            self._cache.put(key, detections, model=self.name, nouns=list(nouns))
        boxes = []
        for name in nouns:
            rows = [row for noun, *row in detections if noun == name]
            boxes.append(best_box(np.array(rows, np.float64).reshape(-1, 5)))
        return np.array(boxes, np.float32)

    def _detect(self, image: np.ndarray, nouns: Sequence[str]) -> list[list]:
        """Return all detections as lists [noun, score, ymin, xmin, ymax, xmax]."""
        height, width = image.shape[:2]
        labels = {noun + self._suffix: noun for noun in nouns}
        results = self._pipeline(
            Image.fromarray(image), candidate_labels=list(labels), threshold=self.threshold
        )
        detections = []
        for result in results:
            pixels = result["box"]
            box = [
                pixels["ymin"] / height,
                pixels["xmin"] / width,
                pixels["ymax"] / height,
                pixels["xmax"] / width,
            ]
            box = np.clip(box, 0, 1).tolist()
            detections.append([labels[result["label"]], float(result["score"]), *box])
        return detections


def best_box(detections: np.ndarray) -> np.ndarray:
    """Return the best box of one noun, float[4]; NaN if there is none or it is ambiguous.

    Args:
      detections: float[n, 5], rows of a score and a box.
    """
    unknown = np.full(4, np.nan)
    if not len(detections):
        return unknown
    scores = detections[:, 0]
    boxes = detections[:, 1:]
    best = boxes[scores.argmax()]
    is_other_object = iou(boxes, best) < SAME_OBJECT
    is_ambiguous = (scores[is_other_object] > RIVAL * scores.max()).any()
    is_empty = (best[2:] <= best[:2]).any()
    return unknown if is_ambiguous or is_empty else best
