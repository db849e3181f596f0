"""The gallery page shows every item and its shapes, embeds all files and escapes its texts."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from etcvla.etc.items import Item, format_loc
from etcvla.pages.gallery import GalleryEntry, write_gallery
from tests.etc.synthetic_annotation import make_annotation

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


class Page(HTMLParser):
    """All tags of a page as (name, attributes), and its text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.words = ""
        self._open_tag = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open_tag = tag

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self._open_tag = ""

    def handle_data(self, data):
        if self._open_tag not in ("script", "style"):
            self.words += data

    def find(self, name, **attributes):
        """Return the attributes of all tags of this name that have these attributes."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        found = []
        for tag, tag_attributes in self.tags:
            own = {key: tag_attributes.get(key, "") for key in wanted}
            if tag == name and own == wanted:
                found.append(tag_attributes)
        return found


@pytest.fixture
def gallery(tmp_path):
    """Return a function that writes a gallery and returns its page and text."""

    def write(*entries, title="Title"):
        path = tmp_path / "new" / "gallery.html"
        write_gallery(path, entries, title)
        text = path.read_text(encoding="utf-8")
        return Page(text), text

    return write


def test_images_are_embedded_and_nothing_is_fetched(gallery):
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "jpeg")
    page, text = gallery(GalleryEntry(IMAGE, []), GalleryEntry(buffer.getvalue(), []))
    sources = [image["src"] for image in page.find("img")]
    assert [source.split(";")[0] for source in sources] == ["data:image/png", "data:image/jpeg"]
    shown = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown), IMAGE)
    assert "http" not in text
    assert "@import" not in text
    assert not page.find("link")
    assert page.find("svg")[0]["viewbox"] == "0 0 1500 1000"


def test_every_item_has_its_row_and_its_shapes(gallery):
    question = f"what is in the box {format_loc([0.1, 0.2, 0.5, 0.6])}?"
    path = format_loc([0, 0, 0.5, 0.5, 0.5, 0.9])
    box = format_loc([0.2, 0.2, 0.4, 0.4])
    items = [
        Item("goal_description", "identify", question, "cup"),
        Item(
            "spatial_understanding",
            "gripper_point",
            "point to the gripper.",
            format_loc([0.5, 0.25]),
        ),
        Item("trajectory", "path_task", "to go, where will the gripper move?", path),
        Item("locate", "locate_box", "locate the star.", box, source="model:x"),
    ]
    page, _ = gallery(GalleryEntry(IMAGE, items, "go", "here, step 3"))
    rows = [row for row in page.find("li") if "data-item" in row]
    assert [(row["data-kind"], row["data-grade"]) for row in rows] == [
        (item.kind, item.grade) for item in items
    ]
    headings = [row["data-grade"] for row in page.find("li", class_="grade")]
    assert headings == ["scene_grounding", "action_aligned", "general"]

    (question_box,) = page.find("rect", class_="dashed")
    numbers = [float(question_box[key]) for key in ("x", "y", "width", "height")]
    assert numbers == pytest.approx([300, 100, 600, 400], abs=2)
    point = page.find("circle")[0]
    assert (float(point["cx"]), float(point["cy"])) == pytest.approx((375, 500), abs=2)
    line = []
    for pair in page.find("polyline")[0]["points"].split():
        line.append([float(number) for number in pair.split(",")])
    np.testing.assert_allclose(line, [(0, 0), (750, 500), (1350, 500)], atol=2)
    assert len(page.find("rect")) == 2
    assert len(page.find("circle")) == 4

    for word in ("go", "here, step 3", "model:x", "point to the gripper.", "locate the star."):
        assert word in page.words
    kinds = [button["data-kind"] for button in page.find("button") if "data-kind" in button]
    assert kinds == ["spatial_understanding", "goal_description", "trajectory", "locate"]


def test_other_cameras_are_shown_beside_the_frame(gallery):
    page, _ = gallery(GalleryEntry(IMAGE, [], "go", other_images={"left_wrist": IMAGE[:20]}))
    assert [image["alt"] for image in page.find("img")] == ["", "left_wrist"]
    assert len(page.find("svg")) == 1
    assert "left wrist" in page.words


def test_location_tokens_are_shown_as_numbers_by_point_or_box(gallery):
    path = Item("trajectory", "path_task", "where to?", format_loc([0, 0.25, 0.5, 0.5, 0.5, 0.75]))
    box = Item("goal_description", "locate_box", "locate it.", format_loc([0, 0.25, 0.5, 0.5]))
    _, text = gallery(GalleryEntry(IMAGE, [path, box]))
    answers = [row.split("</span>")[0] for row in text.split('<p class="answer">')[1:]]
    assert [answer.split(">", 1)[1] for answer in answers] == [
        "<code>0000 0256</code> <code>0512 0512</code> <code>0512 0768</code>",
        "<code>0000 0256 0512 0512</code>",
    ]


def test_annotation_is_drawn_without_invisible_objects(gallery):
    annotation = make_annotation()
    boxes = np.full_like(annotation.box, np.nan)
    boxes[:, :, 0] = annotation.box[:, :, 0]
    annotation.box = boxes
    page, _ = gallery(GalleryEntry(IMAGE, [], annotation=annotation, step=5))
    assert len(page.find("rect")) == 1
    assert len(page.find("circle")) == 1
    assert "sugar jar" in page.words
    assert "drawer handle" not in page.words


def test_texts_are_escaped(gallery):
    evil = "</script><img src=x onerror=alert(1)>"
    item = Item("caption", "caption", evil, evil, evil)
    page, _ = gallery(GalleryEntry(IMAGE, [item], evil, evil), title=evil)
    assert len(page.find("img")) == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.words.count(evil) >= 5
