"""The client of a vision endpoint against a fake endpoint: its requests, and failures."""

import base64

import pytest
import requests

from etcvla.errors import UserError
from etcvla.etc.annotators import endpoint as client
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.endpoint import BudgetError, Endpoint, EndpointError
from tests.etc.fake_endpoint import TIMEOUT, FakeEndpoint


def _endpoint(url, tmp_path, **options):
    options = {"rate": 1000, "backoff": 0.01, "timeout": 0.3} | options
    return Endpoint(url, "seer-7b", "secret", AnswerCache(tmp_path), **options)


def test_requests_have_the_format_of_openai(tmp_path):
    fake = FakeEndpoint("a cup")
    with fake.serve() as url:
        endpoint = _endpoint(url + "/", tmp_path)
        assert endpoint.complete("what is it?", [b"first", b"second"]) == "a cup"
    (request,) = fake.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] == "Bearer secret"
    assert request["model"] == "seer-7b"
    assert request["temperature"] == 0
    text, *images = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    urls = [image["image_url"]["url"] for image in images]
    encoded = [url.removeprefix("data:image/jpeg;base64,") for url in urls]
    assert [base64.b64decode(image) for image in encoded] == [b"first", b"second"]


def test_the_same_request_is_sent_once(tmp_path):
    fake = FakeEndpoint("first", "second", "third")
    with fake.serve() as url:
        for _ in range(3):
            assert _endpoint(url, tmp_path).complete("q", [b"1"]) == "first"
        assert _endpoint(url, tmp_path).complete("q", [b"2"]) == "second"  # another image
        other_model = Endpoint(url, "another", "", AnswerCache(tmp_path))
        assert other_model.complete("q", [b"1"]) == "third"
    assert [request["key"] for request in fake.requests] == ["Bearer secret", "Bearer secret", None]


@pytest.mark.parametrize("problem", [429, 500, 503, TIMEOUT])
def test_temporary_failures_are_retried(tmp_path, problem):
    fake = FakeEndpoint(problem, problem, "at last")
    with fake.serve() as url:
        endpoint = _endpoint(url, tmp_path)
        assert endpoint.complete("q") == "at last"
    assert endpoint.sent == 3


def test_a_lost_connection_is_retried_and_then_reported(tmp_path):
    with FakeEndpoint("never").serve() as url:
        pass
    endpoint = _endpoint(url, tmp_path, retries=2)
    message = r"chat/completions failed 3 times, at last with: .*onnection"
    with pytest.raises(EndpointError, match=message):
        endpoint.complete("q")
    assert endpoint.sent == 3


def test_the_endpoint_determines_the_wait(tmp_path):
    fake = FakeEndpoint(429, "ok")
    fake.headers = {"Retry-After": "0.2"}
    with fake.serve() as url:
        _endpoint(url, tmp_path, backoff=30).complete("q")
    assert fake.times[1] - fake.times[0] >= 0.2


def test_a_refusal_is_neither_retried_nor_cached(tmp_path):
    fake = FakeEndpoint(401, "allowed now")
    with fake.serve() as url:
        with pytest.raises(EndpointError, match="refuses: 401"):
            _endpoint(url, tmp_path).complete("q")
        assert _endpoint(url, tmp_path).complete("q") == "allowed now"


def test_a_reply_of_another_format_is_reported(tmp_path):
    fake = FakeEndpoint({"result": "hello"})
    message = 'not OpenAI-compatible: it answers {"result": "hel'
    with fake.serve() as url, pytest.raises(EndpointError, match=message):
        _endpoint(url, tmp_path).complete("q")


def test_the_budget_includes_retries_and_a_rerun_continues(tmp_path):
    fake = FakeEndpoint("one", 500, "two")
    with fake.serve() as url:
        first = _endpoint(url, tmp_path, budget=2)
        assert first.complete("1") == "one"
        with pytest.raises(BudgetError, match="budget of 2 requests to seer-7b is used up.*500"):
            first.complete("2")
        assert first.complete("1") == "one"  # cached answers do not count
        second = _endpoint(url, tmp_path, budget=1)
        assert second.complete("1") == "one"
        assert second.complete("2") == "two"
    assert len(fake.requests) == 3


class FakeTime:
    """A replacement of the module `time` whose time passes only in `sleep`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        """Return the current time."""
        return self.now

    def sleep(self, seconds):
        """Advance the time."""
        self.now += seconds


def test_the_rate_limits_the_requests_of_every_second(tmp_path, monkeypatch):
    time = FakeTime()
    monkeypatch.setattr(client, "time", time)
    post = requests.post
    sent = []

    def _post(*arguments, **options):
        sent.append(time.now)
        time.now += 0.01  # duration of the request
        return post(*arguments, **options)

    monkeypatch.setattr(requests, "post", _post)
    with FakeEndpoint("a", 429, "b", 500, 503, "c").serve() as url:
        endpoint = _endpoint(url, tmp_path, rate=5, timeout=30)
        for i in range(20):
            endpoint.complete(str(i))
    assert len(sent) == endpoint.sent == 23  # including retries
    for start in sent:
        assert sum(start <= other < start + 1 - 1e-6 for other in sent) <= 5
    assert sent[-1] - sent[0] == pytest.approx(
        22 / 5
    )  # the client does not wait longer than needed


def test_the_environment_configures_the_endpoint(tmp_path):
    environ = {"OPENAI_BASE_URL": "http://x/v1", "OPENAI_MODEL": "m"}
    endpoint = Endpoint.from_environment(AnswerCache(tmp_path), environ=environ, rate=3.0)
    assert endpoint.base_url == "http://x/v1"
    assert endpoint.model == "m"
    assert endpoint.key == ""
    assert endpoint.rate == 3.0
    del environ["OPENAI_MODEL"]
    with pytest.raises(UserError, match="not set: OPENAI_MODEL;"):
        Endpoint.from_environment(AnswerCache(tmp_path), environ=environ)


def test_cache_keys_include_the_boundaries_of_the_parts():
    assert AnswerCache.key("a", b"b") != AnswerCache.key("ab", b"")


def test_a_damaged_cache_file_is_ignored(tmp_path):
    cache = AnswerCache(tmp_path)
    cache.put("ab12", "kept", prompt="a")
    assert cache.get("ab12") == "kept"
    next(tmp_path.rglob("*.json")).write_text('{"value": "ke')
    assert cache.get("ab12") is None
