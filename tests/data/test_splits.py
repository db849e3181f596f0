"""Episodes that are learnt from and evaluated on are found."""

import numpy as np
import pytest

from etcvla.data.rlds import RLDSDataset
from etcvla.data.splits import check_disjoint, episode_keys
from tests.data.handmade_rlds import METADATA, STEPS, robot_episode, robot_steps, write_rlds

TEXT = ("text.Text", {"text": {}})


@pytest.mark.parametrize("name", ["episode_id", "file_path"])
def test_episodes_are_known_by_their_names(tmp_path, name):
    for split, ids in (("train", "abc"), ("val", "de"), ("gradient_scale", "fcb")):
        write_rlds(
            tmp_path,
            [{"action": np.zeros(4, np.float32), f"{METADATA}{name}": [i.encode()]} for i in ids],
            steps={"action": STEPS["action"], f"{METADATA}{name}": TEXT},
            split=split,
        )
    train, val, gradient_scale = (
        RLDSDataset(tmp_path, split) for split in ("train", "val", "gradient_scale")
    )
    assert episode_keys(val) == [f"{name} d", f"{name} e"]
    check_disjoint(train, val)
    with pytest.raises(
        ValueError,
        match=rf"2 episodes .*split train.*split gradient_scale.*{name} c, .*record 2 and .*record 1",
    ):
        check_disjoint(train, gradient_scale)


def test_episodes_without_a_name_are_known_by_what_was_done(tmp_path):
    for folder, numbers in (
        ("with_etc", (0, 1, 2)),
        ("held_out", (3, 4)),
        ("gradient_scale", (5, 1)),
    ):
        items = folder == "with_etc"
        write_rlds(
            tmp_path / folder,
            [robot_episode(number, items=items) for number in numbers],
            steps=robot_steps(items=items),
        )
    learnt = RLDSDataset(tmp_path / "with_etc")
    check_disjoint(learnt, RLDSDataset(tmp_path / "held_out"))
    with pytest.raises(
        ValueError, match="1 episodes .*content [0-9a-f]+, .*record 1 and .*record 1"
    ):
        check_disjoint(learnt, RLDSDataset(tmp_path / "gradient_scale"))
