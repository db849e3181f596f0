"""The report embeds all files, shows the numbers of its folder, and never shows missing as zero."""

import json
import re
import shutil

import pytest
from PIL import Image

from etcvla.errors import UserError
from etcvla.etc.items import ETC_KINDS
from etcvla.pages import cards, charts, palette
from etcvla.pages.report import write_comparison, write_report
from etcvla.pages.results import RecipeResults, RunResults
from etcvla.results_schema import BASE_DATA, video_stem
from etcvla.stats import rate, wilson
from tests.pages.made_recipe import CONTROL, MAIN_RUNS, TASKS, kind_scores, write_recipe
from tests.pages.test_gallery import Page


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete folder with a control run, and the text of its report."""
    root = tmp_path_factory.mktemp("whole")
    write_recipe(root)
    path = write_report(root)
    assert path == root / "report.html"
    return root, path.read_text()


@pytest.fixture
def small(tmp_path):
    """A folder of the four main runs that a test changes, and a function that writes the report.

    The function updates the scores of runs before it writes the report, and returns its text.
    """
    write_recipe(tmp_path, runs=MAIN_RUNS, tasks=TASKS[:2])

    def write(**changes):
        for name, scores in changes.items():
            path = tmp_path / name / "evaluation/scores.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **scores}))
        return write_report(tmp_path).read_text()

    return tmp_path, write


def read_scores(root, name):
    return json.loads((root / name / "evaluation/scores.json").read_text())


def section(text, title):
    """Return the HTML of a section."""
    return re.search(rf"<section[^>]*><h2>{title}</h2>.*?</section>", text, re.DOTALL)[0]


def score_table(text):
    """Return the HTML of the table of scores."""
    scores = section(text, "Scores by stage")
    return scores[scores.index("<tbody>") :]


def row(text, name):
    """Return the cells of a table row, as lists of words without tags."""
    pattern = rf"<tr[^>]*><th>{name}(?:<small>[^<]*</small>)?(<td.*?)(?=<tr|</table|</tbody)"
    cells = re.search(pattern, text, re.DOTALL)[1].split("<td")[1:]
    return [re.sub(r"<[^>]*>", " ", "<td" + cell).split() for cell in cells]


def test_report_embeds_all_files(whole):
    _, text = whole
    page = Page(text)
    addresses = []
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                addresses.append(attributes[name])
    assert len(addresses) > 100
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not page.find("link")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_headline_shows_success_after_the_last_main_run(whole):
    root, text = whole
    head = text[: text.index("<section")]
    for scene in ("source", "target"):
        cells = read_scores(root, "retentive_adapt")["success"]["right"][scene].values()
        successes = sum(cell[0] for cell in cells)
        trials = sum(cell[1] for cell in cells)
        low, high = wilson(successes, trials)
        assert f"<b>{successes} of {trials}</b> trials in the {scene} scene" in head
        assert (
            f"({successes / trials:.0%}, 95 % interval {low * 100:.0f}–{high * 100:.0f}%)" in head
        )
    for fact in ("After retentive adapt", "0123456789ab", "24.5 min", "3.1 GiB"):
        assert fact in head


def test_control_run_is_not_a_main_run(whole):
    recipe = RecipeResults.read(whole[0])
    assert [run.name for run in recipe.main_runs] == list(MAIN_RUNS)
    assert recipe.parents == [None, 0, 1, 2, 0]
    assert CONTROL in [run.name for run in recipe.acting_runs]


def test_score_table_shows_every_number_and_a_dash_for_missing_ones(whole):
    root, text = whole
    table = score_table(text)
    source = table[table.index("ETC answers, source") : table.index("ETC answers, target")]
    spatial = row(source, "spatial understanding")
    assert spatial[0] == ["–"]
    assert [cell[0] for cell in spatial[1:]] == ["44%", "48%", "52%", "56%"]
    assert row(source, "mean over kinds")[1][0] == "54%"
    success = row(table[table.index("Success, target") :], "drawer-close")
    assert success[:2] == [["–"]] * 2
    for cell, name in zip(success[2:4], MAIN_RUNS[2:], strict=True):
        successes, trials = read_scores(root, name)["success"]["right"]["target"]["drawer-close"]
        assert cell[-3:] == [str(successes), "of", str(trials)]


def test_score_table_shows_equal_baselines_once(whole):
    table = score_table(whole[1])
    assert "<th>spatial understanding<small>majority 30%, blind 45%</small>" in table
    assert "majority" not in " ".join(row(table, "spatial understanding")[1])


@pytest.mark.parametrize(
    ("majority", "blind", "warning"),
    [
        (0.6, 0.7, "not above majority and blind"),
        (0.3, 0.5, "not above blind"),
        (0.3, 0.45, "not clearly above blind"),
        (0.1, 0.2, ""),
    ],
)
def test_scores_that_are_not_above_a_baseline_have_a_warning(small, majority, blind, warning):
    _, write = small
    kinds = {kind: kind_scores(50, 100, majority, blind) for kind in ETC_KINDS}
    text = write(distribution_bridge={"etc": {"source": kinds}})
    cells = row(score_table(text), "affordance")
    words = " ".join(cells[1])
    assert words.split("%")[-1].strip(" ▼") == warning


def test_missing_results_are_named_and_never_zero(small):
    root, write = small
    shutil.rmtree(root / "vlm_pretrain")
    for name in ("objective_bridge", "retentive_adapt"):
        shutil.rmtree(root / name / "evaluation")
    (root / "distribution_bridge/metrics.jsonl").unlink()
    text = write()
    assert "The policy was not evaluated in closed loop." in text
    missing = "No results for: success by task, benchmarks, instruction following, episode videos."
    assert missing in text
    for title in ("Success by task", "Instruction following", "Episode videos"):
        assert f"<h2>{title}</h2>" not in text
    table = score_table(text)
    trajectory = row(table, "trajectory")
    assert [trajectory[0], *trajectory[2:]] == [["–"]] * 3
    curves = section(text, "Training curves")
    assert "No metrics were logged for: vlm pretrain, distribution bridge." in curves
    headline = text[text.index("<main") : text.index("<svg")]
    assert not re.search(r"(?<![\d.])0%", headline + table)


def test_recipe_that_was_evaluated_in_one_scene(small):
    _, write = small
    scores = {"success": {"right": {"source": {"reach": [0, 10], "door-open": [0, 0]}}}}
    text = write(objective_bridge=scores, retentive_adapt=scores | {"etc": {}, "mm": {}})
    table = score_table(text)
    assert row(table, "reach")[2][0] == "0%"  # evaluated without success
    assert row(table, "door-open")[2:] == [["–"]] * 2
    assert "target scene" not in text[: text.index("<h2>Episode videos")]
    assert "not evaluated" in section(text, "Success by task")


def test_pair_tables_count_success_by_instruction(whole):
    root, text = whole
    outcomes = {}
    lines = (root / "objective_bridge/evaluation/episodes.csv").read_text().splitlines()
    for line in lines[1:]:
        scene, task, _, intervention, instruction, _, success, _ = line.split(",")
        if scene == "source" and intervention != "blank_image":
            outcomes.setdefault((task, instruction), []).append(int(success))
    first_table = section(text, "Instruction following").split("<table>")[1]
    pair = ("drawer-open", "drawer-close")
    for task in pair:
        cells = row(first_table, f"goal: {task}")
        for cell, instruction in zip(cells, pair, strict=True):
            successes = outcomes[task, instruction]
            assert cell[:3] == [str(sum(successes)), "of", str(len(successes))]


def test_examples_show_wrong_answers_of_all_kinds_first(whole):
    page = Page(section(whole[1], "Example answers"))
    shown = [card for card in page.find("article") if card["data-stage"] == "retentive adapt"]
    assert [card["data-answer"] for card in shown] == ["wrong"] * 33 + ["correct"] * 22
    assert {card["data-kind"] for card in shown[:5]} == set(ETC_KINDS)
    assert {card["data-dataset"] for card in shown} == {"source", "target", BASE_DATA}
    assert "<b>nothing</b>" in page.words  # the page escapes the prediction
    buttons = page.find("button")
    pressed = [button["data-value"] for button in buttons if button["aria-pressed"] == "true"]
    assert pressed == ["retentive adapt"]
    assert {button["data-axis"] for button in buttons} == {"kind", "stage", "dataset", "answer"}


def find_card(text, *attributes):
    """Return the HTML of the first card of a section that contains all these texts."""
    for card in text.split("<article")[1:]:
        if all(attribute in card for attribute in attributes):
            return card
    raise AssertionError(f"no card with {attributes}")


def test_truth_and_prediction_are_drawn(whole):
    text = section(whole[1], "Example answers")
    card = find_card(text, 'data-kind="goal_description"', 'data-answer="wrong"')
    lefts = []
    for color in (palette.TRUTH, palette.PREDICTION):
        match = re.search(rf'color:{color}"><rect class="" x="(\d+)"', card)
        lefts.append(float(match[1]))
    assert lefts == pytest.approx([300, 100], abs=2)
    unreadable = find_card(text, 'data-kind="trajectory"', 'data-answer="wrong"')
    assert f'color:{palette.TRUTH}"><polyline' in unreadable
    assert f'color:{palette.PREDICTION}"></g>' in unreadable


def test_video_cards_describe_their_episodes(whole):
    text = section(whole[1], "Episode videos")
    videos = [card for card in Page(text).find("article") if card["data-intervention"] == "right"]
    outcomes = [video["data-outcome"] for video in videos]
    assert len(videos) == 24
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {"failure", "success"}
    assert text.count("image/webp") == 40
    wrong = find_card(text, "wrong_instruction", "<b>drawer-open</b>")
    assert "wrong instruction (of drawer-close)" in wrong
    assert "after objective bridge" in wrong


def test_embedded_files_stay_within_their_size_limit(small, monkeypatch):
    monkeypatch.setattr(cards, "MAX_BYTES", 5000)
    text = small[1]()
    for title in ("Example answers", "Episode videos"):
        content = section(text, title)
        shown, available = re.search(r"The page shows (\d+) of (\d+)", content).groups()
        assert 0 < int(shown) < int(available)
        assert content.count("<article") == int(shown)


def test_configuration_lists_versions_and_settings(small):
    text = small[1](retentive_adapt={"protocol": {"max_steps": 200}})
    words = Page(section(text, "Configuration")).words
    facts = ("0123456789abcdef", "0.10.2", "configs/objective_bridge.py:tiny", "7", "image size")
    for fact in facts:
        assert fact in words
    steps = "250 (vlm pretrain, distribution bridge, objective bridge); 200 (retentive adapt)"
    assert steps in words


def test_metrics_of_a_resumed_run_have_each_step_once(small):
    path = small[0] / "objective_bridge/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "loss": 9.0}\n{"step": 80, "loss": 1.0}\n')
    run = RecipeResults.read(small[0]).runs[2]
    assert [line["step"] for line in run.metrics] == [20, 40, 60, 80]
    assert run.metrics[1]["loss"] == 9.0


def test_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json is missing"):
        write_report(tmp_path)
    write_recipe(tmp_path, runs=MAIN_RUNS[:1])
    (tmp_path / "vlm_pretrain/evaluation/scores.json").write_text("{")
    with pytest.raises(UserError, match=r"vlm_pretrain.*scores\.json is not JSON"):
        write_report(tmp_path)


def test_bar_chart_marks_missing_values():
    panels = {"stage": {"reach": {"source": rate(0, 10), "target": None}}}
    svg = charts.bar_chart(panels, palette.SCENE_COLORS, "success rate")
    assert svg.count("not evaluated") == 1
    assert svg.count(">0/10<") == 1
    assert svg.startswith('<svg class="chart"')
    assert "var(--font)" in svg


def benchmark_cell(successes, trials, **fields):
    score = {
        "trials": trials,
        "success": {"count": successes},
        "progress": 0.5,
        "intention": {"rate": 2 / 3},
    }
    cell = {
        "scene": "source",
        "intervention": "right",
        "perturbation": "",
        "overall": score,
        "tasks": {"suite/pick_it": score},
    }
    return cell | fields


def test_comparison_shows_benchmarks_of_its_runs(tmp_path):
    write_recipe(tmp_path, runs=MAIN_RUNS, tasks=TASKS[:2])
    benchmark = tmp_path / "objective_bridge/evaluation/mt10"
    benchmark.mkdir()
    cells = [benchmark_cell(1, 3), benchmark_cell(0, 3, perturbation="camera:2")]
    (benchmark / "scores.json").write_text(json.dumps({"groups": cells}))
    runs = [tmp_path / name for name in MAIN_RUNS[2:]]
    # Without the recipe's summary, no run is a control.
    assert [run.name for run in RecipeResults.compare(runs).main_runs] == list(MAIN_RUNS[2:])

    text = write_comparison(runs, tmp_path / "comparison").read_text()
    content = section(text, "Benchmarks")
    shares = ["33%" in "".join(cell) for cell in row(content, "objective bridge")]
    assert shares.count(True) == 1
    for word in ("camera:2", ">1/3<", ">0/3<", "pick it"):
        assert word in content
    head = text[: text.index("<section")]
    assert "On mt10, objective bridge succeeds in <b>1 of 3</b> episodes" in head
    assert "After" not in head
    assert "Knowledge" not in text
    assert "<h2>Instruction following" in text
    with pytest.raises(UserError, match="nowhere is missing"):
        write_comparison([tmp_path / "nowhere"], tmp_path)


def test_scenes_of_a_benchmark_are_separate_and_pooled(tmp_path):
    write_recipe(tmp_path, runs=MAIN_RUNS, tasks=TASKS[:2])
    benchmark = tmp_path / "objective_bridge/evaluation/tabletop"
    benchmark.mkdir()
    cells = [benchmark_cell(1, 3, scene="A0"), benchmark_cell(2, 3, scene="C0", condition="")]
    night = benchmark_cell(3, 3, scene="C0", condition="night")
    (benchmark / "scores.json").write_text(json.dumps({"groups": [*cells, night]}))
    text = write_comparison([tmp_path / "objective_bridge"], tmp_path / "comparison").read_text()
    content = section(text, "Benchmarks")
    for setting in ("A0, right instruction", "C0, right instruction, night"):
        assert setting in content
    assert "<h2>Instruction following" in text
    head = text[: text.index("<section")]
    assert "On tabletop, objective bridge succeeds in <b>3 of 6</b> episodes" in head


def test_language_control_is_shown_by_run_and_intervention(small):
    root, write = small
    group = {"scene": "C0", "condition": "", "perturbation": "", "novelty": "both", "layouts": 40}
    shares = {"named": 0.8, "unnamed": 0.1, "difference": 0.7, "low": 0.6, "high": 0.75}
    groups = [
        {**group, **shares, "intervention": "right"},
        {**group, **shares, "intervention": "no_instruction", "difference": 0.01, "low": -0.05},
    ]
    path = root / "objective_bridge/evaluation/language.json"
    path.write_text(json.dumps({"groups": groups}))
    content = section(write(), "Instruction following")
    assert "Language control" in content
    assert ["scene", "C0"] in [cell[-2:] for cell in row(content, "objective bridge")]
    assert "+70 [+60, +75] (80% named, 10% not)" in content
    assert "+1 [-5, +75]" in content


def test_language_control_of_a_benchmark_alone_is_shown(tmp_path):
    write_benchmark(tmp_path / "bridge", {}, successes=1)
    group = {"scene": "A0", "condition": "night", "perturbation": "", "novelty": "all"}
    shares = {"named": 1.0, "unnamed": 0.0, "difference": 1.0, "low": 1.0, "high": 1.0}
    groups = [{**group, **shares, "intervention": "right", "layouts": 2}]
    path = tmp_path / "bridge/evaluation/mt10/language.json"
    path.write_text(json.dumps({"groups": groups}))
    content = section(
        write_comparison([tmp_path / "bridge"], tmp_path / "out").read_text(),
        "Instruction following",
    )
    assert "scene A0, night" in content
    assert "+100 [+100, +100]" in content
    assert "<svg" not in content


def write_benchmark(run, protocol, *, successes):
    """Write the results of a benchmark with two episodes, one of them with a video."""
    folder = run / "evaluation/mt10"
    (folder / "videos").mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"groups": [benchmark_cell(successes, 3)]}))
    fields = {"trials": 3, "checkpoint": str(run), **protocol}
    (folder / "protocol.json").write_text(json.dumps(fields))
    (folder / "episodes.csv").write_text(
        "scene,task,trial,intervention,perturbation,instruction_of,success,steps\n"
        "source,pick,0,right,,pick,0,500\nsource,pick,0,right,camera:2,pick,1,77\n"
    )
    Image.new("RGB", (8, 8)).save(folder / "videos/right_source_pick_camera2_0_success.gif")


def test_comparison_of_runs_with_equal_names_warns_of_different_protocols(tmp_path):
    for name, successes, steps in (("a", 1, 500), ("b", 2, 250)):
        write_benchmark(tmp_path / name / "bridge", {"max_steps": steps}, successes=successes)
    runs = [tmp_path / name / "bridge" for name in "ab"]
    text = write_comparison(runs, tmp_path / "comparison").read_text()
    head = text[: text.index("<section")]
    assert "a/bridge succeeds in <b>1 of 3</b>" in head
    assert "b/bridge succeeds in <b>2 of 3</b>" in head
    content = section(text, "Benchmarks")
    assert "max steps: 500 (a/bridge); 250 (b/bridge)" in content
    assert "these runs differ in max steps</span>" in content
    videos = section(text, "Episode videos")
    assert videos.count("trial 0, 77 steps") == 2  # the steps of the perturbed episode
    assert "mt10" in videos
    assert "<h2>Instruction following" not in text
    assert "<h2>Example answers" not in text


def test_parent_of_a_run_is_its_sibling_if_folders_were_moved(tmp_path):
    runs = []
    for side in "ab":
        for name, origin in (("first", ""), ("second", "first")):
            info = {"init_from": f"elsewhere/{origin}"}
            runs.append(RunResults(f"{side}/{name}", tmp_path / side / name, info, {}))
    assert RecipeResults({}, tuple(runs), 0.0).parents == [None, 0, None, 2]


@pytest.mark.parametrize(
    ("task", "perturbation", "success", "stem"),
    [
        ("drawer-open", "", "0", "right_source_drawer-open_0_failure"),
        ("suite/pick", "light:3", "1", "right_source_suite_pick_light3_0_success"),
    ],
)
def test_video_has_the_name_of_its_episode(task, perturbation, success, stem):
    row = {
        "intervention": "right",
        "scene": "source",
        "task": task,
        "trial": "0",
        "perturbation": perturbation,
        "success": success,
    }
    assert video_stem(row) == stem
