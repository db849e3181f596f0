"""Base models: small VLMs as folders that can ship with the package.

A folder has `params.safetensors` (float16, without an action expert), `meta.json` and `card.md`.
`launch/convert.py --to=base` writes it from a training run. `init_from = "base"` is the folder that
ships with the package; the path of another such folder works as well.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from etcvla import rules
from etcvla.data.tokenizer import Tokenizer
from etcvla.errors import UserError
from etcvla.files import hash_file, read_csv
from etcvla.models.pretrained import new_directory, safetensors
from etcvla.models.vla import VLAConfig
from etcvla.provenance import git_commit
from etcvla.results_schema import BASE_DATA
from etcvla.train.checkpoint import SavedCheckpoint
from etcvla.train.metrics import GROUPS

SHIPPED = pathlib.Path(__file__).parents[1] / "models/assets/tiny_base"
MAX_BYTES = 8_000_000  # of the parameters' file
_FORMAT = "etcvla-base-1"
_PARAMS = "params.safetensors"
_META = "meta.json"
# Question type -> accuracy that a base model needs before a study starts from it.
GATES = {"identify_point": 0.9, "locate_box": 0.7}
_CARD = """\
# Base model

A vision-language model that answers questions about pictures; it has no action expert.
`init_from = "base"` starts a stage from it.

Made by `{command}` at commit {commit}, then `launch/convert.py --to=base`.
SHA-256 of {file}: {sha256}. Data: {datasets}.

## Held-out questions

Share of correct answers about pictures that were not trained on. A box is correct if its IoU with
the true box is at least 0.5.

{scores}
"""


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A base model on disk, not yet read.

    Attributes:
      meta: the content of `meta.json`: format, sha256 of the parameters' file, `requires` (what a
        stage must agree in), seed, command, commit, datasets (name -> build command), scores.
    """

    folder: epath.Path
    meta: Mapping[str, Any]

    def check_fits(self, model: VLAConfig, tokenizer: Tokenizer) -> None:
        """Raise UserError naming the fields in which a stage differs from the base model."""
        expected = _requirements(model, tokenizer)
        differing = [
            f"{field} is {expected.get(field)!r}, the base model has {value!r}"
            for field, value in self.meta["requires"].items()
            if expected.get(field) != value
        ]
        if differing:
            raise UserError(
                f"{self.folder} does not fit the stage: {'; '.join(differing)}. Change these "
                "fields, or set init_from to another checkpoint"
            )

    def read_params(self) -> dict[str, np.ndarray]:
        """Return the parameters by path, float32. Raises UserError for a file with another hash."""
        path = self.folder / _PARAMS
        sha256 = hash_file(path) if path.exists() else "no file"
        if sha256 != self.meta["sha256"]:
            raise UserError(
                f"{path} has the SHA-256 {sha256}, but {_META} says {self.meta['sha256']}: the "
                "file is damaged or was replaced. Restore the folder (git checkout, or install "
                "etcvla again), or export it again with launch/convert.py --to=base"
            )
        params = {}
        for name, tensor in safetensors.read(path).items():
            params[name] = np.empty(tensor.shape, np.float32)
            tensor.read_into(params[name])
        return params


def find_base(init_from: str) -> BaseModel | None:
    """Return the base model that `init_from` names, or None if it names none."""
    folder = epath.Path(SHIPPED if init_from == "base" else init_from)
    try:
        meta = json.loads((folder / _META).read_text())
    except (OSError, ValueError):
        return None
    return BaseModel(folder, meta) if meta.get("format") == _FORMAT else None


def export_base(
    params: Mapping, model: VLAConfig, checkpoint: SavedCheckpoint, directory: epath.PathLike
) -> None:
    """Write a base model.

    Args:
      params: all parameters, without adapters; those of the expert are left out.
      model: config of the model.
      checkpoint: the checkpoint that they are from; its run must have evaluated held-out questions.
      directory: the folder to create.

    Raises UserError if the folder exists, the file would be larger than `MAX_BYTES`, or the run has
    no scores.
    """
    meta = checkpoint.meta()
    tokenizer = Tokenizer.from_json(meta["assets"]["tokenizer"])
    config = ml_collections.ConfigDict(meta["config"])
    scores = _read_scores(checkpoint.workdir)
    with new_directory(directory) as folder:
        tensors = {}
        for path, value in _without_expert(params).items():
            array = np.asarray(value, np.float16)
            tensors[path] = (array.shape, [array])
        safetensors.save(folder / _PARAMS, tensors)
        size = (folder / _PARAMS).stat().length
        if size > MAX_BYTES:
            raise UserError(
                f"{size:,} bytes of parameters; a base model has at most {MAX_BYTES:,}. Train a "
                "smaller model.size"
            )
        content = {
            "format": _FORMAT,
            "sha256": hash_file(folder / _PARAMS),
            "requires": _requirements(model, tokenizer),
            "seed": config.seed,
            "command": _command(config),
            "commit": git_commit(),
            "datasets": {name: " ".join(x.build) for name, x in config.datasets.items()},
            "scores": scores,
        }
        (folder / _META).write_text(json.dumps(content, indent=2) + "\n")
        (folder / "card.md").write_text(_card(content))


def _requirements(model: VLAConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the facts in which a base model and a stage must agree, by config field."""
    sizes = dataclasses.asdict(model)
    requirements = flatten_dict({name: sizes[name] for name in ("siglip", "vlm")}, sep=".")
    backend = json.dumps(json.loads(tokenizer.to_json())["backend"], sort_keys=True)
    return {
        **requirements,
        "vocab_size": model.vocab_size,
        "data.layout": tokenizer.layout.name,
        "data.places": tokenizer.layout.places,
        "data.question_end": tokenizer.layout.question_end,
        "data.tokenizer (SHA-256)": hashlib.sha256(backend.encode()).hexdigest(),
    }


def _without_expert(params: Mapping) -> dict[str, Any]:
    """Return the parameters by path, without those of the action expert."""
    flat = flatten_dict(params, sep="/")
    groups = rules.assign(GROUPS, flat, "parameter groups", all_used=False)
    return {path: value for path, value in flat.items() if groups[path] != "expert"}


def _read_scores(workdir: epath.Path) -> dict[str, float]:
    """Return the accuracy by question type in the run's evaluation of held-out questions."""
    answered = collections.defaultdict(list)
    for row in read_csv(workdir / "evaluation" / "questions.csv"):
        answered[row["question_type"]].append(int(row["correct"]))
    if not answered:
        raise UserError(
            f"{workdir} has no scores of held-out questions for the card; run launch/evaluate.py "
            f"--checkpoint={workdir} --scenes= --datasets={BASE_DATA}"
        )
    return {name: sum(correct) / len(correct) for name, correct in sorted(answered.items())}


def _command(config: ml_collections.ConfigDict) -> str:
    """Return the command that trains the run of a checkpoint's config."""
    return (
        f"python launch/train.py --config=configs/{config.stage}.py:{config.variant} "
        f"--config.seed={config.seed} --config.steps={config.steps}"
    )


def _card(content: Mapping[str, Any]) -> str:
    rows = ["| question | score |", "|---|---|"]
    for name, value in content["scores"].items():
        minimum = GATES.get(name)
        gate = "" if minimum is None else f" (gate: {minimum:.0%})"
        rows.append(f"| {name} | {value:.1%}{gate} |")
    datasets = ", ".join(f"{name} (`{build}`)" for name, build in content["datasets"].items())
    fields = {**content, "file": _PARAMS, "scores": "\n".join(rows), "datasets": datasets}
    return _CARD.format(**fields)
