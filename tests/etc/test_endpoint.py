"""The client of a vision endpoint against a fake one: what goes over the wire, and what goes wrong on it."""

import base64

import pytest
import requests

from etcvla.etc.annotators import endpoint as client
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.endpoint import BudgetError, Endpoint, EndpointError
from tests.etc.fake_endpoint import TIMEOUT, FakeEndpoint


def _endpoint(url, tmp_path, **options):
    options = {"rate": 1000, "backoff": 0.01, "timeout": 0.3} | options
    return Endpoint(url, "seer-7b", "secret", AnswerCache(tmp_path), **options)


def test_a_question_goes_out_as_openai_has_it(tmp_path):
    fake = FakeEndpoint("a cup")
    with fake.serve() as url:
        assert (
            _endpoint(url + "/", tmp_path).complete("what is it?", [b"first", b"second"]) == "a cup"
        )
    (request,) = fake.requests
    assert (request["path"], request["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert (request["model"], request["temperature"]) == ("seer-7b", 0)
    text, *images = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    decoded = [
        base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
        for image in images
    ]
    assert decoded == [b"first", b"second"]


def test_an_answer_is_asked_for_once(tmp_path):
    fake = FakeEndpoint("first", "second", "third")
    with fake.serve() as url:
        assert [_endpoint(url, tmp_path).complete("q", [b"1"]) for _ in range(3)] == ["first"] * 3
        assert _endpoint(url, tmp_path).complete("q", [b"2"]) == "second"  # another image
        other = Endpoint(url, "another", "", AnswerCache(tmp_path))
        assert other.complete("q", [b"1"]) == "third"
    assert [request["key"] for request in fake.requests] == ["Bearer secret", "Bearer secret", None]


@pytest.mark.parametrize("problem", [429, 500, 503, TIMEOUT])
def test_what_may_pass_is_tried_again(tmp_path, problem):
    fake = FakeEndpoint(problem, problem, "at last")
    with fake.serve() as url:
        endpoint = _endpoint(url, tmp_path)
        assert endpoint.complete("q") == "at last"
    assert endpoint.sent == 3


def test_a_lost_connection_is_tried_again_and_then_named(tmp_path):
    with FakeEndpoint("never").serve() as url:
        pass
    endpoint = _endpoint(url, tmp_path, retries=2)
    with pytest.raises(
        EndpointError, match=r"chat/completions failed 3 times, at last with: .*onnection"
    ):
        endpoint.complete("q")
    assert endpoint.sent == 3


def test_the_endpoint_says_how_long_to_wait(tmp_path):
    fake = FakeEndpoint(429, "ok")
    fake.headers = {"Retry-After": "0.2"}
    with fake.serve() as url:
        _endpoint(url, tmp_path, backoff=30).complete("q")
    assert fake.times[1] - fake.times[0] >= 0.2


def test_a_refusal_is_not_tried_again_and_not_kept(tmp_path):
    fake = FakeEndpoint(401, "allowed now")
    with fake.serve() as url:
        with pytest.raises(EndpointError, match="refuses: 401"):
            _endpoint(url, tmp_path).complete("q")
        assert _endpoint(url, tmp_path).complete("q") == "allowed now"


def test_a_reply_that_is_not_openais_is_named(tmp_path):
    fake = FakeEndpoint({"result": "hello"})
    with (
        fake.serve() as url,
        pytest.raises(EndpointError, match='not OpenAI-compatible: it answers {"result": "hel'),
    ):
        _endpoint(url, tmp_path).complete("q")


def test_the_budget_counts_retries_and_the_next_run_goes_on(tmp_path):
    fake = FakeEndpoint("one", 500, "two")
    with fake.serve() as url:
        first = _endpoint(url, tmp_path, budget=2)
        assert first.complete("1") == "one"
        with pytest.raises(BudgetError, match="budget of 2 requests to seer-7b is used up.*500"):
            first.complete("2")
        assert first.complete("1") == "one"  # kept answers cost nothing
        second = _endpoint(url, tmp_path, budget=1)
        assert [second.complete("1"), second.complete("2")] == ["one", "two"]
    assert len(fake.requests) == 3


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_no_second_has_more_requests_than_the_rate(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(client, "time", clock)
    fake, sent = FakeEndpoint("a", 429, "b", 500, 503, "c"), []

    def post(*arguments, **options):
        sent.append(clock.now)
        clock.now += 0.01  # what an answer takes
        return real(*arguments, **options)

    real = requests.post
    monkeypatch.setattr(requests, "post", post)
    with fake.serve() as url:
        endpoint = _endpoint(url, tmp_path, rate=5, timeout=30)
        for i in range(20):
            endpoint.complete(str(i))
    assert len(sent) == endpoint.sent == 23  # retries count
    assert max(sum(start <= other < start + 1 - 1e-6 for other in sent) for start in sent) == 5
    assert sent[-1] - sent[0] == pytest.approx(22 / 5)  # and no second has fewer


def test_the_environment_names_the_endpoint(tmp_path):
    made = Endpoint.from_environment(
        AnswerCache(tmp_path),
        environ={"OPENAI_BASE_URL": "http://x/v1", "OPENAI_MODEL": "m"},
        rate=3.0,
    )
    assert (made.base_url, made.model, made.key, made.rate) == ("http://x/v1", "m", "", 3.0)
    with pytest.raises(ValueError, match="OPENAI_MODEL is not set"):
        Endpoint.from_environment(AnswerCache(tmp_path), environ={"OPENAI_BASE_URL": "http://x/v1"})


def test_a_damaged_cache_file_is_asked_again(tmp_path):
    cache = AnswerCache(tmp_path)
    key = AnswerCache.key("a", b"b")
    assert key != AnswerCache.key("ab", b"")
    cache.put(key, "kept", prompt="a")
    assert cache.get(key) == "kept"
    next(tmp_path.rglob("*.json")).write_text('{"value": "ke')
    assert cache.get(key) is None
