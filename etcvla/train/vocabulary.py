"""Protect the rows of the token table that no answer of a stage uses, and measure their drift.

The token table is tied: it embeds the input and computes the logits. Each answer's softmax lowers
the logits of all other tokens, which moves their rows, and Adam makes small gradients as large as
any other. A stage whose answers are a closed set of words would so destroy the words outside it,
those that do not occur in its data included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from etcvla import rules
from etcvla.names import lookup

MODES = {
    "train": "rows outside the answers get the whole gradient",
    "protect": "rows outside the answers get their gradient as inputs, but none from the softmax",
    "freeze": "rows outside the answers get no gradient",
}
TABLE = "llm/embedder/input_embedding"
MAX_MEASURED = 1024  # rows of each group whose drift is measured


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """The rows of a stage's token table.

    Attributes:
      mode: what happens to the rows outside the answers, a name of `MODES`.
      answers: ids that the stage's targets may contain.
      measured_answers, measured_others: answers, and words that no target contains, whose drift is
        measured; at most `MAX_MEASURED` each.
    """

    mode: str = "train"
    answers: tuple[int, ...] = ()
    measured_answers: tuple[int, ...] = ()
    measured_others: tuple[int, ...] = ()

    @classmethod
    def make(cls, mode: str, answers: Sequence[int], text: Sequence[int]) -> TokenRows:
        """Return the rows for these answers. Raises UserError for an unknown mode.

        Args:
          text: all ids of text.
        """
        lookup(MODES, mode, "optim.vocabulary")
        return cls(
            mode,
            tuple(map(int, answers)),
            _spread(answers),
            _spread(np.setdiff1d(text, answers)),
        )

    @property
    def measured(self) -> np.ndarray:
        """The ids of all rows whose drift is measured, int64[N]."""
        return np.array(self.measured_answers + self.measured_others, int)

    def is_answer(self, vocab_size: int) -> Bool[np.ndarray, " V"]:
        """Return whether each id is an answer."""
        mask = np.zeros(vocab_size, bool)
        mask[list(self.answers)] = True
        return mask


def _spread(ids: Sequence[int]) -> tuple[int, ...]:
    """Return at most `MAX_MEASURED` of the ids, evenly spaced."""
    count = min(len(ids), MAX_MEASURED)
    picked = np.linspace(0, len(ids) - 1, count).astype(int)
    return tuple(int(ids[i]) for i in picked)


def read_rows(params: Any, rows: TokenRows) -> Float[Array, "N D"]:
    """Return the rows whose drift is measured."""
    return params["llm"]["embedder"]["input_embedding"][rows.measured]


def freeze_rows(grads: Any, rows: TokenRows) -> Any:
    """Return the gradients with zeros in the rows outside the answers."""

    def _freeze(path, grad):
        if rules.path_str(path) != TABLE:
            return grad
        return jnp.where(rows.is_answer(len(grad))[:, None], grad, 0)

    return jax.tree_util.tree_map_with_path(_freeze, grads)


def measure_drift(
    params: Any, start: Float[Array, "N D"], rows: TokenRows
) -> dict[str, Float[Array, ""]]:
    """Compute the cosine between rows of the token table now and at the start of the stage.

    Args:
      start: the rows of `read_rows` at the start.

    Returns: `embedding/cosine_answers`, the mean over answers, and `embedding/cosine_others` and
      `embedding/cosine_others_min`, the mean and the least over words that no answer contains.
    """
    now = read_rows(params, rows)
    norms = jnp.linalg.norm(now, axis=1) * jnp.linalg.norm(start, axis=1)
    cosine = (now * start).sum(axis=1) / norms
    count = len(rows.measured_answers)
    metrics = {}
    if rows.measured_answers:
        metrics["embedding/cosine_answers"] = cosine[:count].mean()
    if rows.measured_others:
        metrics["embedding/cosine_others"] = cosine[count:].mean()
        metrics["embedding/cosine_others_min"] = cosine[count:].min()
    return metrics
