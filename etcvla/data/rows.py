"""Build rows: one frame and its segments (prompts and targets) as arrays of fixed size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from etcvla import batch
from etcvla.data.assets import Assets
from etcvla.data.episodes import PendingImages
from etcvla.data.norm_stats import normalize
from etcvla.data.plan import Plan
from etcvla.data.prompts import Segment
from etcvla.data.records import RecordError
from etcvla.data.row_options import RowOptions, RowSizes
from etcvla.data.segments import Row, SegmentChooser, pack_segments
from etcvla.data.stage_dataset import ACTION_KIND, PHASE, StageDataset
from etcvla.errors import UserError
from etcvla.etc.items import ETC_KINDS

MAX_DAMAGED = 100  # consecutive unreadable frames after which a dataset is rejected
READ_TOGETHER = 4  # consecutive draws from one episode, where reading a frame reads its episode


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
        self._check_extra_segment_weights()
        self._streams = [_StreamRows(self, index) for index in range(len(plan.streams))]
        self.candidates = [stream.candidates for stream in self._streams]

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
            self._streams[stream_index].fill_fields(stream_draws)
        for stream_index, stream_draws in draws_by_stream.items():
            for draw in stream_draws:
                self._streams[stream_index].decode_images(draw)
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
            Q=sizes.state_dim,
            P=sizes.horizon,
            A=sizes.action_dim,
        )
        fields["images"] = np.empty(self.image_shape(rows), np.uint8) if images is None else images
        return fields


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


class _StreamRows:
    """Fill the rows of one stream of a builder's plan.

    Attributes:
      candidates: the frames int64[N] from which the stream draws.
    """

    def __init__(self, builder: RowBuilder, index: int):
        self.plan = builder.plan
        self.index = index
        self.stream = builder.plan.streams[index]
        self.stage_dataset = builder.datasets[self.stream.dataset]
        self.dataset = self.stage_dataset.dataset
        self.assets = builder.assets
        self.sizes = builder.sizes
        self.options = builder.options
        self.segments = SegmentChooser(builder.assets, builder.options)
        self.is_action = self.stream.kind == ACTION_KIND
        self.has_subtask = bool(self.options.format.subtask)
        self.candidates = self._order_candidates()
        self.features = self._features()

    def _order_candidates(self) -> np.ndarray:
        """Return the stream's candidates, int64[N].

        If reading a frame reads its whole episode, the frames of an episode are adjacent and in
        random order, so that consecutive draws share the episode (see `Plan.draw`).
        """
        frames = self.stage_dataset.candidates(self.stream.kind)
        if not self.dataset.whole_records:
            return frames
        episodes = self.dataset.starts.searchsorted(frames, side="right")
        random_keys = np.random.default_rng(self.plan.seed).random(len(frames))
        return frames[np.lexsort((random_keys, episodes))]

    def _features(self) -> list[str]:
        """Return the step features, apart from images, that a row needs.

        Raises UserError if the prompt needs subtasks and the dataset has none.
        """
        features = []
        if self.is_action:
            features += ["observation/state", "language_instruction"]
            if self.has_subtask:
                if PHASE not in self.dataset.features:
                    raise UserError(
                        f"data.prompt {self.options.prompt!r} needs subtasks, but "
                        f"{self.dataset.directory} has none (feature steps/{PHASE}); "
                        "choose another prompt"
                    )
                features.append(PHASE)
        if not self.is_action or self.stream.extra_segments:
            features += self.stage_dataset.item_features
        return features

    def fill_fields(self, draws: Sequence[_Draw]) -> None:
        """Fill all fields but the images, and note the image decodes that are still to run."""
        together = READ_TOGETHER if self.dataset.whole_records else 1
        num_candidates = len(self.candidates)
        for draw in draws:
            draw.position = self.plan.draw(self.index, draw.n, num_candidates, together)
        frames = [int(self.candidates[draw.position]) for draw in draws]
        try:
            pending = self._fill(draws, frames)
        except RecordError:
            return  # `decode_images` reads the draws one by one and finds the damaged one
        for draw, decodes in zip(draws, pending, strict=True):
            draw.pending = decodes

    def decode_images(self, draw: _Draw) -> None:
        """Run a draw's pending image decodes.

        If the row is not filled or a decode fails, fill the row anew: from its own frame, and if
        that is damaged from the stream's next candidates.

        Raises:
          RecordError: the frame is damaged and the dataset's damaged frames are not skipped.
          UserError: `MAX_DAMAGED` consecutive frames are damaged.
        """
        for attempt in range(MAX_DAMAGED):
            try:
                if draw.pending is None:
                    draw.pending = self._refill(draw, attempt)
                for decode in draw.pending:
                    decode()
                return
            except RecordError as error:
                if self.dataset.damaged != "skip":
                    raise
                self.dataset.skip("frames that cannot be read", error)
                draw.pending = None
        raise UserError(
            f"{self.dataset.directory}: {MAX_DAMAGED} consecutive frames are damaged; "
            "copy or build the dataset again"
        )

    def _refill(self, draw: _Draw, offset: int) -> PendingImages:
        """Clear a row and fill it from the candidate `offset` positions after the draw's own."""
        for value in draw.row.values():
            value[...] = 0
        position = (draw.position + offset) % len(self.candidates)
        return self._fill([draw], [int(self.candidates[position])])[0]

    def _fill(self, draws: Sequence[_Draw], frames: Sequence[int]) -> list[PendingImages]:
        """Fill rows from frames, given by number.

        Returns: the pending image decodes of each row.
        """
        camera_sets = {self.stage_dataset.present_cameras(frame) for frame in frames}
        if len(camera_sets) > 1:  # frames are only read together if they have the same cameras
            return [
                self._fill([draw], [frame])[0] for draw, frame in zip(draws, frames, strict=True)
            ]
        (present_cameras,) = camera_sets
        pending: list[PendingImages] = [[] for _ in draws]
        cameras = [f"observation/{name}" for name in self.stage_dataset.cameras]
        buffers = {}
        for camera, name in enumerate(cameras):
            if self.stage_dataset.cameras[camera] in present_cameras:
                buffers[name] = [draw.row["images"][camera] for draw in draws]
        values = self.dataset.frames(frames, [*buffers, *self.features], buffers, pending)
        if self.is_action:
            self._fill_actions(draws, frames, values)
        for draw, frame in zip(draws, values, strict=True):
            put_images(draw.row, [frame.get(name) for name in cameras])
            if not self.is_action:
                rng = self._rng(draw)
                items = self.stage_dataset.items(frame)
                segments = self.segments.question(items, self.stream.kind, rng)
                segments += self.segments.extra(items, self.stream.extra_segments, rng)
                self._pack(draw.row, segments)
        return pending

    def _fill_actions(
        self, draws: Sequence[_Draw], frames: Sequence[int], values: Sequence[Mapping[str, Any]]
    ) -> None:
        """Fill the state, the actions and the text of action rows.

        Args:
          frames: frame numbers. values: the features of each frame.
        """
        assets = self.assets
        states = np.stack([frame["observation/state"] for frame in values])
        states = normalize(states, assets.state_stats, assets.norm_mode)
        chunks, inside = self.dataset.windows(frames, "action", self.sizes.horizon)
        chunks = normalize(chunks, assets.action_stats, assets.norm_mode)
        for i, draw in enumerate(draws):
            self._put_actions(draw.row, states[i], chunks[i], inside[i])
            subtask = None
            if self.has_subtask:
                subtask = self.stage_dataset.subtask(frames[i], values[i])
            task = values[i]["language_instruction"]
            segments = self.segments.action(task, subtask, states[i], chunks[i])
            if self.stream.extra_segments:  # making a generator takes longer than a row's text
                items = self.stage_dataset.items(values[i])
                rng = self._rng(draw)
                segments += self.segments.extra(items, self.stream.extra_segments, rng)
            self._pack(draw.row, segments)

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

    def _rng(self, draw: _Draw) -> np.random.Generator:
        """Return the generator that draws a row's segments."""
        return np.random.default_rng((self.plan.seed, self.index, draw.n))

    def _pack(self, row: Row, segments: Sequence[Segment]) -> None:
        """Write segments into a row."""
        try:
            length = pack_segments(
                row,
                segments,
                max_targets=self.sizes.max_targets,
                loss_mean=self.options.loss_mean,
            )
        except UserError as error:
            raise UserError(f"stream {self.stream.name!r}: {error}") from error
        row["stream"][:length] = self.index


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
