"""What a policy needs beside its weights: tokenizer, statistics, FAST merges, and what its actions mean.

A stage takes its assets from the checkpoint that it starts from; what is not there yet (a VLM has never seen an action)
is fitted on the stage's own data. They travel inside every checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from etcvla.data.adapters import AdaptedDataset, Adapter
from etcvla.data.episodes import Episodes
from etcvla.data.norm_stats import NormStats, compute_norm_stats, finite_frames, normalize
from etcvla.data.tokenizer import Tokenizer
from etcvla.models.fast import FAST

MAX_FIT_CHUNKS = 4000  # more do not change the merges of a smooth action space


@dataclasses.dataclass
class Assets:
    """Tokenizer always; the rest once a stage has seen actions."""

    tokenizer: Tokenizer
    state_stats: NormStats | None = None
    action_stats: NormStats | None = None
    fast: FAST | None = None
    norm_mode: str = "quantile"  # of `normalize`
    action_spec: dict | None = (
        None  # what the action vector means: docs, widths, control rate, horizon, cameras
    )

    def to_json(self) -> dict:
        """JSON with nothing but plain values."""
        return {
            "tokenizer": self.tokenizer.to_json(),
            "state_stats": self.state_stats and self.state_stats.to_dict(),
            "action_stats": self.action_stats and self.action_stats.to_dict(),
            "fast": self.fast and self.fast.to_json(),
            "norm_mode": self.norm_mode,
            "action_spec": self.action_spec,
        }

    @classmethod
    def from_json(cls, data: Mapping) -> Assets:
        """The inverse of `to_json`."""
        return cls(
            tokenizer=Tokenizer.from_json(data["tokenizer"]),
            state_stats=data["state_stats"] and NormStats.from_dict(data["state_stats"]),
            action_stats=data["action_stats"] and NormStats.from_dict(data["action_stats"]),
            fast=data["fast"] and FAST.from_json(data["fast"]),
            norm_mode=data["norm_mode"],
            action_spec=data["action_spec"],
        )

    def check_actions(self, dataset: Episodes) -> None:
        """Raises ValueError if the dataset's vectors have other widths than those these assets were fitted to."""
        for field, stats in (
            ("action", self.action_stats),
            ("observation/state", self.state_stats),
        ):
            found, expected = dataset.feature(field).width, len(stats.mean)
            if found != expected:
                raise ValueError(
                    f"{dataset.directory}: {field} has width {found}, but the checkpoint was trained "
                    f"with width {expected}; use a dataset of the same robot, or start from a checkpoint "
                    "without actions"
                )

    def fit_actions(
        self, dataset: Episodes, *, horizon: int, fast_vocab: int, mode: str, fast_path: str = ""
    ) -> None:
        """Fits statistics and FAST merges to a dataset's training split.

        Args:
          horizon: steps of a chunk. fast_vocab: ids of the FAST vocabulary. mode: of `normalize`.
          fast_path: folder of a fitted FAST tokenizer that is taken instead, in the public format.
        """
        stats = compute_norm_stats(dataset, horizon=horizon)
        self.state_stats, self.action_stats, self.norm_mode = (
            stats["observation/state"],
            stats["action"],
            mode,
        )
        if fast_path:
            self.fast = FAST.load(
                fast_path, horizon=horizon, action_dim=dataset.feature("action").width
            )
            return
        frames = np.flatnonzero(dataset.may_start() & finite_frames(dataset))
        picked = frames[
            np.linspace(0, len(frames) - 1, min(len(frames), MAX_FIT_CHUNKS)).astype(int)
        ].tolist()
        chunks = np.stack([dataset.window(i, "action", horizon)[0] for i in picked])
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
        """Notes what actions mean in the dataset that a stage acts on: statistics are inherited, this is not.

        Args:
          prompt, mask_padding: as of `rows.RowBuilder`.
        """
        action, state = dataset.feature("action"), dataset.feature("observation/state")
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
        """How the robot's terms and ours are made from each other, where a policy acts."""
        return Adapter.from_dict((self.action_spec or {}).get("adapter", {}))
