"""ETC items whose words are replaced."""

import pytest

from etcvla.etc.items import Item, rename_words

WORDS = {"cube": "cross", "cross": "cube", "red": "blue", "blue": "red"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("is the red cube left of the blue cross?", "is the blue cross left of the red cube?"),
        ("how many cubes are there?", "how many crosses are there?"),
        ("the crosses are bluer", "the cubes are bluer"),
        ("cubed", "cubed"),
    ],
)
def test_words_are_replaced_all_at_once(text, expected):
    item = rename_words(Item("affordance", "touch", text, text), WORDS)
    assert (item.question, item.answer) == (expected, expected)
    assert rename_words(item, {new: old for old, new in WORDS.items()}).question == text
