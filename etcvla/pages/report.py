"""One page that tells what a recipe did and how well: report.html, with nothing to fetch, from the recipe's folder.

What was not evaluated is said to be so; it is never shown, averaged or drawn as zero.
"""

from __future__ import annotations

import html
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from string import Template

from etils import epath

from etcvla.etc import score
from etcvla.pages import cards, charts, knowledge, overlay
from etcvla.pages.overlay import words
from etcvla.pages.results import (
    RecipeResults,
    RunResults,
    estimate,
    read_json,
    union,
)
from etcvla.results_schema import INTERVENTIONS
from etcvla.stats import Estimate, mean, rate

PAIRS = (("drawer-open", "drawer-close"),)  # tasks that share their start state and look
NONE = '<span class="none">not evaluated</span>'
MISSING = f"<p>{NONE}</p>"
_GUESSERS = ("majority", "blind")
_TERMS = (
    "trials",
    "max_steps",
    "execution",
    "replan_steps",
    "seed",
)  # of a benchmark's protocol.json, told
_OF_A_RUN = ("checkpoint", "policy", "action_horizon")  # what of it is the run's own
_ASSET = epath.resource_path("etcvla") / "pages/assets/report.html"


def write_report(root: epath.PathLike, out: epath.PathLike | None = None) -> epath.Path:
    """Writes the page about the recipe whose workdir is `root` to `out`, by default <root>/report.html.

    Raises FileNotFoundError if `root` has no summary.json, ValueError where one of its files is not JSON.
    """
    root = epath.Path(root)
    return _write(
        RecipeResults.read(root),
        root / "knowledge",
        epath.Path(out) if out else root / "report.html",
    )


def write_comparison(workdirs: Sequence[epath.PathLike], folder: epath.PathLike) -> epath.Path:
    """Writes <folder>/report.html about runs side by side, with what `launch/knowledge.py` left in the folder.

    Raises FileNotFoundError where a run is missing, ValueError where one of its files is not JSON.
    """
    return _write(
        RecipeResults.of(workdirs), epath.Path(folder), epath.Path(folder) / "report.html"
    )


def _write(recipe: RecipeResults, known: epath.Path, out: epath.Path) -> epath.Path:
    sections = {
        "The road": _road,
        "Stages in numbers": _table,
        "Acting": _acting,
        "Benchmarks": _benchmarks,
        "Listening": _listening,
        "Training": _training,
        "Answers": cards.answers,
        "Rollouts": cards.rollouts,
        "How it was made": _provenance,
    }
    texts = {title: write(recipe) for title, write in sections.items()}
    if not recipe.summary:  # runs side by side: nobody said that all of it should be there
        texts = {title: text for title, text in texts.items() if text}
    if found := read_json(known / "knowledge.json"):
        texts |= {
            f"What they know: {title.lower()}": text
            for title, text in knowledge.sections(found).items()
        }
    name = recipe.summary.get("recipe", "recipe") if recipe.summary else "comparison"
    page = make_page(
        f"{name}: report", _headline(recipe) if recipe.summary else _side_by_side(recipe), texts
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    return out


def make_page(title: str, headline: str, sections: Mapping[str, str]) -> str:
    """One HTML file with nothing to fetch; sections by title, those without content said to be missing."""
    parts = [
        f'<section id="s{i}"><h2>{name}</h2>{text or MISSING}</section>'
        for i, (name, text) in enumerate(sections.items())
    ]
    title = html.escape(title)
    links = f"<b>{title.partition(':')[0]}</b>" + "".join(
        f'<a href="#s{i}">{name}</a>' for i, name in enumerate(sections)
    )
    return Template(_ASSET.read_text()).substitute(
        title=title,
        overlay_style=overlay.STYLE,
        truth=cards.TRUTH,
        said=cards.SAID,
        links=links,
        headline=headline,
        sections="\n".join(parts),
        footer="Intervals are 95 % throughout. All of this page is in this one file.",
    )


# ---- numbers as text ----


def _span(value: Estimate) -> str:
    return f"{value.low * 100:.0f}–{value.high * 100:.0f}%"


def _won(value: Estimate) -> str:
    return f"{value.value * value.count:.0f} of {value.count}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "time not recorded"
    minutes = seconds / 60
    return (
        f"{seconds:.0f} s"
        if minutes < 1
        else f"{minutes:.1f} min"
        if minutes < 100
        else f"{minutes / 60:.1f} h"
    )


def _color(scene: str) -> str:
    return charts.SCENES.get(scene, charts.SOFT)


# ---- sections ----


def _headline(recipe: RecipeResults) -> str:
    summary, acting = (
        recipe.summary,
        [stage for stage in recipe.road if stage in recipe.acting][-2:],
    )
    outcomes = [
        f"in <b>{_won(value)}</b> trials in the {html.escape(scene)} scene ({value.value:.0%}, 95 % interval "
        f"{_span(value)})"
        for scene in recipe.scenes
        if acting and (value := acting[-1].success(scene))
    ]
    claim = (
        f"After {html.escape(acting[-1].title)} the robot succeeds {' and '.join(outcomes)}."
        if outcomes
        else "How the robot acts was not evaluated."
    )
    memory = summary.get("peak_memory_gib")
    peak = f"peak memory {'not recorded' if memory is None else f'{memory:.1f} GiB'}"
    tiles = [
        _tile(
            f"Success, {scene} scene",
            _color(scene),
            {stage.title: stage.success(scene) for stage in acting},
        )
        for scene in recipe.scenes
    ]
    tiles += [
        _tile(
            f"ETC answers, {dataset}",
            charts.ETC,
            {stage.title: stage.accuracy(dataset) for stage in recipe.road},
        )
        for dataset in recipe.datasets[:1]
    ]
    tiles.append(
        _tile(
            "Retention, held-out shapes",
            charts.MM,
            {stage.title: stage.accuracy("mm") for stage in recipe.road},
        )
    )
    return (
        f"<h1>From a vision-language model to a robot policy: <i>{words(str(summary.get('recipe', '')))}</i></h1>"
        f'<p class="byline">{_day(recipe)} · commit {html.escape(str(summary.get("commit", "unknown"))[:12])} · '
        f'{len(recipe.stages)} runs</p><p class="lead">{claim}</p><div class="tiles">{"".join(tiles)}'
        f"<div><h3>Cost</h3><b>{_duration(summary.get('seconds'))}</b>"
        f"<p>all runs, trained and evaluated<br>{peak}</p></div></div>"
    )


def _side_by_side(recipe: RecipeResults) -> str:
    """The headline of runs that no recipe bound together: what each does, none of them the end of a road."""
    scored = {
        f"On {words(name)}": {
            stage.title: _rate(cell["overall"])
            for stage in recipe.stages
            for cell in stage.suites.get(name, ())
            if _setting(cell) == INTERVENTIONS["right"]
        }
        for name in union(stage.suites for stage in recipe.stages)
    }
    scored |= {
        f"In the {html.escape(scene)} scene": {
            stage.title: stage.success(scene) for stage in recipe.acting
        }
        for scene in recipe.scenes
    }
    claims = [
        f"{place}, "
        + ", ".join(
            f"{html.escape(name)} succeeds in <b>{_won(value)}</b> episodes (95 % interval "
            f"{_span(value)})"
            for name, value in runs.items()
            if value
        )
        + "."
        for place, runs in scored.items()
        if any(runs.values())
    ]
    tiles = [
        _list(f"Success, {place.partition(' ')[2]}", charts.SOURCE, runs)
        for place, runs in scored.items()
    ]
    for dataset in [*recipe.datasets, "mm"]:
        title, color = (
            ("Retention, held-out shapes", charts.MM)
            if dataset == "mm"
            else (f"ETC answers, {html.escape(dataset)}", charts.ETC)
        )
        values = {stage.title: stage.accuracy(dataset) for stage in recipe.stages}
        tiles += [_list(title, color, values)] if any(values.values()) else []
    titles = ", ".join(f"<i>{html.escape(stage.title)}</i>" for stage in recipe.stages)
    lead = " ".join(claims) or "How these runs act was not evaluated."
    return (
        f'<h1>Side by side: {titles}</h1><p class="byline">{_day(recipe)}</p><p class="lead">{lead}</p>'
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _day(recipe: RecipeResults) -> str:
    return time.strftime("%d %B %Y, %H:%M", time.localtime(recipe.finished))


def _list(title: str, color: str, values: Mapping[str, Estimate | None]) -> str:
    """A number a run."""
    lines = "".join(
        f"<p>{html.escape(name)} <span>{_number(value) if value else NONE}</span></p>"
        for name, value in values.items()
    )
    return f'<div style="--c:{color}"><h3>{title}</h3>{lines}</div>'


def _tile(title: str, color: str, values: Mapping[str, Estimate | None]) -> str:
    """A number of the headline: the first and the last known of `values` {stage: estimate}."""
    known = {name: value for name, value in values.items() if value}
    ends = {name: known[name] for name in [*list(known)[:1], *list(known)[-1:]]}
    first, *rest = [f"{value.value:.0%}" for value in ends.values()] or [NONE]
    number = f"<small>{first} → </small>{rest[0]}" if rest else first
    lines = "".join(
        f"<p>{html.escape(name)} <span>{_span(value)}</span></p>" for name, value in ends.items()
    )
    return f'<div style="--c:{color}"><h3>{html.escape(title)}</h3><b>{number}</b>{lines}</div>'


def _road(recipe: RecipeResults) -> str:
    series = {"shapes kept": (charts.MM, "-", [stage.accuracy("mm") for stage in recipe.stages])}
    for i, dataset in enumerate(recipe.datasets):
        values = [stage.accuracy(dataset) for stage in recipe.stages]
        series[f"ETC answers, {dataset}"] = charts.ETC, "--" if i else "-", values
    for scene in recipe.scenes:
        series[f"success, {scene}"] = (
            _color(scene),
            "-",
            [stage.success(scene) for stage in recipe.stages],
        )
    labels = [
        f"{stage.title.replace(' action only', chr(10) + 'action only')}\n{_steps(stage)}"
        for stage in recipe.stages
    ]
    lead = (
        "What the model still knows (held-out questions about 2-D shapes), what it says of robot scenes (held-out "
        "ETC questions, mean over the kinds) and what it does (closed-loop success over all tasks), after each "
        "stage. Vertical bars are 95 % intervals."
    )
    if len(recipe.road) < len(recipe.stages):
        lead += " Hollow points are control runs, which start from an earlier stage."
    missing = [name for name, (_, _, values) in series.items() if not any(values)]
    note = f"<p>{html.escape(', '.join(missing))}: {NONE}</p>" if missing else ""
    return (
        f"<p>{lead}</p>"
        + charts.road(labels, recipe.parents, series, size=(11, 4.4), label="the road")
        + note
    )


def _steps(stage: RunResults) -> str:
    return f"{stage.facts['steps']:,} steps" if "steps" in stage.facts else ""


def _table(recipe: RecipeResults) -> str:
    head = "".join(
        f"<th>{html.escape(stage.title)}<small>{_steps(stage)}, {_duration(stage.facts.get('seconds'))}"
        f"</small><small>from {words(stage.facts.get('init_from') or 'random parameters')}</small>"
        for stage in recipe.stages
    )
    body = "".join(_question_rows(recipe, dataset) for dataset in ("mm", *recipe.datasets))
    body += "".join(_success_rows(recipe, scene) for scene in recipe.scenes)
    return (
        '<p>Ticks on the accuracies mark two guessers that never look: <b class="majority">majority</b> gives the '
        'best constant answer to each form of question, <b class="blind">blind</b> the best to each exact '
        "question. Where the model is not above one, the cell says so; “not clearly” means that the interval "
        f'reaches it.</p><div class="wide"><table class="stages"><thead><tr><th>{head}</thead><tbody>{body}'
        "</table></div>"
    )


def _question_rows(recipe: RecipeResults, dataset: str) -> str:
    color = charts.MM if dataset == "mm" else charts.ETC
    title = "Retention: held-out shapes" if dataset == "mm" else f"ETC answers, {dataset}"
    tables = [stage.questions.get(dataset, {}) for stage in recipe.stages]
    rows = {"mean over kinds": [_mean_cell(table, color) for table in tables]}
    for kind in union(tables):
        rows[kind] = [
            _question_cell(table[kind], color) if kind in table else NONE for table in tables
        ]
    return _group(title, color, rows)


def _mean_cell(kinds: Mapping[str, Mapping[str, float]], color: str) -> str:
    if not kinds:
        return NONE
    guesses = {name: sum(kind[name] for kind in kinds.values()) / len(kinds) for name in _GUESSERS}
    above = {
        name: sum(kind["accuracy"] > kind[name] for kind in kinds.values()) for name in _GUESSERS
    }
    whole = mean([estimate(kind) for kind in kinds.values()])
    return (
        f"{_number(whole)}{_meter(whole, color, guesses)}<small>kinds above: majority {above['majority']}/"
        f"{len(kinds)}, blind {above['blind']}/{len(kinds)}</small>"
    )


def _question_cell(kind: Mapping[str, float], color: str) -> str:
    value, guesses, flag = estimate(kind), {name: kind[name] for name in _GUESSERS}, ""
    if below := [name for name, guess in guesses.items() if value.value <= guess]:
        flag = f'<span class="bad">▼ not above {" and ".join(below)}</span>'
    elif near := [name for name, guess in guesses.items() if value.low <= guess]:
        flag = f'<span class="doubt">not clearly above {" and ".join(near)}</span>'
    return (
        f"{_number(value)}{_meter(value, color, guesses)}"
        f"<small>majority {kind['majority']:.0%}, blind {kind['blind']:.0%}</small>{flag}"
    )


def _success_rows(recipe: RecipeResults, scene: str) -> str:
    color, tables = _color(scene), [stage.tasks(scene) for stage in recipe.stages]
    rows = {"all tasks": [stage.success(scene) for stage in recipe.stages]}
    rows |= {task: [table.get(task) for table in tables] for task in union(tables)}
    return _group(
        f"Success, {scene} scene",
        color,
        {
            name: [
                f"{_number(value, _won(value))}{_meter(value, color)}" if value else NONE
                for value in values
            ]
            for name, values in rows.items()
        },
    )


def _group(title: str, color: str, rows: Mapping[str, Sequence[str]]) -> str:
    """Rows {name: cells} under a heading; the first is the total."""
    width = 1 + len(next(iter(rows.values())))
    text = "".join(
        f"<tr><th>{words(name)}{''.join(f'<td>{cell}' for cell in cells)}"
        for name, cells in rows.items()
    )
    return (
        f'<tr class="group"><th colspan="{width}"><i style="--c:{color}"></i>{html.escape(title)}'
        + text.replace("<tr>", '<tr class="total">', 1)
    )


def _number(value: Estimate, count: str = "") -> str:
    return f"{value.value:.0%} <small>{_span(value)}{f', {count}' if count else ''}</small>"


def _meter(value: Estimate, color: str, ticks: Mapping[str, float] | None = None) -> str:
    marks = "".join(
        f'<s class="{name}" style="left:{at:.1%}" title="{name} {at:.0%}"></s>'
        for name, at in (ticks or {}).items()
    )
    return (
        f'<span class="meter" style="--c:{color}"><i style="width:{value.value:.1%}"></i>'
        f'<u style="left:{value.low:.1%};width:{value.high - value.low:.1%}"></u>{marks}</span>'
    )


def _acting(recipe: RecipeResults) -> str:
    panels = {
        stage.title: {
            "all tasks": {scene: stage.success(scene) for scene in recipe.scenes},
            **{
                task: {scene: stage.tasks(scene).get(task) for scene in recipe.scenes}
                for task in union(map(stage.tasks, recipe.scenes))
            },
        }
        for stage in recipe.acting
    }
    if not panels:
        return ""
    height = 0.7 + 0.22 * len(recipe.scenes) * len(union(panels.values()))
    return (
        "<p>Closed-loop success on held-out layouts, with the right instruction, after each run that acts.</p>"
        + _domain_bars(recipe, panels, height, "success by task")
    )


def _domain_bars(recipe: RecipeResults, panels: Mapping, height: float, label: str) -> str:
    colors = {scene: _color(scene) for scene in recipe.scenes}
    legend = "".join(
        f'<span><i style="--c:{color}"></i>{html.escape(scene)} scene</span>'
        for scene, color in colors.items()
    )
    return f'<div class="legend">{legend}</div>' + charts.bars(
        panels, colors, size=(11 if len(panels) > 1 else 7, height), label=label
    )


def _listening(recipe: RecipeResults) -> str:
    tested = [stage for stage in recipe.acting if len(stage.scores["success"]) > 1]
    if not tested:
        return ""
    panels = {
        stage.title: {
            text: {scene: stage.success(scene, intervention) for scene in recipe.scenes}
            for intervention, text in INTERVENTIONS.items()
        }
        for stage in tested
    }
    return (
        "<p>What does the policy listen to? Held-out layouts with the right instruction, with another task's "
        "instruction, and with grey images in place of the cameras'. In most scenes the objects alone give the "
        "task away, so that a wrong instruction need not hurt.</p>"
        + _domain_bars(recipe, panels, 2.2, "success by intervention")
        + "".join(_pair(recipe, tested, pair) for pair in PAIRS)
    )


def _pair(recipe: RecipeResults, stages: Sequence[RunResults], pair: tuple[str, str]) -> str:
    if not any(pair[0] in stage.tasks(scene) for stage in stages for scene in recipe.scenes):
        return ""
    tables = [_matrix(stage, scene, pair) for stage in stages for scene in recipe.scenes]
    return (
        f"<h3>{' and '.join(pair)}: only the instruction tells them apart</h3><p>Both start from the same state "
        "and look the same. A policy that listens succeeds where it was told the goal (outlined) and "
        "fails elsewhere; to one that does not, the two cells of a row are the same.</p>"
        f'<div class="pairs">{"".join(tables)}</div>'
    )


def _matrix(stage: RunResults, scene: str, pair: tuple[str, str]) -> str:
    cells = defaultdict(lambda: [0, 0])
    for row in stage.episodes():
        if row["scene"] == scene and row["task"] in pair and row["intervention"] != "blank_image":
            cell = cells[row["task"], row["instruction_of"]]
            cell[0] += int(row["success"])
            cell[1] += 1
    told = union([pair, (instruction for _, instruction in cells)])
    text = f"<thead><tr><th>{''.join(f'<th>told: {html.escape(name)}' for name in told)}</thead>"
    for task in pair:
        text += f"<tr><th>goal: {html.escape(task)}"
        for name in told:
            value, own = rate(*cells[task, name]), ' class="own"' if name == task else ""
            shade = f"color-mix(in srgb, {_color(scene)} {value.value * 60 if value else 0:.0f}%, #f1f3f5)"
            text += f'<td{own} style="background:{shade}">' + (
                f"<b>{_won(value)}</b><small>{_span(value)}</small>" if value else NONE
            )
    return f"<div><b>{html.escape(stage.title)}</b>, {html.escape(scene)} scene<table>{text}</table></div>"


def _benchmarks(recipe: RecipeResults) -> str:
    """Success of every task of every benchmark, a panel a run, and the means of what the judge saw."""
    text = ""
    for name in union(stage.suites for stage in recipe.stages):
        played = {
            stage.title: stage.suites[name] for stage in recipe.stages if name in stage.suites
        }
        tables = {
            title: {_setting(cell): cell for cell in cells} for title, cells in played.items()
        }
        body = "".join(
            f"<tr><th>{html.escape(title)}<td>{html.escape(setting)}<td>{_success(cell['overall'])}"
            f"<td>{cell['overall']['progress']:.2f}<td>{cell['overall']['intention']['rate']:.0%}"
            for title, cells in tables.items()
            for setting, cell in cells.items()
        )
        text += (
            f"<h3>{words(name)}</h3><table><thead><tr><th><th><th>success (SR)<th>progress (PS)<th>intention (IS)"
            f"</thead>{body}</table>{_terms(recipe, name)}{_benchmark_bars(name, tables)}"
        )
    return text


def _terms(recipe: RecipeResults, name: str) -> str:
    """What a benchmark's runs were held to, and a warning where that was not the same."""
    found = {
        stage.title: read_json(stage.folder / "evaluation" / name / "protocol.json", {})
        for stage in recipe.stages
        if name in stage.suites
    }
    told = _agreed(
        {
            title: {field: protocol[field] for field in _TERMS if field in protocol}
            for title, protocol in found.items()
        }
    )
    differ = [
        field
        for field in union(found.values())
        if field not in _OF_A_RUN
        and any(
            protocol.get(field) != next(iter(found.values())).get(field)
            for protocol in found.values()
        )
    ]
    warning = (
        f'<span class="bad">▼ these runs differ in {words(", ".join(differ))}</span>'
        if differ
        else ""
    )
    return f"<p>{'; '.join(f'{words(field)}: {html.escape(value)}' for field, value in told.items())}{warning}</p>"


def _benchmark_bars(name: str, tables: Mapping[str, Mapping[str, Mapping]]) -> str:
    """Bars by task, a colour a setting, a panel a run."""
    settings = union(tables.values())
    tasks = union(cell["tasks"] for cells in tables.values() for cell in cells.values())
    panels = {
        title: {
            task.rpartition("/")[2].replace("_", " "): {
                setting: _rate(cell["tasks"][task])
                for setting, cell in cells.items()
                if task in cell["tasks"]
            }
            for task in tasks
        }
        for title, cells in tables.items()
    }
    colors = {setting: f"C{i}" for i, setting in enumerate(settings)}
    height = 0.7 + 0.2 * len(tasks) * len(settings)
    return charts.legend(colors) + charts.bars(
        panels,
        colors,
        size=(11 if len(panels) > 1 else 7, height),
        label=f"success by task, {name}",
    )


def _setting(cell: Mapping) -> str:
    return ", ".join(filter(None, (INTERVENTIONS[cell["intervention"]], cell["perturbation"])))


def _rate(scored: Mapping) -> Estimate | None:
    return rate(scored["success"]["count"], scored["trials"])


def _success(scored: Mapping) -> str:
    value = _rate(scored)
    return f"<b>{value.value:.0%}</b> <small>{_span(value)}, {_won(value)}</small>"


def _training(recipe: RecipeResults) -> str:
    text = "<p>As logged. Accuracies are of single tokens, given the true ones before them.</p>"
    for stage in recipe.stages:
        name = html.escape(stage.title)
        curves = (
            charts.training(stage.metrics, size=(11, 2.6), label=f"training of {name}")
            if stage.metrics
            else ('<p><span class="none">not logged</span></p>')
        )
        text += f"<h3>{name}</h3>{curves}"
    plans = {stage.title: stage.folder / "plan.png" for stage in recipe.stages}
    figures = "".join(
        f'<img src="{overlay.data_uri(path.read_bytes(), "image/png")}" alt="{html.escape(name)}">'
        for name, path in plans.items()
        if path.exists()
    )
    return text + (
        f"<h3>The plans</h3><p>The scheduled share of each stream in a step's rows, and how far the drawn "
        f'rows ever are from it.</p><div class="plans">{figures}</div>'
        if figures
        else ""
    )


def _provenance(recipe: RecipeResults) -> str:
    summary = recipe.summary
    versions = (
        {"commit": summary.get("commit", "unknown"), **summary.get("versions", {})}
        if summary
        else {}
    )
    runs = {stage.title: stage.facts.get("config", "not recorded") for stage in recipe.stages}
    tables = {
        "Configs": runs,
        "EvalProtocol and seeds": {
            **_protocol(recipe),
            **{f"seed of {name}": seed for name, seed in summary.get("seeds", {}).items()},
        },
        "Versions": versions,
    }
    facts = "".join(
        f"<div><h3>{title}</h3><table>"
        + "".join(
            f"<tr><th>{words(key)}<td>{html.escape(str(value))}" for key, value in table.items()
        )
        + "</table></div>"
        for title, table in tables.items()
        if table
    )
    definitions = "".join(f"<dt>{term}<dd>{text}" for term, text in _DEFINITIONS.items())
    return f'<div class="facts">{facts}</div><h3>How each number is computed</h3><dl>{definitions}</dl>'


def _protocol(recipe: RecipeResults) -> dict[str, str]:
    """What the evaluated stages were held to; a value that differs names its stages."""
    return _agreed(
        {
            stage.title: {
                **{
                    name: value
                    for name, value in stage.scores.get("spec", {}).items()
                    if isinstance(value, int)
                },
                **stage.scores.get("protocol", {}),
            }
            for stage in recipe.stages
        }
    )


def _agreed(tables: Mapping[str, Mapping]) -> dict[str, str]:
    """The values of all runs' fields; one that differs names its runs."""
    found = defaultdict(lambda: defaultdict(list))
    for title, table in tables.items():
        for name, value in table.items():
            found[name][str(value)].append(title)
    return {
        name: next(iter(values))
        if len(values) == 1
        else "; ".join(f"{value} ({', '.join(titles)})" for value, titles in values.items())
        for name, values in found.items()
    }


_DEFINITIONS = {
    "Success": "closed-loop episodes that reach the simulator's goal within the protocol's steps, on layouts that no "
    "demonstration used; the trials of all tasks pooled; Wilson's score interval.",
    "Progress (PS)": "the mean over episodes of the farthest share of the task's subtasks that was reached; 1 with "
    "success.",
    "Intention (IS)": "episodes in which the gripper touched a thing that the task is about before any other, or "
    "reached the goal without touching one.",
    "Retention, ETC answers": "held-out questions, answered greedily by the moving average of the parameters. Right "
    f"are the same words; a box with IoU of at least {score.MIN_IOU}; a point, or the mean "
    f"distance of a path, within {score.MAX_DISTANCE} of the image's side. Each kind with "
    "Wilson's interval, widened as answers of one episode agree; their unweighted mean with "
    "MOVER's (Zou and Donner 2008).",
    "Majority": "what the training split's most frequent answer (of places, the median) to each form of question gets "
    "on the same questions.",
    "Blind": "the same with the best constant answer to each exact question: all that can be learnt without the image.",
    "Wrong instruction": "the opposite task's words where it is in the set, else the next task's; success still means "
    "the scene's own task.",
    "Blank image": "every camera's image is grey; instruction and proprioception are true.",
    "Cost": "wall time of the command that wrote the summary, so that runs which were already done cost nothing; peak "
    "resident memory of its largest process. A stage's time is that of its training.",
}
