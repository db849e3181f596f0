"""Make a row builder over a handmade robot dataset, and read its rows back."""

from pathlib import Path

import numpy as np

from etcvla.data.assets import Assets
from etcvla.data.plan import Plan, Stream
from etcvla.data.rlds import RLDSDataset
from etcvla.data.rows import RowBuilder, RowOptions, RowSizes
from etcvla.data.stage_dataset import StageDataset
from etcvla.data.tokenizer import Tokenizer
from tests.data.handmade_rlds import KINDS

SIZES = {
    "num_cameras": 2,
    "image_size": 28,
    "text_len": 96,
    "max_targets": 48,
    "state_dim": 5,
    "horizon": 4,
    "action_dim": 3,
}
OPTIONS = {"prompt": "pi0", "use_fast": True, "extra_segment_weights": dict.fromkeys(KINDS, 1.0)}


def stream(name: str, kind: str, extra_segments: int = 0, weight: float = 1.0) -> Stream:
    """Return a stream of the robot dataset with a constant weight."""
    return Stream(name, "robot", kind, ((0.0, weight),), extra_segments)


def make_builder(
    directory: Path,
    *streams: Stream,
    cameras=("front", "wrist"),
    batch_size=6,
    steps=20,
    damaged="raise",
    options=None,
    **sizes,
) -> RowBuilder:
    """Return a row builder; `options` override `OPTIONS`, `sizes` override `SIZES`."""
    dataset = RLDSDataset(directory, damaged=damaged)
    row_options = RowOptions(**{**OPTIONS, **(options or {})})
    assets = Assets(Tokenizer.load())
    assets.fit_actions(dataset, horizon=SIZES["horizon"], fast_vocab=128, mode="quantile")
    assets.describe_actions(
        dataset, horizon=SIZES["horizon"], cameras=cameras, prompt=row_options.prompt
    )
    return RowBuilder(
        Plan.make(streams, batch_size=batch_size, steps=steps, seed=0),
        {"robot": StageDataset(dataset, cameras)},
        assets,
        RowSizes(**{**SIZES, **sizes}),
        row_options,
    )


def where(row: dict) -> tuple[int, int]:
    """Return (episode, step) of a row's frame, which the dataset writes into the first pixel."""
    episode, step, camera = row["images"][0, 0, 0].tolist()
    assert camera == 0
    return episode, step


def segments(row: dict, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Return (prompt as text, target ids) of each segment, in order."""
    result = []
    for number in sorted(set(row["segment"].tolist()) - {0}):
        columns = np.flatnonzero(row["segment"] == number)
        assert (np.diff(columns) == 1).all()
        target = row["target"][columns]
        assert (np.diff(target.astype(int)) >= 0).all()  # the prompt comes first
        tokens = row["tokens"][columns]
        result.append((tokenizer.decode(tokens[~target]), tokens[target].tolist()))
    return result
