"""The server keeps openpi's protocol, its limits, and its other clients."""

import contextlib
import http.client
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from etcvla.serve import wire
from etcvla.serve.client import Client
from etcvla.serve.server import Limits
from tests.serve.running import MESSAGE, running
from tests.serve.test_wire import damage

PATIENCE = 60  # seconds: other work may keep the machine busy


def echo(message):
    if "prompt" not in message:
        raise ValueError("no prompt")
    return {"actions": np.full((2, 3), len(message["prompt"]), np.float32)}


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def address(port):
    return f"ws://127.0.0.1:{port}"


def test_metadata_first_then_actions_with_their_timing():
    with running(echo) as (port, _):
        client = Client(address(port))
        assert client.metadata == {"robot": "none"}
        first, second = client.infer(MESSAGE), client.infer(MESSAGE)
        np.testing.assert_array_equal(first["actions"], np.full((2, 3), 15))
        assert (
            set(first["server_timing"]) == {"infer_ms"}
            and second["server_timing"]["prev_total_ms"] > 0
        )
        client.close()


def said(port, message):
    """The text that answers a message, and the code that closes the connection after it."""
    with connect(address(port)) as connection:
        connection.recv()
        connection.send(message)
        text = connection.recv(PATIENCE)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(PATIENCE)
        return text, closed.value.rcvd.code


def test_an_error_is_a_text_and_the_others_go_on(caplog):
    with running(lambda message: echo(message) if message.get("prompt") != "crash" else 1 / 0) as (
        port,
        _,
    ):
        other = Client(address(port))
        assert said(port, wire.pack({"x": 1})) == ("no prompt", 1011)
        text, code = said(port, b"\xc1")
        assert "no msgpack as openpi's client packs it: FormatError" in text and code == 1011
        assert said(port, "hello") == ("a text message, expected bytes of msgpack", 1011)
        text, code = said(port, wire.pack({"prompt": "crash"}))
        assert (
            "the server failed" in text
            and "division" not in text
            and "ZeroDivisionError" in caplog.text
        )
        assert other.infer(MESSAGE)["actions"].shape == (2, 3)
        with pytest.raises(RuntimeError, match="the server refuses: no prompt"):
            other.infer({"x": 1})
        metrics = get(port, "/metrics")[1]
        assert "etcvla_messages_total 6" in metrics and "etcvla_bad_messages_total 4" in metrics
        assert (
            "etcvla_errors_total 1" in metrics
            and 'etcvla_answer_seconds{quantile="0.99"}' in metrics
        )


def test_a_message_too_large_closes_its_connection_alone():
    with running(echo, limits=Limits(message=10_000)) as (port, _), connect(address(port)) as large:
        large.recv()
        large.send(b"\0" * 20_000)
        with pytest.raises(ConnectionClosed) as closed:
            large.recv(PATIENCE)
        assert closed.value.rcvd.code == 1009
        assert Client(address(port)).infer(MESSAGE)["actions"].shape == (2, 3)


def test_a_key_is_wanted_for_all_but_health():
    with running(echo, key="secret") as (port, _):
        assert get(port, "/healthz") == (200, "OK\n") and get(port, "/metrics")[0] == 401
        assert get(port, "/metrics", Authorization="Api-Key secret")[0] == 200
        for key in ("", "wrong"):
            with pytest.raises(InvalidStatus) as refused:
                Client(address(port), key=key)
            assert refused.value.response.status_code == 401
        assert Client(address(port), key="secret").infer(MESSAGE)["actions"].shape == (2, 3)


def test_a_page_in_a_browser_may_not_connect():
    with running(echo) as (port, _), pytest.raises(InvalidStatus) as refused:
        connect(address(port), origin="https://example.org")
    assert refused.value.response.status_code == 403


def test_connections_are_counted():
    with running(echo, limits=Limits(connections=1)) as (port, _):
        first = Client(address(port))
        with pytest.raises(InvalidStatus) as refused:
            Client(address(port))
        assert refused.value.response.status_code == 503
        first.close()
        for _ in range(100):
            if "etcvla_connections 0" in get(port, "/metrics")[1]:
                break
            time.sleep(0.02)
        assert Client(address(port)).infer(MESSAGE)["actions"].shape == (2, 3)


def test_what_comes_too_fast_waits():
    with running(echo, limits=Limits(rate=20)) as (port, _):
        client, began = Client(address(port)), time.monotonic()
        for _ in range(5):
            client.infer(MESSAGE)
        assert time.monotonic() - began > 0.19


def test_one_that_says_nothing_is_let_go():
    with running(echo, limits=Limits(idle=0.1)) as (port, _), connect(address(port)) as silent:
        silent.recv()
        with pytest.raises(ConnectionClosed):
            silent.recv(PATIENCE)


def test_one_that_waits_too_long_is_told():
    release = threading.Event()

    def slow(message):
        release.wait(PATIENCE)
        return echo(message)

    with running(slow, limits=Limits(answer=0.1, stop=0.1)) as (port, _):
        text, code = said(port, wire.pack(MESSAGE))
        assert "the server is busy" in text and code == 1013
        release.set()


def test_stopping_answers_what_is_under_way():
    began, answers = threading.Event(), []

    def slow(message):
        began.set()
        time.sleep(0.3)
        return echo(message)

    with running(slow) as (port, _):
        client, idle = Client(address(port)), connect(address(port))
        idle.recv()
        thread = threading.Thread(target=lambda: answers.append(client.infer(MESSAGE)))
        thread.start()
        assert began.wait(PATIENCE)
    thread.join(PATIENCE)
    assert answers[0]["actions"].shape == (2, 3)
    with pytest.raises(ConnectionClosed) as closed:
        idle.recv(PATIENCE)
    assert closed.value.rcvd.code == 1001
    with pytest.raises(OSError, match="refused"):
        Client(address(port))


def test_damaged_messages_through_a_socket():
    """Hundreds, whole and damaged by turns; a client beside them is served throughout."""
    rng, whole = np.random.default_rng(1), wire.pack(MESSAGE)
    with running(echo, limits=Limits(rate=1e6)) as (port, server):
        other, connection = Client(address(port)), None
        for i in range(300):
            if connection is None:
                connection = connect(address(port), compression=None)
                connection.recv(PATIENCE)
            connection.send(damage(whole, rng))
            if isinstance(connection.recv(PATIENCE), str):
                connection.close()
                connection = None
            if i % 50 == 0:
                assert other.infer(MESSAGE)["actions"].shape == (2, 3)
        assert other.infer(MESSAGE)["actions"].shape == (2, 3)
        assert server.metrics["bad_messages_total"] > 100 and server.metrics["errors_total"] == 0


def test_one_that_sends_on_without_reading_is_let_go():
    with running(echo) as (port, _), connect(address(port), compression=None) as rude:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(20):
                rude.send(b"damaged")
        assert isinstance(rude.recv(PATIENCE), bytes) and "no msgpack" in rude.recv(PATIENCE)
        with pytest.raises(ConnectionClosed):
            rude.recv(PATIENCE)
        assert Client(address(port)).infer(MESSAGE)["actions"].shape == (2, 3)


@pytest.mark.parametrize("limits", [{"rate": 0}, {"message": -1}])
def test_limits_are_positive(limits):
    with pytest.raises(ValueError, match="limits must be positive"):
        Limits(**limits)
