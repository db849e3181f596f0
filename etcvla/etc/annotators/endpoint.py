"""Query a vision-language model at an OpenAI-compatible endpoint.

Answers are cached, requests are limited in rate and number, and temporary failures are retried.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etcvla.errors import UserError
from etcvla.etc.annotators.cache import AnswerCache

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})  # HTTP status codes
MAX_WAIT = 60.0  # seconds between two attempts


class EndpointError(UserError):
    """The endpoint does not answer, or it refuses the request."""


class BudgetError(EndpointError):
    """The allowed number of requests has been sent."""


@dataclasses.dataclass
class Endpoint:
    """A client whose method `complete` may be called from several threads.

    Attributes:
      base_url: up to the version, for instance "https://api.openai.com/v1".
      model: name of the model.
      key: API key, "" for none.
      cache: answers by model, prompt and images.
      rate: maximal number of requests per second, including retries.
      budget: maximal number of requests of this object, including retries.
      retries: number of further attempts after a temporary failure (`RETRIED`, a timeout, a lost
        connection).
      timeout: seconds without a byte.
      backoff: seconds before the first retry, doubled each time, unless the endpoint says how
        long to wait.
      sent: number of requests so far.
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
    sent: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        self._lock = threading.Lock()
        self._next_start = 0.0  # earliest time of the next request

    @classmethod
    def from_environment(
        cls, cache: AnswerCache, *, environ: Mapping[str, str] = os.environ, **options: Any
    ) -> Endpoint:
        """Create a client from OPENAI_BASE_URL, OPENAI_MODEL and the optional OPENAI_API_KEY.

        Raises UserError with the names of the variables that are not set.
        """
        required = ("OPENAI_BASE_URL", "OPENAI_MODEL")
        missing = [name for name in required if not environ.get(name)]
        if missing:
            raise UserError(
                f"a vision endpoint needs environment variables that are not set: "
                f"{', '.join(missing)}; for instance OPENAI_BASE_URL=http://localhost:8000/v1 "
                "OPENAI_MODEL=qwen2.5-vl-7b"
            )
        base_url, model = (environ[name] for name in required)
        return cls(base_url, model, environ.get("OPENAI_API_KEY", ""), cache, **options)

    def complete(self, prompt: str, images: Sequence[bytes] = ()) -> str:
        """Return the model's answer to a prompt about JPEG files, in order.

        Raises EndpointError or BudgetError if there is no answer.
        """
        key = AnswerCache.key("endpoint", self.model, prompt, *images)
        answer = self.cache.get(key)
        if answer is None:
            answer = self._send(self._request(prompt, images))
            self.cache.put(key, answer, model=self.model, prompt=prompt)
        return answer

    def _request(self, prompt: str, images: Sequence[bytes]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        for image in images:
            url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        message = {"role": "user", "content": content}
        return {"model": self.model, "temperature": 0, "messages": [message]}

    def _send(self, request: dict[str, Any]) -> str:
        import requests

        url = f"{self.base_url.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        problem = ""
        for attempt in range(self.retries + 1):
            self._wait_for_turn(problem)
            retry_after = None
            try:
                reply = requests.post(url, json=request, headers=headers, timeout=self.timeout)
            except (requests.ConnectionError, requests.Timeout) as error:
                problem = _shorten(str(error))
            else:
                if reply.ok:
                    return _answer(reply, url)
                problem = f"{reply.status_code} {_shorten(reply.text)}"
                if reply.status_code not in RETRIED:
                    raise EndpointError(f"{url} refuses: {problem}")
                retry_after = reply.headers.get("Retry-After")
            if attempt < self.retries:
                time.sleep(self._pause(attempt, retry_after))
        raise EndpointError(f"{url} failed {self.retries + 1} times, at last with: {problem}")

    def _wait_for_turn(self, problem: str) -> None:
        """Count a request against the budget and sleep until the rate allows it."""
        with self._lock:
            if self.sent >= self.budget:
                last_problem = f" (last problem: {problem})" if problem else ""
                raise BudgetError(
                    f"the budget of {self.budget} requests to {self.model} is used up"
                    f"{last_problem}; answers are kept: raise the budget and run again"
                )
            self.sent += 1
            start = max(self._next_start, time.monotonic())
            self._next_start = start + 1 / self.rate
        time.sleep(max(0.0, start - time.monotonic()))

    def _pause(self, attempt: int, retry_after: str | None) -> float:
        """Return the seconds to wait before the next attempt."""
        try:
            wait = float(retry_after)
        except (TypeError, ValueError):  # no header, or a date
            # The random factor keeps the threads from retrying at the same time.
            wait = self.backoff * 2**attempt * random.uniform(0.75, 1.25)
        return min(wait, MAX_WAIT)


def _answer(reply, url: str) -> str:
    """Return the text of a requests.Response."""
    try:
        content = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(
            f"{url} is not OpenAI-compatible: it answers {_shorten(reply.text)}"
        ) from error
    return content if isinstance(content, str) else ""


def _shorten(text: str) -> str:
    return " ".join(text.split())[:200]
