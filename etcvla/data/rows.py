"""Build rows: one frame and its segments (prompts and targets) as arrays of fixed size."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from etcvla import batch
from etcvla.data.assets import Assets
from etcvla.data.episodes import LazyImage
from etcvla.data.norm_stats import normalize
from etcvla.data.plan import Plan
from etcvla.data.records import RecordError
from etcvla.data.relabels import FEATURES as RELABEL_FEATURES
from etcvla.data.relabels import ActionChunk, draw_relabels, has_relabels
from etcvla.data.row_options import RowOptions, RowSizes
from etcvla.data.segments import Row, SegmentChooser, SegmentGroup, pack_segments, weigh_row
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
    prompt or the number of actions per row needs subtasks or relabels that the datasets lack.
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
        known_kinds = [stage_dataset.known_kinds for stage_dataset in datasets.values()]
        known = set(ETC_KINDS).union(*known_kinds)
        unknown = sorted(set(options.extra_segment_weights) - known)
        if unknown:
            raise UserError(
                f"extra_segment_weights: unknown kind {', '.join(unknown)}; "
                f"choose from {', '.join(sorted(known))}"
            )
        self._streams = [_StreamRows(self, index) for index in range(len(plan.streams))]
        self.candidates = [stream.candidates for stream in self._streams]
        relabelled = [stream.has_relabels for stream in self._streams if stream.is_action]
        if sizes.actions_per_row > 1 and relabelled and not any(relabelled):
            raise UserError(
                f"data.actions_per_row is {sizes.actions_per_row}, but no dataset of an action "
                "stream has relabels (feature steps/relabels); set it to 1"
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
        sizes = self.sizes
        fields = batch.zeros(
            B=len(draws),
            C=sizes.num_cameras,
            H=0,
            W=0,
            L=sizes.text_len,
            Q=sizes.state_dim,
            K=sizes.actions_per_row,
            P=sizes.horizon,
            A=sizes.action_dim,
        )
        if images is None:
            images = np.empty(self.image_shape(len(draws)), np.uint8)
        fields["images"] = images
        draws_by_stream = collections.defaultdict(list)
        for i, (stream_index, n) in enumerate(draws):
            row = {name: value[i, ...] for name, value in fields.items()}
            draws_by_stream[self._streams[stream_index]].append(_Draw(row, n))
        for stream, stream_draws in draws_by_stream.items():
            stream.fill_fields(stream_draws)
        for stream, stream_draws in draws_by_stream.items():
            for draw in stream_draws:
                stream.decode_images(draw)
        images[~fields["image_mask"]] = 0
        return fields

    def image_shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of the images of this many rows."""
        sizes = self.sizes
        return rows, sizes.num_cameras, sizes.image_size, sizes.image_size, 3


@dataclasses.dataclass(slots=True)
class _Draw:
    """The n-th draw of a stream and the row that it fills.

    Attributes:
      position: position of its frame among the stream's candidates.
      images: the images to decode, by camera number. None: the row must be filled anew.
    """

    row: Row
    n: int
    position: int = 0
    images: dict[int, LazyImage] | None = None


class _StreamRows:
    """Fill the rows of one stream of a builder's plan.

    Attributes:
      candidates: the frames int64[N] from which the stream draws.
    """

    def __init__(self, builder: RowBuilder, index: int):
        self.builder = builder
        self.index = index
        self.stream = builder.plan.streams[index]
        self.stage_dataset = builder.datasets[self.stream.dataset]
        self.dataset = self.stage_dataset.dataset
        self.segments = SegmentChooser(builder.assets, builder.options)
        self.is_action = self.stream.kind == ACTION_KIND
        self.has_subtask = self.is_action and bool(builder.options.format.subtask)
        self.cameras = [f"observation/{name}" for name in self.stage_dataset.cameras]
        self.candidates = self._order_candidates()
        sizes = builder.sizes
        may_relabel = self.is_action and sizes.actions_per_row > 1
        self.has_relabels = may_relabel and has_relabels(self.dataset, sizes.horizon)
        self.features = self._features()

    def _order_candidates(self) -> np.ndarray:
        """Return the stream's candidates, int64[N].

        If reading a frame reads its whole episode, the frames of an episode are adjacent and in
        random order, so that consecutive draws share the episode (see `Plan.draw`).
        """
        frames = self.stage_dataset.candidates(self.stream.kind)
        if not self.dataset.whole_records:
            return frames
        episodes, _ = self.dataset.locate_all(frames)
        random_keys = np.random.default_rng(self.builder.plan.seed).random(len(frames))
        return frames[np.lexsort((random_keys, episodes))]

    def _features(self) -> list[str]:
        """Return the step features that a row needs, except images.

        Raises UserError if the prompt needs subtasks and the dataset has none.
        """
        features = []
        if self.is_action:
            features += ["observation/state", "language_instruction"]
        if self.has_subtask:
            if PHASE not in self.dataset.features:
                raise UserError(
                    f"data.prompt {self.builder.options.prompt!r} needs subtasks, but "
                    f"{self.dataset.directory} has none (feature steps/{PHASE}); "
                    "choose another prompt"
                )
            features.append(PHASE)
        if self.has_relabels:
            features += RELABEL_FEATURES
        if not self.is_action or self.stream.extra_segments:
            features += self.stage_dataset.item_features
        return features

    def fill_fields(self, draws: Sequence[_Draw]) -> None:
        """Fill all fields but the images, and note the images that are still to decode."""
        together = READ_TOGETHER if self.dataset.whole_records else 1
        for draw in draws:
            draw.position = self.builder.plan.draw(
                self.index, draw.n, len(self.candidates), together
            )
        # At a damaged draw, `decode_images` reads the draws one by one.
        with contextlib.suppress(RecordError):
            self._fill(draws, [int(self.candidates[draw.position]) for draw in draws])

    def decode_images(self, draw: _Draw) -> None:
        """Decode a draw's images.

        If the row is not filled or an image is damaged, fill the row anew: from its own frame, and
        if that is damaged from the stream's next candidates.

        Raises:
          RecordError: the frame is damaged and the dataset's damaged frames are not skipped.
          UserError: `MAX_DAMAGED` consecutive frames are damaged.
        """
        for attempt in range(MAX_DAMAGED):
            try:
                if draw.images is None:
                    for value in draw.row.values():
                        value[...] = 0
                    position = (draw.position + attempt) % len(self.candidates)
                    self._fill([draw], [int(self.candidates[position])])
                for camera, decode in draw.images.items():
                    put_image(draw.row, camera, decode(draw.row["images"][camera]))
                return
            except RecordError as error:
                if self.dataset.damaged != "skip":
                    raise
                self.dataset.skip("frames that cannot be read", error)
                draw.images = None
        raise UserError(
            f"{self.dataset.directory}: {MAX_DAMAGED} consecutive frames are damaged; "
            "copy or build the dataset again"
        )

    def _fill(self, draws: Sequence[_Draw], frames: Sequence[int]) -> None:
        """Fill rows from frames, given by number, and note their images."""
        values = self.dataset.frames(frames, [*self.cameras, *self.features], lazy_images=True)
        if self.is_action:
            self._fill_actions(draws, frames, values)
        else:
            for draw, frame_values in zip(draws, values, strict=True):
                items = self.stage_dataset.items(frame_values)
                rng = self._rng(draw)
                question = self.segments.question(items, self.stream.kind, rng)
                extra = self.segments.extra(items, self.stream.extra_segments, rng)
                self._pack(draw, [SegmentGroup([question, *extra])])
        for draw, frame, frame_values in zip(draws, frames, values, strict=True):
            draw.images = {}
            for camera, name in enumerate(self.stage_dataset.cameras):
                if self.dataset.has_camera(frame, name):
                    draw.images[camera] = frame_values[self.cameras[camera]]

    def _fill_actions(
        self, draws: Sequence[_Draw], frames: Sequence[int], values: Sequence[Mapping[str, Any]]
    ) -> None:
        """Fill the state, the actions and the text of action rows.

        Args:
          frames: frame numbers. values: the features of each frame.
        """
        assets = self.builder.assets
        states = np.stack([frame_values["observation/state"] for frame_values in values])
        states = normalize(states, assets.state_stats, assets.norm_mode)
        chunks, inside = self.dataset.windows(frames, "action", self.builder.sizes.horizon)
        chunks = normalize(chunks, assets.action_stats, assets.norm_mode)
        for i, draw in enumerate(draws):
            draw.row["state"][: states.shape[-1]] = states[i]
            subtask = None
            if self.has_subtask:
                subtask = self.stage_dataset.subtask(frames[i], values[i])
            own = ActionChunk(values[i]["language_instruction"], chunks[i], inside[i])
            self._fill_action_row(draw, values[i], own, states[i], subtask)

    def _fill_action_row(
        self,
        draw: _Draw,
        values: Mapping[str, Any],
        own: ActionChunk,
        state: np.ndarray,
        subtask: str | None,
    ) -> None:
        """Fill the actions and the text of an action row.

        Args:
          values: the features of its frame.
          own: the episode's own instruction and normalised actions.
          state: normalised, float32[S].
        """
        rng = None
        if self.has_relabels or self.stream.extra_segments:
            rng = self._rng(draw)  # making a generator takes longer than a row's text
        chunks = [own]
        if self.has_relabels:
            chunks += self._relabels(values, rng)
        actions = []
        for number, chunk in enumerate(chunks):
            self._write_chunk(draw.row, number, chunk)
            chunk_subtask = None if number else subtask
            actions.append(
                self.segments.action(chunk.instruction, chunk_subtask, state, chunk.actions)
            )
        groups = [SegmentGroup(actions)]
        if subtask:
            groups.append(SegmentGroup([self.segments.subtask(own.instruction, subtask, state)]))
        if self.stream.extra_segments:
            items = self.stage_dataset.items(values)
            extra = self.segments.extra(items, self.stream.extra_segments, rng)
            groups.append(SegmentGroup(extra, self.stream.extra_weight))
        self._pack(draw, groups, required=len(actions))

    def _relabels(self, values: Mapping[str, Any], rng: np.random.Generator) -> list[ActionChunk]:
        """Draw relabels of a frame, at most K - 1, and normalise their actions."""
        assets = self.builder.assets
        sizes = self.builder.sizes
        relabels = draw_relabels(values, sizes.actions_per_row - 1, sizes.horizon, rng)
        chunks = []
        for relabel in relabels:
            actions = normalize(relabel.actions, assets.action_stats, assets.norm_mode)
            chunks.append(relabel._replace(actions=actions))
        return chunks

    def _write_chunk(self, row: Row, number: int, chunk: ActionChunk) -> None:
        """Write a normalised chunk into a row; its segment is the one of the same number."""
        width = chunk.actions.shape[-1]
        row["actions"][number, :, :width] = chunk.actions
        row["action_mask"][number, :, :width] = chunk.inside[:, None]
        row["action_mask"][number] |= not self.builder.options.mask_padding
        row["action_segment"][number] = number + 1

    def _rng(self, draw: _Draw) -> np.random.Generator:
        """Return the generator that draws a row's segments."""
        return np.random.default_rng((self.builder.plan.seed, self.index, draw.n))

    def _pack(self, draw: _Draw, groups: Sequence[SegmentGroup], required: int = 1) -> None:
        """Write segments, of which the first `required` must fit, and loss weights into a row."""
        row = draw.row
        max_targets = self.builder.sizes.max_targets
        try:
            columns = pack_segments(row, groups, max_targets=max_targets, required=required)
        except UserError as error:
            raise UserError(f"stream {self.stream.name!r}: {error}") from error
        row["stream"][row["segment"] > 0] = self.index
        form = self.builder.options.loss_form
        plan = self.builder.plan
        if form == "share":
            coefficient = plan.row_coefficient(self.index, draw.n)
        else:
            coefficient = 1 / plan.batch_size
        weigh_row(row, groups, columns, form, coefficient)


def put_image(row: Row, camera: int, image: np.ndarray) -> None:
    """Write an image uint8[H, W, 3] into a row and set the mask of its camera.

    An image of another size is stretched without keeping the aspect ratio: normalised boxes and
    points stay correct. An image that is a view of the row's memory is not copied.
    """
    row_image = row["images"][camera]
    if image.shape != row_image.shape:
        height, width, _ = row_image.shape
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    if not np.may_share_memory(image, row_image):
        row_image[...] = image
    row["image_mask"][camera] = True
