"""Trains the tiny models' tokenizer.

    python -m data_builders.tools.train_tokenizer --out=etcvla/data/assets/tiny_tokenizer.json

Byte-level BPE on what the tiny models read: shapes, ETC, the instructions of every Meta-World task, and plain robot
instructions, so that a new sentence does not fall apart into bytes. The layout's sizes are fixed: training it again
changes no model's shapes. It does change what ids mean, which is why checkpoints carry their tokenizer.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tokenizers
from absl import app, flags
from tokenizers import decoders, models, pre_tokenizers, trainers

from etcvla.data.tokenizer import NUM_LOC, NUM_SEG, IdRange, Tokenizer, TokenLayout
from etcvla.etc import make_items, shapes
from etcvla.etc.annotation import STEP_FIELDS, Annotation
from etcvla.etc.items import Item
from etcvla.sims.metaworld.tasks import SHAPES, TASKS, Task

TEXT_SIZE, ACTION_SIZE = 1024, 512
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
PROMPTS = (
    "{}\n",
    "Task: {}, State: 0 1 2 3 4 5 6 7 8 9;\nAction: ",
)  # what stands around instructions

# What LIBERO and Bridge speak of.
_THINGS = """alphabet soup, apple, banana, basket, bin, block, book, bottle, bowl, box, brick, bucket, burner, butter,
    cabinet, can, carrot, chair, chocolate pudding, cloth, cookie box, corn, cream cheese, cube, cup, cutting board,
    dish rack, eggplant, fork, frying pan, fridge, glass, jar, ketchup, kettle, knife, lemon, lid, microwave, milk,
    moka pot, mug, mushroom, orange juice, oven, pan, pen, pepper, plate, pot, potato, ramekin, salad dressing,
    scissors, sink, soap, spatula, sponge, spoon, stapler, stove, strawberry, switch, tape, tomato sauce, towel, toy,
    tray, vegetable, wine bottle"""
_PLACES = """bottom drawer, top drawer, middle drawer of the cabinet, left side of the table, right side of the table,
    center of the table, front of the stove, back compartment of the caddy, top of the shelf, edge of the plate,
    corner, robot base, target position, floor, workspace"""
_LOOKS = """red, green, blue, yellow, orange, purple, white, black, brown, gray, pink, silver, wooden, metal, small,
    large"""
_WHERE = """on, in, into, onto, under, above, below, behind, next to, beside, near, inside, in front of,
    to the left of, to the right of, between"""
_SENTENCES = """pick up the {look} {a} and place it {where} the {b}; put the {a} {where} the {b}; put both the {a} and
    the {b} {where} the {place}; turn on the {a}; turn off the {a} and put the {b} on it; open the {place}; close the
    {place} of the {a}; move the {look} {a} {where} the {place}; push the {a} to the {place}; pull the {a} away from
    the {b}; stack the {look} {a} on top of the {b}; fold the {a} from left to right; sweep the {a} into the {b}; pour
    the {a} into the {b}; take the {a} out of the {b}; rotate the {a} clockwise; lift the {look} {a} and hold it; slide
    the {a} toward the {place}; insert the {a} into the {b}; press the {look} {a}; unplug the {a}; wipe the {b} with
    the {a}; flip the {a} upright; hang the {a} on the {b}; grasp the {a} by its handle; first reach the {a}, then
    close the gripper, lift it and carry it to the {place}; release the {a} {where} the {place}; drop the {a} {where}
    the {b}"""


def general_sentences(count: int, rng: np.random.Generator) -> list[str]:
    """Robot instructions in the manner of LIBERO and Bridge."""

    def pick(words: str, separator: str = ",") -> str:
        return " ".join(str(rng.choice(words.split(separator))).split())

    return [
        pick(_SENTENCES, ";").format(
            a=pick(_THINGS),
            b=pick(_THINGS),
            look=pick(_LOOKS),
            where=pick(_WHERE),
            place=pick(_PLACES),
        )
        for _ in range(count)
    ]


def made_up_episode(task: Task, rng: np.random.Generator, steps: int = 24) -> Annotation:
    """An episode with a task's names and phases and random places: its questions have the words of real ones."""
    count = len(task.objects)
    sizes = {"C": 2, "N": count}
    facts = {
        name: rng.uniform(0, 1, (steps, *(sizes.get(axis, axis) for axis in axes)))
        for name, axes in STEP_FIELDS.items()
    }
    corner = rng.uniform(0, 0.6, (steps, 2, count, 2))
    facts["box"] = np.concatenate([corner, corner + 0.3], axis=-1)
    facts["visible"] = np.ones((steps, 2, count))
    hidden = rng.random((steps, count)) < 0.5  # from the other view
    facts["box"][:, 1][hidden], facts["visible"][:, 1][hidden] = np.nan, 0
    facts["phase"] = np.arange(steps) * len(task.phases) // steps
    names = [thing.name for thing in task.objects]
    return Annotation(
        str(rng.choice(task.instructions)),
        ("front", "wrist"),
        tuple(names),
        tuple(thing.color for thing in task.objects),
        tuple(phase.text for phase in task.phases),
        target=names.index(task.target),
        success=True,
        rate=20.0,
        axes=("right", "front", "up"),
        shapes=tuple(SHAPES.get(name, "") for name in names),
        **facts,
    )


def etc_items(episodes: int, rng: np.random.Generator) -> list[Item]:
    """Items of made-up episodes of every Meta-World task."""
    annotations = [made_up_episode(task, rng) for task in TASKS.values() for _ in range(episodes)]
    episodes = [make_items(facts, int(rng.integers(1 << 31)))[0] for facts in annotations]
    return [item for episode in episodes for step in episode for item in step]


def shapes_items(scenes: int, rng: np.random.Generator) -> list[Item]:
    """Items of made-up scenes, but for what is read there: random letters are to be spelt, not learnt by heart."""
    items = [
        item for _ in range(scenes) for item in shapes.make_items(shapes.sample_scene(rng), rng)
    ]
    return [
        item if item.question_type != "read_text" else dataclasses.replace(item, answer="")
        for item in items
    ]


def sources(seed: int = 0) -> dict[str, list[str]]:
    """The corpus by where it comes from; a function of the seed."""
    rng = np.random.default_rng(seed)
    shown = {"shapes": shapes_items(1500, rng), "etc": etc_items(3, rng)}
    texts = {
        f"{name} {field}": [getattr(item, field) for item in items]
        for name, items in shown.items()
        for field in ("question", "answer")
    }
    instructions = [text for task in TASKS.values() for text in task.instructions]
    texts["instructions"] = [
        prompt.format(text) for text in instructions for prompt in PROMPTS
    ] * 16
    texts["general"] = general_sentences(800, rng)
    return texts


def train(
    corpus: Iterable[str], *, text_size: int = TEXT_SIZE, num_actions: int = ACTION_SIZE
) -> Tokenizer:
    """A tokenizer with a text span of `text_size` ids, some of them unused if the corpus has few different words."""
    backend = tokenizers.Tokenizer(models.BPE())
    # Every digit is a token, so that numbers compose; a space belongs to the word or digit after it.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r" ?\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=text_size,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    spans = [IdRange(0, text_size)]
    for count in (num_actions, NUM_LOC, NUM_SEG):
        spans.append(IdRange(spans[-1].stop, count))
    tokenizer = Tokenizer(backend, TokenLayout(*spans), word_start=True)
    backend.train_from_iterator(
        (piece for text in corpus for piece in tokenizer.text_pieces(text)), trainer
    )
    return tokenizer


def describe(tokenizer: Tokenizer, texts: Mapping[str, list[str]]) -> str:
    """Tokens a text, and how many of the words are one token, for each source."""
    rows = [
        f"{'source':<18}{'texts':>7}{'tokens, mean':>14}{'p99':>5}{'max':>5}{'words':>8}{'of one token':>14}"
    ]
    for name, lines in texts.items():
        lengths = [len(tokenizer.encode(line)) for line in lines]
        words = {
            word for line in lines for word in line.replace("<", " <").split() if word.isalpha()
        }
        whole = sum(len(tokenizer.encode(word)) == 1 for word in words)
        rows.append(
            f"{name:<18}{len(lines):>7}{np.mean(lengths):>14.1f}{np.percentile(lengths, 99):>5.0f}"
            f"{max(lengths):>5}{len(words):>8}{whole:>14}"
        )
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    texts = sources()
    tokenizer = train(line for lines in texts.values() for line in lines)
    try:
        Path(_OUT.value).write_text(tokenizer.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        sys.exit(f"error: --out={_OUT.value}: {error}")
    print(tokenizer.layout.describe(), describe(tokenizer, texts), sep="\n\n")


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, "File to write.", required=True)
    app.run(main)
