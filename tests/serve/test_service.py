"""Clients of a served checkpoint get the policy's actions, and never wait for compilation."""

import jax
import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.policy import Policy
from etcvla.serve.client import Client
from etcvla.serve.service import Service
from tests.interop.serving import write_checkpoint
from tests.serve.running_server import running_server
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


def test_client_gets_the_actions_of_the_policy(policy):
    service = Service(policy, seed=3)
    assert service.metadata["cameras"] == ["front", "wrist"]
    assert service.metadata["protocol"] == 1
    service.warm_up()
    with running_server(service) as (port, _):
        client = Client(f"ws://127.0.0.1:{port}")
        answers = [client.infer(MESSAGE) for _ in range(2)]
        with pytest.raises(RuntimeError, match="expected 3 finite numbers"):
            client.infer(MESSAGE | {"observation/state": np.array([0, np.nan, 0])})
    assert answers[0]["policy_timing"]["infer_ms"] > 0
    for n, answer in enumerate(answers):
        expected = policy.act([OBSERVATION], [(3, n)])[0]
        np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)


def test_nothing_compiles_after_warm_up(policy):
    service = Service(policy)
    service.warm_up()
    compiled = policy._model._sample_actions._cache_size()
    for change in (
        {},
        {"prompt": "open the drawer, and then close it"},
        {"observation/image": 255 - FRONT},
        {"rtc": {"prefix": np.zeros((2, 2), np.float32), "delay": 1}},
    ):
        service(MESSAGE | change)
    assert policy._model._sample_actions._cache_size() == compiled > 1
    with pytest.raises(UserError, match="a prompt has .* tokens, more than .* text_len 64"):
        service(MESSAGE | {"prompt": "all " * 200})


def test_new_chunk_continues_the_old_one(policy, monkeypatch):
    """With a prefix, the steps that will have been executed stay almost the same.

    Both chunks are the first of a service, so they start from the same noise. Guidance follows the
    gradient of the expert, which is too steep with the random parameters of the fixture.
    """
    monkeypatch.setattr(policy, "params", jax.tree.map(lambda leaf: 0.5 * leaf, policy.params))
    free = Service(policy)(MESSAGE)["actions"]
    spread = policy.assets.action_stats.q99 - policy.assets.action_stats.q01
    prefix = (free[:3] + 0.5 * spread).astype(np.float32)
    guided = Service(policy)(MESSAGE | {"rtc": {"prefix": prefix, "delay": 2}})["actions"]
    free_distance = np.abs(free[:2] - prefix[:2]).max()
    guided_distance = np.abs(guided[:2] - prefix[:2]).max()
    assert guided_distance < 0.2 * free_distance


@pytest.mark.parametrize(
    "prefix", [np.zeros((5, 2)), np.zeros((0, 2)), np.zeros((2, 3)), np.full((2, 2), np.inf)]
)
def test_wrong_prefix_is_refused(policy, prefix):
    with pytest.raises(UserError, match="expected 1 to 4 actions of 2 finite numbers"):
        Service(policy)(MESSAGE | {"rtc": {"prefix": prefix, "delay": 1}})
