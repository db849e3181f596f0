"""Episodes that are both in training and evaluation data are found."""

import numpy as np
import pytest

from etcvla.data.rlds import RLDSDataset
from etcvla.data.splits import check_disjoint, episode_keys
from etcvla.errors import UserError
from tests.data.handmade_rlds import METADATA, STEPS, robot_episode, robot_steps, write_rlds

TEXT = ("text.Text", {"text": {}})


@pytest.mark.parametrize("name", ["episode_id", "file_path"])
def test_episodes_are_identified_by_their_ids(tmp_path, name):
    for split, ids in (("train", "abc"), ("val", "de"), ("overlap", "fcb")):
        write_rlds(
            tmp_path,
            [{"action": np.zeros(4, np.float32), f"{METADATA}{name}": [i.encode()]} for i in ids],
            steps={"action": STEPS["action"], f"{METADATA}{name}": TEXT},
            split=split,
        )
    train = RLDSDataset(tmp_path, "train")
    val = RLDSDataset(tmp_path, "val")
    overlap = RLDSDataset(tmp_path, "overlap")
    assert episode_keys(val) == [f"{name} d", f"{name} e"]
    check_disjoint(train, val)
    message = rf"2 episodes .*split train.*split overlap.*{name} c, .*record 2 and .*record 1"
    with pytest.raises(UserError, match=message):
        check_disjoint(train, overlap)


def test_episodes_without_id_are_identified_by_content(tmp_path):
    for folder, numbers in (
        ("with_etc", (0, 1, 2)),
        ("held_out", (3, 4)),
        ("overlap", (5, 1)),
    ):
        items = folder == "with_etc"
        write_rlds(
            tmp_path / folder,
            [robot_episode(number, items=items) for number in numbers],
            steps=robot_steps(items=items),
        )
    training = RLDSDataset(tmp_path / "with_etc")
    check_disjoint(training, RLDSDataset(tmp_path / "held_out"))
    message = "1 episodes .*content [0-9a-f]+, .*record 1 and .*record 1"
    with pytest.raises(UserError, match=message):
        check_disjoint(training, RLDSDataset(tmp_path / "overlap"))
