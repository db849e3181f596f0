"""pi0-FAST as openpi trains it: the language model alone, which writes actions as FAST tokens.

    python launch/train.py --config=configs/published/pi0_fast.py:paligemma_3b

Numbers of openpi (github.com/Physical-Intelligence/openpi): the model's are Pi0FASTConfig's defaults and the loss (the
mean over rows of each row's mean) Pi0FAST's (src/openpi/models/pi0_fast.py), the prompt and the token layout those of
its FASTTokenizer (src/openpi/models/tokenizer.py), the optimizer's TrainConfig's. Its `pi0_fast_libero` has chunks of
10 steps and 180 tokens: `--config.model.horizon=10 --config.data.text_len=180 --config.data.max_targets=120`.
`data.fast` is the universal FAST tokenizer (huggingface.co/physical-intelligence/fast), downloaded. Different from
openpi: the augmentation (as in pi0.py), and cameras that a dataset lacks are left out (openpi shows them black).

`tiny` is the same objective on Meta-World with a FAST tokenizer fitted to it, from random parameters, at the size and
rates of the tiny stages.
"""

from configs import common


def get_config(variant: str = "tiny"):
    c = common.base("pi0_fast", variant)
    c.model.state = "text"
    c.model.expert = "none"
    c.model.image_attends_prompt = True
    c.model.count_absent_cameras = True
    c.data.prompt = "pi0_fast"
    c.data.norm = "quantile"
    c.loss.mean = "segment"
    c.loss.text = common.constant(0.0)
    c.loss.fast = common.constant(1.0)
    with c.unlocked():
        c.datasets.source = common.metaworld("source")
        c.streams.action = common.stream("source", "action", 1.0, extra_segments=0)
    c.data.text_len = 112
    c.data.max_targets = 64
    c.steps = 2200
    c.batch_size = 16
    if variant == "paligemma_3b":
        common.openpi_optimizer(c)
        c.init_from = "checkpoints/pi0_fast_base"
        c.datasets.source = common.dataset("data/libero", ("image", "wrist_image"))
        c.model.horizon = 32
        c.data.layout = "openpi"
        c.data.fast = "checkpoints/fast"
        c.data.fast_vocab = 2048
        c.data.text_len = 250
        c.data.max_targets = 180
    return c
