"""A page of titled sections: the layout of reports and of the knowledge page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from etcvla.pages.templates import render


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
      title: heading of the section.
      template: jinja2 template of the content.
      data: variable `data` of the template.
    """

    title: str
    template: str
    data: Mapping[str, Any]


# Title, template, and the function that computes the template's data, None without results.
SectionSpec = tuple[str, str, Callable[[Any], Mapping[str, Any] | None]]


def build_sections(specs: Sequence[SectionSpec], results: Any) -> tuple[list[Section], list[str]]:
    """Return the sections, and the titles of those for which there are no results."""
    sections = []
    missing = []
    for title, template, build in specs:
        data = build(results)
        if data:
            sections.append(Section(title, template, data))
        else:
            missing.append(title.lower())
    return sections, missing


def write_page(
    path: epath.PathLike,
    template: str,
    title: str,
    sections: Sequence[Section],
    headline: Mapping[str, Any],
) -> epath.Path:
    """Write a page as one self-contained HTML file and create its folder.

    Args:
      path: the HTML file.
      template: template of the page, which extends page.html.j2.
      title: title of the browser window. The part before ":" is also shown in the navigation bar.
      sections: sections in their order.
      headline: variable `headline` of the template.

    Returns:
      `path`.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    context = {"title": title, "sections": sections, "headline": headline}
    path.write_text(render(template, context))
    return path
