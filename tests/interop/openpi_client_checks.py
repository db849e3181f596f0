"""Query a running server with the real openpi-client, as the LIBERO, DROID and ALOHA examples do.

This script does not import etcvla: its environment (requirements_openpi.txt) has openpi-client
and the NumPy that it needs.

python openpi_client_checks.py PORT KEY CAMERAS STATE_DIM HORIZON ACTION_DIM

It exits with 1 if a check fails.
"""

import sys

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy

PORT = int(sys.argv[1])
KEY = sys.argv[2]
CAMERAS = sys.argv[3].split(",")
STATE_DIM, HORIZON, ACTION_DIM = (int(argument) for argument in sys.argv[4:])


def connect():
    """Return a new client."""
    return websocket_client_policy.WebsocketClientPolicy("127.0.0.1", PORT, api_key=KEY)


def make_image(seed):
    """Return a random image, padded and resized as openpi's examples do."""
    image = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), np.uint8)
    return image_tools.convert_to_uint8(image_tools.resize_with_pad(image, 224, 224))


def libero_message():
    """Return a message of openpi's LIBERO example."""
    return {
        "observation/image": make_image(0),
        "observation/wrist_image": make_image(1),
        "observation/state": np.linspace(0, 0.1, STATE_DIM),
        "prompt": "open the drawer",
    }


def droid_message():
    """Return a message of openpi's DROID example."""
    state = np.linspace(0, 0.1, STATE_DIM)
    return {
        "observation/exterior_image_1_left": make_image(0),
        "observation/wrist_image_left": make_image(1),
        "observation/joint_position": state[:-1],
        "observation/gripper_position": state[-1:],
        "prompt": "open the drawer",
    }


def aloha_message():
    """Return a message of openpi's ALOHA example, with the cameras of the checkpoint."""
    images = {}
    for i, camera in enumerate(CAMERAS):
        images[camera] = make_image(i).transpose(2, 0, 1)
    return {
        "state": np.linspace(0, 0.1, STATE_DIM),
        "images": images,
        "prompt": "open the drawer",
    }


def check_metadata_describes_the_policy():
    metadata = connect().get_server_metadata()
    assert metadata["cameras"] == CAMERAS, metadata
    assert metadata["horizon"] == HORIZON, metadata


def check_messages_of_all_examples_get_actions():
    client = connect()
    for message in (libero_message(), droid_message(), aloha_message()):
        answer = client.infer(message)
        assert answer["actions"].shape == (HORIZON, ACTION_DIM)
        assert np.isfinite(answer["actions"]).all()
        assert answer["server_timing"]["infer_ms"] > 0
        assert answer["policy_timing"]["infer_ms"] > 0


def check_action_chunk_broker_gets_one_action_at_a_time():
    broker = action_chunk_broker.ActionChunkBroker(connect(), action_horizon=HORIZON)
    actions = [broker.infer(libero_message())["actions"] for _ in range(HORIZON)]
    assert all(action.shape == (ACTION_DIM,) for action in actions)
    assert any((action != actions[0]).any() for action in actions)


def check_errors_do_not_disturb_other_clients():
    other = connect()
    for change, text in (
        ({"observation/state": np.full(STATE_DIM, np.nan)}, "finite"),
        ({"prompt": 3}, "expected an instruction"),
        ({"observation/image": make_image(0)[..., 0]}, "expected an image"),
    ):
        try:
            connect().infer({**libero_message(), **change})
        except RuntimeError as error:
            message = str(error)
        else:
            raise AssertionError("the server raised no error")
        assert "Error in inference server" in message, message
        assert text in message, message
    assert other.infer(libero_message())["actions"].shape == (HORIZON, ACTION_DIM)


def main():
    """Run all checks and return the exit code."""
    failed = 0
    checks = [check for name, check in globals().items() if name.startswith("check_")]
    for check in checks:
        name = check.__name__.removeprefix("check_")
        try:
            check()
            print(f"  same  {name}")
        except Exception as error:  # the other checks must run too
            failed += 1
            print(f"  DIFFERS  {name}: {type(error).__name__}: {error}")
    print(f"interop with openpi-client: {len(checks) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
