"""What a policy answers to its clients' messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from etcvla.policy import Policy
from etcvla.serve.client_formats import CLIENT_FORMATS, PROTOCOL, translate


class Service:
    """Answers messages by actions; `etcvla.serve.server.Server` calls it from one thread.

    Args:
      policy: best made with `text_len` and `keep_image_cache`, so that nothing is compiled while clients wait.
      instruction: for clients that give none.
      seed: of the noise; the n-th answer's is (seed, n).
    """

    def __init__(self, policy: Policy, *, instruction: str = "", seed: int = 0):
        self.policy, self.instruction, self.seed = policy, instruction, seed
        self._turned, self._count = policy.assets.adapter.rotated_cameras, itertools.count()

    @property
    def metadata(self) -> dict[str, Any]:
        """What a client is told of the policy first. Raises ValueError for a checkpoint that cannot act."""
        self.policy.check_can_act()
        spec = self.policy.assets.action_spec
        return {
            "server": "etcvla",
            "protocol": PROTOCOL,
            "cameras": list(self.policy.cameras),
            "clients": list(CLIENT_FORMATS),
            "real_time_chunking": self.policy.head == "flow",
            **{
                name: spec[name]
                for name in ("state", "state_dim", "action", "action_dim", "horizon", "rate")
            },
        }

    def warm_up(self) -> float:
        """Compiles all that a message can ask for, by answering such messages. Returns the seconds it took."""
        began, spec = time.monotonic(), self.policy.assets.action_spec
        size = self.policy.config.siglip.image_size
        look = {
            "images": {name: np.zeros((size, size, 3), np.uint8) for name in self.policy.cameras},
            "state": np.zeros(spec["state_dim"], np.float32),
            "instruction": "wait",
        }
        prefix = {"prefix": np.zeros((1, spec["action_dim"]), np.float32), "delay": 0}
        other = look | {"images": {name: image + 1 for name, image in look["images"].items()}}
        for extra in ({}, prefix) if self.policy.head == "flow" else ({},):
            for seen in (look, look, other, other):  # a kept look has another shape the second time
                self.policy.act([seen | extra], [0])
        return time.monotonic() - began

    def __call__(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """`actions` float32[P, A], and the subtask where the policy writes one.

        Raises ValueError for what is wrong with the message.
        """
        observation = translate(
            message, self.policy.cameras, instruction=self.instruction, turned=self._turned
        )
        began = time.monotonic()
        decision = self.policy.infer([observation], [(self.seed, next(self._count))])
        timing = {"policy_timing": {"infer_ms": 1000 * (time.monotonic() - began)}}
        return (
            {"actions": decision.actions[0]}
            | timing
            | ({"subtask": decision.subtasks[0]} if decision.subtasks else {})
        )
