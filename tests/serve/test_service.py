"""A checkpoint behind a socket: what a client gets is what the policy does, and nothing is compiled while it waits."""

import numpy as np
import pytest

from etcvla.policy import Policy
from etcvla.serve.client import Client
from etcvla.serve.service import Service
from tests.interop.serving import write_checkpoint
from tests.serve.running import running
from tests.serve.test_client_formats import FRONT, WRIST

MESSAGE = {
    "observation/image": FRONT,
    "observation/wrist_image": WRIST,
    "observation/state": np.linspace(-1, 1, 3),
    "prompt": "press the button",
}
OBSERVATION = {
    "images": {"front": FRONT, "wrist": WRIST},
    "state": np.linspace(-1, 1, 3, dtype=np.float32),
    "instruction": "press the button",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_checkpoint(folder)
    return Policy.load(str(folder / "run"), num_steps=10, text_len=None, keep_image_cache=True)


def test_a_client_gets_what_the_policy_does(policy):
    service = Service(policy, seed=3)
    assert service.metadata["cameras"] == ["front", "wrist"] and service.metadata["protocol"] == 1
    service.warm_up()
    with running(service) as (port, _):
        client = Client(f"ws://127.0.0.1:{port}")
        answers = [client.infer(MESSAGE) for _ in range(2)]
        with pytest.raises(RuntimeError, match="expected 3 finite numbers"):
            client.infer(MESSAGE | {"observation/state": np.array([0, np.nan, 0])})
    assert answers[0]["policy_timing"]["infer_ms"] > 0
    for n, answer in enumerate(answers):
        np.testing.assert_allclose(
            answer["actions"], policy.act([OBSERVATION], [(3, n)])[0], atol=1e-5
        )


def test_nothing_is_compiled_while_clients_wait(policy):
    service = Service(policy)
    service.warm_up()
    compiled = policy._model._sample_actions._cache_size()
    prefix = {"rtc": {"prefix": np.zeros((2, 2), np.float32), "delay": 1}}
    for change in (
        {},
        {"prompt": "open the drawer, and then close it"},
        {"observation/image": 255 - FRONT},
        prefix,
    ):
        service(MESSAGE | change)
    assert policy._model._sample_actions._cache_size() == compiled > 1
    with pytest.raises(ValueError, match="a prompt has .* tokens, more than .* 64"):
        service(MESSAGE | {"prompt": "all " * 200})


def test_a_chunk_goes_on_from_the_one_under_way(policy):
    """The steps that will have been executed come back almost as they were; without a prefix they do not."""
    service = Service(policy)
    free = service(MESSAGE)["actions"]
    spread = policy.assets.action_stats.q99 - policy.assets.action_stats.q01
    prefix = (free[:3] + 0.5 * spread).astype(np.float32)
    held = service(MESSAGE | {"rtc": {"prefix": prefix, "delay": 2}})["actions"]
    far, near = (np.abs(chunk[:2] - prefix[:2]).max() for chunk in (free, held))
    assert near < 0.6 * far
    for wrong in (np.zeros((5, 2)), np.zeros((0, 2)), np.zeros((2, 3)), np.full((2, 2), np.inf)):
        with pytest.raises(
            ValueError, match="observation prefix .*: expected 1 to 4 actions of 2 finite numbers"
        ):
            service(MESSAGE | {"rtc": {"prefix": wrong, "delay": 1}})
