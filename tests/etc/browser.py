"""A page in headless Chromium, driven over its DevTools protocol."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request

import pytest

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
PATIENCE = 120  # seconds, of a machine that does much else


class Browser:
    """`with Browser(page, folder)`: opens the file `page`; profile and downloads stand in `folder`.

    Skips the test where there is no Chromium (Debian: `apt-get install chromium`).
    """

    def __init__(self, page, folder, size=(1400, 1000)):
        self.binary = next(
            filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
        )
        if not self.binary:
            pytest.skip("no Chromium")
        self.connect = pytest.importorskip("websockets.sync.client").connect
        self.page, self.profile, self.downloads = page, folder / "profile", folder / "downloads"
        self.size = f"--window-size={size[0]},{size[1]}"
        self.numbers = itertools.count(1)

    def __enter__(self):
        # The process group is ended with it: Chromium has children.
        self.process = subprocess.Popen(
            [self.binary, *FLAGS, self.size, f"--user-data-dir={self.profile}", self.page.as_uri()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = wait_for(lambda: (self.profile / "DevToolsActivePort").read_text().split()[0])
        here = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        address = wait_for(
            lambda: next(
                tab["webSocketDebuggerUrl"]
                for tab in json.load(here.open(f"http://127.0.0.1:{port}/json"))
                if tab["type"] == "page"
            )
        )
        self.socket = self.connect(address, max_size=None, proxy=None, open_timeout=PATIENCE)
        self.downloads.mkdir(exist_ok=True)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        there = f"complete {self.page.as_uri()}"  # an empty page is shown first, and is complete
        wait_for(lambda: self.run("document.readyState + ' ' + location.href") == there or None)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait(PATIENCE)

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv(PATIENCE))).get("id") != number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def run(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def downloaded(self, name):
        return wait_for(lambda: (self.downloads / name).read_text())


def wait_for(found):
    """What `found` returns as soon as that is something and no error."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if (value := found()) not in (None, ""):
                return value
        except (OSError, StopIteration, ValueError):
            pass
        assert time.monotonic() < end, "the browser does not answer"
        time.sleep(0.05)
