"""A vision-language model behind an OpenAI-compatible endpoint: cached, rate-limited, retried, within a budget."""

from __future__ import annotations

import base64
import dataclasses
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence

from etcvla.etc.annotators.cache import AnswerCache

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
MAX_WAIT = 60.0  # seconds between two tries


class EndpointError(RuntimeError):
    """The endpoint does not answer, or refuses."""


class BudgetError(EndpointError):
    """As many requests were sent as were allowed."""


@dataclasses.dataclass
class Endpoint:
    """`ask` from any number of threads.

    Args:
      base_url: up to the version, for instance "https://api.openai.com/v1".
      cache: answers by (model, prompt, images).
      rate: requests a second, at most; retries count.
      budget: requests this object may send, retries included.
      retries: further tries after an answer that may pass (`RETRIED`, a timeout, a lost connection).
      timeout: seconds without a byte.
      backoff: seconds before the first retry, doubled each time, unless the endpoint says how long.
    """

    base_url: str
    model: str
    key: str
    cache: AnswerCache
    rate: float = 2.0
    budget: int = 1000
    retries: int = 6
    timeout: float = 120.0
    backoff: float = 1.0
    sent: int = dataclasses.field(default=0, init=False)  # requests

    def __post_init__(self):
        self._lock, self._next = threading.Lock(), 0.0

    @classmethod
    def from_environment(
        cls, cache: AnswerCache, *, environ: Mapping[str, str] = os.environ, **options
    ) -> Endpoint:
        """OPENAI_BASE_URL, OPENAI_MODEL and, where the endpoint wants one, OPENAI_API_KEY.

        Raises ValueError that names what is not set.
        """
        if missing := [
            name for name in ("OPENAI_BASE_URL", "OPENAI_MODEL") if not environ.get(name)
        ]:
            raise ValueError(
                f"a vision endpoint was asked for, but {' and '.join(missing)} is not set; for instance "
                f"OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_MODEL=qwen2.5-vl-7b"
            )
        return cls(
            environ["OPENAI_BASE_URL"],
            environ["OPENAI_MODEL"],
            environ.get("OPENAI_API_KEY", ""),
            cache,
            **options,
        )

    def complete(self, prompt: str, images: Sequence[bytes] = ()) -> str:
        """The model's answer to `prompt` about JPEG files, in order.

        Raises EndpointError (BudgetError), so that nothing is taken for an answer that is none.
        """
        key = AnswerCache.key("endpoint", self.model, prompt, *images)
        answer = self.cache.get(key)
        if answer is None:
            answer = self._send(self._request(prompt, images))
            self.cache.put(key, answer, model=self.model, prompt=prompt)
        return answer

    def _request(self, prompt: str, images: Sequence[bytes]) -> dict:
        urls = (f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images)
        content = [
            {"type": "text", "text": prompt},
            *({"type": "image_url", "image_url": {"url": url}} for url in urls),
        ]
        return {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }

    def _send(self, request: dict) -> str:
        import requests

        url, problem = f"{self.base_url.rstrip('/')}/chat/completions", ""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        for attempt in range(self.retries + 1):
            self._take_turn(problem)
            wait = None
            try:
                reply = requests.post(url, json=request, headers=headers, timeout=self.timeout)
                if reply.ok:
                    return _content(reply, url)
                problem, wait = (
                    f"{reply.status_code} {_brief(reply.text)}",
                    reply.headers.get("Retry-After"),
                )
                if reply.status_code not in RETRIED:
                    raise EndpointError(f"{url} refuses: {problem}")
            except (requests.ConnectionError, requests.Timeout) as error:
                problem = _brief(str(error))
            if attempt < self.retries:
                time.sleep(self._pause(attempt, wait))
        raise EndpointError(f"{url} failed {self.retries + 1} times, at last with: {problem}")

    def _take_turn(self, problem: str) -> None:
        """Waits for this request's place in the rate and takes it from the budget."""
        with self._lock:
            if self.sent >= self.budget:
                raise BudgetError(
                    f"the budget of {self.budget} requests to {self.model} is used up"
                    + (f" (last problem: {problem})" if problem else "")
                    + "; answers are kept: raise the budget and run again"
                )
            self.sent += 1
            start = max(self._next, time.monotonic())
            self._next = start + 1 / self.rate
        time.sleep(max(0.0, start - time.monotonic()))

    def _pause(self, attempt: int, asked: str | None) -> float:
        try:
            wait = float(asked)
        except (TypeError, ValueError):  # none given, or a date
            wait = (
                self.backoff * 2**attempt * random.uniform(0.75, 1.25)
            )  # or all threads come back at once
        return min(wait, MAX_WAIT)


def _content(reply, url: str) -> str:
    try:
        content = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(
            f"{url} is not OpenAI-compatible: it answers {_brief(reply.text)}"
        ) from error
    return content if isinstance(content, str) else ""


def _brief(text: str) -> str:
    return " ".join(text.split())[:200]
