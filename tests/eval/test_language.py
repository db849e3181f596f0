"""The effect of language on what is touched, from paired trials."""

import json

import numpy as np
import pytest

from etcvla.eval.language import INTERVENTIONS, format_language, language_scores, write_language
from etcvla.eval.trials import Trial, TrialResult
from tests.eval import paired_toy
from tests.eval.paired_toy import NAMES


@pytest.fixture(autouse=True)
def row(monkeypatch):
    paired_toy.register(monkeypatch)


def make_result(number, touched, intervention="right", instruction_of=None):
    named = NAMES[number % 3]
    return TrialResult(
        Trial("row", "table", "touch", number, intervention),
        success=touched == named,
        steps=2,
        progress=0.0,
        intention=touched == named,
        instruction="",
        instruction_of=named if instruction_of is None else instruction_of,
        seconds=0.0,
        named=named,
        novelty=("none", "noun", "color")[number % 3],
        touched=touched,
    )


def scores_by_novelty(results):
    return {group["novelty"]: group for group in language_scores(results)}


def test_policy_that_follows_the_words_has_the_full_effect():
    scores = scores_by_novelty([make_result(number, NAMES[number % 3]) for number in range(9)])
    assert set(scores) == {"all", "none", "noun", "color"}
    for group in scores.values():
        assert (group["named"], group["unnamed"], group["difference"]) == (1, 0, 1)
        assert (group["layouts"], group["low"], group["high"], group["target"]) == (3, 1, 1, 1)


def test_preference_for_an_object_is_no_effect_of_language():
    scores = scores_by_novelty([make_result(number, NAMES[1]) for number in range(6)])
    assert scores["noun"]["named"] == scores["noun"]["unnamed"] == 1
    assert {group["difference"] for group in scores.values()} == {0}
    assert scores["all"]["target"] == pytest.approx(1 / 3)


def test_wrong_words_count_for_the_object_that_they_name():
    results = []
    for number in range(6):
        other = NAMES[(number + 1) % 3]
        results.append(make_result(number, other, "wrong_instruction", other))
    scores = scores_by_novelty(results)["all"]
    assert (scores["difference"], scores["target"]) == (1, 0)


def test_without_an_instruction_the_target_counts():
    results = [make_result(n, NAMES[n % 3], "no_instruction", "") for n in range(6)]
    assert scores_by_novelty(results)["all"]["target"] == 1
    assert scores_by_novelty(results)["all"]["named"] == 1


def test_interval_is_that_of_the_mean_over_layouts():
    rng = np.random.default_rng(0)
    results = []
    differences = []
    for layout in range(100):
        follows = rng.uniform() < 0.5
        differences.append(float(follows))
        for i in range(3):
            touched = NAMES[i] if follows else NAMES[0]
            results.append(make_result(3 * layout + i, touched))
    scores = scores_by_novelty(results)["all"]
    assert scores["difference"] == pytest.approx(np.mean(differences))
    half_width = 1.96 * np.std(differences) / 10
    assert scores["low"] == pytest.approx(np.mean(differences) - half_width, abs=0.02)
    assert scores["high"] == pytest.approx(np.mean(differences) + half_width, abs=0.02)


def test_single_layout_has_no_interval():
    scores = scores_by_novelty([make_result(number, NAMES[number]) for number in range(3)])["all"]
    assert (scores["low"], scores["high"]) == (-1, 1)


def test_file_and_table_have_every_group(tmp_path, capsys):
    results = []
    for intervention in INTERVENTIONS:
        results += [make_result(number, NAMES[number % 3], intervention) for number in range(6)]
    write_language(tmp_path, results)
    groups = json.loads((tmp_path / "language.json").read_text())["groups"]
    assert groups == language_scores(results)
    assert len(groups) == 4 * 4
    lines = format_language(groups)
    assert len(lines) == 1 + 4 + 3  # a title, and the novelties of the right instruction
    assert capsys.readouterr().out == "\n".join(lines) + "\n"
    assert lines[1].split() == ["table", "right", "all", "100%", "0%", "+100%", "[+100%,", "+100%]"]


def test_nothing_is_written_where_layouts_have_one_trial(tmp_path):
    result = make_result(0, "")
    trial = Trial("metaworld", "source", "reach", 0)
    write_language(tmp_path, [TrialResult(**{**vars(result), "trial": trial})])
    write_language(tmp_path, [])
    assert not list(tmp_path.iterdir())
