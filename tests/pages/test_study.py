"""The report of a study, from synthetic results."""

import json
import re
import shutil

import pytest
from etils import epath

from etcvla.errors import UserError
from etcvla.pages import study, study_sections
from etcvla.study.results import write_results
from tests.study.made_results import write_made_study


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_made_study(folder, seeds=(0, 1), layouts=2, unfinished={("AY", 1), ("EN", 0), ("EN", 1)})
    write_results(str(folder))
    study.write_study(folder)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """The published files of the study, without the folders of its runs."""
    for name in ("summary.json", "runs.csv", "protocol.json"):
        shutil.copy(made / name, tmp_path)
    return tmp_path


def sections(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_page_has_all_sections_and_is_self_contained(made):
    page = (made / "report.html").read_text()
    expected = [title for title, _, _ in study._SECTIONS]
    assert sections(page) == expected
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("image/webp") == 2 * 6  # arms, layouts


def test_what_is_missing_is_said(made):
    page = (made / "report.html").read_text()
    assert "No results yet: EN (seeds 0, 1), AY (seed 1)." in page
    assert "no results yet" in page  # in the chart of the contrast with EN


def test_every_contrast_has_its_verdict(made):
    page = (made / "report.html").read_text()
    for result in json.loads((made / "summary.json").read_text())["contrasts"]:
        row = re.search(rf"<tr><th>{result['name']}<.*?</strong>", page, re.DOTALL)
        assert f">{result['verdict']}</strong>" in row[0]


def test_a_published_study_needs_no_runs_and_shows_changed_hypotheses(copied):
    protocol = json.loads((copied / "protocol.json").read_text())
    change = {"sha256": "cd" * 32, "written": "2026-11-29T08:00:00+00:00", "evaluations": 3}
    protocol["changes"].append(change)
    (copied / "protocol.json").write_text(json.dumps(protocol))
    page = study.write_study(copied).read_text()
    assert "Videos" not in sections(page) and "Contrasts" in sections(page)
    assert "Nothing to show for: learning curves, videos." in page
    assert "after 3 runs were evaluated" in page and "cd" * 32 in page


def test_a_study_without_any_result(tmp_path):
    unfinished = {(cell, 0) for cell in ("AN", "MN", "EN", "EY", "RY", "AY")}
    write_made_study(tmp_path, seeds=(0,), unfinished=unfinished)
    write_results(str(tmp_path))
    page = study.write_study(tmp_path).read_text()
    assert sections(page) == ["Contrasts", "Gates", "Cost and matching", "Protocol"]


def test_tiers_in_words():
    assert study_sections.tier_label("B+C") == "B and C"
    assert study_sections.tier_label("C:both") == "C, both words new"
    assert study_sections.tier_label("C:noun") == "C, noun new"


def test_a_missing_file_or_column_is_named(copied):
    runs = (copied / "runs.csv").read_text()
    (copied / "runs.csv").write_text(runs.replace("naming", "calling"))
    with pytest.raises(UserError, match=r"runs.csv has no column 'naming'"):
        study.read_results(epath.Path(copied))
    (copied / "summary.json").unlink()
    with pytest.raises(UserError, match=r"summary.json is missing: write it with launch/study"):
        study.read_results(epath.Path(copied))
