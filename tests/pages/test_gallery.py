"""The page shows every item and its places, fetches nothing, and escapes what it is given; the report counts."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from etcvla.etc.items import Item, format_loc
from etcvla.pages.gallery import GalleryEntry, write_gallery
from tests.etc.synthetic_annotation import make_annotation


class Page(HTMLParser):
    """All tags, as (name, attributes), and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._open = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        self.words += data if self._open not in ("script", "style") else ""

    def find(self, name, **attrs):
        return [
            found
            for tag, found in self.tags
            if tag == name
            and all(found.get(key.rstrip("_"), "") == value for key, value in attrs.items())
        ]


@pytest.fixture
def gallery(tmp_path):
    def write(*frames, title="Look"):
        path = tmp_path / "new" / "gallery.html"
        write_gallery(path, frames, title)
        text = path.read_text(encoding="utf-8")
        return Page(text), text

    return write


IMAGE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


def test_images_are_inside_and_nothing_is_fetched(gallery):
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "jpeg")
    page, text = gallery(GalleryEntry(IMAGE, []), GalleryEntry(buffer.getvalue(), []))
    datasets = [image["src"] for image in page.find("img")]
    assert [source.split(";")[0] for source in datasets] == ["data:image/png", "data:image/jpeg"]
    shown = Image.open(io.BytesIO(base64.b64decode(datasets[0].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown), IMAGE)
    assert "http" not in text and "@import" not in text and not page.find("link")
    assert page.find("svg")[0]["viewbox"] == "0 0 1500 1000"


def test_every_item_has_its_row_and_its_shapes(gallery):
    items = [
        Item(
            "goal_description",
            "identify",
            f"what is in the box {format_loc([0.1, 0.2, 0.5, 0.6])}?",
            "cup",
        ),
        Item(
            "spatial_understanding",
            "gripper_point",
            "point to the gripper.",
            format_loc([0.5, 0.25]),
        ),
        Item(
            "trajectory",
            "path_task",
            "to go, where will the gripper move?",
            format_loc([0, 0, 0.5, 0.5, 0.5, 0.9]),
        ),
        Item(
            "locate",
            "locate_box",
            "locate the star.",
            format_loc([0.2, 0.2, 0.4, 0.4]),
            source="model:x",
        ),
    ]
    page, _ = gallery(GalleryEntry(IMAGE, items, "go", "there, step 3"))
    rows = [row for row in page.find("li") if "data-item" in row]
    assert [(row["data-kind"], row["data-grade"]) for row in rows] == [
        (item.kind, item.grade) for item in items
    ]
    headings = [row["data-grade"] for row in page.find("li", class_="grade")]
    assert headings == ["scene_grounding", "action_aligned", "general"]
    (asked,) = page.find("rect", class_="asked")
    assert [float(asked[key]) for key in ("x", "y", "width", "height")] == pytest.approx(
        [300, 100, 600, 400], abs=2
    )
    point = page.find("circle")[0]
    assert (float(point["cx"]), float(point["cy"])) == pytest.approx((375, 500), abs=2)
    line = [
        tuple(map(float, pair.split(","))) for pair in page.find("polyline")[0]["points"].split()
    ]
    np.testing.assert_allclose(line, [(0, 0), (750, 500), (1350, 500)], atol=2)
    assert len(page.find("rect")) == 2 and len(page.find("circle")) == 4
    for word in ("go", "there, step 3", "model:x", "point to the gripper.", "locate the star."):
        assert word in page.words
    kinds = [button["data-kind"] for button in page.find("button") if "data-kind" in button]
    assert kinds == ["spatial_understanding", "goal_description", "trajectory", "locate"]


def test_other_views_stand_beside_the_frame(gallery):
    page, _ = gallery(GalleryEntry(IMAGE, [], "go", other_images={"left_wrist": IMAGE[:20]}))
    assert [image["alt"] for image in page.find("img")] == ["", "left_wrist"]
    assert len(page.find("svg")) == 1
    assert "left wrist" in page.words


def test_a_path_reads_point_by_point(gallery):
    path = Item("trajectory", "path_task", "where to?", format_loc([0, 0.25, 0.5, 0.5, 0.5, 0.75]))
    located = Item("goal_description", "locate_box", "locate it.", format_loc([0, 0.25, 0.5, 0.5]))
    _, text = gallery(GalleryEntry(IMAGE, [path, located]))
    answers = [row.split("</span>")[0] for row in text.split('<p class="answer">')[1:]]
    assert [answer.split(">", 1)[1] for answer in answers] == [
        "<code>0000 0256</code> <code>0512 0512</code> <code>0512 0768</code>",
        "<code>0000 0256 0512 0512</code>",
    ]


def test_facts_are_drawn_if_given(gallery):
    annotation = make_annotation()
    unseen = np.full_like(annotation.box, np.nan)
    unseen[:, :, 0] = annotation.box[:, :, 0]
    annotation.box = unseen
    page, _ = gallery(GalleryEntry(IMAGE, [], annotation=annotation, step=5))
    assert len(page.find("rect")) == 1 and len(page.find("circle")) == 1
    assert "sugar jar" in page.words and "drawer handle" not in page.words


def test_words_are_escaped(gallery):
    evil = "</script><img src=x onerror=alert(1)>"
    page, _ = gallery(
        GalleryEntry(IMAGE, [Item("caption", "caption", evil, evil, evil)], evil, evil), title=evil
    )
    assert len(page.find("img")) == 1 and not any("onerror" in attrs for _, attrs in page.tags)
    assert page.words.count(evil) >= 5
