"""Answers of a policy to the messages of clients."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from etcvla.policy import Policy
from etcvla.serve.client_formats import CLIENT_FORMATS, PROTOCOL, translate

_SPEC_FIELDS = ("state", "state_dim", "action", "action_dim", "horizon", "rate")


@dataclasses.dataclass
class Service:
    """Answers messages with actions; `etcvla.serve.server.Server` calls it from one thread.

    Attributes:
      policy: with `text_len` and `keep_image_cache`, so that nothing compiles while clients wait.
      instruction: default for clients that send none.
      seed: of the noise; the n-th query has the seed (seed, n).
    """

    policy: Policy
    instruction: str = ""
    seed: int = 0
    queries: int = 0  # to the policy so far

    @property
    def metadata(self) -> dict[str, Any]:
        """The first message to every client, which describes the policy.

        Raises UserError for a checkpoint that cannot act.
        """
        self.policy.check_can_act()
        spec = self.policy.assets.action_spec
        return {
            "server": "etcvla",
            "protocol": PROTOCOL,
            "cameras": list(self.policy.cameras),
            "clients": list(CLIENT_FORMATS),
            "real_time_chunking": self.policy.head == "flow",
            **{name: spec[name] for name in _SPEC_FIELDS},
        }

    def warm_up(self) -> float:
        """Compile everything that a message can need. Returns the seconds that it took.

        It answers every observation twice: the second answer reuses the image cache, which has
        another shape.
        """
        start = time.monotonic()
        spec = self.policy.assets.action_spec
        size = self.policy.config.siglip.image_size
        observation = {"state": np.zeros(spec["state_dim"]), "instruction": "wait"}
        observations = [observation]
        if self.policy.head == "flow":
            prefix = np.zeros((1, spec["action_dim"]))
            observations.append(observation | {"prefix": prefix, "delay": 0})
        for observation in observations:
            for brightness in (0, 0, 1, 1):
                image = np.full((size, size, 3), brightness, np.uint8)
                images = dict.fromkeys(self.policy.cameras, image)
                self.policy.act([observation | {"images": images}], [0])
        return time.monotonic() - start

    def __call__(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return `actions` float32[P, A], timing, and the subtask if the policy writes one.

        Raises UserError for a wrong message.
        """
        observation = translate(
            message,
            self.policy.cameras,
            instruction=self.instruction,
            rotated_cameras=self.policy.assets.adapter.rotated_cameras,
        )
        start = time.monotonic()
        seed = (self.seed, self.queries)
        self.queries += 1
        output = self.policy.infer([observation], [seed])
        answer = {
            "actions": output.actions[0],
            "policy_timing": {"infer_ms": 1000 * (time.monotonic() - start)},
        }
        if output.subtasks:
            answer["subtask"] = output.subtasks[0]
        return answer
