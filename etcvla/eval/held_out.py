"""What training is asked at its points: losses on held-out rows, and held-out questions by kind.

The rows are drawn by a plan of their own, the same ones at every knot with the same noise, so that numbers compare
over a run; the trainer's batches are not touched.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from etcvla import schedule
from etcvla.data.adapters import open_dataset
from etcvla.data.plan import Plan
from etcvla.data.rlds_layout import split_names
from etcvla.data.splits import check_disjoint
from etcvla.data.stage_dataset import StageDataset
from etcvla.etc.items import Item
from etcvla.eval import vqa
from etcvla.policy import Policy, PolicyOptions
from etcvla.train import sharding
from etcvla.train.metrics import average_metrics
from etcvla.train.stage import Stage
from etcvla.train.step import StepSettings, compute_losses, compute_metrics

SPLIT = "val"


class HeldOut:
    """A stage's evaluation of parameters, by the config's `eval`.

    Every stream has the same share of the held-out rows, whatever its weight in training; those of a dataset that
    holds nothing out are left out. Questions are those of `launch/evaluate.py`, where the stage learns to answer.

    Args:
      mesh: where the parameters lie.

    Raises ValueError if no dataset has a held-out split, if one has episodes that are trained on, or if a stream finds
    nothing in it.
    """

    def __init__(self, stage: Stage, mesh: Mesh):
        config = stage.config
        self._sources = _held_out(stage)
        # Streams that are left out are drawn never, but keep their places: metrics know streams by number.
        streams = [
            dataclasses.replace(stream, weight=((0.0, float(stream.dataset in self._sources)),))
            for stream in stage.plan.streams
        ]
        plan = Plan.make(
            streams, batch_size=config.batch_size, steps=config.eval.batches, seed=config.seed
        )
        self._training, self._mesh = stage, mesh
        self._stage = dataclasses.replace(
            stage, datasets={**stage.datasets, **self._sources}, plan=plan
        )
        self._stage.row_builder()  # finds out what is lacking before anything is compiled
        settings = StepSettings.from_config(config, stage.assets.tokenizer.layout.loc.offset)
        everywhere = NamedSharding(mesh, PartitionSpec())

        def measure(params, batch, step):
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return compute_metrics(
                    compute_losses(stage.model, params, batch, key, settings), settings
                )

        self._measure = jax.jit(measure, out_shardings=everywhere)
        self._policy: Policy | None = None

    def __call__(self, params: Any) -> dict[str, float]:
        """Of parameters: the metrics of a training step, and by dataset and kind `etc/<dataset>/<kind>/accuracy` and
        `.../majority`, what the best constant answer gets."""
        return self._losses(params) | self._scores(params)

    def _losses(self, params: Any) -> dict[str, float]:
        size = self._stage.config.batch_size
        batches = self._stage.batches(0, sharding.local_rows(size, self._mesh))
        found = [
            self._measure(params, sharding.put_batch(batch, self._mesh, size), step)
            for step, batch in enumerate(batches)
        ]
        return average_metrics(jax.device_get(found))

    def _scores(self, params: Any) -> dict[str, float]:
        if not self.questions:
            return {}
        if self._policy is None:
            self._policy = Policy(
                self._stage.model.config,
                params,
                self._stage.assets,
                self._stage.config.data.num_cameras,
                PolicyOptions(head=None),
                self._mesh,
            )
        self._policy.params, out = params, {}
        for name, (questions, train_items) in self.questions.items():
            scores = vqa.scores(vqa.answer_all(self._policy, questions), train_items)
            out |= {
                f"etc/{name}/{kind}/{what}": float(score[what])
                for kind, score in scores.items()
                for what in ("accuracy", "majority")
            }
        self._policy.params = None  # the trainer's next step takes their memory back
        return out

    @functools.cached_property
    def questions(self) -> Mapping[str, tuple[list[vqa.Question], list[Item]]]:
        """By dataset: the questions of every knot, and training items, from which the constant answers are learnt."""
        config, out = self._stage.config, {}
        if not config.eval.questions or not schedule.is_nonzero(config.loss.text):
            return out
        for name, source in self._sources.items():
            if source.known_kinds:
                drawn = vqa.draw_questions(source, per_kind=config.eval.questions, seed=config.seed)
                out[name] = drawn, vqa.items_of(self._training.datasets[name])
        return out


def _held_out(stage: Stage) -> dict[str, StageDataset]:
    """The held-out split of every dataset that has one."""
    found = {}
    for name, training in stage.datasets.items():
        spec, directory = stage.config.datasets[name], training.dataset.directory
        if SPLIT not in split_names(directory):
            continue
        dataset = open_dataset(
            spec.path, SPLIT, adapter=spec.adapter, damaged=stage.config.data.on_damaged
        )
        check_disjoint(training.dataset, dataset)
        found[name] = StageDataset(dataset, training.cameras)
    if not found:
        raise ValueError(
            f"eval.at_progress are set, but no dataset has a split {SPLIT!r}: "
            f"{', '.join(str(source.dataset.directory) for source in stage.datasets.values())}; build one "
            "with it, or set eval.at_progress=()"
        )
    return found
