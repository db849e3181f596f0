"""A page to look at labels, and the numbers to know about them.

The page is one HTML file without anything to fetch: images inside, boxes, points and paths drawn over them as SVG,
filters in a few lines of JavaScript.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np

from etcvla.etc.annotation import Annotation
from etcvla.etc.items import ETC_KINDS, GRADES, Item
from etcvla.etc.overlay import HEIGHT, KIND_COLORS, STYLE, answered, asked, box, dot, look, prose, words
from etcvla.etc.score import majority_answers, score

_OTHER_COLOR = "#697177"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A frame of the gallery."""

    image: np.ndarray | bytes  # uint8[H, W, 3], or an encoded JPEG or PNG file
    items: Sequence[Item]
    instruction: str = ""
    caption: str = ""  # where it comes from, e.g. "door-open, step 12"
    annotation: Annotation | None = None  # if given, its facts at `step` can be shown on the image
    step: int = 0


def write_gallery(path: str | Path, frames: Sequence[Entry], title: str) -> None:
    """Writes a self-contained HTML page of `frames` to `path`; makes its directory if need be."""
    items = [item for frame in frames for item in frame.items]
    page = _PAGE.substitute(
        title=html.escape(title), style=_STYLE, script=_SCRIPT, summary=f"{len(frames)} frames, {len(items)} items",
        filters=_filters(items), cards="\n".join(map(_card, frames)), statistics=_statistics(report(items)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def report(items: Sequence[Item], dropped: Mapping[str, int] | None = None) -> dict:
    """What is in a set of items, ready for JSON.

    Args:
      dropped: reason -> count, as `make_items` returns it; summed by the caller over episodes.

    Returns:
      "items"; "by_grade", "by_kind": counts; "by_form": form -> count, number of different answers, best constant
      answer and the share of items that it answers rightly by the rules of `score` (a general form of the same name
      counts with it); "question_chars", "answer_chars": mean and max; "dropped".
    """
    forms = defaultdict(list)
    for item in items:
        forms[item.form].append(item)
    constant = majority_answers(items)
    by_form = {form: {
        "count": len(group), "answers": len({item.answer for item in group}), "majority_answer": constant[form],
        "majority_share": float(np.mean([score(item, item.answer, constant[form]) for item in group])),
    } for form, group in forms.items()}
    return {"items": len(items), "by_grade": dict(Counter(item.grade for item in items)),
            "by_kind": dict(Counter(item.kind for item in items)), "by_form": by_form,
            "question_chars": _lengths([item.question for item in items]),
            "answer_chars": _lengths([item.answer for item in items]), "dropped": dict(dropped or {})}


def _lengths(texts: Sequence[str]) -> dict[str, float]:
    lengths = [len(text) for text in texts] or [0]
    return {"mean": float(np.mean(lengths)), "max": max(lengths)}


def _color(kind: str) -> str:
    return KIND_COLORS.get(kind, _OTHER_COLOR)


def _card(frame: Entry) -> str:
    def draw(aspect: float) -> str:
        shapes = [f'<g data-item="{i}" data-kind="{item.kind}" style="color:{_color(item.kind)}">'
                  f"{asked(item.question, aspect)}{answered(item.form, item.answer, aspect)}</g>"
                  for i, item in enumerate(frame.items)]
        return (_facts(frame, aspect) if frame.annotation else "") + "".join(shapes)

    caption = f'<span class="caption">{html.escape(frame.caption)}</span>' if frame.caption else ""
    return (f"<article>{look(frame.image, frame.caption, draw)}"
            f'<header>{html.escape(frame.instruction)}{caption}</header>'
            f"<ol>{_rows(frame.items)}</ol></article>")


def _rows(items: Sequence[Item]) -> str:
    """List entries under a heading for each run of a grade."""
    rows = []
    for i, item in enumerate(items):
        if i == 0 or item.grade != items[i - 1].grade:
            rows.append(f'<li class="grade" data-grade="{item.grade}">{words(item.grade)}</li>')
        rows.append(f'<li data-item="{i}" data-kind="{item.kind}" data-grade="{item.grade}" '
                    f'style="--c:{_color(item.kind)}"><p class="meta"><span><b>{words(item.kind)}</b> '
                    f"{words(item.form)}</span><i>{html.escape(item.source)}</i></p>"
                    f'<p>{prose(item.question)}</p><p class="answer">{prose(item.answer)}</p></li>')
    return "".join(rows)


def _facts(frame: Entry, aspect: float) -> str:
    """The annotation itself, white and thin: boxes with names, and the gripper."""
    facts, shapes = frame.annotation, []
    for name, place in zip(facts.objects, facts.box[frame.step, 0], strict=True):
        if np.isfinite(place).all():
            shapes.append(box(place, aspect) + f'<text x="{place[1] * HEIGHT * aspect + 6:.0f}" '
                          f'y="{place[0] * HEIGHT - 8:.0f}">{html.escape(name)}</text>')
    gripper = facts.gripper_pixel[frame.step, 0]
    return f'<g class="facts">{"".join(shapes)}{dot(gripper, aspect) if np.isfinite(gripper).all() else ""}</g>'


def _filters(items: Sequence[Item]) -> str:
    kinds = Counter(item.kind for item in items)
    grades = Counter(item.grade for item in items)

    def buttons(attribute: str, names: Sequence[str], counts: Counter) -> str:
        return "".join(f'<button data-{attribute}="{name}" style="--c:{_color(name)}" aria-pressed="true">'
                       f"{words(name)} <small>{counts[name]}</small></button>" for name in names)

    grade_names = sorted(grades, key=lambda name: [*GRADES.values(), name].index(name))
    kind_names = sorted(kinds, key=lambda name: [*ETC_KINDS, name].index(name))
    return (f'<div><span>grade</span>{buttons("grade", grade_names, grades)}</div>'
            f'<div><span>kind</span>{buttons("kind", kind_names, kinds)}</div>')


def _statistics(numbers: dict) -> str:
    rows = "".join(f'<tr><td>{form}<td>{row["count"]}<td>{row["answers"]}<td>{prose(row["majority_answer"])}'
                   f'<td>{row["majority_share"]:.0%}' for form, row in numbers["by_form"].items())
    data = json.dumps(numbers).replace("<", r"\u003c")  # nothing in it can close the script
    return (f"<table><tr><th>form<th>items<th>different answers<th>best constant answer<th>right in{rows}</table>"
            f'<script type="application/json" id="report">{data}</script>')


_STYLE = STYLE + """
:root { color-scheme: light dark; --bg: #f6f7f8; --card: #fff; --ink: #1c2024; --soft: #6a7178; --line: #e3e6e9; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #111315; --card: #1a1d20; --ink: #eceef0; --soft: #9ba1a6; --line: #2c3135; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 14px/1.45 system-ui, "Segoe UI", sans-serif; }
body > header { position: sticky; top: 0; z-index: 1; padding: 14px 24px; background: var(--card);
  border-bottom: 1px solid var(--line); }
h1 { display: inline; margin: 0 12px 0 0; font-size: 19px; }
body > header > span, .caption, .meta i, nav span, table th { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 6px 28px; margin-top: 8px; }
nav div { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; }
button { padding: 3px 10px; font: inherit; color: inherit; cursor: pointer; background: none; opacity: .45;
  border: 1px solid var(--line); border-radius: 99px; }
button[aria-pressed=true] { opacity: 1; border-color: var(--c); }
button[data-kind]::before { content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 6px;
  border-radius: 50%; background: var(--c); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 18px; padding: 20px 24px;
  align-items: start; }
article { overflow: hidden; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
svg .facts { color: #fff; display: none; }
svg .facts rect { stroke-width: 3; }
body.facts svg .facts { display: inline; }
figure + header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 0 12px;
  padding: 10px 14px 2px; font-weight: 600; color: var(--ink); }
.caption { font-size: 12px; font-weight: 400; }
ol { margin: 0; padding: 4px 0 8px; list-style: none; }
li { padding: 6px 14px 6px 11px; border-left: 3px solid transparent; }
li:hover { border-color: var(--c); background: color-mix(in srgb, var(--c) 9%, transparent); }
li p { margin: 0; overflow-wrap: anywhere; }
li.grade { margin: 6px 14px 2px; padding: 0; font-size: 11px; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft); border: 0; border-bottom: 1px solid var(--line); }
.meta { display: flex; justify-content: space-between; font-size: 12px; }
.meta b { color: var(--c); }
.meta i { font-style: normal; }
.answer { font-weight: 600; }
code { padding: 0 4px; font-size: 12px; background: var(--bg); border: 1px solid var(--line); border-radius: 4px; }
[hidden] { display: none !important; }
article.focus svg g[data-item]:not(.lit) { display: none; }
details { margin: 0 24px 32px; }
table { margin-top: 10px; border-collapse: collapse; background: var(--card); }
td, th { padding: 4px 12px; text-align: left; border: 1px solid var(--line); font-weight: 400; }
"""

_SCRIPT = """
const off = {grade: new Set(), kind: new Set()};
function apply() {
  let frames = 0, items = 0;
  for (const card of document.querySelectorAll('article')) {
    let shown = 0;
    for (const row of card.querySelectorAll('li[data-item]')) {
      row.hidden = off.kind.has(row.dataset.kind) || off.grade.has(row.dataset.grade);
      card.querySelector(`g[data-item="${row.dataset.item}"]`).toggleAttribute('hidden', row.hidden);
      shown += !row.hidden;
    }
    for (const heading of card.querySelectorAll('li.grade'))
      heading.hidden = !card.querySelector(`li[data-item][data-grade="${heading.dataset.grade}"]:not([hidden])`);
    card.hidden = !shown;
    frames += shown > 0; items += shown;
  }
  document.getElementById('count').textContent = `${frames} frames, ${items} items`;
}
for (const button of document.querySelectorAll('nav button[data-grade], nav button[data-kind]')) {
  const axis = button.dataset.grade ? 'grade' : 'kind', name = button.dataset[axis];
  const all = [...document.querySelectorAll(`nav button[data-${axis}]`)].map(other => other.dataset[axis]);
  button.onclick = () => {  // the first click keeps this one alone, a click on the last one left brings all back
    const alone = off[axis].size === all.length - 1 && !off[axis].has(name);
    if (alone) off[axis].clear();
    else if (!off[axis].size) off[axis] = new Set(all.filter(other => other !== name));
    else if (!off[axis].delete(name)) off[axis].add(name);
    for (const other of document.querySelectorAll(`nav button[data-${axis}]`))
      other.setAttribute('aria-pressed', !off[axis].has(other.dataset[axis]));
    apply();
  };
}
for (const row of document.querySelectorAll('li[data-item]')) {
  const card = row.closest('article'), shape = card.querySelector(`g[data-item="${row.dataset.item}"]`);
  row.onmouseenter = () => { card.classList.add('focus'); shape.classList.add('lit'); };
  row.onmouseleave = () => { card.classList.remove('focus'); shape.classList.remove('lit'); };
}
const facts = document.getElementById('facts');
facts.onclick = () => facts.setAttribute('aria-pressed', document.body.classList.toggle('facts'));
facts.hidden = !document.querySelector('svg .facts');
"""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>$style</style></head><body>
<header><h1>$title</h1><span id="count">$summary</span>
<nav>$filters<div><button id="facts" aria-pressed="false">show the facts</button></div></nav></header>
<main>
$cards
</main>
<details open><summary>Statistics</summary>$statistics</details>
<script>$script</script></body></html>
""")
