"""Headless Chromium, and a proxy that cuts connections, for the tests of the page."""

import base64
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.live import ROOT

INSTALLED = bool(shutil.which("chromium") and shutil.which("chromedriver"))

AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
"""Finds what is not accessible; .ci/run has it from npm."""

# A browser that calls nobody but the service, and needs no display.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SECONDS = 20.0  # for what takes some tenths of a second where nothing else runs

T = TypeVar("T")


class Browser:
    """Chromium with one tab and an empty profile; what its console says is kept."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.downloads = profile / "downloads"
        self.driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
        self.command(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads)
        )
        self.show()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def show(
        self, *, width: int = 1440, height: int = 900, scheme: str = "light", motion: bool = False
    ) -> None:
        """Make the window a screen of a size, with what its owner prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        preferred = {
            "prefers-color-scheme": scheme,
            "prefers-reduced-motion": "no-preference" if motion else "reduce",
        }
        features = [{"name": name, "value": value} for name, value in preferred.items()]
        self.command("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Load a page anew, also where only the part behind # differs."""
        self.driver.get("about:blank")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that there are now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def find(self, selector: str, text: str = "") -> WebElement:
        """Wait for an element that is shown and holds a text, in any case of letters."""

        def found() -> WebElement | None:
            shown = [one for one in self.all(selector) if one.is_displayed()]
            return next((one for one in shown if text.lower() in one.text.lower()), None)

        return self.until(found, f"{selector} with '{text}'")

    def text(self, selector: str, text: str = "") -> str:
        """Wait for such an element, and return its text before the page draws it anew."""
        return self.until(lambda: self.find(selector, text).text, f"text of {selector}")

    def click(self, selector: str, text: str = "") -> None:
        """Click an element once it is there."""
        self.find(selector, text).click()

    def until(self, check: Callable[[], T | None], what: str = "") -> T:
        """Wait until a check returns something true, and return that."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if found := check():
                    return found
            except StaleElementReferenceException:
                pass
            said = self.run("return document.body.innerText")
            assert time.monotonic() < deadline, f"{what or check} did not come; the page:\n{said}"
            time.sleep(0.02)

    def until_still(self) -> None:
        """Wait until the page waits for nothing."""
        self.until(lambda: not self.all("[aria-busy=true]"), "an end of waiting")

    def complaints(self) -> list[str]:
        """Return what the console said since the last call, but for answers that are no success.

        Advice on drawing is about the reading of canvases here, not about the page.
        """
        entries: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [
            entry["message"]
            for entry in entries
            if entry["source"] != "rendering" and "Failed to load resource" not in entry["message"]
        ]

    def picture(self) -> bytes:
        """Return what is on the screen as a PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])


class Proxy:
    """Passes bytes between a browser and a service, until it is closed.

    One answer is cut once `after` was in it so many `times`.
    """

    def __init__(self, port: int, *, after: bytes = b"", times: int = 0) -> None:
        self._port, self._after, self._times = port, after, times
        self.cuts_left = 1 if times else 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Be gone: what is open ends, and nothing new is accepted."""
        _end(self._listener)  # which wakes who accepts
        self._threads[0].join()
        for end in list(self._open):
            _end(end)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as service:
            self._open |= {client, service}
            asking = threading.Thread(target=_pass, args=(client, service, lambda _: False))
            asking.start()
            seen = 0

            def is_cut(content: bytes) -> bool:
                nonlocal seen
                seen += content.count(self._after)
                if not self.cuts_left or seen < self._times:
                    return False
                self.cuts_left -= 1
                return True

            _pass(service, client, is_cut)
            asking.join()
            self._open -= {client, service}


def _pass(source: socket.socket, target: socket.socket, is_cut: Callable[[bytes], bool]) -> None:
    """Pass bytes on until one side ends, or a cut is due; then end both."""
    with suppress(OSError):
        while content := source.recv(1024):
            target.sendall(content)
            if is_cut(content):
                break
    _end(source)
    _end(target)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def run_code(language: str, text: str, folder: Path, **environment: str) -> str:
    """Run code as a person would who pastes it, and return what it prints."""
    command = ["bash", "-euo", "pipefail", "-c"] if language == "curl" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, text],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_events(text: str) -> list[dict[str, Any]]:
    """Return the data of each event of a stream."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
