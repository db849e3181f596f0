"""Describe a checkpoint, or export one of ours.

python launch/convert.py --checkpoint=PATH    # describe it; released weights too
python launch/convert.py --checkpoint=WORKDIR --to=hf --out=DIR [--tokenizer=DIR]
python launch/convert.py --checkpoint=WORKDIR --to=openpi --out=DIR
python launch/convert.py --checkpoint=WORKDIR --to=base --out=DIR    # for init_from
"""

import collections
import json
from collections.abc import Sequence

from absl import flags

from etcvla.errors import UserError
from etcvla.models import pretrained
from etcvla.models.pretrained.layout import ReleasedCheckpoint, format_size
from etcvla.models.variants import config_from_dict
from etcvla.policy import Policy
from etcvla.train.base_model import export_base, find_base
from etcvla.train.checkpoint import find_checkpoint, open_checkpoint
from launch import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir or checkpoint; without --to also released weights.", required=True
)
_TO = flags.DEFINE_enum(
    "to",
    None,
    ["hf", "openpi", "base"],
    "Format to export to; without it, --checkpoint is described.",
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; only with --to.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Folder with the tokenizer's files, which are copied; only with --to=hf."
)


def main(_: Sequence[str]) -> None:
    """Describe --checkpoint, or export it."""
    if (_TO.value is None) != (_OUT.value is None):
        raise UserError("--to and --out need each other: give both to export, none to describe")
    if _TOKENIZER.value and _TO.value != "hf":
        raise UserError("--tokenizer needs --to=hf: only that format has a tokenizer")
    if _TO.value is None:
        print(describe(_CHECKPOINT.value))
        return
    policy = Policy.load(_CHECKPOINT.value)
    if _TO.value == "base":
        checkpoint = open_checkpoint(_CHECKPOINT.value)
        export_base(policy.params, policy.config, checkpoint, _OUT.value)
    elif _TO.value == "hf":
        pretrained.export_hugging_face(policy.params, policy.config, _OUT.value, _TOKENIZER.value)
    else:
        pretrained.export_openpi(policy.params, policy.config, _OUT.value, norm_stats(policy))
    print(describe(_OUT.value))


def norm_stats(policy: Policy) -> dict[str, dict]:
    """Return the policy's statistics with openpi's names; empty for a policy without actions."""
    assets = policy.assets
    if not assets.action_stats:
        return {}
    stats = {"state": assets.state_stats.to_dict(), "actions": assets.action_stats.to_dict()}
    return {"etcvla": stats}


def describe(path: str) -> str:
    """Return the format, number of parameters and sizes of the checkpoint at a path.

    Raises: UserError if there is none.
    """
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        model = checkpoint.meta()["model"]
        shapes = pretrained.parameter_shapes(config_from_dict(model))
        count = format_size(shapes.values())
        return f"{path}: etcvla checkpoint, step {checkpoint.step}: {count}\n  {model}"
    base = find_base(path)
    if base is not None:
        return f"{path}: base model\n  " + json.dumps(base.meta)
    released = pretrained.find(path)
    if released is None:
        raise UserError(f"{path} is neither a workdir with a checkpoint nor released weights")
    return _describe_released(released)


def _describe_released(checkpoint: ReleasedCheckpoint) -> str:
    tensors = list(checkpoint.tensors.values())
    count = format_size([tensor.shape for tensor in tensors])
    dtypes = collections.Counter(str(tensor.dtype) for tensor in tensors)
    dtype_counts = ", ".join(f"{number} {dtype}" for dtype, number in dtypes.items())
    lines = [f"{checkpoint.path}: {checkpoint.format}: {count}, {dtype_counts}"]
    lines += [f"  {field} = {value}" for field, value in checkpoint.sizes.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    common.run(main)
