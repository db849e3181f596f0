"""The knowledge page shows the numbers of knowledge.json."""

import json

from etcvla.pages.knowledge import sections


def test_page_shows_all_sections_with_short_names_of_checkpoints():
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
    results = {
        f"runs/{name}": {
            "answers": {"source": {"goal_description": kind}},
            "cka": {part: [1.0, 0.5] for part in ("vision", "image", "text")},
            "attention": {"question": [gain], "answer": [gain], "action": []},
        }
        for name in ("one", "two")
    }
    text = "".join(sections(json.loads(json.dumps(results))).values())
    assert text.count("<svg") == 4
    assert "<td>0.60</td>" in text
    assert "runs/one" not in text
    assert "two" in text
