"""An OpenAI-compatible endpoint in a thread, with a scripted behaviour for each request."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIMEOUT = "hang"  # send no byte for longer than the client of a test waits


class FakeEndpoint:
    """An endpoint whose script has one action per request; the last action is repeated.

    An action is a text (the answer), a number (an HTTP status), a dict (the body of the reply),
    TIMEOUT (no reply in time), or a function that returns one of these.
    """

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        self.times = []
        self.headers = {}  # of all replies
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def serve(self):
        """Run the server and yield its base URL."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()

    def _next_action(self, request: dict):
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def _handler(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            """Handles one request."""

            def do_POST(self):  # noqa: N802
                """Record the request and reply with the next action."""
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body |= {"path": self.path, "key": self.headers.get("Authorization")}
                action = fake._next_action(body)
                if callable(action):
                    action = action()
                if action == TIMEOUT:
                    time.sleep(0.6)
                    return
                self.send_response(action if isinstance(action, int) else 200)
                for name, value in fake.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if not isinstance(action, dict):
                    action = {"choices": [{"message": {"content": action}}]}
                self.wfile.write(json.dumps(action).encode())

            def log_message(self, *_):
                """Log nothing."""

        return Handler
