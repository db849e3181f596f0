"""Base models: exported from a run, verified, and loaded by a stage."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from etcvla.data.tokenizer import Tokenizer
from etcvla.errors import UserError
from etcvla.study.runs import weights_fingerprint
from etcvla.train import base_model, sharding
from etcvla.train.base_model import SHIPPED, export_base, find_base
from etcvla.train.checkpoint import open_checkpoint
from etcvla.train.checkpoint_meta import checkpoint_meta
from etcvla.train.initial import initial_state
from etcvla.train.stage import Stage, missing_paths
from etcvla.train.step_functions import abstract_state
from tests.data.handmade_rlds import write_robot_set
from tests.models.small import is_backbone, random_params
from tests.test_policy import save
from tests.train.nano import flatten, nano_config

SCORES = {"count_all": 1.0, "locate_box": 0.5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_robot_set(tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """Return (parameters, workdir) of a run with scores."""
    workdir = tmp_path_factory.mktemp("run")
    stage = Stage.open(nano_config(dataset, workdir))
    params = random_params(stage.model)
    save(stage, params)
    lines = ["question_type,correct", "locate_box,1", "locate_box,0", "count_all,1"]
    (workdir / "evaluation").mkdir()
    (workdir / "evaluation" / "questions.csv").write_text("\n".join(lines))
    return params, workdir


@pytest.fixture(scope="module")
def base(run, dataset, tmp_path_factory):
    """Return the folder of a base model."""
    params, workdir = run
    folder = tmp_path_factory.mktemp("base") / "nano"
    model = Stage.open(nano_config(dataset, workdir)).model
    export_base(params, model.config, open_checkpoint(workdir), folder)
    return folder


def state_at_step_0(config):
    stage = Stage.open(config)
    return initial_state(stage, *abstract_state(stage, sharding.make_mesh(config.mesh)))


@pytest.fixture(scope="module")
def fresh(dataset, tmp_path_factory):
    """Return the random parameters of a stage, by path."""
    config = nano_config(dataset, tmp_path_factory.mktemp("fresh"))
    return flatten(state_at_step_0(config).params)


def test_the_backbone_is_loaded_and_the_expert_is_fresh(dataset, run, base, fresh, tmp_path):
    config = nano_config(dataset, tmp_path, init_from=str(base))
    assert missing_paths(config) == {}
    state = state_at_step_0(config)
    saved = flatten_dict(run[0], sep="/")
    for tree in (state.params, state.ema):
        for name, leaf in flatten(tree).items():
            expected = np.float16(saved[name]) if is_backbone(name) else fresh[name]
            np.testing.assert_array_equal(leaf, np.float32(expected), err_msg=name)


def test_init_rules_choose_what_is_loaded(dataset, run, base, fresh, tmp_path):
    rules = (("llm/embedder/.*", False), (".*", True))
    config = nano_config(dataset, tmp_path, init_from=str(base), init_rules=rules)
    params = flatten(state_at_step_0(config).params)
    table = "llm/embedder/input_embedding"
    np.testing.assert_array_equal(params[table], fresh[table])
    scale = run[0]["llm"]["final_norm"]["scale"]
    np.testing.assert_array_equal(params["llm/final_norm/scale"], np.float32(np.float16(scale)))


def test_meta_and_card_describe_the_run(base, dataset, tmp_path):
    meta = find_base(str(base)).meta
    assert meta["scores"] == SCORES
    assert meta["requires"]["data.places"] == "cell" and meta["requires"]["vlm.width"] == 24
    assert "objective_bridge.py:tiny --config.seed=0 --config.steps=6" in meta["command"]
    card = (base / "card.md").read_text()
    assert meta["sha256"] in card and "| locate_box | 50.0% (gate: 70%) |" in card
    config = nano_config(dataset, tmp_path, init_from=str(base))
    lineage = checkpoint_meta(Stage.open(config))["lineage"]
    assert lineage == [{"base": str(base), "sha256": meta["sha256"]}]
    assert weights_fingerprint(str(base)) == meta["sha256"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__size": "tiny"}, r"siglip.width is 128, the base model has 16; .*vlm.width"),
        (
            {"data__places": "pair"},
            "stage: data.places is 'pair', the base model has 'cell'. Change",
        ),
    ],
)
def test_another_stage_than_the_bases_is_an_error(dataset, base, tmp_path, fields, message):
    config = nano_config(dataset, tmp_path, init_from=str(base), **fields)
    with pytest.raises(UserError, match=message):
        state_at_step_0(config)


def test_another_tokenizer_is_an_error(dataset, base, tmp_path):
    tokenizer = Tokenizer.load(places="cell", question_end="")
    content = json.loads(tokenizer.to_json())
    content["backend"]["model"]["merges"] = content["backend"]["model"]["merges"][:-1]
    stage = Stage.open(nano_config(dataset, tmp_path, init_from=str(base)))
    with pytest.raises(
        UserError, match="stage: data.tokenizer .SHA-256. is .*, the base model has"
    ):
        find_base(str(base)).check_fits(
            stage.model.config, Tokenizer.from_json(json.dumps(content))
        )


def test_a_damaged_file_is_an_error(dataset, run, base, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged or was replaced. Restore the folder"):
        find_base(str(folder)).read_params()
    path.unlink()
    with pytest.raises(UserError, match="has the SHA-256 no file"):
        find_base(str(folder)).read_params()


def test_export_needs_scores_and_a_small_model(run, base, dataset, tmp_path, monkeypatch):
    params, workdir = run
    model = Stage.open(nano_config(dataset, workdir)).model
    with pytest.raises(UserError, match="exists already"):
        export_base(params, model.config, open_checkpoint(workdir), base)
    monkeypatch.setattr(base_model, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="a base model has at most 1,000. Train a smaller"):
        export_base(params, model.config, open_checkpoint(workdir), tmp_path / "large")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="has no scores of held-out questions"):
        base_model._read_scores(tmp_path / "run")
    assert not (tmp_path / "large").exists()


def test_other_folders_are_not_base_models(run, tmp_path):
    assert find_base("") is None
    assert find_base(str(run[1])) is None
    (tmp_path / "meta.json").write_text("{}")
    assert find_base(str(tmp_path)) is None


@pytest.mark.skipif(find_base("base") is None, reason="no base model ships yet")
def test_the_shipped_base_is_intact_and_small():
    shipped = find_base("base")
    assert sum(x.nbytes for x in shipped.read_params().values()) > 0
    assert (SHIPPED / "params.safetensors").stat().st_size <= base_model.MAX_BYTES
    assert jax.tree.leaves(shipped.meta["scores"])
