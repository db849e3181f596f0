"""Answers by the tier of their words."""

import pytest

from etcvla.sims.tabletop.words import tier_words
from etcvla.study.word_scores import word_scores, word_tier


@pytest.mark.parametrize("rotation", [0, 3])
@pytest.mark.parametrize("tier", ["A", "B", "C", "N"])
def test_the_newest_word_counts(tier, rotation):
    known = tier_words("A", rotation).nouns[0]
    words = tier_words(tier, rotation)
    assert word_tier(f"the {words.colors[0]} {known}", rotation) == tier
    assert word_tier(f"how many {words.nouns[0]}s beside the {known}?", rotation) == tier


def test_a_text_without_objects_has_no_tier():
    assert word_tier("where is the gripper?", 0) == ""


def test_scores_by_tier(tmp_path):
    lines = [
        "dataset,kind,question_type,question,answer,prediction,correct",
        "tabletop_vqa,name,name,what is there?,red cube,red cube,1",
        "tabletop_vqa,name,name,what is there?,orange cube,red cube,0",
        "tabletop_vqa,name,name,what is there?,pink cube,red cube,0",
        "etc,affordance,touch,where?,<loc0001>,<loc0001>,1",
    ]
    (tmp_path / "questions.csv").write_text("\n".join(lines) + "\n")
    words = tier_words("A", 0)
    assert "cube" in words.nouns and {"red", "orange"} <= set(words.colors)
    assert word_scores(tmp_path, 0) == {
        "tabletop_vqa": {
            "name": {"A": {"accuracy": 0.5, "count": 2}, "N": {"accuracy": 0.0, "count": 1}}
        }
    }
