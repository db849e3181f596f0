"""What a policy needs besides its weights: tokenizer, statistics, FAST merges, action description.

A stage takes its assets from the checkpoint that it starts from, and fits what is missing there
to its own data (a VLM has no action statistics). Every checkpoint contains its assets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from etcvla.data.adapted_dataset import AdaptedDataset
from etcvla.data.adapters import Adapter
from etcvla.data.episodes import Episodes
from etcvla.data.norm_stats import NormStats, compute_norm_stats, finite_frames, normalize
from etcvla.data.tokenizer import Tokenizer
from etcvla.errors import UserError
from etcvla.models.fast import FAST

MAX_FIT_CHUNKS = 4000  # more chunks do not change the merges of a smooth action space


@dataclasses.dataclass
class Assets:
    """The assets of a checkpoint; all but the tokenizer are None before a stage trains on actions.

    Attributes:
      norm_mode: normalisation of states and actions, a name of `norm_stats.MODES`.
      action_spec: what the action vector means (see `describe_actions`).
    """

    tokenizer: Tokenizer
    state_stats: NormStats | None = None
    action_stats: NormStats | None = None
    fast: FAST | None = None
    norm_mode: str = "quantile"
    action_spec: dict | None = None

    def to_json(self) -> dict:
        """Return the assets as JSON values."""
        return {
            "tokenizer": self.tokenizer.to_json(),
            "state_stats": self.state_stats.to_dict() if self.state_stats else None,
            "action_stats": self.action_stats.to_dict() if self.action_stats else None,
            "fast": self.fast.to_json() if self.fast else None,
            "norm_mode": self.norm_mode,
            "action_spec": self.action_spec,
        }

    @classmethod
    def from_json(cls, data: Mapping) -> Assets:
        """Return the assets with these values; the inverse of `to_json`."""
        state_stats = data["state_stats"]
        action_stats = data["action_stats"]
        fast = data["fast"]
        return cls(
            tokenizer=Tokenizer.from_json(data["tokenizer"]),
            state_stats=NormStats.from_dict(state_stats) if state_stats else None,
            action_stats=NormStats.from_dict(action_stats) if action_stats else None,
            fast=FAST.from_json(fast) if fast else None,
            norm_mode=data["norm_mode"],
            action_spec=data["action_spec"],
        )

    def check_actions(self, dataset: Episodes) -> None:
        """Raise UserError if the dataset's vectors have other widths than the statistics."""
        for field, stats in (
            ("action", self.action_stats),
            ("observation/state", self.state_stats),
        ):
            width = dataset.feature(field).width
            expected = len(stats.mean)
            if width != expected:
                raise UserError(
                    f"{dataset.directory}: {field} has width {width}, but the checkpoint was "
                    f"trained with width {expected}; use a dataset of the same robot, or start "
                    "from a checkpoint without actions"
                )

    def fit_actions(
        self, dataset: Episodes, *, horizon: int, fast_vocab: int, mode: str, fast_path: str = ""
    ) -> None:
        """Fit statistics and FAST merges to a dataset's training split.

        Args:
          horizon: steps of a chunk.
          fast_vocab: size of the FAST vocabulary.
          mode: normalisation, a name of `norm_stats.MODES`.
          fast_path: folder of a fitted FAST tokenizer in the public format; "": fit one.
        """
        stats = compute_norm_stats(dataset, horizon=horizon)
        self.state_stats = stats["observation/state"]
        self.action_stats = stats["action"]
        self.norm_mode = mode
        if fast_path:
            width = dataset.feature("action").width
            self.fast = FAST.load(fast_path, horizon=horizon, action_dim=width)
            return
        frames = np.flatnonzero(dataset.may_start() & finite_frames(dataset))
        count = min(len(frames), MAX_FIT_CHUNKS)
        picked = frames[np.linspace(0, len(frames) - 1, count).astype(int)]
        chunks = np.stack([dataset.window(i, "action", horizon)[0] for i in picked.tolist()])
        self.fast = FAST.fit(normalize(chunks, self.action_stats, mode), vocab_size=fast_vocab)

    def describe_actions(
        self,
        dataset: Episodes,
        *,
        horizon: int,
        cameras: tuple[str, ...],
        prompt: str,
        mask_padding: bool = True,
    ) -> None:
        """Set `action_spec` to the meaning of the actions in a stage's dataset.

        Unlike the statistics, it is not taken from the checkpoint that the stage starts from.

        Args:
          prompt, mask_padding: see `rows.RowOptions`.
        """
        action = dataset.feature("action")
        state = dataset.feature("observation/state")
        self.action_spec = {
            "action": action.doc,
            "action_dim": action.width,
            "horizon": horizon,
            "state": state.doc,
            "state_dim": state.width,
            "rate": float(dataset.metadata(0).get("rate", np.nan)),
            "cameras": list(cameras),
            "prompt": prompt,
            "mask_padding": mask_padding,
        }
        if isinstance(dataset, AdaptedDataset):
            self.action_spec["adapter"] = dataset.adapter.to_dict()

    @property
    def adapter(self) -> Adapter:
        """The adapter of the dataset that `describe_actions` described; a policy inverts it."""
        return Adapter.from_dict((self.action_spec or {}).get("adapter", {}))
