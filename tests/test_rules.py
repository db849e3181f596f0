"""Tests of rules over parameter paths."""

import numpy as np
import pytest

from etcvla.rules import assign

PARAMS = {
    "img": {"head": {"kernel": np.float32([[1, 2]]), "bias": np.float32([3, 4])}},
    "llm": {"norm": {"scale": np.float32([5])}, "w": np.float32([[6, 7]])},
}


def test_first_full_match_is_used():
    actual = assign(
        [(r"img/.*/bias", "a"), (r"img/.*", "b"), (r"llm/w", ("c", "d")), (r".*", None)],
        PARAMS,
        "field",
    )
    assert actual == {
        "img": {"head": {"kernel": "b", "bias": "a"}},
        "llm": {"norm": {"scale": None}, "w": ("c", "d")},
    }


def test_rule_must_match_the_whole_path():
    with pytest.raises(
        ValueError,
        match="^optim.x: no rule matches img/head/bias, img/head/kernel, llm/norm/scale$",
    ):
        assign([("img", 1), ("llm/w", 1), ("norm/.*", 1)], PARAMS, "optim.x")


def test_rule_without_a_match_is_an_error():
    rules = [
        ("img/.*", 1),
        ("lmm/.*", 2),
        (".*", 3),
        ("llm/w", 4),
    ]  # the rule before the last one matches everything
    with pytest.raises(ValueError, match="^optim.x: no parameter matches 'lmm/.*', 'llm/w'$"):
        assign(rules, PARAMS, "optim.x")
    assert assign(rules, PARAMS, "optim.x", all_used=False)["llm"]["w"] == 3
