"""Checkpoints of openpi: an orbax tree with our names; SigLIP and Gemma are under `PaliGemma/`.

Paths in the file begin with `params/` and, if openpi's own trainer wrote them, end with `/value`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.errors import UserError
from etcvla.files import write_json
from etcvla.models.pretrained.hugging_face import backbone
from etcvla.models.pretrained.layout import ParamEntry, ReleasedCheckpoint, Shapes, sizes_of
from etcvla.models.types import Shape
from etcvla.models.vla import VLAConfig

FORMAT = "openpi params"


def find(path: epath.Path) -> epath.Path | None:
    """Return the directory of the parameters, or None if there is none.

    It is `path` itself, `path/params`, or `params` of the newest step under `path`.
    """
    candidates = [path, path / "params"]
    if path.is_dir():
        steps = [int(child.name) for child in path.iterdir() if child.name.isdigit()]
        if steps:
            candidates.append(path / str(max(steps)) / "params")
    for directory in candidates:
        if (directory / "_METADATA").exists():
            return directory
    return None


@dataclasses.dataclass(frozen=True)
class OrbaxTensor:
    """A `layout.Tensor` in an orbax directory."""

    directory: epath.Path
    path: tuple[str, ...]
    metadata: Any
    shape: Shape
    dtype: np.dtype

    def read_into(self, view: np.ndarray) -> None:
        """Fill the view; see `layout.Tensor`."""
        item = unflatten_dict({self.path: self.metadata})
        restore_args = unflatten_dict({self.path: ocp.RestoreArgs(restore_type=np.ndarray)})
        restored = ocp.PyTreeCheckpointHandler().restore(
            self.directory,
            args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True),
        )
        view[...] = jax.tree.leaves(restored)[0]


def open_checkpoint(path: epath.Path) -> ReleasedCheckpoint:
    """Read the metadata. Tensors have openpi's names without `params/` and `/value`."""
    tree = flatten_dict(ocp.PyTreeCheckpointHandler().metadata(path).tree)
    tensors = {}
    for key, metadata in tree.items():
        tensor = OrbaxTensor(path, key, metadata, tuple(metadata.shape), np.dtype(metadata.dtype))
        tensors[_name(key)] = tensor
    shapes = {name.removeprefix("PaliGemma/"): tensor.shape for name, tensor in tensors.items()}
    has_expert = any("action" in name for name in tensors)

    def _entries(shapes: Shapes) -> list[ParamEntry]:
        """List all parameters, without adapters that only our model has.

        A pi0-FAST checkpoint has no expert, so only the backbone is listed.
        """
        entries = []
        for param in shapes if has_expert else backbone(shapes):
            name = _openpi_name(param)
            if "lora" not in param or name in tensors:
                entries.append(ParamEntry(name, param))
        return entries

    return ReleasedCheckpoint(path, FORMAT, tensors, sizes_of(shapes), _entries)


def _name(key: tuple[str, ...]) -> str:
    """Return the name of a tensor, from its path in the file."""
    return "/".join(key).removeprefix("params/").removesuffix("/value")


def _openpi_name(path: str) -> str:
    """Return openpi's name of our parameter."""
    return f"PaliGemma/{path}" if path.startswith(("img/", "llm/")) else path


def export(
    params: Mapping,
    config: VLAConfig,
    directory: epath.Path,
    norm_stats: Mapping[str, Mapping[str, Mapping]],
) -> None:
    """Write `params` and `assets/<name>/norm_stats.json`, as openpi's trainer does.

    Raises: UserError for a model that is neither pi0 nor pi0.5.
    """
    if config.expert and (config.state == "token") == config.expert.adaptive:
        raise UserError(
            f"openpi has no model with model.state {config.state!r} and expert.adaptive "
            f"{config.expert.adaptive}: pi0 has 'token' and False, pi0.5 'text' and True"
        )
    tree = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        tree[("params", *_openpi_name(path).split("/"), "value")] = leaf
    ocp.PyTreeCheckpointer().save(directory / "params", unflatten_dict(tree))
    for name, stats in norm_stats.items():
        folder = directory / "assets" / name
        folder.mkdir(parents=True)
        plain_stats = {part: _plain(values) for part, values in stats.items()}
        write_json(folder / "norm_stats.json", {"norm_stats": plain_stats})


def _plain(values: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the statistics of the state or the actions as lists of numbers."""
    return {field: np.asarray(values[field]).tolist() for field in ("mean", "std", "q01", "q99")}
