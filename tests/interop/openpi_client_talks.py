"""Talks to a running server by the real openpi-client, as LIBERO's, DROID's and ALOHA's examples do.

Stands alone: its environment (requirements_openpi.txt) has openpi-client with its NumPy, and none of our code.
python openpi_client_talks.py PORT KEY CAMERAS STATE_DIM HORIZON ACTION_DIM. Exits with 1 if a check failed.
"""

import sys

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy

PORT, KEY = int(sys.argv[1]), sys.argv[2]
CAMERAS, STATE_DIM, HORIZON, ACTION_DIM = sys.argv[3].split(","), *map(int, sys.argv[4:])


def connect():
    return websocket_client_policy.WebsocketClientPolicy("127.0.0.1", PORT, api_key=KEY)


def picture(seed):
    image = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), np.uint8)
    return image_tools.convert_to_uint8(image_tools.resize_with_pad(image, 224, 224))


def libero():
    return {
        "observation/image": picture(0),
        "observation/wrist_image": picture(1),
        "observation/state": np.linspace(0, 0.1, STATE_DIM),
        "prompt": "open the drawer",
    }


def droid():
    return {
        "observation/exterior_image_1_left": picture(0),
        "observation/wrist_image_left": picture(1),
        "observation/joint_position": np.linspace(0, 0.1, STATE_DIM)[:-1],
        "observation/gripper_position": np.linspace(0, 0.1, STATE_DIM)[-1:],
        "prompt": "open the drawer",
    }


def aloha():
    pictures = (picture(i).transpose(2, 0, 1) for i in range(2))
    return {
        "state": np.linspace(0, 0.1, STATE_DIM),
        "images": dict(zip(CAMERAS, pictures, strict=True)),
        "prompt": "open the drawer",
    }


def check_metadata():
    metadata = connect().get_server_metadata()
    assert metadata["cameras"] == CAMERAS and metadata["horizon"] == HORIZON, metadata


def check_every_client_is_understood():
    client = connect()
    for message in (libero(), droid(), aloha()):
        answer = client.infer(message)
        assert (
            answer["actions"].shape == (HORIZON, ACTION_DIM)
            and np.isfinite(answer["actions"]).all()
        )
        assert answer["server_timing"]["infer_ms"] > 0 and answer["policy_timing"]["infer_ms"] > 0


def check_one_action_at_a_time():
    broker = action_chunk_broker.ActionChunkBroker(connect(), action_horizon=HORIZON)
    chunk = [broker.infer(libero())["actions"] for _ in range(HORIZON)]
    assert all(action.shape == (ACTION_DIM,) for action in chunk)
    assert any((action != chunk[0]).any() for action in chunk)


def check_an_error_is_told_and_others_go_on():
    other, client = connect(), connect()
    for change, word in (
        ({"observation/state": np.full(STATE_DIM, np.nan)}, "finite"),
        ({"prompt": 3}, "expected an instruction"),
        ({"observation/image": picture(0)[..., 0]}, "expected an image"),
    ):
        try:
            client.infer({**libero(), **change})
            raise AssertionError("no error")
        except RuntimeError as error:
            assert "Error in inference server" in str(error) and word in str(error), error
        client = connect()
    assert other.infer(libero())["actions"].shape == (HORIZON, ACTION_DIM)


def main():
    failed = 0
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    for check in checks:
        try:
            check()
            print(f"  same  {check.__name__.removeprefix('check_')}")
        except Exception as error:  # a check that breaks off must not hide the others
            failed += 1
            print(
                f"  DIFFERS  {check.__name__.removeprefix('check_')}: {type(error).__name__}: {error}"
            )
    print(f"interop with openpi-client: {len(checks) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
