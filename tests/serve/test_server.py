"""The server follows openpi's protocol, and a bad client does not disturb the others."""

import contextlib
import http.client
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from etcvla.errors import UserError
from etcvla.serve import wire
from etcvla.serve.client import Client
from etcvla.serve.server import Limits
from tests.serve.running_server import MESSAGE, running_server
from tests.serve.test_wire import damage

TIMEOUT = 60  # seconds; the machine may be busy with other work


def echo(message):
    if "prompt" not in message:
        raise UserError("no prompt")
    return {"actions": np.full((2, 3), len(message["prompt"]), np.float32)}


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def address(port):
    return f"ws://127.0.0.1:{port}"


def test_metadata_comes_first_then_actions_with_timing():
    with running_server(echo) as (port, _):
        client = Client(address(port))
        assert client.metadata == {"robot": "none"}
        first = client.infer(MESSAGE)
        second = client.infer(MESSAGE)
        np.testing.assert_array_equal(first["actions"], np.full((2, 3), 15))
        assert set(first["server_timing"]) == {"infer_ms"}
        assert second["server_timing"]["prev_total_ms"] > 0
        client.close()


def send_bad_message(port, message):
    """Return the text that answers a message, and the code that closes the connection."""
    with connect(address(port)) as connection:
        connection.recv()
        connection.send(message)
        text = connection.recv(TIMEOUT)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(TIMEOUT)
        return text, closed.value.rcvd.code


def echo_or_crash(message):
    if message.get("prompt") == "crash":
        raise ZeroDivisionError("division by zero")
    return echo(message)


def test_error_is_a_text_and_other_clients_continue(caplog):
    with running_server(echo_or_crash) as (port, _):
        other = Client(address(port))
        assert send_bad_message(port, wire.pack({"x": 1})) == ("no prompt", 1011)
        text, code = send_bad_message(port, b"\xc1")
        assert "not msgpack as openpi's client packs it: FormatError" in text
        assert code == 1011
        assert send_bad_message(port, "hello") == (
            "a text message, expected bytes of msgpack",
            1011,
        )
        text, code = send_bad_message(port, wire.pack({"prompt": "crash"}))
        assert "the server failed" in text
        assert "division" not in text
        assert "ZeroDivisionError" in caplog.text
        assert other.infer(MESSAGE)["actions"].shape == (2, 3)
        with pytest.raises(RuntimeError, match="answered with an error: no prompt"):
            other.infer({"x": 1})
        metrics = get(port, "/metrics")[1]
        assert "etcvla_messages_total 6" in metrics
        assert "etcvla_bad_messages_total 4" in metrics
        assert "etcvla_errors_total 1" in metrics
        assert 'etcvla_answer_seconds{quantile="0.99"}' in metrics


def test_too_large_message_closes_only_its_connection():
    with (
        running_server(echo, limits=Limits(message=10_000)) as (port, _),
        connect(address(port)) as large,
    ):
        large.recv()
        large.send(b"\0" * 20_000)
        with pytest.raises(ConnectionClosed) as closed:
            large.recv(TIMEOUT)
        assert closed.value.rcvd.code == 1009
        assert Client(address(port)).infer(MESSAGE)["actions"].shape == (2, 3)


def test_everything_but_health_needs_the_key():
    with running_server(echo, key="secret") as (port, _):
        assert get(port, "/healthz") == (200, "OK\n")
        assert get(port, "/metrics")[0] == 401
        assert get(port, "/metrics", Authorization="Api-Key secret")[0] == 200
        for key in ("", "wrong"):
            with pytest.raises(InvalidStatus) as refused:
                Client(address(port), key=key)
            assert refused.value.response.status_code == 401
        assert Client(address(port), key="secret").infer(MESSAGE)["actions"].shape == (2, 3)


def test_web_pages_cannot_connect():
    with running_server(echo) as (port, _), pytest.raises(InvalidStatus) as refused:
        connect(address(port), origin="https://example.org")
    assert refused.value.response.status_code == 403


def test_number_of_connections_is_limited():
    with running_server(echo, limits=Limits(connections=1)) as (port, _):
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


def test_fast_messages_wait():
    with running_server(echo, limits=Limits(rate=20)) as (port, _):
        client = Client(address(port))
        start = time.monotonic()
        for _ in range(5):
            client.infer(MESSAGE)
        assert time.monotonic() - start > 0.19


def test_idle_client_is_disconnected():
    with (
        running_server(echo, limits=Limits(idle=0.1)) as (port, _),
        connect(address(port)) as silent,
    ):
        silent.recv()
        with pytest.raises(ConnectionClosed):
            silent.recv(TIMEOUT)


def test_client_that_waits_too_long_gets_an_error():
    release = threading.Event()

    def slow(message):
        release.wait(TIMEOUT)
        return echo(message)

    with running_server(slow, limits=Limits(answer=0.1, stop=0.1)) as (port, _):
        text, code = send_bad_message(port, wire.pack(MESSAGE))
        assert "the server is busy" in text
        assert code == 1013
        release.set()


def test_stopping_server_finishes_pending_answers():
    started = threading.Event()
    answers = []

    def slow(message):
        started.set()
        time.sleep(0.3)
        return echo(message)

    with running_server(slow) as (port, _):
        client = Client(address(port))
        idle = connect(address(port))
        idle.recv()
        thread = threading.Thread(target=lambda: answers.append(client.infer(MESSAGE)))
        thread.start()
        assert started.wait(TIMEOUT)
    thread.join(TIMEOUT)
    assert answers[0]["actions"].shape == (2, 3)
    with pytest.raises(ConnectionClosed) as closed:
        idle.recv(TIMEOUT)
    assert closed.value.rcvd.code == 1001
    with pytest.raises(OSError, match="refused"):
        Client(address(port))


def test_damaged_messages_do_not_disturb_other_clients():
    rng = np.random.default_rng(1)
    message = wire.pack(MESSAGE)
    with running_server(echo, limits=Limits(rate=1e6)) as (port, server):
        other = Client(address(port))
        connection = None
        for i in range(300):
            if connection is None:
                connection = connect(address(port), compression=None)
                connection.recv(TIMEOUT)
            connection.send(damage(message, rng))
            if isinstance(connection.recv(TIMEOUT), str):
                connection.close()
                connection = None
            if i % 50 == 0:
                assert other.infer(MESSAGE)["actions"].shape == (2, 3)
        assert other.infer(MESSAGE)["actions"].shape == (2, 3)
        assert server.metrics["bad_messages_total"] > 100
        assert server.metrics["errors_total"] == 0


def test_client_that_never_reads_is_disconnected():
    with running_server(echo) as (port, _), connect(address(port), compression=None) as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(20):
                client.send(b"damaged")
        assert isinstance(client.recv(TIMEOUT), bytes)
        assert "not msgpack" in client.recv(TIMEOUT)
        with pytest.raises(ConnectionClosed):
            client.recv(TIMEOUT)
        assert Client(address(port)).infer(MESSAGE)["actions"].shape == (2, 3)


@pytest.mark.parametrize("limits", [{"rate": 0}, {"message": -1}])
def test_limits_must_be_positive(limits):
    with pytest.raises(UserError, match="limits must be positive"):
        Limits(**limits)
