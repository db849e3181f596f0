"""Says what a checkpoint holds; exports one of ours.

python launch/convert.py --from=PATH                  # one of our workdirs, or released weights
python launch/convert.py --from=WORKDIR --to=hf DIR [--tokenizer=DIR]   # the VLM, for transformers
python launch/convert.py --from=WORKDIR --to=openpi DIR                 # pi0 or pi0.5, for openpi
"""

import collections
import math

from absl import flags

from etcvla.models import pretrained
from etcvla.models.variants import config_from_dict
from etcvla.policy import Policy
from etcvla.train.checkpoint import find_checkpoint
from launch import common

_FROM = flags.DEFINE_string(
    "from", None, "A workdir of ours; without --to also released weights.", required=True
)
_TO = flags.DEFINE_enum(
    "to", None, ["hf", "openpi"], "The format to write; without it, --from is only looked at."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Directory whose tokenizer's files a Hugging Face export gets."
)


def main(arguments):
    if _TO.value is None:
        print(inspect(_FROM.value))
        return
    if len(arguments) != 2:
        raise ValueError("--to needs one directory to write, after the flags")
    directory, policy = arguments[1], Policy.load(_FROM.value)
    if _TO.value == "hf":
        pretrained.export_hugging_face(policy.params, policy.config, directory, _TOKENIZER.value)
    else:
        pretrained.export_openpi(policy.params, policy.config, directory, norm_stats(policy))
    print(inspect(directory))


def norm_stats(policy: Policy) -> dict:
    """The policy's statistics under openpi's names; empty for one that has never seen actions."""
    state, actions = policy.assets.state_stats, policy.assets.action_stats
    return {"etcvla": {"state": state.to_dict(), "actions": actions.to_dict()}} if actions else {}


def inspect(path: str) -> str:
    """Format, number of parameters and sizes of what lies at a path. Raises FileNotFoundError if nothing does."""
    own = find_checkpoint(path)
    if own is not None:
        meta = own.meta()
        shapes = pretrained.parameter_shapes(config_from_dict(meta["model"])).values()
        return f"{path}: etcvla checkpoint, step {own.step}: {total(shapes)}\n  {meta['model']}"
    checkpoint = pretrained.find(path)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{path} is neither a workdir with a checkpoint nor released weights"
        )
    tensors = checkpoint.tensors.values()
    dtypes = collections.Counter(str(tensor.dtype) for tensor in tensors)
    return (
        f"{checkpoint.path}: {checkpoint.format}: {total([tensor.shape for tensor in tensors])}, "
        f"{', '.join(f'{count} {dtype}' for dtype, count in dtypes.items())}\n"
        + "\n".join(f"  {field} = {value}" for field, value in checkpoint.sizes.items())
    )


def total(shapes) -> str:
    return f"{sum(map(math.prod, shapes)):,} parameters in {len(shapes)} arrays"


if __name__ == "__main__":
    common.run(main)
