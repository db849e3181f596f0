"""Rows: one frame and the targets that the plan attaches to it, as arrays of fixed size."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from etcvla import batch
from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.data.episodes import Episodes, Later
from etcvla.data.norm_stats import finite_frames, normalize
from etcvla.data.plan import Plan, Stream
from etcvla.data.records import RecordError
from etcvla.etc.items import ETC_KINDS, ITEM_FIELDS, Item
from etcvla.names import lookup

ACTION, ANY = "action", "any"
MAX_DAMAGED = 100  # frames in a row that cannot be read, before a dataset is given up
READ_TOGETHER = 4  # draws of one episode in a row, where a frame costs reading all of it
PHASE = "annotation/phase"  # the feature that says which of the episode's subtasks is in progress
MEANS = {"token": "of all tokens alike", "segment": "of segments, each the mean of its tokens"}
Row = dict[str, np.ndarray]  # the fields of `etcvla.batch.SCHEMA`, without the batch axis


@dataclasses.dataclass(frozen=True)
class StageDataset:
    """A dataset as a stage's config sees it."""

    dataset: Episodes
    cameras: tuple[
        str, ...
    ]  # C names of image features, without "observation/"; the first is the one ETC speaks of

    def __post_init__(self):
        for name in self.cameras:
            if f"observation/{name}" not in self.dataset.features:
                known = [
                    f.removeprefix("observation/")
                    for f, v in self.dataset.features.items()
                    if v.kind == "image"
                ]
                raise ValueError(f"{self.dataset.directory}: no camera {name!r}; it has {known}")

    def candidates(self, kind: str) -> np.ndarray:
        """int64 frames from which a stream of this kind may draw.

        Raises ValueError if the dataset has no such supervision.
        """
        if kind == ACTION:
            if "action" not in self.dataset.features:
                raise ValueError(
                    f"{self.dataset.directory} has no actions, but an action stream draws from it"
                )
            frames = np.flatnonzero(self.dataset.may_start() & finite_frames(self.dataset))
            if not len(frames):
                raise ValueError(
                    f"{self.dataset.directory} has no frames from which an action stream may draw"
                )
            return frames
        if "etc/kind" not in self.dataset.features:
            raise ValueError(
                f"{self.dataset.directory} has no ETC items (feature steps/etc); build it with them, or "
                f"drop the stream of kind {kind!r}"
            )
        names, table = self._kinds
        columns = [i for i, name in enumerate(names) if kind in (ANY, name)]
        found = np.flatnonzero(table[:, columns].any(axis=1))
        if not len(found):
            raise ValueError(
                f"{self.dataset.directory} has no items of kind {kind!r}; it has {names}"
            )
        return found

    @property
    def known_kinds(self) -> list[str]:
        """The kinds of the dataset's items, sorted."""
        return self._kinds[0]

    @functools.cached_property
    def _kinds(self) -> tuple[list[str], np.ndarray]:
        """(known kinds, bool[num_frames, kinds] whether a frame has an item of it)."""
        if "etc/kind" not in self.dataset.features:
            return [], np.zeros((self.dataset.num_frames, 0), bool)
        about, (table,) = self.dataset.cache.get("etc/kind.table", self._tabulate)
        return about["kinds"], table

    def _tabulate(self) -> tuple[dict, list[np.ndarray]]:
        at = [
            {*kinds}
            for episode in range(self.dataset.num_episodes)
            for kinds in self.dataset.steps(
                episode, 0, int(self.dataset.lengths[episode]), ["etc/kind"]
            )["etc/kind"]
        ]
        names = sorted(set().union(*at))
        return {"kinds": names}, [
            np.array([[name in kinds for name in names] for kinds in at], bool)
        ]

    def items(self, frame: Mapping) -> list[Item]:
        """The ETC items of a frame that was read with `item_features`."""
        if "etc/kind" not in frame:
            return []
        return [
            Item(*values)
            for values in zip(*(frame[f"etc/{name}"] for name in ITEM_FIELDS), strict=True)
        ]

    def subtask(self, frame: int, facts: Mapping) -> str | None:
        """What is done at a frame that was read with `PHASE`; None where that is unknown."""
        phase = int(facts[PHASE])
        return (
            None
            if phase < 0
            else self.dataset.metadata(self.dataset.locate(frame)[0])["phases"][phase]
        )

    @property
    def item_features(self) -> list[str]:
        return (
            [f"etc/{name}" for name in ITEM_FIELDS] if "etc/kind" in self.dataset.features else []
        )


@dataclasses.dataclass(frozen=True)
class RowSizes:
    """The fixed sizes of a row, as in `etcvla.batch`."""

    num_cameras: int  # C
    image_size: int  # H = W, pixels
    text_len: int  # L
    max_targets: int  # predicted tokens a row, at most
    state_dim: int  # S
    horizon: int  # P
    action_dim: int  # A


class RowBuilder:
    """Builds row (stream, n): the n-th draw of a stream. A pure function of its arguments and the plan's seed.

    Args:
      datasets: by dataset name.
      extra_segment_weights: ETC kind -> relative weight with which extra_segments are chosen among the frame's further items.
      prompt: the action prompt, a name of `prompts.FORMATS`. One with subtasks attaches the question for it too.
      use_fast: let the backbone learn FAST tokens in the action segment.
      mask_padding: no loss on widths that the dataset does not have and on steps past the episode's end. Without it
        they are zeros and the last action repeated, learnt like all others.
      mean: what the text losses are means of, a name of `MEANS`.
    """

    def __init__(
        self,
        plan: Plan,
        datasets: Mapping[str, StageDataset],
        assets: Assets,
        sizes: RowSizes,
        *,
        extra_segment_weights: Mapping[str, float],
        prompt: str,
        use_fast: bool,
        mask_padding: bool = True,
        mean: str = "token",
    ):
        self.plan, self.datasets, self.assets, self.sizes = plan, datasets, assets, sizes
        self.extra_segment_weights, self.use_fast, self.mask_padding, self.mean = (
            extra_segment_weights,
            use_fast,
            mask_padding,
            mean,
        )
        self.prompt, self.format = prompt, prompts.find_format(prompt)
        lookup(MEANS, mean, "loss.mean")
        self.candidates = [self._pool(datasets[s.dataset], s.kind) for s in plan.streams]
        self._check_extra_segments()
        self._check_subtasks()

    def _pool(self, source: StageDataset, kind: str) -> np.ndarray:
        """The candidates; where a frame costs its whole episode, those of an episode together, in random order."""
        frames = source.candidates(kind)
        if not source.dataset.whole_records:
            return frames
        episodes = source.dataset.starts.searchsorted(frames, side="right")
        return frames[
            np.lexsort((np.random.default_rng(self.plan.seed).random(len(frames)), episodes))
        ]

    def _check_extra_segments(self) -> None:
        known = {
            *ETC_KINDS,
            *(kind for source in self.datasets.values() for kind in source.known_kinds),
        }
        if unknown := sorted(set(self.extra_segment_weights) - known):
            raise ValueError(
                f"extra_segment_weights: there is no kind {', '.join(unknown)}; known are {sorted(known)}"
            )

    def _check_subtasks(self) -> None:
        for stream in self.plan.streams if self.format.subtask else ():
            dataset = self.datasets[stream.dataset].dataset
            if stream.kind == ACTION and PHASE not in dataset.features:
                raise ValueError(
                    f"data.prompt {self.prompt!r} speaks of subtasks, and {dataset.directory} has none "
                    f"(feature steps/{PHASE}); choose another prompt"
                )

    def __call__(self, stream_index: int, n: int) -> Row:
        """The n-th draw of a stream."""
        return {name: value[0] for name, value in self.rows([(stream_index, n)]).items()}

    def rows(
        self, draws: Sequence[tuple[int, int]], images: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """A batch of rows (stream index, n), of which each is as if it were alone.

        Args:
          images: uint8[B, C, H, W, 3] to put the batch's into, whatever it holds; else it is made.
        """
        size = self.sizes
        rows = batch.zeros(
            B=len(draws),
            C=size.num_cameras,
            H=0,
            W=0,
            L=size.text_len,
            S=size.state_dim,
            P=size.horizon,
            A=size.action_dim,
        )
        rows["images"] = (
            np.empty(self.image_shape(len(draws)), np.uint8) if images is None else images
        )
        by_stream: dict[int, list[int]] = {}
        for i, (stream_index, _) in enumerate(draws):
            by_stream.setdefault(stream_index, []).append(i)
        fills = [
            self._fill(
                [{name: value[i, ...] for name, value in rows.items()} for i in members],
                stream_index,
                [draws[i][1] for i in members],
            )
            for stream_index, members in by_stream.items()
        ]
        for _ in itertools.chain(
            map(next, fills), *fills
        ):  # images last: one kind of work at a time is a tenth faster
            pass
        rows["images"][~rows["image_mask"]] = 0
        return rows

    def image_shape(self, rows: int) -> tuple[int, ...]:
        """The shape of so many rows' images."""
        return rows, self.sizes.num_cameras, self.sizes.image_size, self.sizes.image_size, 3

    def _fill(self, rows: Sequence[Row], stream_index: int, ns: Sequence[int]) -> Iterator[None]:
        """Writes draws of a stream into empty rows. Images of cameras that show nothing are left as they are.

        All but the images is there at the first stop.
        """
        stream = self.plan.streams[stream_index]
        dataset, pool = self.datasets[stream.dataset].dataset, self.candidates[stream_index]
        together = READ_TOGETHER if dataset.whole_records else 1
        places = [self.plan.draw(stream_index, n, len(pool), together) for n in ns]
        try:
            later = self._put(rows, stream_index, [int(pool[place]) for place in places], ns)
        except RecordError:
            later = [None] * len(rows)  # which of them it is shows when each is read alone
        yield
        for row, n, place, jobs in zip(rows, ns, places, later, strict=True):
            self._finish(row, stream_index, n, place, jobs)

    def _finish(self, row: Row, stream_index: int, n: int, place: int, jobs: Later | None) -> None:
        """Calls the jobs that put a row's images there. If there are none or they fail, the row is written anew from
        its frame, or the frame after it if that cannot be read."""
        dataset, pool = (
            self.datasets[self.plan.streams[stream_index].dataset].dataset,
            self.candidates[stream_index],
        )
        for tried in range(MAX_DAMAGED):
            try:
                if jobs is None:
                    for value in row.values():
                        value[...] = 0
                    (jobs,) = self._put(
                        [row], stream_index, [int(pool[(place + tried) % len(pool)])], [n]
                    )
                for job in jobs:
                    job()
                return
            except RecordError as error:
                if dataset.damaged != "skip":
                    raise
                dataset.skip("frames that cannot be read", error)
                jobs = None
        raise ValueError(f"{dataset.directory}: {MAX_DAMAGED} damaged frames in a row")

    def _put(
        self, rows: Sequence[Row], stream_index: int, frames: Sequence[int], ns: Sequence[int]
    ) -> list[Later]:
        """Writes frames into rows; what it returns is still to be called, and puts their images there."""
        stream = self.plan.streams[stream_index]
        source = self.datasets[stream.dataset]
        seen = {
            tuple(name for name in source.cameras if source.dataset.has_camera(frame, name))
            for frame in frames
        }
        if len(seen) > 1:
            return [
                later
                for one in zip(rows, frames, ns, strict=True)
                for later in self._put([one[0]], stream_index, [one[1]], [one[2]])
            ]
        (cameras,) = seen
        later: list[Later] = [[] for _ in rows]
        shown = {
            f"observation/{name}": [row["images"][i] for row in rows]
            for i, name in enumerate(source.cameras)
            if name in cameras
        }
        facts = source.dataset.frames(frames, [*shown, *self._names(source, stream)], shown, later)
        actions = (
            self._actions(source, frames, facts)
            if stream.kind == ACTION
            else itertools.repeat(None)
        )
        choosing = (
            stream.kind != ACTION or stream.extra_segments
        )  # making a generator takes longer than a row's text
        for row, frame, n, known, action in zip(rows, frames, ns, facts, actions, strict=False):
            put_images(row, [known.get(f"observation/{name}") for name in source.cameras])
            rng = np.random.default_rng((self.plan.seed, stream_index, n)) if choosing else None
            segments = self._segments(stream, source, known, frame, row, action, rng)
            self._put_text(row, segments, stream_index)
        return later

    def _names(self, source: StageDataset, stream: Stream) -> list[str]:
        """What a row needs to know of its frame beside the pictures."""
        names = []
        if stream.kind == ACTION:
            names += [
                "observation/state",
                "language_instruction",
                *([PHASE] if self.format.subtask else []),
            ]
        if stream.kind != ACTION or stream.extra_segments:
            names += source.item_features
        return names

    def _segments(self, stream, source, facts, frame, row, action, rng) -> list[prompts.Segment]:
        """Segments in order: the one that the stream was drawn for, then extra_segments."""
        items = source.items(facts)
        if stream.kind == ACTION:
            main = self._action(source, facts, frame, row, *action)
        else:
            chosen = [i for i, item in enumerate(items) if stream.kind in (ANY, item.kind)]
            item = items.pop(chosen[rng.integers(len(chosen))])
            main = [prompts.question(self.assets.tokenizer, item.question, item.answer)]
        return [
            *main,
            *(
                prompts.question(self.assets.tokenizer, item.question, item.answer)
                for item in self._extra_segments(items, stream.extra_segments, rng)
            ),
        ]

    def _actions(
        self, source, frames, facts
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each frame the state float32[S] and the chunk float32[P, A], normalised, and bool[P, 1] as of `window`."""
        assets = self.assets
        states = normalize(
            np.stack([known["observation/state"] for known in facts]),
            assets.state_stats,
            assets.norm_mode,
        )
        chunks, inside = source.dataset.windows(frames, "action", self.sizes.horizon)
        return zip(
            states,
            normalize(chunks, assets.action_stats, assets.norm_mode),
            inside[..., None],
            strict=True,
        )

    def _action(self, source, facts, frame, row, state, chunk, inside) -> list[prompts.Segment]:
        """Fills the row's state and actions, and returns its action segment and, with subtasks, the question for it."""
        assets = self.assets
        row["state"][: len(state)] = state
        row["actions"][:, : chunk.shape[1]] = chunk
        row["action_mask"][:, : chunk.shape[1]] = inside
        row["action_mask"] |= not self.mask_padding
        row["action_segment"][...] = 1
        asked = {"prompt": self.prompt, "state": state if self.format.has_state else None}
        task = facts["language_instruction"]
        subtask = source.subtask(frame, facts) if self.format.subtask else None
        first = prompts.action(
            assets.tokenizer,
            task,
            subtask=subtask or task,
            **asked,
            fast=assets.fast.encode(chunk) if self.use_fast else None,
        )
        return (
            [first, prompts.subtask(assets.tokenizer, task, answer=subtask, **asked)]
            if subtask
            else [first]
        )

    def _extra_segments(self, items: Sequence[Item], count: int, rng) -> list[Item]:
        if not count or not items:
            return []
        weights = np.array([self.extra_segment_weights.get(item.kind, 0.0) for item in items])
        count = min(count, np.count_nonzero(weights))
        if not count:
            return []
        return [
            items[i]
            for i in rng.choice(len(items), count, replace=False, p=weights / weights.sum())
        ]

    def _put_text(self, row, segments, stream_index) -> None:
        """Writes segments one after another; a rider that does not fit is left out, a main segment must fit."""
        length = targets = 0
        by_segment = self.mean == "segment"
        for i, segment in enumerate(segments):
            if (
                length + len(segment) > self.sizes.text_len
                or targets + len(segment.target) > self.sizes.max_targets
            ):
                if i:
                    continue
                raise ValueError(
                    f"stream {self.plan.streams[stream_index].name!r}: a segment of {len(segment)} tokens, "
                    f"{len(segment.target)} of them targets, does not fit data.text_len "
                    f"{self.sizes.text_len} and data.max_targets {self.sizes.max_targets}"
                )
            at = slice(length, length + len(segment))
            row["tokens"][at] = segment.prompt + segment.target
            row["segment"][at] = i + 1
            row["target"][length + len(segment.prompt) : at.stop] = True
            row["weight"][length + len(segment.prompt) : at.stop] = (
                1 / len(segment.target) if by_segment else 1
            )
            row["stream"][at] = stream_index
            length, targets = at.stop, targets + len(segment.target)


def put_images(row: dict[str, np.ndarray], images: Sequence[np.ndarray | None]) -> None:
    """Writes uint8[H, W, 3] images into the row's cameras, stretched to its size: normalised boxes stay true.

    None is a camera that shows nothing. One that lies in the row already is not copied.
    """
    size = row["images"].shape[1]
    for i, image in enumerate(images):
        if image is None:
            continue
        if image.shape[:2] != (size, size):
            image = np.asarray(
                Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
            )
        if not np.may_share_memory(image, row["images"][i]):
            row["images"][i] = image
        row["image_mask"][i] = True
