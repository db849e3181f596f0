"""Tests of launch/convert.py: its description of checkpoints, and the parameters in its exports."""

import json

import jax
import numpy as np
import pytest
from absl import flags
from etils import epath
from flax.traverse_util import flatten_dict

from etcvla.errors import UserError
from etcvla.models import pretrained
from etcvla.train.base_model import find_base
from etcvla.train.stage import Stage
from launch import convert
from tests.data.handmade_rlds import write_robot_set
from tests.golden_dir import models
from tests.models.small import is_backbone, random_params
from tests.test_policy import save
from tests.train.nano import nano_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return (policy, workdir) of a checkpoint that openpi's pi0.5 supports."""
    folder = tmp_path_factory.mktemp("convert")
    config = nano_config(write_robot_set(folder / "robot"), folder / "run", model__state="text")
    stage = Stage.open(config)
    return save(stage, random_params(stage.model)), config.workdir


def run_convert(*arguments):
    flags.FLAGS.unparse_flags()
    for name in ("to", "out", "tokenizer"):
        flags.FLAGS[name].unparse()
    flags.FLAGS(["convert", *arguments])
    convert.main([])


@pytest.mark.parametrize("kind", ["hf", "openpi"])
def test_export_holds_the_policys_parameters(run, tmp_path, capsys, kind):
    policy, workdir = run
    out = tmp_path / kind
    run_convert(f"--checkpoint={workdir}", f"--to={kind}", f"--out={out}")
    params, report = pretrained.load(out, policy.config)
    expected = flatten_dict(jax.tree.map(np.asarray, policy.params), sep="/")
    if kind == "hf":
        expected = {path: leaf for path, leaf in expected.items() if is_backbone(path)}
    jax.tree.map(np.testing.assert_array_equal, flatten_dict(params, sep="/"), expected)
    assert report.format in capsys.readouterr().out


def test_base_export_is_a_base_model(run, tmp_path, capsys):
    policy, workdir = run
    questions = epath.Path(workdir, "evaluation", "questions.csv")
    questions.parent.mkdir()
    questions.write_text("question_type,correct\nlocate_box,1\n")
    out = tmp_path / "base"
    run_convert(f"--checkpoint={workdir}", "--to=base", f"--out={out}")
    table = find_base(str(out)).read_params()["llm/embedder/input_embedding"]
    expected = policy.params["llm"]["embedder"]["input_embedding"]
    np.testing.assert_array_equal(table, np.float16(expected).astype(np.float32))
    assert "base model" in capsys.readouterr().out


def test_openpi_export_holds_the_statistics(run, tmp_path):
    policy, workdir = run
    run_convert(f"--checkpoint={workdir}", "--to=openpi", f"--out={tmp_path / 'openpi'}")
    file = next((tmp_path / "openpi").rglob("norm_stats.json"))
    stats = json.loads(file.read_text())["norm_stats"]
    np.testing.assert_allclose(stats["actions"]["q99"], policy.assets.action_stats.q99)
    np.testing.assert_allclose(stats["state"]["mean"], policy.assets.state_stats.mean)


def test_description_of_our_checkpoint_and_of_released_weights(run):
    _, workdir = run
    assert "etcvla checkpoint, step 1: " in convert.describe(workdir)
    for folder in models("paligemma_hf"):
        text = convert.describe(folder)
        width = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
        assert f"vlm.width = {width}\n" in text
        assert "float32" in text
        assert "Hugging Face" in text


def test_missing_checkpoint_is_an_error():
    with pytest.raises(UserError, match="neither a workdir with a checkpoint nor released weights"):
        convert.describe("/nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=hf"], "--to and --out need each other"),
        (["--out=x"], "--to and --out need each other"),
        (["--to=openpi", "--out=x", "--tokenizer=t"], "--tokenizer needs --to=hf"),
    ],
)
def test_flags_without_effect_are_errors(run, arguments, message):
    with pytest.raises(UserError, match=message):
        run_convert(f"--checkpoint={run[1]}", *arguments)
