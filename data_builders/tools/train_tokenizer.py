"""Train the tokenizer of the tiny models.

    python -m data_builders.tools.train_tokenizer --out=etcvla/data/assets/tiny_tokenizer.json

The tokenizer is a byte-level BPE of the texts that tiny models read: shapes, the tabletop, ETC
items, the instructions of all Meta-World tasks, and other robot instructions, so that a new
sentence is not split into bytes. The sizes of the layout are fixed, so a new training changes no
model's shapes. It changes the meaning of ids; therefore checkpoints store their tokenizer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tokenizers
from absl import app, flags
from tokenizers import decoders, models, pre_tokenizers, trainers

from data_builders.common import command
from data_builders.common.tables import markdown_table
from data_builders.tabletop_vqa import questions as table_questions
from data_builders.tabletop_vqa.questions import PicturedObject, PicturedScene
from etcvla.data.tokenizer import NUM_LOC, NUM_SEG, IdRange, Tokenizer, TokenLayout
from etcvla.etc import make_items, shapes
from etcvla.etc.annotation import STEP_FIELDS, Annotation
from etcvla.etc.items import Item
from etcvla.files import write_atomically
from etcvla.sims.metaworld.tasks import SHAPES, TASKS
from etcvla.sims.tabletop import tasks as tabletop
from etcvla.sims.tabletop.words import ALL_COLORS, ALL_NOUNS
from etcvla.sims.task import Task

TEXT_SIZE = 1024
ACTION_SIZE = 512
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
# Prompts around an instruction.
PROMPTS = ("{}\n", "Task: {}, State: 0 1 2 3 4 5 6 7 8 9;\nAction: ")

# Words of LIBERO and Bridge.
_OBJECTS = """
    alphabet soup, apple, banana, basket, bin, block, book, bottle, bowl, box, brick, bucket,
    burner, butter, cabinet, can, carrot, chair, chocolate pudding, cloth, cookie box, corn,
    cream cheese, cube, cup, cutting board, dish rack, eggplant, fork, frying pan, fridge, glass,
    jar, ketchup, kettle, knife, lemon, lid, microwave, milk, moka pot, mug, mushroom,
    orange juice, oven, pan, pen, pepper, plate, pot, potato, ramekin, salad dressing, scissors,
    sink, soap, spatula, sponge, spoon, stapler, stove, strawberry, switch, tape, tomato sauce,
    towel, toy, tray, vegetable, wine bottle"""
_PLACES = """
    bottom drawer, top drawer, middle drawer of the cabinet, left side of the table,
    right side of the table, center of the table, front of the stove,
    back compartment of the caddy, top of the shelf, edge of the plate, corner, robot base,
    target position, floor, workspace"""
_ADJECTIVES = """
    red, green, blue, yellow, orange, purple, white, black, brown, gray, pink, silver, wooden,
    metal, small, large"""
_PREPOSITIONS = """
    on, in, into, onto, under, above, below, behind, next to, beside, near, inside, in front of,
    to the left of, to the right of, between"""
_SENTENCES = """
    pick up the {look} {a} and place it {where} the {b}; put the {a} {where} the {b};
    put both the {a} and the {b} {where} the {place}; turn on the {a};
    turn off the {a} and put the {b} on it; open the {place}; close the {place} of the {a};
    move the {look} {a} {where} the {place}; push the {a} to the {place};
    pull the {a} away from the {b}; stack the {look} {a} on top of the {b};
    fold the {a} from left to right; sweep the {a} into the {b}; pour the {a} into the {b};
    take the {a} out of the {b}; rotate the {a} clockwise; lift the {look} {a} and hold it;
    slide the {a} toward the {place}; insert the {a} into the {b}; press the {look} {a};
    unplug the {a}; wipe the {b} with the {a}; flip the {a} upright; hang the {a} on the {b};
    grasp the {a} by its handle;
    first reach the {a}, then close the gripper, lift it and carry it to the {place};
    release the {a} {where} the {place}; drop the {a} {where} the {b}"""


def general_sentences(count: int, rng: np.random.Generator) -> list[str]:
    """Return random robot instructions in the style of LIBERO and Bridge."""
    sentences = []
    for _ in range(count):
        template = _choose(_SENTENCES, rng, separator=";")
        sentence = template.format(
            a=_choose(_OBJECTS, rng),
            b=_choose(_OBJECTS, rng),
            look=_choose(_ADJECTIVES, rng),
            where=_choose(_PREPOSITIONS, rng),
            place=_choose(_PLACES, rng),
        )
        sentences.append(sentence)
    return sentences


def _choose(texts: str, rng: np.random.Generator, separator: str = ",") -> str:
    choice = str(rng.choice(texts.split(separator)))
    return " ".join(choice.split())


def random_annotation(task: Task, rng: np.random.Generator) -> Annotation:
    """Return an annotation with a task's names and phases and random positions.

    The items made of it have the words of real items.
    """
    steps = 24
    num_objects = len(task.objects)
    sizes = {"C": 2, "N": num_objects}
    facts = {}
    for name, axes in STEP_FIELDS.items():
        shape = (steps, *(sizes.get(axis, axis) for axis in axes))
        facts[name] = rng.uniform(0, 1, shape)
    corner = rng.uniform(0, 0.6, (steps, 2, num_objects, 2))
    facts["box"] = np.concatenate([corner, corner + 0.3], axis=-1)
    facts["visible"] = np.ones((steps, 2, num_objects))
    is_hidden = rng.random((steps, num_objects)) < 0.5  # in the second camera
    facts["box"][:, 1][is_hidden] = np.nan
    facts["visible"][:, 1][is_hidden] = 0
    facts["phase"] = np.arange(steps) * len(task.phases) // steps
    names = [spec.name for spec in task.objects]
    return Annotation(
        instruction=str(rng.choice(task.instructions)),
        cameras=("front", "wrist"),
        objects=tuple(names),
        colors=tuple(spec.color for spec in task.objects),
        phases=tuple(phase.text for phase in task.phases),
        target=names.index(task.target),
        success=True,
        rate=20.0,
        axes=("right", "front", "up"),
        shapes=tuple(SHAPES.get(name, "") for name in names),
        **facts,
    )


def etc_items(episodes_per_task: int, rng: np.random.Generator) -> list[Item]:
    """Return the items of random episodes of every Meta-World task."""
    annotations = []
    for task in TASKS.values():
        annotations += [random_annotation(task, rng) for _ in range(episodes_per_task)]
    items = []
    for annotation in annotations:
        items_by_step, _ = make_items(annotation, int(rng.integers(1 << 31)))
        for step_items in items_by_step:
            items += step_items
    return items


def shapes_items(num_scenes: int, rng: np.random.Generator) -> list[Item]:
    """Return the items of random scenes of shapes.

    Answers of "read_text" are empty, because random letters should be spelt, not become tokens.
    """
    items = []
    for _ in range(num_scenes):
        for item in shapes.make_items(shapes.sample_scene(rng), rng):
            if item.question_type == "read_text":
                item = dataclasses.replace(item, answer="")
            items.append(item)
    return items


def random_table_scene(rng: np.random.Generator) -> PicturedScene:
    """Return five objects in random places, with words that base data lack among them."""
    objects = []
    for noun in rng.permutation(ALL_NOUNS)[:5]:
        corner = rng.uniform(0, 0.8, 2)
        box = (*corner, *(corner + 0.15))
        objects.append(PicturedObject(str(noun), str(rng.choice(ALL_COLORS)), box, rng.uniform()))
    return PicturedScene(tuple(objects))


def tabletop_items(num_scenes: int, rng: np.random.Generator) -> list[Item]:
    """Return the items of random tabletop pictures."""
    items = []
    for _ in range(num_scenes):
        items += table_questions.make_items(random_table_scene(rng), rng)
    return items


def tabletop_instructions() -> list[str]:
    """Return the instructions and subtasks of the tabletop for every color and noun."""
    texts = []
    for task in tabletop.TASKS.values():
        texts += [*task.instructions, *task.held_out, *(phase.text for phase in task.phases)]
    names = [" ".join(words) for words in itertools.product(ALL_COLORS, ALL_NOUNS)]
    instructions = []
    for text in texts:
        instructions += [text.format(x=name, y=name) for name in names]
    return instructions


def corpus_by_source() -> dict[str, list[str]]:
    """Return source -> texts, which are always the same."""
    rng = np.random.default_rng(0)
    items_by_source = {
        "shapes": shapes_items(1500, rng),
        "etc": etc_items(3, rng),
        "tabletop": tabletop_items(1000, rng),
    }
    texts = {}
    for source, items in items_by_source.items():
        for field in ("question", "answer"):
            texts[f"{source} {field}"] = [getattr(item, field) for item in items]
    instructions = []
    for task in TASKS.values():
        for instruction in task.instructions:
            instructions += [prompt.format(instruction) for prompt in PROMPTS]
    texts["instructions"] = instructions * 16
    texts["tabletop instructions"] = tabletop_instructions()
    texts["general"] = general_sentences(800, rng)
    return texts


def all_texts(texts_by_source: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the texts of all sources."""
    for texts in texts_by_source.values():
        yield from texts


def train(corpus: Iterable[str]) -> Tokenizer:
    """Train a tokenizer with `TEXT_SIZE` text ids.

    Some ids are unused if the corpus has few different words.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    # Every digit is a token, so that numbers are compositional. A space belongs to the word or
    # digit after it.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r" ?\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_SIZE,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    ranges = [IdRange(0, TEXT_SIZE)]
    for count in (ACTION_SIZE, NUM_LOC, NUM_SEG):
        ranges.append(IdRange(ranges[-1].stop, count))
    tokenizer = Tokenizer(backend, TokenLayout(*ranges), word_start=True)
    backend.train_from_iterator(_text_pieces(corpus, tokenizer), trainer)
    return tokenizer


def _text_pieces(corpus: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
    for text in corpus:
        yield from tokenizer.text_pieces(text)


def format_statistics(tokenizer: Tokenizer, texts_by_source: Mapping[str, list[str]]) -> str:
    """Return a table: tokens per text, and number of words that are one token, by source."""
    rows = []
    for source, texts in texts_by_source.items():
        lengths = [len(tokenizer.encode(text)) for text in texts]
        words = _unique_words(texts)
        one_token = sum(len(tokenizer.encode(word)) == 1 for word in words)
        mean = f"{np.mean(lengths):.1f}"
        p99 = f"{np.percentile(lengths, 99):.0f}"
        rows.append([source, len(texts), mean, p99, max(lengths), len(words), one_token])
    head = ["source", "texts", "mean tokens", "p99", "max", "words", "words of one token"]
    return markdown_table(head, rows)


def _unique_words(texts: Sequence[str]) -> set[str]:
    words = set()
    for text in texts:
        words.update(word for word in text.replace("<", " <").split() if word.isalpha())
    return words


def main(argv: list[str]) -> None:
    """Run the command."""
    with command.user_errors():
        command.check_no_arguments(argv)
        texts = corpus_by_source()
        tokenizer = train(all_texts(texts))
        write_atomically(_OUT.value, tokenizer.to_json() + "\n")
    print(tokenizer.layout.describe(), format_statistics(tokenizer, texts), sep="\n\n")


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, "File to write.", required=True)
    app.run(main)
