"""Build rows: one frame and its segments (prompts and targets) as arrays of fixed size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from etcvla import batch
from etcvla.data import prompts
from etcvla.data.assets import Assets
from etcvla.data.episodes import PendingImages
from etcvla.data.norm_stats import normalize
from etcvla.data.plan import Plan, Stream
from etcvla.data.records import RecordError
from etcvla.data.stage_dataset import ACTION_KIND, ANY_KIND, PHASE, StageDataset
from etcvla.errors import UserError
from etcvla.etc.items import ETC_KINDS, Item
from etcvla.names import lookup

MAX_DAMAGED = 100  # consecutive unreadable frames after which a dataset is rejected
READ_TOGETHER = 4  # consecutive draws from one episode, where reading a frame reads its episode
LOSS_MEANS = {
    "token": "mean over all target tokens",
    "segment": "mean over segments, each the mean of its target tokens",
}
Row = dict[str, np.ndarray]  # the fields of `etcvla.batch.SCHEMA`, without the batch axis


@dataclasses.dataclass(frozen=True)
class RowSizes:
    """The fixed sizes of a row, as in `etcvla.batch`."""

    num_cameras: int  # C
    image_size: int  # H = W, pixels
    text_len: int  # L
    max_targets: int  # most target tokens in a row
    state_dim: int  # S
    horizon: int  # P
    action_dim: int  # A


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """What a row contains.

    Attributes:
      prompt: the action prompt, a name of `prompts.FORMATS`. A format with subtasks adds the
        segment that asks for the subtask.
      use_fast: add the chunk's FAST tokens as targets of the action segment.
      extra_segment_weights: relative weight of each kind when extra segments are drawn from the
        frame's other ETC items.
      mask_padding: exclude the padded action dimensions and the steps past the episode's end from
        the loss. If False, they are trained as zeros and as the repeated last action.
      loss_mean: what the text losses average over, a name of `LOSS_MEANS`.
    """

    prompt: str
    use_fast: bool
    extra_segment_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mask_padding: bool = True
    loss_mean: str = "token"

    def __post_init__(self):
        prompts.find_format(self.prompt)
        lookup(LOSS_MEANS, self.loss_mean, "loss.mean")


@dataclasses.dataclass(slots=True)
class _Draw:
    """The n-th draw of a stream and the row that it fills.

    Attributes:
      position: position of its frame among the stream's candidates.
      pending: the image decodes that are still to run. None: the row must be filled anew.
    """

    row: Row
    n: int
    position: int = 0
    pending: PendingImages | None = None


class RowBuilder:
    """Build rows; row (stream index, n) is the n-th draw of a stream.

    A row is a pure function of the builder's arguments, the plan's seed, the stream index and n.

    Attributes:
      datasets: stage datasets by name.
      candidates: for each stream, the frames int64[N] from which it draws.

    Raises UserError if a stream has no frames, an extra segment's kind does not exist, or the
    prompt needs subtasks that a dataset lacks.
    """

    def __init__(
        self,
        plan: Plan,
        datasets: Mapping[str, StageDataset],
        assets: Assets,
        sizes: RowSizes,
        options: RowOptions,
    ):
        self.plan = plan
        self.datasets = datasets
        self.assets = assets
        self.sizes = sizes
        self.options = options
        self.format = prompts.find_format(options.prompt)
        self.candidates = [self._stream_candidates(stream) for stream in plan.streams]
        self._check_extra_segment_weights()
        self._check_subtasks()

    def _stream_candidates(self, stream: Stream) -> np.ndarray:
        """Return the stream's candidates, int64[N].

        If reading a frame reads its whole episode, the frames of an episode are adjacent and in
        random order, so that consecutive draws share the episode (see `Plan.draw`).
        """
        stage_dataset = self.datasets[stream.dataset]
        frames = stage_dataset.candidates(stream.kind)
        dataset = stage_dataset.dataset
        if not dataset.whole_records:
            return frames
        episodes = dataset.starts.searchsorted(frames, side="right")
        random_keys = np.random.default_rng(self.plan.seed).random(len(frames))
        return frames[np.lexsort((random_keys, episodes))]

    def _check_extra_segment_weights(self) -> None:
        known = set(ETC_KINDS)
        for stage_dataset in self.datasets.values():
            known.update(stage_dataset.known_kinds)
        unknown = sorted(set(self.options.extra_segment_weights) - known)
        if unknown:
            raise UserError(
                f"extra_segment_weights: unknown kind {', '.join(unknown)}; "
                f"choose from {', '.join(sorted(known))}"
            )

    def _check_subtasks(self) -> None:
        if not self.format.subtask:
            return
        for stream in self.plan.streams:
            dataset = self.datasets[stream.dataset].dataset
            if stream.kind == ACTION_KIND and PHASE not in dataset.features:
                raise UserError(
                    f"data.prompt {self.options.prompt!r} needs subtasks, but {dataset.directory} "
                    f"has none (feature steps/{PHASE}); choose another prompt"
                )

    def __call__(self, stream_index: int, n: int) -> Row:
        """Return the n-th draw of a stream."""
        return {name: value[0] for name, value in self.rows([(stream_index, n)]).items()}

    def rows(
        self, draws: Sequence[tuple[int, int]], images: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Build a batch; each row equals the row that is built alone.

        The images are decoded after all other fields of all rows are filled: doing one kind of
        work at a time keeps the CPU's caches warm and is a tenth faster than row by row.

        Args:
          draws: (stream index, n) of each row.
          images: uint8[B, C, H, W, 3] memory to decode the images into; its content is
            overwritten. None: allocate it.
        """
        fields = self._empty_batch(len(draws), images)
        draws_by_stream: dict[int, list[_Draw]] = {}
        for i, (stream_index, n) in enumerate(draws):
            row = {name: value[i, ...] for name, value in fields.items()}
            draws_by_stream.setdefault(stream_index, []).append(_Draw(row, n))
        for stream_index, stream_draws in draws_by_stream.items():
            self._fill_fields(stream_index, stream_draws)
        for stream_index, stream_draws in draws_by_stream.items():
            for draw in stream_draws:
                self._decode_images(stream_index, draw)
        fields["images"][~fields["image_mask"]] = 0
        return fields

    def image_shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of the images of this many rows."""
        sizes = self.sizes
        return rows, sizes.num_cameras, sizes.image_size, sizes.image_size, 3

    def _empty_batch(self, rows: int, images: np.ndarray | None) -> dict[str, np.ndarray]:
        sizes = self.sizes
        fields = batch.zeros(
            B=rows,
            C=sizes.num_cameras,
            H=0,
            W=0,
            L=sizes.text_len,
            S=sizes.state_dim,
            P=sizes.horizon,
            A=sizes.action_dim,
        )
        if images is None:
            images = np.empty(self.image_shape(rows), np.uint8)
        fields["images"] = images
        return fields

    def _fill_fields(self, stream_index: int, draws: Sequence[_Draw]) -> None:
        """Fill all fields but the images, and note the image decodes that are still to run."""
        candidates = self.candidates[stream_index]
        dataset = self.datasets[self.plan.streams[stream_index].dataset].dataset
        together = READ_TOGETHER if dataset.whole_records else 1
        for draw in draws:
            draw.position = self.plan.draw(stream_index, draw.n, len(candidates), together)
        frames = [int(candidates[draw.position]) for draw in draws]
        try:
            pending = self._fill_from_frames(stream_index, draws, frames)
        except RecordError:
            return  # `_decode_images` reads the draws one by one and finds the damaged one
        for draw, decodes in zip(draws, pending, strict=True):
            draw.pending = decodes

    def _decode_images(self, stream_index: int, draw: _Draw) -> None:
        """Run a draw's pending image decodes.

        If the row is not filled or a decode fails, fill the row anew: from its own frame, and if
        that is damaged from the stream's next candidates.

        Raises:
          RecordError: the frame is damaged and the dataset's damaged frames are not skipped.
          UserError: `MAX_DAMAGED` consecutive frames are damaged.
        """
        dataset = self.datasets[self.plan.streams[stream_index].dataset].dataset
        for attempt in range(MAX_DAMAGED):
            try:
                if draw.pending is None:
                    draw.pending = self._refill(stream_index, draw, attempt)
                for decode in draw.pending:
                    decode()
                return
            except RecordError as error:
                if dataset.damaged != "skip":
                    raise
                dataset.skip("frames that cannot be read", error)
                draw.pending = None
        raise UserError(
            f"{dataset.directory}: {MAX_DAMAGED} consecutive frames are damaged; "
            "copy or build the dataset again"
        )

    def _refill(self, stream_index: int, draw: _Draw, offset: int) -> PendingImages:
        """Clear a row and fill it from the candidate `offset` positions after the draw's own."""
        for value in draw.row.values():
            value[...] = 0
        candidates = self.candidates[stream_index]
        frame = int(candidates[(draw.position + offset) % len(candidates)])
        (pending,) = self._fill_from_frames(stream_index, [draw], [frame])
        return pending

    def _fill_from_frames(
        self, stream_index: int, draws: Sequence[_Draw], frames: Sequence[int]
    ) -> list[PendingImages]:
        """Fill rows from frames of the stream's dataset.

        Returns: the pending image decodes of each row.
        """
        stream = self.plan.streams[stream_index]
        stage_dataset = self.datasets[stream.dataset]
        dataset = stage_dataset.dataset
        camera_sets = {stage_dataset.present_cameras(frame) for frame in frames}
        if len(camera_sets) > 1:  # frames are only read together if they have the same cameras
            return [
                self._fill_from_frames(stream_index, [draw], [frame])[0]
                for draw, frame in zip(draws, frames, strict=True)
            ]

        (cameras,) = camera_sets
        pending = [[] for _ in draws]
        buffers = {}
        for camera, name in enumerate(stage_dataset.cameras):
            if name in cameras:
                buffers[f"observation/{name}"] = [draw.row["images"][camera] for draw in draws]
        names = [*buffers, *self._feature_names(stage_dataset, stream)]
        values = dataset.frames(frames, names, buffers, pending)

        for draw, frame in zip(draws, values, strict=True):
            put_images(
                draw.row, [frame.get(f"observation/{name}") for name in stage_dataset.cameras]
            )
        if stream.kind == ACTION_KIND:
            self._fill_action_rows(stream_index, draws, frames, values)
        else:
            for draw, frame in zip(draws, values, strict=True):
                rng = self._rng(stream_index, draw.n)
                items = stage_dataset.items(frame)
                segments = [self._draw_question(items, stream.kind, rng)]
                segments += self._draw_extra_segments(items, stream.extra_segments, rng)
                self._pack(draw.row, segments, stream_index)
        return pending

    def _feature_names(self, stage_dataset: StageDataset, stream: Stream) -> list[str]:
        """Return the step features, apart from images, that a row of the stream needs."""
        names = []
        if stream.kind == ACTION_KIND:
            names += ["observation/state", "language_instruction"]
            if self.format.subtask:
                names.append(PHASE)
        if stream.kind != ACTION_KIND or stream.extra_segments:
            names += stage_dataset.item_features
        return names

    def _rng(self, stream_index: int, n: int) -> np.random.Generator:
        """Return the generator that draws the segments of row (stream index, n)."""
        return np.random.default_rng((self.plan.seed, stream_index, n))

    def _fill_action_rows(
        self,
        stream_index: int,
        draws: Sequence[_Draw],
        frames: Sequence[int],
        values: Sequence[Mapping[str, Any]],
    ) -> None:
        """Fill the state, the actions and the text of an action stream's rows.

        Args:
          frames: frame numbers. values: what was read of each frame.
        """
        assets = self.assets
        stream = self.plan.streams[stream_index]
        stage_dataset = self.datasets[stream.dataset]
        states = np.stack([frame["observation/state"] for frame in values])
        states = normalize(states, assets.state_stats, assets.norm_mode)
        horizon = self.sizes.horizon
        chunks, inside = stage_dataset.dataset.windows(frames, "action", horizon)
        chunks = normalize(chunks, assets.action_stats, assets.norm_mode)
        for i, draw in enumerate(draws):
            self._put_actions(draw.row, states[i], chunks[i], inside[i])
            subtask = None
            if self.format.subtask:
                subtask = stage_dataset.subtask(frames[i], values[i])
            task = values[i]["language_instruction"]
            segments = self._action_segments(task, subtask, states[i], chunks[i])
            if stream.extra_segments:  # making a generator takes longer than a row's text
                rng = self._rng(stream_index, draw.n)
                items = stage_dataset.items(values[i])
                segments += self._draw_extra_segments(items, stream.extra_segments, rng)
            self._pack(draw.row, segments, stream_index)

    def _put_actions(
        self, row: Row, state: np.ndarray, chunk: np.ndarray, inside: np.ndarray
    ) -> None:
        """Write the normalised state float32[S] and chunk float32[P, A], and the action mask.

        Args:
          inside: bool[P], False past the episode's end.
        """
        width = chunk.shape[1]
        row["state"][: len(state)] = state
        row["actions"][:, :width] = chunk
        row["action_mask"][:, :width] = inside[:, None]
        row["action_mask"] |= not self.options.mask_padding
        row["action_segment"][...] = 1

    def _action_segments(
        self, task: str, subtask: str | None, state: np.ndarray, chunk: np.ndarray
    ) -> list[prompts.Segment]:
        """Return the action segment and, if the subtask is known, the segment that asks for it."""
        tokenizer = self.assets.tokenizer
        prompt = self.options.prompt
        prompt_state = state if self.format.has_state else None
        fast = self.assets.fast.encode(chunk) if self.options.use_fast else None
        action = prompts.action(
            tokenizer, task, prompt=prompt, state=prompt_state, subtask=subtask or task, fast=fast
        )
        if not subtask:
            return [action]
        question = prompts.subtask(
            tokenizer, task, prompt=prompt, state=prompt_state, answer=subtask
        )
        return [action, question]

    def _question(self, item: Item) -> prompts.Segment:
        return prompts.question(self.assets.tokenizer, item.question, item.answer)

    def _draw_question(
        self, items: list[Item], kind: str, rng: np.random.Generator
    ) -> prompts.Segment:
        """Draw an item of a kind, remove it from `items`, and return its segment."""
        matching = [i for i, item in enumerate(items) if kind in (ANY_KIND, item.kind)]
        return self._question(items.pop(matching[rng.integers(len(matching))]))

    def _draw_extra_segments(
        self, items: Sequence[Item], count: int, rng: np.random.Generator
    ) -> list[prompts.Segment]:
        """Draw up to `count` different items by their kinds' weights; return their segments."""
        if not count or not items:
            return []
        kind_weights = self.options.extra_segment_weights
        weights = np.array([kind_weights.get(item.kind, 0.0) for item in items])
        count = min(count, np.count_nonzero(weights))
        if not count:
            return []
        chosen = rng.choice(len(items), count, replace=False, p=weights / weights.sum())
        return [self._question(items[i]) for i in chosen]

    def _pack(self, row: Row, segments: Sequence[prompts.Segment], stream_index: int) -> None:
        """Write segments one after another into a row.

        An extra segment that does not fit is left out. Raises UserError if the first does not fit.
        """
        length = 0
        num_targets = 0
        for number, segment in enumerate(segments, start=1):
            stop = length + len(segment)
            segment_targets = len(segment.target)
            too_many_targets = num_targets + segment_targets > self.sizes.max_targets
            if stop > self.sizes.text_len or too_many_targets:
                if number == 1:
                    self._raise_too_long(segment, stream_index)
                continue
            target_start = stop - segment_targets
            row["tokens"][length:stop] = segment.prompt + segment.target
            row["segment"][length:stop] = number
            row["stream"][length:stop] = stream_index
            row["target"][target_start:stop] = True
            if segment_targets:
                weight = 1 / segment_targets if self.options.loss_mean == "segment" else 1
                row["weight"][target_start:stop] = weight
            length = stop
            num_targets += segment_targets

    def _raise_too_long(self, segment: prompts.Segment, stream_index: int) -> None:
        raise UserError(
            f"stream {self.plan.streams[stream_index].name!r}: a segment of {len(segment)} tokens, "
            f"{len(segment.target)} of them targets, does not fit data.text_len "
            f"{self.sizes.text_len} and data.max_targets {self.sizes.max_targets}"
        )


def put_images(row: Row, images: Sequence[np.ndarray | None]) -> None:
    """Write images into a row and set the mask of their cameras.

    Images of another size are stretched without keeping the aspect ratio: normalised boxes and
    points stay correct.

    Args:
      images: uint8[H, W, 3] per camera; None where the camera has no image. An image that is a
        view of the row's memory is not copied.
    """
    size = row["images"].shape[1]
    for camera, image in enumerate(images):
        if image is None:
            continue
        if image.shape[:2] != (size, size):
            resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        if not np.may_share_memory(image, row["images"][camera]):
            row["images"][camera] = image
        row["image_mask"][camera] = True
