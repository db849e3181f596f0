"""Open a stage from its config: datasets, plan, rows and model."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from etcvla import schedule
from etcvla.data import rows
from etcvla.data.adapted_dataset import open_dataset
from etcvla.data.answers import find_answer_ids
from etcvla.data.assets import Assets
from etcvla.data.episodes import Episodes
from etcvla.data.loader import batches
from etcvla.data.plan import Plan, Stream
from etcvla.data.prompts import find_format
from etcvla.data.rlds_layout import find_version
from etcvla.data.stage_dataset import ACTION_KIND, StageDataset
from etcvla.data.tokenizer import Tokenizer
from etcvla.errors import UserError
from etcvla.models import pretrained
from etcvla.models.variants import make_config
from etcvla.models.vla import VLA
from etcvla.train.base_model import find_base
from etcvla.train.checkpoint import find_checkpoint
from etcvla.train.vocabulary import TokenRows


def missing_paths(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Return config field -> path for the datasets, checkpoints and tokenizers that do not exist.

    A dataset whose build was killed and a workdir without a finished checkpoint count as missing.
    """
    missing = {}
    for name, dataset in config.datasets.items():
        if not has_dataset(dataset.path):
            missing[f"datasets.{name}.path"] = dataset.path
    if config.init_from and find_checkpoint(config.workdir) is None:
        path = config.init_from
        if not (find_checkpoint(path) or find_base(path) or pretrained.find(path)):
            missing["init_from"] = config.init_from
    if config.data.tokenizer != "tiny" and not pathlib.Path(config.data.tokenizer).exists():
        missing["data.tokenizer"] = config.data.tokenizer
    if config.data.fast and not pathlib.Path(config.data.fast).exists():
        missing["data.fast"] = config.data.fast
    return missing


def has_dataset(path: str) -> bool:
    """Return whether `path` has a finished RLDS dataset."""
    try:
        find_version(path)
    except UserError:
        return False
    return True


def build_datasets(config: ml_collections.ConfigDict) -> None:
    """Build the missing datasets whose config has a build command.

    Raises UserError if something is missing that cannot be built or trained, or if a build fails.
    """
    unbuildable = []
    for field, path in missing_paths(config).items():
        group, _, name = field.removesuffix(".path").partition(".")
        can_build = group == "datasets" and config.datasets[name].build
        can_train = field == "init_from" and config.init_config
        if not can_build and not can_train:
            unbuildable.append(f"  {field} = {path}")
    if unbuildable:
        paths = "\n".join(unbuildable)
        raise UserError(
            f"stage {config.stage}:{config.variant} needs files that do not exist:\n{paths}\n"
            "Create them, or change the field, for instance --config.init_from=PATH"
        )
    for dataset in config.datasets.values():
        if not has_dataset(dataset.path):
            build_dataset(config.stage, dataset)


def build_dataset(user: str, dataset: Mapping[str, Any]) -> None:
    """Build a dataset with the command in its config entry.

    Args:
      user: what needs it, for the printed line.

    Raises UserError if the build fails.
    """
    path = dataset["path"]
    module, *arguments = dataset["build"]
    command = f"python -m {module} {' '.join(arguments)}"
    print(f"{user}: {path} is missing, building it: {command}", flush=True)
    done = subprocess.run([sys.executable, "-m", module, *arguments])
    if done.returncode or not has_dataset(path):
        raise UserError(f"the build of {path} failed; its output is above")


def streams_of(config: ml_collections.ConfigDict) -> list[Stream]:
    """Return the config's streams, in the order in which the plan and the metrics number them.

    Raises UserError if a stream names an unknown dataset, or does not fit `image_attends_prompt`.
    """
    streams = []
    for name, stream in sorted(config.streams.items()):
        if stream.dataset not in config.datasets:
            raise UserError(
                f"streams.{name}.dataset is {stream.dataset!r}; datasets has "
                f"{sorted(config.datasets)}"
            )
        if config.model.image_attends_prompt:
            _check_single_prompt(config, name)
        fields = stream.to_dict()
        for field in ("weight", "rows", "loss_weight"):
            fields[field] = tuple(tuple(point) for point in fields[field])
        streams.append(Stream(name=name, **fields))
        _check_weights(streams[-1], config.loss.form)
    return streams


def _check_weights(stream: Stream, form: str) -> None:
    """Raise UserError if a stream sets a weight that its loss does not use."""
    if form != "share":
        unused = ("rows", "loss_weight", "extra_weight")
        reason = f"with loss.form {form!r}, where weight is the share of the rows"
    elif stream.kind != ACTION_KIND or not stream.extra_segments:
        unused = ("extra_weight",)
        reason = "without extra segments on action rows"
    else:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(Stream)}
    for field in unused:
        if getattr(stream, field) != defaults[field]:
            raise UserError(
                f"streams.{stream.name}.{field} has no effect {reason}; "
                f"set it to {defaults[field]!r}"
            )


def _check_single_prompt(config: ml_collections.ConfigDict, name: str) -> None:
    """Raise UserError if a row of the stream has several prompts: images can attend to one only."""
    stream = config.streams[name]
    if stream.extra_segments:
        raise UserError(
            f"streams.{name}.extra_segments must be 0 with model.image_attends_prompt: the images "
            "can attend to one prompt only"
        )
    if stream.kind == ACTION_KIND and find_format(config.data.prompt).subtask:
        raise UserError(
            f"data.prompt {config.data.prompt!r} asks for a subtask beside the action, and with "
            "model.image_attends_prompt the images can attend to one prompt only"
        )
    if stream.kind == ACTION_KIND and config.data.actions_per_row > 1:
        raise UserError(
            "data.actions_per_row must be 1 with model.image_attends_prompt: the images can attend "
            "to one prompt only"
        )


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Return the stage's plan, which depends on no dataset."""
    return Plan.make(
        streams_of(config), batch_size=config.batch_size, steps=config.steps, seed=config.seed
    )


@dataclasses.dataclass
class Stage:
    """A stage without its parameters: config, assets, datasets, plan, model and sizes of rows."""

    config: ml_collections.ConfigDict
    assets: Assets
    datasets: Mapping[str, StageDataset]
    plan: Plan
    model: VLA
    sizes: rows.RowSizes

    @classmethod
    def open(cls, config: ml_collections.ConfigDict) -> Stage:
        """Open the datasets and the assets. Raises UserError if one is missing or does not fit."""
        datasets = _open_datasets(config)
        assets = inherited_assets(config)
        action_datasets = [
            datasets[stream.dataset] for stream in streams_of(config) if stream.kind == ACTION_KIND
        ]
        _prepare_action_assets(config, assets, action_datasets)
        model = make_model(config, assets)
        return cls(config, assets, datasets, make_plan(config), model, row_sizes(config, model))

    def row_builder(self) -> rows.RowBuilder:
        """Return the builder of the stage's rows.

        Raises UserError if a stream, or a kind of extra segments, has no items.
        """
        options = self._row_options()
        return rows.RowBuilder(self.plan, self.datasets, self.assets, self.sizes, options)

    def _row_options(self) -> rows.RowOptions:
        config = self.config
        return rows.RowOptions(
            prompt=config.data.prompt,
            use_fast=schedule.is_nonzero(config.loss.fast),
            extra_segment_weights=config.extra_segment_weights.to_dict(),
            mask_padding=config.data.mask_padding,
            loss_form=config.loss.form,
        )

    @functools.cached_property
    def token_rows(self) -> TokenRows:
        """The rows of the token table that answers use.

        A run that has saved a checkpoint keeps the answers in it. Without datasets, as when a step
        is compiled ahead of time, every row counts as an answer: the compiled step then computes
        all gradients. Raises UserError for an unknown `optim.vocabulary`.
        """
        checkpoint = find_checkpoint(self.config.workdir)
        answers = checkpoint.meta().get("answer_ids") if checkpoint else None
        if answers is None and not self.datasets:
            answers = range(self.model.config.vocab_size)
        elif answers is None:
            streams = [stream for stream in self.plan.streams if stream.dataset in self.datasets]
            answers = find_answer_ids(streams, self.datasets, self.assets, self._row_options())
        text = self.assets.tokenizer.layout.text
        text_ids = range(text.offset, text.stop)
        return TokenRows.make(self.config.optim.vocabulary, answers, text_ids)

    def batches(
        self, start: int, rows: Sequence[int] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches from step `start` on.

        Args:
          rows: the rows of each batch to build; None: all.
        """
        data = self.config.data
        return batches(
            self.row_builder(),
            start=start,
            rows=rows,
            threads=data.threads,
            workers=data.workers,
            prefetch=data.prefetch,
        )


def _open_datasets(config: ml_collections.ConfigDict) -> dict[str, StageDataset]:
    datasets = {}
    for name, fields in config.datasets.items():
        if len(fields.cameras) > config.data.num_cameras:
            raise UserError(
                f"datasets.{name}.cameras has {len(fields.cameras)} names, but rows have room for "
                f"data.num_cameras {config.data.num_cameras}"
            )
        dataset = open_dataset(fields.path, adapter=fields.adapter, damaged=config.data.on_damaged)
        datasets[name] = StageDataset(dataset, tuple(fields.cameras), dict(fields.rename))
    return datasets


def _prepare_action_assets(
    config: ml_collections.ConfigDict, assets: Assets, datasets: Sequence[StageDataset]
) -> None:
    """Fit the statistics and the FAST tokenizer unless they are inherited, and check that they fit.

    Args:
      assets: changed in place.
      datasets: those of the action streams, the first of which is fitted to.
    """
    if not datasets:
        return
    for source in datasets:
        if assets.fast is None:
            assets.fit_actions(
                source.dataset,
                horizon=config.model.horizon,
                fast_vocab=config.data.fast_vocab,
                mode=config.data.norm,
                fast_path=config.data.fast,
            )
        assets.check_actions(source.dataset)
        _check_widths(config, source.dataset)
    if assets.fast.horizon != config.model.horizon:
        raise UserError(
            f"model.horizon is {config.model.horizon}, but the FAST tokenizer of "
            f"{config.init_from} was fitted to chunks of {assets.fast.horizon} steps; set "
            f"model.horizon={assets.fast.horizon}"
        )
    first = datasets[0]
    assets.describe_actions(
        first.dataset,
        horizon=config.model.horizon,
        cameras=first.cameras,
        prompt=config.data.prompt,
        mask_padding=config.data.mask_padding,
    )


def _check_widths(config: ml_collections.ConfigDict, dataset: Episodes) -> None:
    """Raise UserError if a dataset's vectors are wider than the model's."""
    for field, size in (("action", "action_dim"), ("observation/state", "state_dim")):
        width = dataset.feature(field).width
        if width > config.model[size]:
            raise UserError(
                f"{dataset.directory}: {field} has width {width}, wider than model.{size} "
                f"{config.model[size]}; set model.{size}={width}"
            )


def inherited_assets(config: ml_collections.ConfigDict) -> Assets:
    """Return the assets of the checkpoint that the stage resumes or starts from.

    Without one, they consist of a new tokenizer. Raises UserError if the checkpoint has another
    token layout, notation of places or end of questions.
    """
    checkpoint = find_checkpoint(config.workdir)
    if checkpoint is None and config.init_from:
        checkpoint = find_checkpoint(config.init_from)
    if checkpoint is None:
        data = config.data
        tokenizer = Tokenizer.load(
            data.tokenizer,
            num_actions=data.fast_vocab,
            layout=data.layout,
            places=data.places,
            question_end=data.question_end,
        )
        return Assets(tokenizer)
    assets = Assets.from_json(checkpoint.meta()["assets"])
    layout = assets.tokenizer.layout
    stored = {
        "layout": layout.name,
        "places": layout.places,
        "question_end": layout.question_end,
    }
    for field, value in stored.items():
        if value != config.data[field]:
            raise UserError(
                f"data.{field} is {config.data[field]!r}, but {checkpoint.workdir} was trained "
                f"with {value!r}, which gives other token ids; set data.{field}={value!r}"
            )
    return assets


def make_model(config: ml_collections.ConfigDict, assets: Assets) -> VLA:
    """Return the stage's model.

    Raises UserError if the FAST vocabulary does not fit the token layout, or a loss lacks its
    expert.
    """
    layout = assets.tokenizer.layout
    if config.data.fast_vocab > layout.action.count:
        raise UserError(
            f"data.fast_vocab {config.data.fast_vocab} does not fit the tokenizer's "
            f"{layout.action.count} action ids"
        )
    if assets.fast is not None and assets.fast.vocab_size > layout.action.count:
        raise UserError(
            f"the FAST tokenizer has {assets.fast.vocab_size} tokens and the vocabulary "
            f"{layout.action.count} action ids; raise data.fast_vocab"
        )
    if config.model.expert == "none" and schedule.is_nonzero(config.loss.flow):
        raise UserError(
            'model.expert is "none", but loss.flow is not 0: only an expert trains on the flow loss'
        )
    # The model's own flag holds for the whole stage. A schedule that varies is applied by the step.
    points = schedule.check_schedule(config.model.insulate, "model.insulate", most=1)
    insulate = all(value == 1 for _, value in points)
    fields = {**config.model, "insulate": insulate}
    return VLA(make_config(vocab_size=layout.vocab_size, **fields))


def row_sizes(config: ml_collections.ConfigDict, model: VLA) -> rows.RowSizes:
    """Return the sizes of the stage's rows."""
    return rows.RowSizes(
        num_cameras=config.data.num_cameras,
        image_size=model.config.siglip.image_size,
        text_len=config.data.text_len,
        max_targets=config.data.max_targets,
        state_dim=config.model.state_dim,
        horizon=config.model.horizon,
        action_dim=config.model.action_dim,
        actions_per_row=config.data.actions_per_row,
    )
