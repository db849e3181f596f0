"""Items are judged on the page in a real browser, and the file that it saves is read back."""

import json

import numpy as np
import pytest

from etcvla.etc.items import Item, format_loc
from etcvla.etc.review import ItemKey, Review, review_file_name
from etcvla.pages.gallery import GalleryEntry, write_gallery
from tests.etc.browser import Browser

NAME = "made/up/1.0.0"
ITEMS = [
    [
        Item("goal_description", "present", "is there a cup?", "yes"),
        Item("trajectory", "path_task", "where to?", format_loc([0.1, 0.2, 0.5, 0.6])),
    ],
    [
        Item(
            "spatial_understanding",
            "gripper_point",
            'point to the "gripper" <b>.',
            format_loc([0.5, 0.25]),
        )
    ],
]


def key(frame, item):
    made = ITEMS[frame][item]
    return ItemKey(f"episode/{frame}", 3 * frame, made.question_type, made.question, made.answer)


@pytest.fixture
def page(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    write_gallery(
        tmp_path / "page.html",
        [
            GalleryEntry(image, items, "go", step=3 * i, episode_id=f"episode/{i}")
            for i, items in enumerate(ITEMS)
        ],
        "Look",
        dataset=NAME,
        split="train",
    )
    return tmp_path / "page.html"


def saved(browser, tmp_path):
    browser.click("#save")
    name = review_file_name(NAME, "train")
    browser.downloaded(name)
    return Review.load((tmp_path / "downloads" / name).rename(tmp_path / name))


def test_verdicts_are_saved_reloaded_and_filtered(page, tmp_path):
    with Browser(page, tmp_path) as browser:
        browser.click('li[data-key="1"] [data-choice=reject]')
        browser.click('li[data-key="2"] [data-choice=accept]')
        browser.click('li[data-key="0"] [data-choice=reject]')
        browser.click('li[data-key="0"] [data-choice=reject]')  # a second click takes it back
        review = saved(browser, tmp_path)
        assert review == Review(NAME, "train", {key(0, 1): "reject", key(1, 0): "accept"})
        assert review.rejected() == {key(0, 1)}
        counts = "[...document.querySelectorAll('nav button[data-verdict] small')].map(x => +x.textContent)"
        assert browser.run(counts) == [1, 1, 1]
        shown = "[...document.querySelectorAll('li[data-key]')].filter(x => !x.hidden).map(x => +x.dataset.key)"
        browser.click("nav button[data-verdict=reject]")
        assert browser.run(shown) == [1]
        browser.click("nav button[data-verdict=reject]")
        browser.click("nav button[data-kind=trajectory]")
        assert browser.run(shown) == [1]
        browser.click("nav button[data-kind=trajectory]")
        browser.click("nav button[data-grade=scene_grounding]")
        assert browser.run(shown) == [0, 2]
        search = "[document.getElementById('search')].map(x => { x.value = %r; x.oninput(); })"
        browser.run(search % "GRIPPER")
        assert browser.run(shown) == [2]
        browser.run(search % "")
        assert browser.run(shown) == [0, 2]
        browser.call("Page.reload")
        browser.run(
            "new Promise(done => document.readyState === 'complete' ? done() : onload = done)"
        )
        assert browser.run(counts) == [1, 1, 1]  # kept in the browser


def test_a_loaded_file_keeps_what_the_page_does_not_show(page, tmp_path):
    elsewhere = {
        "episode_id": "episode/9",
        "step": 0,
        "question_type": "present",
        "question": "?",
        "answer": "no",
        "verdict": "reject",
    }
    file = {
        "format": "etcvla-review",
        "version": 1,
        "dataset": NAME,
        "split": "train",
        "items": [elsewhere, key(0, 0)._asdict() | {"verdict": "reject"}],
    }
    with Browser(page, tmp_path) as browser:
        browser.run(f"loadReview({json.dumps(file)})")
        browser.run("""hovered = document.querySelector('li[data-key="1"]');
                       document.dispatchEvent(new KeyboardEvent('keydown', {key: 'a'}))""")
        found = saved(browser, tmp_path)
    assert found.verdicts == {
        ItemKey("episode/9", 0, "present", "?", "no"): "reject",
        key(0, 0): "reject",
        key(0, 1): "accept",
    }


def test_a_page_of_no_dataset_has_nothing_to_judge(tmp_path):
    write_gallery(
        tmp_path / "page.html", [GalleryEntry(np.zeros((8, 8, 3), np.uint8), ITEMS[0])], "Look"
    )
    text = (tmp_path / "page.html").read_text()
    assert 'data-choice="' not in text
    assert 'id="save"' not in text


HEAD = {"format": "etcvla-review", "version": 1, "dataset": "d", "split": "s"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a review"),
        ('{"format": "etcvla-review", "version": 2}', "expected 'etcvla-review', 1"),
        (
            json.dumps(HEAD | {"items": [{"step": 1, "verdict": "accept"}]}),
            r"items\[0\]: episode_id, question_type, question, answer missing",
        ),
        (
            json.dumps(HEAD | {"items": [key(0, 0)._asdict() | {"verdict": "maybe"}]}),
            "verdict is 'maybe', expected accept or reject",
        ),
    ],
)
def test_a_file_that_is_no_review_is_named(tmp_path, text, complaint):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=rf"file\.json.*{complaint}"):
        Review.load(tmp_path / "file.json")


def test_file_names():
    assert (
        review_file_name("metaworld_etc/source_a+b/1.0.0", "train")
        == "review-metaworld_etc-source_a+b-1.0.0-train.json"
    )
