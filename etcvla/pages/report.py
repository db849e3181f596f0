"""Report of the results of a recipe or of several runs, as one self-contained HTML file.

Results that do not exist are named as missing; they are never shown, averaged or drawn as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from etcvla.pages import cards, knowledge, palette, report_sections
from etcvla.pages.page import Section, write_page
from etcvla.pages.results import SHAPES, RecipeResults, read_json, union
from etcvla.stats import Estimate

_Build = Callable[[RecipeResults], Mapping[str, Any] | None]
# Title, template, and the function that computes the template's data, None without results.
_SECTIONS: tuple[tuple[str, str, _Build], ...] = (
    ("Progress", "report_progress.html.j2", report_sections.progress),
    ("Scores by stage", "report_scores.html.j2", report_sections.scores),
    ("Success by task", "report_success.html.j2", report_sections.success_by_task),
    ("Benchmarks", "report_benchmarks.html.j2", report_sections.benchmarks),
    ("Instruction following", "report_interventions.html.j2", report_sections.interventions),
    ("Training curves", "report_training.html.j2", report_sections.training),
    ("Example answers", "report_examples.html.j2", cards.examples),
    ("Episode videos", "report_videos.html.j2", cards.videos),
    ("Configuration", "report_config.html.j2", report_sections.configuration),
)


def write_report(workdir: epath.PathLike, out: epath.PathLike | None = None) -> epath.Path:
    """Write the report of the recipe in `workdir` to `out`, by default <workdir>/report.html.

    Raises:
      UserError: `workdir` has no summary.json, or one of its files is not JSON.
    """
    workdir = epath.Path(workdir)
    results = RecipeResults.read(workdir)
    path = epath.Path(out) if out else workdir / "report.html"
    name = results.summary.get("recipe", "recipe")
    return _write(path, f"{name}: report", results, workdir / "knowledge/knowledge.json")


def write_comparison(workdirs: Sequence[epath.PathLike], folder: epath.PathLike) -> epath.Path:
    """Write <folder>/report.html about several runs.

    Results of `launch/knowledge.py` in the same folder are part of the report.

    Raises:
      UserError: a run does not exist, or one of its files is not JSON.
    """
    folder = epath.Path(folder)
    results = RecipeResults.compare(workdirs)
    return _write(folder / "report.html", "comparison: report", results, folder / "knowledge.json")


def _write(
    path: epath.Path, title: str, results: RecipeResults, knowledge_path: epath.Path
) -> epath.Path:
    sections = []
    missing = []
    for section_title, template, build in _SECTIONS:
        data = build(results)
        if data:
            sections.append(Section(section_title, template, data))
        else:
            missing.append(section_title.lower())
    checkpoints = read_json(knowledge_path)
    if checkpoints:
        sections += knowledge.knowledge_sections(checkpoints)
    if results.summary:
        headline = _recipe_headline(results) | {"missing": missing}
        return write_page(path, "report_recipe.html.j2", title, sections, headline)
    headline = _comparison_headline(results)
    return write_page(path, "report_comparison.html.j2", title, sections, headline)


def _recipe_headline(results: RecipeResults) -> dict[str, Any]:
    """Return the facts about a recipe and how scores changed over its main runs."""
    acting = [run for run in results.main_runs if run in results.acting_runs][-2:]
    outcomes = {}
    tiles = []
    for scene in results.scenes:
        values = {run.title: run.success(scene) for run in acting}
        tiles.append(_tile(f"Success, {scene} scene", report_sections.scene_color(scene), values))
        if acting and values[acting[-1].title]:
            outcomes[scene] = values[acting[-1].title]
    for dataset in [*results.etc_datasets[:1], SHAPES]:
        values = {run.title: run.accuracy(dataset) for run in results.main_runs}
        tiles.append(_tile(*report_sections.dataset_title(dataset), values))
    return {
        "results": results,
        "last_run": acting[-1].title if acting else "",
        "outcomes": outcomes,
        "tiles": [tile for tile in tiles if tile["values"]],
    }


def _comparison_headline(results: RecipeResults) -> dict[str, Any]:
    """Return the scores of each run, by benchmark, scene and dataset."""
    claims = {}
    tiles = []
    for name in union(run.benchmarks for run in results.runs):
        values = {}
        for run in results.runs:
            for cell in run.benchmarks.get(name, ()):
                if cell["intervention"] == "right" and not cell["perturbation"]:
                    values[run.title] = report_sections.cell_rate(cell["overall"])
        claims[f"On {name}"] = values
        tiles.append(_tile(f"Success, {name}", palette.SCENE_COLORS["source"], values))
    for scene in results.scenes:
        values = {run.title: run.success(scene) for run in results.runs}
        claims[f"In the {scene} scene"] = values
        tiles.append(_tile(f"Success, {scene} scene", report_sections.scene_color(scene), values))
    for dataset in results.datasets:
        values = {run.title: run.accuracy(dataset) for run in results.runs}
        tiles.append(_tile(*report_sections.dataset_title(dataset), values))
    known_claims = {}
    for place, values in claims.items():
        known = {name: value for name, value in values.items() if value}
        if known:
            known_claims[place] = known
    return {
        "results": results,
        "claims": known_claims,
        "tiles": [tile for tile in tiles if tile["values"]],
    }


def _tile(title: str, color: str, values: Mapping[str, Estimate | None]) -> dict[str, Any]:
    """Return a tile of the headline: a score by run, without the runs that lack it."""
    known = {name: value for name, value in values.items() if value}
    return {"title": title, "color": color, "values": known}
