"""Items are reviewed on the gallery page in a browser, and the saved file is read."""

import json

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.etc.items import Item, format_loc
from etcvla.etc.review import ItemKey, Review, review_file_name
from etcvla.pages.gallery import GalleryEntry, write_gallery
from tests.etc.browser import Browser

NAME = "made/up/1.0.0"
HEADER = {"format": "etcvla-review", "version": 1, "dataset": NAME, "split": "train"}
# The items of two frames. On the page they have the indices 0, 1 and 2.
CUP = Item("goal_description", "present", "is there a cup?", "yes")
PATH = Item("trajectory", "path_task", "where to?", format_loc([0.1, 0.2, 0.5, 0.6]))
GRIPPER = Item(
    "spatial_understanding",
    "gripper_point",
    'point to the "gripper" <b>.',
    format_loc([0.5, 0.25]),
)
FRAMES = [[CUP, PATH], [GRIPPER]]
# JavaScript: the numbers of items by verdict, and the indices of the items that the filters show.
COUNTS = "[...document.querySelectorAll('nav button[data-verdict] small')].map(x => +x.textContent)"
SHOWN = (
    "[...document.querySelectorAll('li[data-key]')].filter(x => !x.hidden).map(x => +x.dataset.key)"
)


def _key(frame, item):
    return ItemKey(f"episode/{frame}", 3 * frame, item.question_type, item.question, item.answer)


def _verdict(frame, item, verdict):
    return _key(frame, item)._asdict() | {"verdict": verdict}


@pytest.fixture
def page(tmp_path):
    """The gallery page of a dataset."""
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    entries = [
        GalleryEntry(image, items, "go", step=3 * i, episode_id=f"episode/{i}")
        for i, items in enumerate(FRAMES)
    ]
    path = tmp_path / "page.html"
    write_gallery(path, entries, "Review", dataset=NAME, split="train")
    return path


@pytest.fixture
def browser(page, tmp_path):
    """A browser that shows the page."""
    with Browser(page, tmp_path) as browser:
        yield browser


def _save(browser):
    browser.click("#save")
    name = review_file_name(NAME, "train")
    browser.downloaded(name)
    return Review.load(browser.downloads / name)


def _review_items(browser):
    browser.click('li[data-key="1"] [data-choice=reject]')
    browser.click('li[data-key="2"] [data-choice=accept]')
    browser.click('li[data-key="0"] [data-choice=reject]')
    browser.click('li[data-key="0"] [data-choice=reject]')  # the second click removes the verdict


def test_verdicts_are_saved_and_survive_a_reload(browser):
    _review_items(browser)
    review = _save(browser)
    assert review == Review(NAME, "train", {_key(0, PATH): "reject", _key(1, GRIPPER): "accept"})
    assert review.rejected() == {_key(0, PATH)}
    assert browser.run(COUNTS) == [1, 1, 1]
    browser.call("Page.reload")
    browser.run("new Promise(done => document.readyState === 'complete' ? done() : onload = done)")
    assert browser.run(COUNTS) == [1, 1, 1]  # from the storage of the browser


def test_items_are_filtered(browser):
    _review_items(browser)
    browser.click("nav button[data-verdict=reject]")
    assert browser.run(SHOWN) == [1]
    browser.click("nav button[data-verdict=reject]")
    browser.click("nav button[data-kind=trajectory]")
    assert browser.run(SHOWN) == [1]
    browser.click("nav button[data-kind=trajectory]")
    browser.click("nav button[data-grade=scene_grounding]")
    assert browser.run(SHOWN) == [0, 2]
    search = "[document.getElementById('search')].map(x => { x.value = %r; x.oninput(); })"
    browser.run(search % "GRIPPER")
    assert browser.run(SHOWN) == [2]
    browser.run(search % "")
    assert browser.run(SHOWN) == [0, 2]


def test_verdicts_of_a_loaded_file_about_other_items_are_kept(browser):
    other = Item("goal_description", "present", "?", "no")
    items = [_verdict(9, other, "reject"), _verdict(0, CUP, "reject")]
    browser.run(f"loadReview({json.dumps(HEADER | {'items': items})})")
    browser.run(
        """hovered = document.querySelector('li[data-key="1"]');
           document.dispatchEvent(new KeyboardEvent('keydown', {key: 'a'}))"""
    )
    assert _save(browser).verdicts == {
        _key(9, other): "reject",
        _key(0, CUP): "reject",
        _key(0, PATH): "accept",
    }


def test_a_page_without_a_dataset_has_no_review(tmp_path):
    path = tmp_path / "page.html"
    write_gallery(path, [GalleryEntry(np.zeros((8, 8, 3), np.uint8), [CUP])], "Review")
    text = path.read_text()
    assert 'data-choice="' not in text
    assert 'id="save"' not in text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a review"),
        ('{"format": "etcvla-review", "version": 2}', "expected 'etcvla-review', 1"),
        (
            json.dumps(HEADER | {"items": [{"step": 1, "verdict": "accept"}]}),
            r"items\[0\]: episode_id, question_type, question, answer missing",
        ),
        (
            json.dumps(HEADER | {"items": [_verdict(0, CUP, "maybe")]}),
            "verdict is 'maybe', expected accept or reject",
        ),
    ],
)
def test_malformed_reviews_are_an_error(tmp_path, text, problem):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=rf"file\.json.*{problem}"):
        Review.load(tmp_path / "file.json")


def test_a_missing_review_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no review file .*file\.json"):
        Review.load(tmp_path / "file.json")


def test_file_names_contain_dataset_and_split():
    name = review_file_name("metaworld_etc/source_a+b/1.0.0", "train")
    assert name == "review-metaworld_etc-source_a+b-1.0.0-train.json"
