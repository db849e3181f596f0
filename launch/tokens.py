"""Print the id ranges of a vocabulary (text, actions, locations, segments) and the ids of a text.

python launch/tokens.py --checkpoint=runs/tiny/objective_bridge
python launch/tokens.py --tokenizer=PATH [--num_actions=2048] [--layout=disjoint] [--places=pair]
"""

from absl import flags

from etcvla.data.assets import Assets
from etcvla.data.tokenizer import Tokenizer
from etcvla.train.checkpoint import open_checkpoint
from launch import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "Workdir or checkpoint whose tokenizer to print."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "tiny", '"tiny", or the folder of a PaliGemma tokenizer.'
)
_NUM_ACTIONS = flags.DEFINE_integer(
    "num_actions", 2048, "Number of FAST token ids to place in PaliGemma's vocabulary."
)
_LAYOUT = flags.DEFINE_string(
    "layout", "disjoint", "disjoint, or openpi for checkpoints of that project."
)
_PLACES = flags.DEFINE_string(
    "places", "pair", "Notation of points: pair (y and x token) or cell (one token)."
)
_TEXT = flags.DEFINE_string("text", "open the drawer\n<loc0512><loc1023>", "Text to encode.")


def main(_: list[str]) -> None:
    """Print the vocabulary."""
    if _CHECKPOINT.value:
        meta = open_checkpoint(_CHECKPOINT.value).meta()
        tokenizer = Assets.from_json(meta["assets"]).tokenizer
    else:
        tokenizer = Tokenizer.load(
            _TOKENIZER.value,
            num_actions=_NUM_ACTIONS.value,
            layout=_LAYOUT.value,
            places=_PLACES.value,
        )
    print(tokenizer.describe(_TEXT.value))


if __name__ == "__main__":
    common.run(main)
