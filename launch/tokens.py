"""Prints what a vocabulary's ids mean: text, actions, locations, segments, and some text as ids.

python launch/tokens.py --workdir=runs/tiny/objective_bridge            # the one that a checkpoint holds
python launch/tokens.py --tokenizer=PATH [--num_actions=2048] [--layout=disjoint] [--text="open the drawer"]
"""

from absl import flags

from etcvla.data.assets import Assets
from etcvla.data.tokenizer import Tokenizer
from etcvla.train.checkpoint import open_checkpoint
from launch import common

_WORKDIR = flags.DEFINE_string("workdir", "", "A run: the tokenizer of its newest checkpoint.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "tiny", '"tiny", or where a PaliGemma tokenizer lies.'
)
_NUM_ACTIONS = flags.DEFINE_integer(
    "num_actions", 2048, "FAST tokens that PaliGemma's vocabulary makes room for."
)
_LAYOUT = flags.DEFINE_string(
    "layout", "disjoint", "disjoint, or openpi for the checkpoints of that project."
)
_TEXT = flags.DEFINE_string("text", "open the drawer\n<loc0512><loc1023>", "What is shown as ids.")


def main(_):
    if _WORKDIR.value:
        tokenizer = Assets.from_json(open_checkpoint(_WORKDIR.value).meta()["assets"]).tokenizer
    else:
        tokenizer = Tokenizer.load(
            _TOKENIZER.value, num_actions=_NUM_ACTIONS.value, layout=_LAYOUT.value
        )
    print(tokenizer.describe(_TEXT.value))


if __name__ == "__main__":
    common.run(main)
