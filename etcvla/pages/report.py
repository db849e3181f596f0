"""Report of the results of a recipe or of several runs, as one self-contained HTML file.

Results that do not exist are named as missing; they are never shown, averaged or drawn as zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from etils import epath

from etcvla.pages import cards, knowledge, report_sections
from etcvla.pages.measures import benchmark_measures, run_measures
from etcvla.pages.page import Section, build_sections, write_page
from etcvla.pages.results import RecipeResults, read_json

_SECTIONS = (
    ("Scores by stage", "report_scores.html.j2", report_sections.scores),
    ("Success by task", "report_success.html.j2", report_sections.success_by_task),
    ("Benchmarks", "report_benchmarks.html.j2", report_sections.benchmarks),
    ("Instruction following", "report_interventions.html.j2", report_sections.interventions),
    ("Training curves", "report_training.html.j2", report_sections.training),
    ("Example answers", "report_examples.html.j2", cards.examples),
    ("Episode videos", "report_videos.html.j2", cards.videos),
    ("Configuration", "report_config.html.j2", report_sections.configuration),
)


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Write the report of the recipe in `workdir` to <workdir>/report.html.

    Raises:
      UserError: `workdir` has no summary.json, or one of its files is not JSON.
    """
    workdir = epath.Path(workdir)
    results = RecipeResults.read(workdir)
    sections, missing = _sections(results, workdir / "knowledge/knowledge.json")
    headline = {
        "results": results,
        "measures": run_measures(dataclasses.replace(results, runs=tuple(results.main_runs))),
        "missing": missing,
    }
    title = f"{results.summary.get('recipe', 'recipe')}: report"
    path = workdir / "report.html"
    return write_page(path, "report_recipe.html.j2", title, sections, headline)


def write_comparison(workdirs: Sequence[epath.PathLike], folder: epath.PathLike) -> epath.Path:
    """Write <folder>/report.html about several runs.

    Results of `launch/knowledge.py` in the same folder are part of the report.

    Raises:
      UserError: a run does not exist, or one of its files is not JSON.
    """
    folder = epath.Path(folder)
    results = RecipeResults.compare(workdirs)
    sections, _ = _sections(results, folder / "knowledge.json")
    measures = benchmark_measures(results) + run_measures(results)
    headline = {"results": results, "measures": measures}
    path = folder / "report.html"
    return write_page(path, "report_comparison.html.j2", "comparison: report", sections, headline)


def _sections(
    results: RecipeResults, knowledge_path: epath.Path
) -> tuple[list[Section], list[str]]:
    """Return the sections, and the titles of those for which there are no results."""
    sections, missing = build_sections(_SECTIONS, results)
    checkpoints = read_json(knowledge_path)
    if checkpoints:
        sections += knowledge.knowledge_sections(checkpoints)
    return sections, missing
