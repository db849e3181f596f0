"""The knowledge page shows the numbers of knowledge.json."""

import json

from etcvla.pages.knowledge import write_knowledge_page


def test_page_shows_all_sections_with_short_names_of_checkpoints(tmp_path):
    kind = {
        "accuracy": 0.5,
        "low": 0.3,
        "high": 0.7,
        "count": 20,
        "majority": 0.2,
        "blind": 0.4,
        "iou": 0.6,
        "iou_count": 9,
    }
    gain = {"gain": 1.5, "low": 1.1, "high": 1.9, "other_box_gain": 0.9}
    results = {}
    for name in ("one", "two"):
        results[f"runs/{name}"] = {
            "answers": {"source": {"goal_description": kind}},
            "cka": {feature: [1.0, 0.5] for feature in ("vision", "image", "text")},
            "attention": {"question": [gain], "answer": [gain], "action": []},
        }
    path = write_knowledge_page(tmp_path / "new/page.html", json.loads(json.dumps(results)))
    text = path.read_text()
    sections = text[text.index("<section") :]
    assert sections.count("<svg") == 4
    assert "<td>0.60" in sections
    assert "mean IoU" in sections
    assert "runs/one" not in sections
    assert "two" in sections
