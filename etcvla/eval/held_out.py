"""Evaluation during training on held-out data: losses on rows, and accuracy of questions.

A plan of its own draws the rows, the same ones with the same noise at every evaluation, so that
the numbers of a run are comparable. The batches of the training are not affected.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from etcvla import schedule
from etcvla.data.adapted_dataset import open_dataset
from etcvla.data.plan import Plan
from etcvla.data.rlds_layout import split_names
from etcvla.data.splits import check_disjoint
from etcvla.data.stage_dataset import StageDataset
from etcvla.errors import UserError
from etcvla.etc.items import Item
from etcvla.eval import vqa
from etcvla.models.vla import Batch, Params
from etcvla.policy import Policy, PolicyOptions
from etcvla.train import sharding
from etcvla.train.metrics import average_metrics
from etcvla.train.stage import Stage
from etcvla.train.step import StepSettings, compute_losses, compute_metrics

SPLIT = "val"


class HeldOutEvaluation:
    """Evaluates parameters on the held-out splits of a stage, by the config's `eval`.

    Every stream has the same share of the rows, independent of its weight in training; streams of
    datasets without a held-out split are left out. If the stage trains text, it also asks the
    questions of `launch/evaluate.py`.

    Args:
      mesh: devices of the parameters.

    Raises UserError if no dataset has a held-out split, if a split shares episodes with the
    training split, or if a stream has no matching rows in it.
    """

    def __init__(self, stage: Stage, mesh: Mesh):
        config = stage.config
        self._mesh = mesh
        self._training_datasets = stage.datasets
        self._held_out = _open_held_out(stage)
        # Streams without held-out rows have weight 0. They are not removed from the plan, because
        # metrics identify streams by their number.
        streams = []
        for stream in stage.plan.streams:
            weight = float(stream.dataset in self._held_out)
            constant = ((0.0, weight),)
            streams.append(
                dataclasses.replace(
                    stream, weight=constant, rows=constant, loss_weight=((0.0, 1.0),)
                )
            )
        plan = Plan.make(
            streams, batch_size=config.batch_size, steps=config.eval.batches, seed=config.seed
        )
        self._stage = dataclasses.replace(
            stage, datasets={**stage.datasets, **self._held_out}, plan=plan
        )
        self._stage.row_builder()  # raises its errors before anything compiles
        settings = StepSettings.from_config(config, stage.assets.tokenizer.layout.loc.offset)

        def _metrics(params: Params, batch: Batch, step: int) -> dict:
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                losses = compute_losses(stage.model, params, batch, key, settings)
                return compute_metrics(losses, settings)

        self._metrics = jax.jit(_metrics, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, params: Params) -> dict[str, float]:
        """Evaluate parameters.

        Returns:
          The metrics of a training step, and for each dataset and kind of question
          `etc/<dataset>/<kind>/accuracy` and `etc/<dataset>/<kind>/majority`, which is the
          accuracy of the best constant answer.
        """
        return self._row_metrics(params) | self._question_metrics(params)

    def _row_metrics(self, params: Params) -> dict:
        size = self._stage.config.batch_size
        batches = self._stage.batches(0, sharding.local_rows(size, self._mesh))
        metrics = []
        for step, batch in enumerate(batches):
            batch = sharding.put_batch(batch, self._mesh, size)
            metrics.append(self._metrics(params, batch, step))
        return average_metrics(jax.device_get(metrics))

    def _question_metrics(self, params: Params) -> dict:
        if not self.questions:
            return {}
        metrics = {}
        self._policy.params = params
        for name, (questions, train_items) in self.questions.items():
            answered = vqa.answer_questions(self._policy, questions)
            for kind, scores in vqa.score_by_kind(answered, train_items).items():
                for score in ("accuracy", "majority"):
                    metrics[f"etc/{name}/{kind}/{score}"] = float(scores[score])
        self._policy.params = None  # the next training step needs their memory
        return metrics

    @functools.cached_property
    def _policy(self) -> Policy:
        return Policy(
            self._stage.model.config,
            None,
            self._stage.assets,
            self._stage.config.data.num_cameras,
            PolicyOptions(head=None),
            self._mesh,
        )

    @functools.cached_property
    def questions(self) -> Mapping[str, tuple[list[vqa.Question], list[Item]]]:
        """Dataset -> questions of every evaluation, and training items for the blind guesses."""
        config = self._stage.config
        questions = {}
        if not config.eval.questions or not schedule.is_nonzero(config.loss.text):
            return questions
        for name, dataset in self._held_out.items():
            if dataset.known_kinds:
                drawn = vqa.draw_questions(
                    dataset, per_kind=config.eval.questions, seed=config.seed
                )
                questions[name] = drawn, vqa.sample_items(self._training_datasets[name])
        return questions


def _open_held_out(stage: Stage) -> dict[str, StageDataset]:
    """Return the held-out split of every dataset that has one."""
    config = stage.config
    held_out = {}
    for name, training in stage.datasets.items():
        if SPLIT not in split_names(training.dataset.directory):
            continue
        spec = config.datasets[name]
        dataset = open_dataset(
            spec.path, SPLIT, adapter=spec.adapter, damaged=config.data.on_damaged
        )
        check_disjoint(training.dataset, dataset)
        held_out[name] = StageDataset(dataset, training.cameras)
    if not held_out:
        directories = [str(training.dataset.directory) for training in stage.datasets.values()]
        raise UserError(
            f"eval.at_progress is set, but no dataset has a split {SPLIT!r}: "
            f"{', '.join(directories)}; build a dataset with this split, or set eval.at_progress=()"
        )
    return held_out
