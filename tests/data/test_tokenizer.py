"""The tokenizer: round trips of text, disjoint ranges, and the ids of released layouts."""

import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_builders.tools import train_tokenizer
from etcvla.data.tokenizer import LAYOUTS, IdRange, Tokenizer, TokenLayout
from etcvla.errors import UserError
from etcvla.etc.question_types import QUESTION_TYPES
from etcvla.etc.shapes import SHAPES_QUESTIONS
from etcvla.sims.metaworld.tasks import TASKS

TINY = Tokenizer.load()
LAYOUT = TINY.layout


# The embedded tokenizer


def test_tiny_layout_sizes():
    assert tuple(LAYOUT.ranges.values()) == ((0, 1024), (1024, 512), (1536, 1024), (2560, 128))
    assert (LAYOUT.pad, LAYOUT.eos, LAYOUT.bos, LAYOUT.unk) == (0, 1, 2, 3)
    assert LAYOUT.vocab_size == 2688


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "<loc0000>",
            "<loc1023>",
            "<loc1024>",
            "<loc12>",
            "<seg000>",
            "<seg127>",
            "<seg128>",
            "<eos>",
            "<pad>",
            "<act0001>",
            "\n",
            " ",
            "  ",
            "left",
            " drawer",
            "12",
        ]
    ),
)


@given(st.lists(PIECES, max_size=6).map("".join))
@example("")
@example(" left")
@example("left")
@example("\n left")
@example("<loc0001> left<loc0002>left ")
@example("größer 東京 \U0001f916\r\n\t")
def test_decode_inverts_encode(text):
    ids = TINY.encode(text)
    assert all(0 <= token < LAYOUT.vocab_size for token in ids)
    assert not any(LAYOUT.action.contains(token) for token in ids)
    assert not {LAYOUT.pad, LAYOUT.eos, LAYOUT.bos, LAYOUT.unk} & set(ids)
    assert TINY.decode(ids) == text


def test_special_ids_are_added_and_skipped_in_decoding():
    ids = TINY.encode("open the door", bos=True, eos=True)
    assert (ids[0], ids[-1]) == (LAYOUT.bos, LAYOUT.eos)
    assert ids[1:-1] == TINY.encode("open the door")
    assert TINY.decode([*ids, LAYOUT.pad, LAYOUT.pad]) == "open the door"


def test_locations_are_single_consecutive_ids():
    ids = TINY.encode("<loc0000><loc0512><loc1023><seg005>")
    assert ids == [
        LAYOUT.loc.offset,
        LAYOUT.loc.offset + 512,
        LAYOUT.loc.offset + 1023,
        LAYOUT.seg.offset + 5,
    ]


def test_a_cell_is_one_id_and_decodes_to_its_centre():
    cells = Tokenizer.load(places="cell")
    text = "is <loc0512><loc0100> in <loc0000><loc0000><loc1023><loc1023>?"
    ids = cells.encode(text)
    offset = LAYOUT.loc.offset
    assert [token for token in ids if LAYOUT.loc.contains(token)] == [
        offset + 16 * 32 + 3,
        offset,
        offset + 1023,
    ]
    decoded = "is <loc0528><loc0112> in <loc0016><loc0016><loc1008><loc1008>?"
    assert cells.decode(ids) == decoded
    assert cells.encode(decoded) == ids
    copy = pickle.loads(pickle.dumps(cells))
    assert copy.layout.places == "cell" and copy.encode(text) == ids
    assert "places cell: a point is a cell of a 32 x 32 grid" in cells.layout.describe()
    with pytest.raises(UserError, match="<loc0001> in 'at <loc0001>' has 1 coordinates"):
        cells.encode("at <loc0001>")


def test_unknown_places_are_an_error():
    with pytest.raises(UserError, match="unknown data.places 'cells', did you mean 'cell'"):
        Tokenizer.load(places="cells")


def test_a_layout_that_was_saved_without_places_has_pairs():
    content = json.loads(TINY.to_json())
    del content["layout"]["places"]
    assert Tokenizer.from_json(json.dumps(content)).layout == LAYOUT


def test_answer_has_the_same_token_as_in_the_question():
    question = TINY.encode("is the gripper to the left or to the right of the button?")
    for word in ("left", "right", "button"):
        (token,) = TINY.encode(word)
        assert token in question


def test_each_digit_is_a_token():
    assert len(TINY.encode("128")) == 3
    assert len({tuple(TINY.encode(str(count))) for count in range(10)}) == 10
    assert all(len(TINY.encode(str(count))) == 1 for count in range(10))


def test_newline_is_one_token():
    (newline,) = TINY.encode("\n")
    assert TINY.encode("open the door\n") == [*TINY.encode("open the door"), newline]


def _templates(question_types):
    return itertools.chain.from_iterable(
        question_type.templates for question_type in question_types.values()
    )


def _task_texts():
    for task in TASKS.values():
        yield from task.instructions
        yield from (phase.text for phase in task.phases)


@pytest.mark.parametrize(
    "texts",
    [_templates(QUESTION_TYPES), _templates(SHAPES_QUESTIONS), _task_texts()],
    ids=["etc", "shapes", "instructions"],
)
def test_common_words_are_one_token_each(texts):
    words = {word.strip(".,?:;()") for word in " ".join(texts).split() if "{" not in word}
    split = {word for word in words if len(TINY.encode(word)) > 1}
    assert len(split) <= 0.05 * len(words), f"train the embedded tokenizer again: {sorted(split)}"


def test_action_ids_round_trip():
    tokens = [0, 5, 511]
    ids = TINY.action_ids(tokens)
    assert ids == [1024, 1029, 1535]
    assert TINY.action_tokens(ids) == tokens
    assert TINY.decode(ids) == "<act0000><act0005><act0511>"
    assert TINY.action_ids([]) == TINY.action_tokens([]) == []


@pytest.mark.parametrize("token", [-1, 512])
def test_fast_token_outside_the_vocabulary_raises(token):
    with pytest.raises(ValueError, match=r"FAST tokens must be in \[0, 512\)"):
        TINY.action_ids([3, token])


@pytest.mark.parametrize("token", [0, 1023, 1536])
def test_id_that_is_not_an_action_raises(token):
    with pytest.raises(ValueError, match=rf"not action ids .*\[{token}\]"):
        TINY.action_tokens([1024, token])


def test_id_outside_the_vocabulary_raises():
    with pytest.raises(ValueError, match="token id 2688"):
        TINY.decode([2688])


def test_json_and_pickle_round_trip():
    text = (
        "the robot should open the drawer. is <loc0001><loc0002><loc0003><loc0004> a good region?"
    )
    for copy in (Tokenizer.from_json(TINY.to_json()), pickle.loads(pickle.dumps(TINY))):
        assert copy.layout == LAYOUT
        assert copy.encode(text) == TINY.encode(text)
        assert copy.decode(TINY.encode(text)) == text
        assert copy.to_json() == TINY.to_json()


# Layouts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": (1000, 512)}, "text ids .* overlap action ids"),
        ({"loc": (2000, 1024)}, "overlap"),
        ({"loc": (1536, 1000)}, "1000 loc"),
        ({"eos": 0}, "must be four different ids"),
        ({"bos": 1024}, "must be four different ids"),
        ({"action": (1024, 0)}, "no room for actions"),
        ({"name": "openpy"}, "unknown token layout 'openpy', did you mean 'openpi'"),
        ({"name": "openpi"}, "layout openpi: actions end at 1536, expected 2560"),
    ],
)
def test_malformed_layouts_raise(change, message):
    fields = {"text": (0, 1024), "action": (1024, 512), "loc": (1536, 1024), "seg": (2560, 128)}
    with pytest.raises(ValueError, match=message):
        TokenLayout(**fields | change)


def test_layout_describe():
    table = LAYOUT.describe().splitlines()
    assert [line.split() for line in table[:2]] == [
        ["text", "0", "..", "1023", "1024", "ids"],
        ["action", "1024", "..", "1535", "512", "ids"],
    ]
    assert "vocabulary 2688" in table[-2] and "layout disjoint" in table[-2]
    assert table[-1] == "places pair: a point is its y and its x, two <loc> tokens"
    assert [LAYOUT.kind(token) for token in (0, 1024, 1536, 2560)] == [
        "text",
        "action",
        "loc",
        "seg",
    ]


def test_tokens_command_prints_the_ids(paligemma):
    run = [
        sys.executable,
        "launch/tokens.py",
        f"--tokenizer={paligemma}",
        "--num_actions=8",
        "--places=cell",
        "--text=mug <loc0001><loc0001>",
    ]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    expected = Tokenizer.load(str(paligemma), num_actions=8, places="cell")
    text = "mug <loc0001><loc0001>"
    assert printed.strip() == expected.describe(text)
    offset = expected.layout.action.offset
    assert f"FAST 0 7: [{offset}, {offset + 7}]" in printed
    assert f"{text!r}: {[2, *expected.encode(text), 1]}" in printed


# PaliGemma


def _gemma(vocabulary: int = 400, spatial: bool = True) -> tokenizers.Tokenizer:
    """Make a tokenizer like Gemma's: BPE over texts with spaces as "▁"."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    backend.train_from_iterator(
        ["detect the red mug", "open the drawer"] * 3,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *byte_tokens],
            show_progress=False,
        ),
    )
    backend.add_tokens([f"<unused{i}>" for i in range(8)])
    if spatial:
        backend.add_tokens(
            [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
        )
        # Hugging Face adds it behind the ids of the SentencePiece file.
        backend.add_special_tokens(["<image>"])
    return backend


@pytest.fixture
def paligemma(tmp_path):
    """A tokenizer folder in Hugging Face's format."""
    _gemma().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "GemmaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": "<bos>",
                "eos_token": "<eos>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
            }
        )
    )
    return tmp_path


def test_paligemma_keeps_its_ids(paligemma):
    backend = tokenizers.Tokenizer.from_file(str(paligemma / "tokenizer.json"))
    loaded = Tokenizer.load(str(paligemma), num_actions=8)
    loc = backend.token_to_id("<loc0000>")
    assert loaded.layout == TokenLayout(
        text=IdRange(0, loc - 8),
        action=IdRange(loc - 8, 8),
        loc=IdRange(loc, 1024),
        seg=IdRange(loc + 1024, 128),
    )
    text = "detect the red mug\n"
    assert loaded.encode(text, bos=True) == [2, *backend.encode(text, add_special_tokens=False).ids]
    assert loaded.encode("<loc0007> mug")[0] == loc + 7
    assert (
        loaded.decode(loaded.encode(f"{text}<loc0007> mug <seg003>"))
        == f"{text}<loc0007> mug <seg003>"
    )


def test_paligemma_text_never_becomes_an_action(paligemma):
    loaded = Tokenizer.load(str(paligemma / "tokenizer.json"), num_actions=8)
    assert loaded.encode("<unused3>") == [loaded.layout.unk]
    assert loaded.decode(loaded.action_ids([3])) == "<act0003>"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_paligemma_json_round_trip(paligemma, layout):
    loaded = Tokenizer.load(str(paligemma), num_actions=8, layout=layout)
    copy = Tokenizer.from_json(loaded.to_json())
    assert copy.layout == loaded.layout and copy.layout.name == layout
    assert copy.encode("open the drawer") == loaded.encode("open the drawer")
    assert copy.action_ids([0, 3]) == loaded.action_ids([0, 3])


def test_paligemma_ids_equal_transformers(paligemma):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(paligemma))
    ours = Tokenizer.load(str(paligemma), num_actions=1)
    assert (
        (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id)
        == (0, 1, 2)
        == (ours.layout.pad, ours.layout.eos, ours.layout.bos)
    )
    for text in (
        "detect the red mug\n",
        "Task: open the drawer, State: 0 128 255;\nAction: ",
        "größer 東京 \U0001f916",
        "<loc0001><loc1023> mug ; <seg005>",
        "  two  spaces",
    ):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_openpi_layout_counts_down_over_the_locations(paligemma):
    loaded = Tokenizer.load(str(paligemma), num_actions=1100, layout="openpi")
    backend = tokenizers.Tokenizer.from_file(str(paligemma / "tokenizer.json"))
    size = backend.token_to_id("<seg127>") + 1  # openpi's ids are those of the SentencePiece file
    assert loaded.layout.vocab_size == size
    tokens = [0, 1, 1099]
    assert loaded.action_ids(tokens) == [size - 1 - 128 - token for token in tokens]
    assert loaded.action_tokens(loaded.action_ids(tokens)) == tokens
    assert loaded.encode("<loc1023><seg000>") == [loaded.action_ids([0])[0], size - 128]
    # "<unused7>" has an action's id as well; as text it stays text.
    for text in ("<loc1023> mug <loc0000>", "<unused7>"):
        assert loaded.decode(loaded.encode(text)) == text


@pytest.mark.parametrize("renamed", [False, True])
def test_sentencepiece_file_keeps_its_ids(tmp_path, renamed):
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("transformers")
    texts = train_tokenizer.general_sentences(300, np.random.default_rng(0))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(_with_locations(path.read_bytes()))
    path = path.rename(tmp_path / "paligemma_tokenizer.model") if renamed else path
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    loaded = Tokenizer.load(str(path if renamed else tmp_path), num_actions=1)
    for text in [*texts, "  two  spaces\n", "größer 東京 12345", "<loc0001><loc1023> mug"]:
        expected = np.array(reference.encode(text))
        expected[expected == loaded.layout.action.offset] = loaded.layout.unk
        assert loaded.encode(text) == expected.tolist()


def _with_locations(model: bytes) -> bytes:
    """Add PaliGemma's last tokens to a SentencePiece model: 1024 locations and 128 segments."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    pieces = [f"<loc{i:04d}>" for i in range(1024)]
    pieces += [f"<seg{i:03d}>" for i in range(128)]
    for piece in pieces:
        proto.pieces.add(piece=piece, score=0, type=4)
    return proto.SerializeToString()


# Wrong use


def test_missing_tokenizer_file_raises(tmp_path):
    with pytest.raises(UserError, match=r"no file tinny; give one of \['tiny'\]"):
        Tokenizer.load("tinny")
    with pytest.raises(UserError, match=r"no tokenizer.json or tokenizer.model in"):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "disjont"}, "unknown token layout 'disjont', did you mean 'disjoint'"),
        ({"num_actions": 300_000}, r"no room for actions .* beside text .*use fewer FAST tokens"),
    ],
)
def test_options_that_do_not_fit_paligemma_raise(paligemma, options, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(str(paligemma), **options)


def test_embedded_tokenizer_with_other_layout_raises():
    with pytest.raises(ValueError, match="has the layout 'disjoint', expected 'openpi'"):
        Tokenizer.load(layout="openpi")


def test_locations_out_of_order_raise(tmp_path):
    backend = _gemma(spatial=False)
    backend.add_tokens(
        ["<loc0000>", "<loc0002>", "<loc0001>", *(f"<loc{i:04d}>" for i in range(3, 1024))]
    )
    first = backend.token_to_id("<loc0000>")
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=f"<loc0001> has id {first + 2}, expected {first + 1}"):
        Tokenizer.load(str(tmp_path))


def test_plain_gemma_raises(tmp_path):
    _gemma(spatial=False).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no token <loc0000>, so it is not PaliGemma's"):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("content", ["no json", "{}", '{"format": "other"}'])
def test_other_files_raise(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"cannot use {path}"):
        Tokenizer.load(str(path))


def test_other_json_raises():
    with pytest.raises(ValueError, match="format 'other', expected"):
        Tokenizer.from_json(json.dumps({"format": "other"}))


# Training


def test_training_is_deterministic():
    texts = train_tokenizer.general_sentences(200, np.random.default_rng(0))
    assert texts == train_tokenizer.general_sentences(200, np.random.default_rng(0))
    trained = {train_tokenizer.train(texts).to_json() for _ in range(3)}
    assert len(trained) == 1


def test_training_on_any_corpus_gives_the_same_sizes():
    for texts in (
        ["open the door"],
        train_tokenizer.general_sentences(500, np.random.default_rng(1)),
    ):
        tokenizer = train_tokenizer.train(texts)
        assert tokenizer.layout == LAYOUT
        assert tokenizer.decode(tokenizer.encode("never seen: Ωmega 42")) == "never seen: Ωmega 42"


def test_random_letters_are_not_in_the_training_corpus():
    items = train_tokenizer.shapes_items(50, np.random.default_rng(0))
    read = [item for item in items if item.question_type == "read_text"]
    assert read
    assert all(not item.answer for item in read)


def test_training_corpus_has_every_question_type():
    items = train_tokenizer.etc_items(1, np.random.default_rng(0))
    assert {item.question_type for item in items} == set(QUESTION_TYPES)


def test_report_counts_tokens():
    table = train_tokenizer.format_statistics(
        TINY, {"some": ["open the door", "<loc0001><loc0002>", "yes"]}
    ).splitlines()
    assert table[2] == "| some | 3 | 2.0 | 3 | 3 | 4 | 4 |"
