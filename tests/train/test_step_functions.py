"""The jitted steps of a stage and their FLOPs."""

import dataclasses

from etcvla.models import flops
from etcvla.models.vla import VLA
from etcvla.train import sharding
from etcvla.train.stage import Stage
from etcvla.train.step_functions import StepFunctions
from tests.data.handmade_rlds import write_robot_set
from tests.train.nano import nano_config


def test_rematerialized_flops_do_not_count(tmp_path):
    config = nano_config(write_robot_set(tmp_path / "robot"), tmp_path / "run")
    stage = Stage.open(config)
    mesh = sharding.make_mesh(config.mesh)
    batch = next(stage.batches(0))
    shapes = sharding.abstract_batch(batch, mesh, config.batch_size)
    counts = {}
    for remat in ("none", "full"):
        model = VLA(dataclasses.replace(stage.model.config, remat=remat))
        steps = StepFunctions(dataclasses.replace(stage, model=model), mesh)
        counts[remat] = steps.count_flops(batch, 0)
        counts[f"{remat}, all"] = flops.count(steps.at(0), steps.abstract, shapes).total()
    assert counts["none"] == counts["full"] == counts["none, all"]
    assert counts["full, all"] > counts["full"]


def test_a_function_is_reused_while_the_same_rules_are_frozen(tmp_path):
    dataset = write_robot_set(tmp_path / "robot")
    unfreezes = ((0.0, 0.0), (0.5, 0.0), (0.6, 1.0))
    rules = (("llm/embedder/.*", unfreezes), (".*", 1.0))
    config = nano_config(dataset, tmp_path / "run", optim__lr_multiple=rules)
    steps = StepFunctions(Stage.open(config), sharding.make_mesh(config.mesh))
    assert steps.at(0) is steps.at(1)
    assert steps.at(0) is not steps.at(5)
