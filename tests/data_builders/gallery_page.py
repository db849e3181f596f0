"""Read the review data of a gallery page, and write reviews."""

import json


def read_review_data(page):
    """Return the page's data: dataset, split, fields, and the key of every item."""
    text = page.read_text().split('id="review-data">')[1].split("</script>")[0]
    return json.loads(text)


def write_review(path, keys, dataset, split="train"):
    """Write a review.

    Args:
      keys: ItemKey -> verdict.
    """
    items = [key._asdict() | {"verdict": verdict} for key, verdict in keys.items()]
    review = {
        "format": "etcvla-review",
        "version": 1,
        "dataset": dataset,
        "split": split,
        "items": items,
    }
    path.write_text(json.dumps(review))
    return path
