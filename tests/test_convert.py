"""launch/convert.py: what it says of a checkpoint, and that what it writes holds the policy."""

import json

import jax
import numpy as np
import pytest
from absl import flags

from etcvla.models import pretrained
from etcvla.train.stage import Stage
from launch import convert
from tests.data.handmade_rlds import write_robot_set
from tests.golden_dir import models
from tests.models.small import random_params
from tests.test_policy import save
from tests.train.nano import nano_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(policy, workdir) of a checkpoint that openpi's pi0.5 can be."""
    folder = tmp_path_factory.mktemp("convert")
    config = nano_config(write_robot_set(folder / "robot"), folder / "run", model__state="text")
    stage = Stage.open(config)
    return save(stage, random_params(stage.model)), config.workdir


def convert_with(*arguments):
    flags.FLAGS(["convert", "--to=hf", *arguments])  # absl keeps the last call's values
    convert.main(
        [argument for argument in ("convert", *arguments) if not argument.startswith("--")]
    )


def test_both_exports_hold_the_policy(run, tmp_path, capsys):
    policy, workdir = run
    for kind in ("hf", "openpi"):
        convert_with(f"--from={workdir}", f"--to={kind}", str(tmp_path / kind))
        params, found = pretrained.load(tmp_path / kind, policy.config)
        jax.tree.map(
            np.testing.assert_array_equal,
            params,
            jax.tree.map(
                np.asarray,
                {name: policy.params[name] for name in params}
                if kind == "openpi"
                else backbone(policy.params),
            ),
        )
        assert found.format in capsys.readouterr().out
    stats = json.loads(next((tmp_path / "openpi").rglob("norm_stats.json")).read_text())[
        "norm_stats"
    ]
    np.testing.assert_allclose(stats["actions"]["q99"], policy.assets.action_stats.q99)
    np.testing.assert_allclose(stats["state"]["mean"], policy.assets.state_stats.mean)


def backbone(params):
    return {
        "img": params["img"],
        "llm": {
            "embedder": params["llm"]["embedder"],
            "final_norm": params["llm"]["final_norm"],
            "layers": {
                name: {key: value for key, value in node.items() if not key.endswith("_1")}
                for name, node in params["llm"]["layers"].items()
                if not name.endswith("_1")
            },
        },
    }


def test_it_says_what_lies_there(run):
    _, workdir = run
    assert "etcvla checkpoint, step 1: " in convert.inspect(workdir)
    for folder in models("paligemma_hf"):
        text = convert.inspect(folder)
        width = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
        assert f"vlm.width = {width}\n" in text and "float32" in text and "Hugging Face" in text
    with pytest.raises(
        FileNotFoundError, match="neither a workdir with a checkpoint nor released weights"
    ):
        convert.inspect("/nowhere")


def test_an_export_needs_a_directory(run):
    with pytest.raises(ValueError, match="--to needs one directory"):
        convert_with(f"--from={run[1]}", "--to=hf")
