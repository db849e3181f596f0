"""The page holds everything it shows, its numbers are the folder's, and what is missing is never a zero."""

import json
import re
import shutil

import pytest
from PIL import Image

from etcvla.etc.items import ETC_KINDS
from etcvla.pages import cards, charts
from etcvla.pages.report import write_comparison, write_report
from etcvla.pages.results import RecipeResults, RunResults
from etcvla.stats import Estimate, mean, rate, wilson
from tests.pages.made_recipe import CONTROL, ROAD, TASKS, scores_of, write_recipe
from tests.pages.test_gallery import Page


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete folder with a control run, and its page."""
    root = tmp_path_factory.mktemp("whole")
    write_recipe(root)
    path = write_report(root)
    assert path.parts[-1] == "report.html" and path.parent == root
    return root, path.read_text()


@pytest.fixture
def small(tmp_path):
    """A folder of the four stages, to break, and a function that writes and reads its page."""
    write_recipe(tmp_path, runs=ROAD, tasks=TASKS[:2])

    def page(**changes):
        for name, scores in changes.items():
            path = tmp_path / name / "evaluation/scores.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **scores}))
        return write_report(tmp_path, tmp_path / "new/page.html").read_text()

    return tmp_path, page


def section(text, title):
    return re.search(rf"<section[^>]*><h2>{title}</h2>.*?</section>", text, re.DOTALL)[0]


def row(text, name):
    """The cells of a table row, as text without tags."""
    cells = re.search(rf"<tr[^>]*><th>{name}(<td.*?)(?=<tr|</table)", text, re.DOTALL)[1].split(
        "<td"
    )[1:]
    return [re.sub(r"<[^>]*>", " ", "<td" + cell).split() for cell in cells]


def test_nothing_is_fetched(whole):
    page = Page(whole[1])
    addresses = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert len(addresses) > 100
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert (
        not page.find("link")
        and "@import" not in whole[1]
        and not re.search(r"url\((?!#)", whole[1])
    )


def test_headline_says_how_the_road_ended(whole):
    root, text = whole
    head = text[: text.index("<section")]
    for scene in ("source", "target"):
        cells = json.loads((root / "retentive_adapt/evaluation/scores.json").read_text())[
            "success"
        ]["right"][scene]
        won, trials = map(sum, zip(*cells.values(), strict=True))
        low, high = wilson(won, trials)
        assert (
            f"<b>{won} of {trials}</b> trials in the {scene} scene ({won / trials:.0%}, 95 % interval "
            f"{low * 100:.0f}–{high * 100:.0f}%)" in head
        )
    assert (
        "After retentive adapt" in head
        and "0123456789ab" in head
        and "24.5 min" in head
        and "3.1 GiB" in head
    )


def test_control_stands_beside_the_road(whole):
    recipe = RecipeResults.read(whole[0])
    assert [stage.name for stage in recipe.road] == list(ROAD)
    assert recipe.parents == [None, 0, 1, 2, 0]
    assert CONTROL in [stage.name for stage in recipe.acting]


def test_table_holds_every_number_and_says_what_is_missing(whole):
    table = section(whole[1], "Stages in numbers")
    source = table[table.index("ETC answers, source") : table.index("ETC answers, target")]
    spatial = row(source, "spatial understanding")
    assert spatial[0] == ["not", "evaluated"]
    assert [cell[0] for cell in spatial[1:]] == ["44%", "48%", "52%", "56%"]
    assert row(source, "mean over kinds")[1][0] == "54%"
    acting = row(table[table.index("Success, target") :], "drawer-close")
    assert acting[:2] == [["not", "evaluated"]] * 2
    cells = [
        json.loads((whole[0] / name / "evaluation/scores.json").read_text())["success"]["right"][
            "target"
        ]
        for name in ROAD[2:]
    ]
    assert [cell[-3:] for cell in acting[2:4]] == [
        [str(won), "of", str(trials)] for won, trials in (cell["drawer-close"] for cell in cells)
    ]


@pytest.mark.parametrize(
    ("guesses", "flag"),
    [
        ((0.6, 0.7), "not above majority and blind"),
        ((0.3, 0.5), "not above blind"),
        ((0.3, 0.45), "not clearly above blind"),
        ((0.1, 0.2), ""),
    ],
)
def test_cells_that_are_not_above_guessing_are_marked(small, guesses, flag):
    root, page = small
    kinds = {kind: scores_of(50, 100, *guesses) for kind in ETC_KINDS}
    cells = row(
        section(page(distribution_bridge={"etc": {"source": kinds}}), "Stages in numbers"),
        "affordance",
    )
    assert " ".join(cells[1]).split("%")[-1].strip(" ▼") == flag


def test_missing_is_not_zero(small):
    root, page = small
    shutil.rmtree(root / "vlm_pretrain")
    for name in ("objective_bridge", "retentive_adapt"):
        shutil.rmtree(root / name / "evaluation")
    (root / "distribution_bridge/metrics.jsonl").unlink()
    text = page()
    assert "How the robot acts was not evaluated." in text
    table = section(text, "Stages in numbers")
    assert row(table, "trajectory") == [
        ["not", "evaluated"],
        row(table, "trajectory")[1],
        *[["not", "evaluated"]] * 2,
    ]
    assert "not evaluated" in section(text, "Acting") and "not evaluated" in section(
        text, "Listening"
    )
    assert section(text, "Training").count("not logged") == 2
    assert "not evaluated" in section(text, "Rollouts")
    assert not re.search(r"(?<![\d.])0%", text[text.index("<main") : text.index("<svg")] + table)


def test_only_one_domain(small):
    root, page = small
    right = {"right": {"source": {"reach": [0, 10], "door-open": [0, 0]}}}
    text = page(
        objective_bridge={"success": right}, retentive_adapt={"success": right, "etc": {}, "mm": {}}
    )
    table = section(text, "Stages in numbers")
    assert row(table, "reach")[2][0] == "0%"  # evaluated, and lost
    assert row(table, "door-open")[2:] == [["not", "evaluated"]] * 2
    assert "target scene" not in text[: text.index("<h2>Rollouts")]
    assert "not evaluated" in section(text, "Acting")


def test_pair_is_told_apart_by_the_instruction_alone(whole):
    root, text = whole
    counts = {}
    for line in (root / "objective_bridge/evaluation/episodes.csv").read_text().splitlines()[1:]:
        scene, task, _, intervention, told, won, _ = line.split(",")
        if scene == "source" and intervention != "blank_image":
            counts.setdefault((task, told), []).append(int(won))
    first = section(text, "Listening").split("<table>")[1]
    pair = "drawer-open", "drawer-close"
    for task in pair:
        assert [cell[:3] for cell in row(first, f"goal: {task}")] == [
            [str(sum(counts[task, told])), "of", str(len(counts[task, told]))] for told in pair
        ]


def test_answers_show_wrong_ones_first_of_all_kinds(whole):
    page = Page(section(whole[1], "Answers"))
    shown = [
        (card["data-answer"], card["data-kind"], card["data-dataset"])
        for card in page.find("article")
        if card["data-stage"] == "retentive adapt"
    ]
    assert [answer for answer, *_ in shown] == ["wrong"] * 33 + ["right"] * 22
    assert {kind for _, kind, _ in shown[:5]} == set(ETC_KINDS)
    assert {dataset for *_, dataset in shown} == {"source", "target", "shapes"}
    assert "<b>nothing</b>" in page.words  # escaped
    pressed = [
        button["data-value"] for button in page.find("button") if button["aria-pressed"] == "true"
    ]
    assert pressed == ["retentive adapt"]
    assert {"kind", "stage", "dataset", "answer"} == {
        button["data-axis"] for button in page.find("button")
    }


def test_truth_and_prediction_are_drawn(whole):
    card = next(
        card
        for card in section(whole[1], "Answers").split("<article")[1:]
        if 'data-kind="goal_description"' in card and 'data-answer="wrong"' in card
    )
    truth, said = (
        float(re.search(rf'color:{color}"><rect class="" x="(\d+)"', card)[1])
        for color in (cards.TRUTH, cards.SAID)
    )
    assert (truth, said) == pytest.approx((300, 100), abs=2)
    unreadable = next(
        card
        for card in section(whole[1], "Answers").split("<article")[1:]
        if 'data-kind="trajectory"' in card and 'data-answer="wrong"' in card
    )
    assert (
        f'color:{cards.TRUTH}"><polyline' in unreadable
        and f'color:{cards.SAID}"></g>' in unreadable
    )


def test_films_say_what_happened(whole):
    text = section(whole[1], "Rollouts")
    videos = [card for card in Page(text).find("article") if card["data-intervention"] == "right"]
    outcomes = [video["data-outcome"] for video in videos]
    assert (
        len(videos) == 24
        and outcomes == sorted(outcomes)
        and set(outcomes) == {"failure", "success"}
    )
    assert text.count("image/webp") == 40
    wrong = next(
        card
        for card in text.split("<article")[1:]
        if "wrong_instruction" in card and 'data-task="drawer-open"' in card
    )
    assert "wrong instruction (of drawer-close)" in wrong and "objective bridge" in wrong


def test_pictures_stay_within_their_budget(small, monkeypatch):
    monkeypatch.setattr(cards, "FILM_BYTES", 5000)
    monkeypatch.setattr(cards, "EXAMPLE_BYTES", 5000)
    text = small[1]()
    for title in ("Answers", "Rollouts"):
        shown, there = map(
            int, re.search(r"(\d+) of (\d+) fit into the page", section(text, title)).groups()
        )
        assert 0 < shown < there and section(text, title).count("<article") == shown


def test_provenance(small):
    text = section(small[1](retentive_adapt={"protocol": {"max_steps": 200}}), "How it was made")
    words = Page(text).words
    for fact in (
        "0123456789abcdef",
        "0.10.2",
        "configs/objective_bridge.py:tiny",
        "7",
        "image size",
    ):
        assert fact in words
    assert (
        "250 (vlm pretrain, distribution bridge, objective bridge); 200 (retentive adapt)" in words
    )


def test_resumed_run_counts_a_step_once(small):
    path = small[0] / "objective_bridge/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "loss": 9.0}\n{"step": 80, "loss": 1.0}\n')
    stage = RecipeResults.read(small[0]).stages[2]
    assert [line["step"] for line in stage.metrics] == [20, 40, 60, 80] and stage.metrics[1][
        "loss"
    ] == 9.0


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"summary\.json is missing"):
        write_report(tmp_path)
    write_recipe(tmp_path, runs=ROAD[:1])
    (tmp_path / "vlm_pretrain/evaluation/scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"vlm_pretrain.*scores\.json is not JSON"):
        write_report(tmp_path)


def test_a_bar_that_is_missing_is_words():
    panels = {"stage": {"reach": {"source": rate(0, 10), "target": None}}}
    svg = charts.bars(panels, charts.SCENES, size=(7, 2), label="x")
    assert svg.count("not evaluated") == 1 and svg.count(">0/10<") == 1
    assert svg.startswith('<svg class="chart"') and "var(--font)" in svg


def test_estimates():
    assert rate(0, 0) is None and mean([]) is None
    assert rate(3, 4) == Estimate(0.75, *wilson(3, 4), 4)
    one = Estimate(0.5, 0.3, 0.6, 10)
    assert mean([one]) == pytest.approx(one)
    assert mean([one] * 4) == pytest.approx(Estimate(0.5, 0.4, 0.55, 40))


def _cell(won, trials, **marks):
    score = {
        "trials": trials,
        "success": {"count": won},
        "progress": 0.5,
        "intention": {"rate": 2 / 3},
    }
    return {
        "scene": "source",
        "intervention": "right",
        "perturbation": "",
        "overall": score,
        "tasks": {"suite/pick_it": score},
    } | marks


def test_runs_side_by_side_with_their_benchmarks(tmp_path):
    write_recipe(tmp_path, runs=ROAD, tasks=TASKS[:2])
    played = tmp_path / "objective_bridge/evaluation/mt10"
    played.mkdir()
    (played / "scores.json").write_text(
        json.dumps({"groups": [_cell(1, 3), _cell(0, 3, perturbation="camera:2")]})
    )
    runs = [tmp_path / name for name in ROAD[2:]]
    assert [stage.name for stage in RecipeResults.of(runs).road] == list(
        ROAD[2:]
    )  # neither starts from the other
    text = write_comparison(runs, tmp_path / "side").read_text()
    benchmarks = section(text, "Benchmarks")
    assert ["33%" in "".join(cell) for cell in row(benchmarks, "objective bridge")].count(True) == 1
    assert (
        "camera:2" in benchmarks
        and ">1/3<" in benchmarks
        and ">0/3<" in benchmarks
        and "pick it" in benchmarks
    )
    head = text[: text.index("<section")]
    assert (
        "On mt10, objective bridge succeeds in <b>1 of 3</b> episodes" in head
        and "After" not in head
    )
    assert "What they know" not in text and "<h2>Listening" in text
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        write_comparison([tmp_path / "nowhere"], tmp_path)


def _play(run, terms, *, won):
    """What an evaluation of a benchmark leaves: one episode and its video, under some terms."""
    played = run / "evaluation/mt10"
    (played / "videos").mkdir(parents=True)
    (played / "scores.json").write_text(json.dumps({"groups": [_cell(won, 3)]}))
    (played / "protocol.json").write_text(
        json.dumps({"trials": 3, "checkpoint": str(run), **terms})
    )
    (played / "episodes.csv").write_text(
        "scene,task,trial,intervention,perturbation,instruction_of,steps\n"
        "source,pick,0,right,,pick,500\nsource,pick,0,right,camera:2,pick,77\n"
    )
    Image.new("RGB", (8, 8)).save(played / "videos/right_source_pick_camera2_0_success.gif")


def test_runs_of_one_name_stand_apart_and_what_they_were_held_to_is_told(tmp_path):
    for name, won, steps in (("a", 1, 500), ("b", 2, 250)):
        _play(tmp_path / name / "bridge", {"max_steps": steps}, won=won)
    text = write_comparison(
        [tmp_path / name / "bridge" for name in "ab"], tmp_path / "side"
    ).read_text()
    head, benchmarks = text[: text.index("<section")], section(text, "Benchmarks")
    assert (
        "a/bridge succeeds in <b>1 of 3</b>" in head
        and "b/bridge succeeds in <b>2 of 3</b>" in head
    )
    assert "max steps: 500 (a/bridge); 250 (b/bridge)" in benchmarks
    assert "these runs differ in max steps</span>" in benchmarks
    videos = section(text, "Rollouts")
    assert (
        videos.count("trial 0, 77 steps") == 2 and "mt10" in videos
    )  # not those of the episode without the change
    assert "<h2>Listening" not in text and "<h2>Answers" not in text


def test_a_run_starts_from_its_own_sibling(tmp_path):
    stages = [
        RunResults(
            f"{side}/{name}", tmp_path / side / name, {"init_from": f"elsewhere/{origin}"}, {}
        )
        for side in "ab"
        for name, origin in (("first", ""), ("second", "first"))
    ]
    assert RecipeResults({}, tuple(stages), 0.0).parents == [None, 0, None, 2]


@pytest.mark.parametrize(
    "stem, changed, task",
    [
        ("right_source_drawer-open_0_failure", "none", "drawer-open"),
        ("blank_image_source_reach_camera2_11_success", "camera2", "reach"),
        (
            "right_libero_libero_spatial_pick_up_the_bowl_light3_0_success",
            "light3",
            "libero_spatial_pick_up_the_bowl",
        ),
    ],
)
def test_a_films_name_tells_what_it_shows(stem, changed, task):
    found = cards._FILM.fullmatch(stem).groupdict()
    assert (found["changed"] or "none", found["task"]) == (changed, task)
