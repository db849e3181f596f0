"""The graph of runs: what is shared, what an edit invalidates, where runs are."""

import dataclasses
import json

import pytest

from etcvla.errors import UserError
from etcvla.study import runs
from etcvla.study.config import BASE, parse
from tests.data.handmade_rlds import write_robot_set
from tests.study.made_study import load_stage, run, small_graph, small_study, study_config


def keys(graph):
    """Return (run, seed) -> key."""
    return {(made.spec.name, made.seed): made.key for made in graph.runs.values()}


def test_cells_share_their_first_stage(tmp_path):
    graph = small_graph(tmp_path)
    assert len(graph.runs) == 8  # four runs, two seeds; "first" once per seed
    bridged = graph.cells["bridged", 0]
    assert bridged[0] is graph.cells["slow", 0][0]
    assert bridged[0] is not graph.cells["bridged", 1][0]
    assert bridged[1].parent is bridged[0]
    assert bridged[1].config.init_from == str(bridged[0].folder)
    assert bridged[1].config.workdir == str(tmp_path / "runs" / bridged[1].key)
    assert bridged[1].config.seed == 0


def test_workers_take_the_cells_of_hypotheses_first_and_seeds_in_turn(tmp_path):
    graph = small_graph(tmp_path)
    order = [(made.spec.name, made.seed) for made in graph.runs.values()]
    assert order == [
        ("plain", 0),
        ("first", 0),
        ("bridged", 0),
        ("plain", 1),
        ("first", 1),
        ("bridged", 1),
        ("slow", 0),
        ("slow", 1),
    ]


def test_an_edit_invalidates_its_own_run_and_those_after_it(tmp_path):
    before = keys(small_graph(tmp_path))
    config = study_config(tmp_path)
    config.runs.slow.changes = (("optim.clip", 0.25),)
    after = keys(runs.make_graph(parse(config), load_stage))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {("slow", 0), ("slow", 1)}
    config.runs.first.changes = (("optim.clip", 0.25),)
    after = keys(runs.make_graph(parse(config), load_stage))
    unchanged = {name for name in before if before[name] == after[name]}
    assert unchanged == {("plain", 0), ("plain", 1)}


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [("log_every", 7, True), ("data.threads", 5, True), ("optim.b1", 0.5, False)],
)
def test_fields_that_change_nothing_are_not_part_of_the_key(field, value, same):
    config = load_stage("a.py", "tiny", ())
    other = load_stage("a.py", "tiny", ((field, value),))
    assert (runs.run_key(config, "") == runs.run_key(other, "")) == same


def test_other_data_invalidate_runs(tmp_path):
    small = write_robot_set(tmp_path / "small", episodes=2)
    large = write_robot_set(tmp_path / "large", episodes=3)
    fingerprints = {runs.data_fingerprint(str(path)) for path in (small, large, "nowhere")}
    assert len(fingerprints) == 3 and "missing" in fingerprints
    first = keys(small_graph(tmp_path, dataset=str(small)))
    second = keys(small_graph(tmp_path, dataset=str(large)))
    assert not set(first.values()) & set(second.values())


def test_the_seed_chooses_the_rotation_of_data_and_scenes(tmp_path):
    config = study_config(tmp_path)
    entry = config.datasets.robot[0]
    config.datasets.robot = ({**entry, "path": "r0"}, {**entry, "path": "r1"})
    graph = runs.make_graph(parse(config), load_stage)
    for seed in (0, 1):
        (made,) = graph.cells["plain", seed]
        assert made.config.datasets.robot.path == f"r{seed}"
        assert made.evaluation.scenes == (f"A{seed}",)
        assert made.evaluation.seed == seed


def test_equal_runs_are_evaluated_once_on_what_both_need(tmp_path):
    config = study_config(tmp_path)
    config.runs.plain = run(scenes=("A{rotation}",))
    config.runs.twin = run(scenes=("C{rotation}",), interventions=("right", "blank_image"))
    config.cells = (*config.cells, {"name": "twin", "run": "twin", "seeds": (0,)})
    graph = runs.make_graph(parse(config), load_stage)
    (plain,) = graph.cells["plain", 0]
    assert graph.cells["twin", 0] == [plain]
    assert plain.evaluation.scenes == ("A0", "C0")
    assert plain.evaluation.interventions == ("right", "blank_image")


def test_a_run_from_the_base_depends_on_its_weights(tmp_path):
    weights = tmp_path / "base.npz"
    config = study_config(tmp_path)
    config.runs.plain = run(init=BASE, changes=(("init_from", str(weights)),))
    with pytest.raises(UserError, match="runs.plain starts from .*base.npz, which does not exist"):
        runs.make_graph(parse(config), load_stage)
    found = set()
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        graph = runs.make_graph(parse(config), load_stage)
        (plain,) = graph.cells["plain", 0]
        assert plain.config.init_from == str(weights)
        found.add(plain.key)
    assert len(found) == 2


def test_a_part_of_the_graph_keeps_its_runs(tmp_path):
    graph = small_graph(tmp_path)
    part = graph.select(small_study(tmp_path).select(["slow"], [1]))
    assert [made.spec.name for made in part.runs.values()] == ["first", "slow"]
    assert all(graph.runs[key] is made for key, made in part.runs.items())


def test_folders_of_a_recipe_have_names(tmp_path):
    study = small_study(tmp_path).select(seeds=[0])
    graph = runs.make_graph(study, load_stage, named_folders=True)
    first, bridged = graph.cells["bridged", 0]
    assert bridged.folder == tmp_path / "bridged"
    assert bridged.config.init_from == str(first.folder) == str(tmp_path / "first")


def test_a_result_of_another_run_or_evaluation_does_not_count(tmp_path):
    (plain,) = small_graph(tmp_path).cells["plain", 0]
    plain.folder.mkdir(parents=True)
    path = plain.folder / runs.RESULT_FILE
    current = {"key": plain.key, "evaluation": runs.evaluation_key(plain.evaluation)}
    for changed in ("key", "evaluation"):
        path.write_text(json.dumps({**current, changed: "0"}))
        assert plain.result() is None
    path.write_text(json.dumps(current))
    assert plain.result() == current
    plain.evaluation = dataclasses.replace(plain.evaluation, trials=10)
    assert plain.result() is None
