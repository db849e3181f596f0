"""An OpenAI-compatible endpoint in a thread that behaves as it is told, request by request."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIMEOUT = "hang"  # no byte for longer than a test's client waits


class FakeEndpoint:
    """`script` holds what to do with each request, the last for all that follow: a text is answered, a number is an
    HTTP status, a dict the reply's body, TIMEOUT no reply in time; a function is called and gives one of these."""

    def __init__(self, *script):
        self.script, self.requests, self.times, self.headers = list(script), [], [], {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def serve(self):
        """The base URL, while the server runs."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()

    def _take(self, request: dict):
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def _handler(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                action = fake._take(
                    body | {"path": self.path, "key": self.headers.get("Authorization")}
                )
                action = action() if callable(action) else action
                if action == TIMEOUT:
                    time.sleep(0.6)
                    return
                status = action if isinstance(action, int) else 200
                reply = (
                    action
                    if isinstance(action, dict)
                    else {"choices": [{"message": {"content": action}}]}
                )
                self.send_response(status)
                for name, value in fake.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *_):
                pass

        return Handler
