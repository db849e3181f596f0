"""A page in headless Chromium, controlled with the DevTools protocol."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-port=0",
)
PATIENCE = 120  # seconds to wait for the browser on a busy machine


class Browser:
    """A context manager that shows the file `page`. Profile and downloads are in `folder`.

    Skips the test if there is no Chromium (Debian: `apt-get install chromium`).
    """

    def __init__(self, page, folder, size=(1400, 1000)):
        self.binary = next(filter(None, map(shutil.which, BINARIES)), None)
        if not self.binary:
            pytest.skip("no Chromium")
        self.connect = pytest.importorskip("websockets.sync.client").connect
        self.page = page
        self.profile = folder / "profile"
        self.downloads = folder / "downloads"
        self.size = size
        self.message_ids = itertools.count(1)

    def __enter__(self):
        width, height = self.size
        command = [self.binary, *FLAGS, f"--window-size={width},{height}"]
        command += [f"--user-data-dir={self.profile}", self.page.as_uri()]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.socket = self.connect(
            wait_for(self._address), max_size=None, proxy=None, open_timeout=PATIENCE
        )
        self.downloads.mkdir(exist_ok=True)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        # The browser first shows an empty page, which is complete as well.
        complete = f"complete {self.page.as_uri()}"
        wait_for(lambda: self.run("document.readyState + ' ' + location.href") == complete or None)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE)

    def _address(self):
        """Return the address of the page's DevTools socket."""
        port = (self.profile / "DevToolsActivePort").read_text().split()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        tabs = json.load(opener.open(f"http://127.0.0.1:{port}/json"))
        return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")

    def call(self, method, **parameters):
        """Call a method of the protocol and return its result."""
        message_id = next(self.message_ids)
        self.socket.send(json.dumps({"id": message_id, "method": method, "params": parameters}))
        reply = {}
        while reply.get("id") != message_id:
            reply = json.loads(self.socket.recv(PATIENCE))
        assert "error" not in reply, reply["error"]
        return reply["result"]

    def run(self, script):
        """Return the value of a JavaScript expression, after waiting for a promise."""
        reply = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def click(self, selector):
        """Click the first element that matches a CSS selector."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def downloaded(self, name):
        """Wait for a download and return its content."""
        return wait_for(lambda: (self.downloads / name).read_text())


def wait_for(read):
    """Call `read` until it raises no error and returns a value that is not None or empty."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            value = read()
            if value not in (None, ""):
                return value
        except (OSError, StopIteration, ValueError, IndexError):
            pass
        time.sleep(0.05)
    pytest.fail("the browser does not answer")
