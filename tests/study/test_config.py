"""Studies that are refused, each with one line that says what to do."""

import pytest

from etcvla.errors import UserError
from etcvla.study.config import parse, split_scene
from tests.study.made_study import contrast, run, small_study, study_config


def test_cells_have_their_runs_in_order(tmp_path):
    study = small_study(tmp_path)
    assert [spec.name for spec in study.chain("slow")] == ["first", "slow"]
    assert [spec.name for spec in study.chain("plain")] == ["plain"]
    assert list(study.cells) == ["plain", "bridged", "slow"]
    assert [study.rotation(seed) for seed in range(5)] == [0, 1, 0, 1, 0]


def test_scenes_have_a_tier_and_a_rotation():
    assert split_scene("C12") == ("C", 12)
    assert split_scene("source") == ("source", 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "plan"}, "cell in gate 'G1' 'plan', did you mean 'plain'"),
        ({"minus": "C:both"}, "gate 'G1': tier 'C:both' has no layouts in cell plain"),
        ({"intervention": "blank_image"}, "unknown intervention in gate 'G1' 'blank_image'"),
    ],
)
def test_gates_that_cannot_be_computed_are_refused(tmp_path, fields, message):
    gate = {"name": "G1", "cell": "plain", "metric": "intention", "tier": "A", "low": 0.7}
    assert parse(study_config(tmp_path, gates=(gate,))).gates[0].high == 1.0
    with pytest.raises(UserError, match=message):
        parse(study_config(tmp_path, gates=({**gate, **fields},)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": "bridgd"}, "unknown cell in contrast 'bridging' 'bridgd', did you mean 'bridged'"),
        ({"metric": "intentions"}, "'intentions', did you mean 'intention'"),
        ({"tier": "A+C"}, r"tier 'A\+C' has no layouts in cell bridged; add it to runs"),
        ({"matched": "rows"}, "'rows'; known: flops, action_rows"),
    ],
)
def test_contrasts_that_cannot_be_computed_are_refused(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        parse(study_config(tmp_path, contrasts=(contrast(**fields),)))


def test_a_simulator_without_paired_layouts_has_no_metric_of_them(tmp_path):
    config = study_config(tmp_path, contrasts=(contrast(metric="language"),))
    parse(config)
    config.eval.simulator = "metaworld"
    with pytest.raises(UserError, match="named in turn, which metaworld does not have"):
        parse(config)


def test_contrasts_need_a_shared_seed_and_a_name_of_their_own(tmp_path):
    config = study_config(tmp_path)
    plain, bridged, slow = config.cells
    config.cells = (plain, {**bridged, "seeds": (2, 3)}, slow)
    with pytest.raises(UserError, match="its cells share no seed"):
        parse(config)
    config = study_config(tmp_path, contrasts=(contrast(), contrast()))
    with pytest.raises(UserError, match="contrasts: 'bridging' is there twice"):
        parse(config)


def test_repeated_seeds_and_cells_are_refused(tmp_path):
    config = study_config(tmp_path)
    config.cells = ({**config.cells[0], "seeds": (0, 1, 0)},)
    config.contrasts = ()
    with pytest.raises(UserError, match="cells.plain.seeds has 0 twice"):
        parse(config)
    config.cells = (study_config(tmp_path).cells[0],) * 2
    with pytest.raises(UserError, match="cells: 'plain' is there twice"):
        parse(config)


def test_runs_start_from_known_runs(tmp_path):
    config = study_config(tmp_path)
    config.runs.bridged.init = "frist"
    with pytest.raises(UserError, match="'frist', did you mean 'first'"):
        parse(config)
    config.runs.bridged.init = "slow"
    config.runs.slow.init = "bridged"
    with pytest.raises(UserError, match="the runs bridged, slow form a circle"):
        parse(config)


def test_workers_need_a_folder_of_a_file_system(tmp_path):
    with pytest.raises(UserError, match="choose a local or mounted folder"):
        parse(study_config("gs://bucket/study"))


def test_a_part_of_a_study_can_be_selected(tmp_path):
    study = small_study(tmp_path)
    part = study.select(["slow"], [1])
    assert {name: cell.seeds for name, cell in part.cells.items()} == {"slow": (1,)}
    with pytest.raises(UserError, match="cell in --cells 'fast'"):
        study.select(["fast"])
    with pytest.raises(UserError, match="--seeds: no cell has the seed 7"):
        study.select(seeds=[7])


def test_a_run_has_all_fields_of_its_entry(tmp_path):
    config = study_config(tmp_path)
    config.runs.plain = run(interventions=("right", "blank_image"))
    assert parse(config).runs["plain"].interventions == ("right", "blank_image")
