"""A stage, made from its config: datasets, plan, rows, model. Training, planning and evaluation all open it here."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import ml_collections
import numpy as np

from etcvla import schedule
from etcvla.data import rows
from etcvla.data.adapters import open_dataset
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
from etcvla.train.checkpoint import find_checkpoint

log = logging.getLogger(__name__)


def missing_paths(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Config field -> path, for every dataset and checkpoint that the stage needs and that is not there."""
    needs = {f"datasets.{name}.path": d.path for name, d in config.datasets.items()}
    if config.init_from and find_checkpoint(config.workdir) is None:
        needs["init_from"] = config.init_from
    if config.data.tokenizer != "tiny":
        needs["data.tokenizer"] = config.data.tokenizer
    if config.data.fast:
        needs["data.fast"] = config.data.fast
    return {field: path for field, path in needs.items() if not _exists(field, path)}


def _exists(field: str, path: str) -> bool:
    # A workdir without a finished checkpoint, or a dataset whose build was killed, is as good as missing.
    if field == "init_from":
        return find_checkpoint(path) is not None or pretrained.find(path) is not None
    return has_dataset(path) if field.startswith("datasets.") else pathlib.Path(path).exists()


def has_dataset(path: str) -> bool:
    """Whether a whole RLDS dataset lies at `path`."""
    try:
        find_version(path)
    except UserError:
        return False
    return True


def build_datasets(config: ml_collections.ConfigDict) -> None:
    """Builds the missing datasets that say how.

    Raises FileNotFoundError naming what is missing and cannot be made, RuntimeError if a build fails.
    """
    lacking = [
        f"  {field} = {path}"
        for field, path in missing_paths(config).items()
        if not (field.startswith("datasets.") and config.datasets[field.split(".")[1]].build)
        and not (field == "init_from" and config.init_config)
    ]
    if lacking:
        raise FileNotFoundError(
            f"stage {config.stage}:{config.variant} needs what is not there:\n"
            + "\n".join(lacking)
            + "\nPut it there, or point the field elsewhere, for instance "
            "--config.init_from=PATH"
        )
    for dataset in config.datasets.values():
        if not has_dataset(dataset.path):
            module, *arguments = dataset.build
            print(
                f"{config.stage}: {dataset.path} is missing, building it: python -m {module} {' '.join(arguments)}",
                flush=True,
            )
            if subprocess.run(
                [sys.executable, "-m", module, *arguments]
            ).returncode or not has_dataset(dataset.path):
                raise RuntimeError(f"{dataset.path} was not built; why stands above")


def streams_of(config: ml_collections.ConfigDict) -> list[Stream]:
    """The config's streams in the order that the plan and the metrics number them.

    Raises ValueError for a stream of an unknown dataset.
    """
    found = []
    for name, s in sorted(config.streams.items()):
        if s.dataset not in config.datasets:
            raise ValueError(
                f"streams.{name}.dataset is {s.dataset!r}; datasets has {sorted(config.datasets)}"
            )
        if config.model.image_attends_prompt and s.extra_segments:
            raise ValueError(
                f"streams.{name}.extra_segments must be 0 with model.image_attends_prompt: the images can read "
                "one prompt only"
            )
        if (
            config.model.image_attends_prompt
            and s.kind == ACTION_KIND
            and find_format(config.data.prompt).subtask
        ):
            raise ValueError(
                f"data.prompt {config.data.prompt!r} asks for a subtask beside the action, and with "
                "model.image_attends_prompt the images can read one prompt only"
            )
        found.append(
            Stream(name, s.dataset, s.kind, tuple(tuple(k) for k in s.weight), s.extra_segments)
        )
    return found


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """The stage's plan; it needs no dataset."""
    return Plan.make(
        streams_of(config), batch_size=config.batch_size, steps=config.steps, seed=config.seed
    )


@dataclasses.dataclass
class Stage:
    """Everything of a stage but its parameters."""

    config: ml_collections.ConfigDict
    assets: Assets
    datasets: Mapping[str, StageDataset]
    plan: Plan
    model: VLA
    sizes: rows.RowSizes

    @classmethod
    def open(cls, config: ml_collections.ConfigDict) -> Stage:
        """Opens datasets and assets. Raises FileNotFoundError or ValueError naming what is missing or does not fit."""
        datasets = {
            name: StageDataset(
                open_dataset(d.path, adapter=d.adapter, damaged=config.data.on_damaged),
                tuple(d.cameras),
            )
            for name, d in config.datasets.items()
        }
        for name, source in datasets.items():
            if len(source.cameras) > config.data.num_cameras:
                raise ValueError(
                    f"datasets.{name}.cameras has {len(source.cameras)} names, rows have room for "
                    f"data.num_cameras {config.data.num_cameras}"
                )
        assets = inherited_assets(config)
        acting = [s for s in streams_of(config) if s.kind == ACTION_KIND]
        for s in acting:
            source = datasets[s.dataset]
            if assets.fast is None:
                assets.fit_actions(
                    source.dataset,
                    horizon=config.model.horizon,
                    fast_vocab=config.data.fast_vocab,
                    mode=config.data.norm,
                    fast_path=config.data.fast,
                )
            assets.check_actions(source.dataset)
            check_widths(config, source.dataset)
        if acting and assets.fast.horizon != config.model.horizon:
            raise ValueError(
                f"model.horizon is {config.model.horizon}, but the FAST tokenizer of {config.init_from} "
                f"was fitted to chunks of {assets.fast.horizon} steps; keep that horizon"
            )
        if acting:
            source = datasets[acting[0].dataset]
            assets.describe_actions(
                source.dataset,
                horizon=config.model.horizon,
                cameras=source.cameras,
                prompt=config.data.prompt,
                mask_padding=config.data.mask_padding,
            )
        model = make_model(config, assets)
        return cls(config, assets, datasets, make_plan(config), model, row_sizes(config, model))

    def row_builder(self) -> rows.RowBuilder:
        """What makes the stage's rows. Raises ValueError for a stream or a rider's kind of which there is nothing."""
        c = self.config
        return rows.RowBuilder(
            self.plan,
            self.datasets,
            self.assets,
            self.sizes,
            rows.RowOptions(
                prompt=c.data.prompt,
                use_fast=schedule.is_nonzero(c.loss.fast),
                extra_segment_weights=c.extra_segment_weights.to_dict(),
                mask_padding=c.data.mask_padding,
                loss_mean=c.loss.mean,
            ),
        )

    def batches(
        self, start: int, rows: Sequence[int] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches from step `start` on: these rows of each, or all."""
        data = self.config.data
        return batches(
            self.row_builder(),
            start=start,
            rows=rows,
            threads=data.threads,
            workers=data.workers,
            prefetch=data.prefetch,
        )


def check_widths(config: ml_collections.ConfigDict, dataset: Episodes) -> None:
    """Raises ValueError if a dataset's vectors are wider than the model's."""
    for field, size in (("action", "action_dim"), ("observation/state", "state_dim")):
        width = dataset.feature(field).width
        if width > config.model[size]:
            raise ValueError(
                f"{dataset.directory}: {field} has width {width}, wider than model.{size} "
                f"{config.model[size]}; raise that"
            )


def inherited_assets(config: ml_collections.ConfigDict) -> Assets:
    """Those of the checkpoint that the stage resumes or starts from; else a fresh tokenizer alone.

    Raises ValueError for a checkpoint with another token layout.
    """
    checkpoint = find_checkpoint(config.workdir)
    if checkpoint is None and config.init_from:
        checkpoint = find_checkpoint(config.init_from)
    if checkpoint is not None:
        assets = Assets.from_json(checkpoint.meta()["assets"])
        layout = assets.tokenizer.layout.name
        if layout != config.data.layout:
            raise UserError(
                f"data.layout is {config.data.layout!r}, but {checkpoint.workdir} was trained with "
                f"{layout!r}, whose token ids differ; set data.layout={layout!r}"
            )
        return assets
    return Assets(
        Tokenizer.load(
            config.data.tokenizer, num_actions=config.data.fast_vocab, layout=config.data.layout
        )
    )


def make_model(config: ml_collections.ConfigDict, assets: Assets) -> VLA:
    """The stage's model. Raises ValueError if the FAST vocabulary does not fit the token layout."""
    layout = assets.tokenizer.layout
    if config.data.fast_vocab > layout.action.count:
        raise ValueError(
            f"data.fast_vocab {config.data.fast_vocab} does not fit the tokenizer's {layout.action.count} "
            "action ids"
        )
    if assets.fast is not None and assets.fast.vocab_size > layout.action.count:
        raise ValueError(
            f"the FAST tokenizer has {assets.fast.vocab_size} tokens and the vocabulary "
            f"{layout.action.count} action ids; raise data.fast_vocab"
        )
    if config.model.expert == "none" and schedule.is_nonzero(config.loss.flow):
        raise ValueError(
            'model.expert is "none", but loss.flow has weight: only an expert learns the flow'
        )
    # Knots that vary are the step's: the model's own switch is for good.
    points = schedule.check_schedule(config.model.insulate, "model.insulate", most=1)
    insulate = all(value == 1 for _, value in points)
    return VLA(make_config(vocab_size=layout.vocab_size, **{**config.model, "insulate": insulate}))


def row_sizes(config: ml_collections.ConfigDict, model: VLA) -> rows.RowSizes:
    """The sizes of the stage's rows."""
    return rows.RowSizes(
        num_cameras=config.data.num_cameras,
        image_size=model.config.siglip.image_size,
        text_len=config.data.text_len,
        max_targets=config.data.max_targets,
        state_dim=config.model.state_dim,
        horizon=config.model.horizon,
        action_dim=config.model.action_dim,
    )
