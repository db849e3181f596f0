"""openpi's checkpoints: an orbax tree of our names, with SigLIP and Gemma one level down, under `PaliGemma/`.

Paths in the file begin with `params/` and, as openpi's own trainer writes them, end with `/value`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.models.pretrained.hugging_face import backbone
from etcvla.models.pretrained.layout import Checkpoint, ParamEntry, Shapes, sizes_of
from etcvla.models.vla import VLAConfig

FORMAT = "openpi params"


def find(path: epath.Path) -> epath.Path | None:
    """The parameters' directory: `path` itself, `path/params`, or `params` of the newest step under `path`."""
    steps = [child for child in path.iterdir() if child.name.isdigit()] if path.is_dir() else []
    newest = [max(steps, key=lambda step: int(step.name)) / "params"] if steps else []
    return next(
        (folder for folder in (path, path / "params", *newest) if (folder / "_METADATA").exists()),
        None,
    )


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A `layout.Tensor` in an orbax directory."""

    directory: epath.Path
    path: tuple[str, ...]
    metadata: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.metadata.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.metadata.dtype)

    def read_into(self, view: np.ndarray) -> None:
        item = unflatten_dict({self.path: self.metadata})
        how = unflatten_dict({self.path: ocp.RestoreArgs(restore_type=np.ndarray)})
        found = ocp.PyTreeCheckpointHandler().restore(
            self.directory,
            args=ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True),
        )
        view[...] = jax.tree.leaves(found)[0]


def open_checkpoint(path: epath.Path) -> Checkpoint:
    """Reads the metadata; names are openpi's without `params/` and `/value`."""
    tree = flatten_dict(ocp.PyTreeCheckpointHandler().metadata(path).tree)
    tensors = {_bare(key): Leaf(path, key, metadata) for key, metadata in tree.items()}
    sizes = sizes_of(
        {name.removeprefix("PaliGemma/"): tensor.shape for name, tensor in tensors.items()}
    )

    def entries(shapes: Shapes) -> list[ParamEntry]:
        """All of ours but adapters that only we have; of a pi0-FAST, which has no expert, the backbone."""
        paths = shapes if any("action" in name for name in tensors) else backbone(shapes)
        return [
            ParamEntry(_openpis(path), path)
            for path in paths
            if "lora" not in path or _openpis(path) in tensors
        ]

    return Checkpoint(path, FORMAT, tensors, sizes, entries)


def _bare(key: tuple[str, ...]) -> str:
    key = key[1:] if key[0] == "params" else key
    return "/".join(key[:-1] if key[-1] == "value" else key)


def _openpis(path: str) -> str:
    return f"PaliGemma/{path}" if path.startswith(("img/", "llm/")) else path


def export(
    params: Mapping,
    config: VLAConfig,
    directory: epath.Path,
    norm_stats: Mapping[str, Mapping[str, Mapping]],
) -> None:
    """Writes `params` and `assets/<name>/norm_stats.json` into a directory, as openpi's trainer does.

    Raises ValueError for a model that is neither pi0 nor pi0.5.
    """
    if config.expert and (config.state == "token") == config.expert.adaptive:
        raise ValueError(
            f"openpi has no model with model.state {config.state!r} and expert.adaptive "
            f"{config.expert.adaptive}: pi0 has 'token' and False, pi0.5 'text' and True"
        )
    tree = {
        ("params", *_openpis(path).split("/"), "value"): leaf
        for path, leaf in flatten_dict(params, sep="/").items()
    }
    ocp.PyTreeCheckpointer().save(directory / "params", unflatten_dict(tree))
    for name, stats in norm_stats.items():
        plain = {
            part: {
                field: np.asarray(values[field]).tolist() for field in ("mean", "std", "q01", "q99")
            }
            for part, values in stats.items()
        }
        folder = directory / "assets" / name
        folder.mkdir(parents=True)
        (folder / "norm_stats.json").write_text(json.dumps({"norm_stats": plain}, indent=2))
