"""`make bench TARGET=studio`: how soon the first view of the page is drawn, and what it weighs.

It writes benchmarks/results/studio.md in under a minute, needs Debian's packages chromium and
chromium-driver, and refuses to run beside other load.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, pages
from benchmarks.pages import Target, table
from benchmarks.server import running_server
from tests.browser import Browser

LOADS = 15

# Noted by the page as it is drawn: when the cards are on the screen, and when all strips are full.
_WATCH = """
window.drawn = {};
const look = () => {
  if (document.querySelector(".card")) drawn.cards ??= performance.now();
  const strips = [...document.querySelectorAll(".strip")];
  const full = (strip) => strip.querySelector("img, button");
  if (strips.length && strips.every(full)) drawn.samples ??= performance.now();
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
_READ = """
const entries = performance.getEntries();
return {
  paint: entries.find((one) => one.name === "first-contentful-paint")?.startTime,
  bytes: entries.reduce((sum, one) => sum + (one.transferSize ?? 0), 0),
  ...window.drawn,
};
"""


@dataclass(frozen=True)
class Load:
    """One load of `/` by a browser that has nothing of it; milliseconds since it was asked for."""

    paint: float  # the first contents: the frame of the page
    cards: float  # all models, with what they can do and their figures
    samples: float  # their samples too
    bytes: int  # of everything transferred, uncompressed


def measure() -> None:
    """Run everything and write it down. Raises OtherLoad, writing nothing, if others joined."""
    with (
        running_server() as server,
        tempfile.TemporaryDirectory() as profile,
        Browser(Path(profile)) as browser,
    ):
        browser.command("Network.enable")
        browser.command("Network.setCacheDisabled", cacheDisabled=True)
        browser.command("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        url = f"http://127.0.0.1:{server.http_port}/"
        load(browser, url)  # the browser's own start is not the page's
        loads = [load(browser, url) for _ in range(LOADS)]
    # What a browser's many processes compute is not told from what others do, so others are looked
    # for before, as always, and after.
    machine.refuse_other_load()
    cards = statistics.median(each.cards for each in loads)
    parts = [
        f"# Studio\n\n{pages.head('studio')}",
        f"""The first view of the page, the models, in headless Chromium on the machine of the
server, 1440 by 900 pixels, without a cache: the median of {LOADS} loads, from the request for `/`.
""",
        pages.target_table(
            [
                Target("first view drawn, ms", cards, 200, at_least=False, digits=0),
                Target(
                    "first view, bytes",
                    max(each.bytes for each in loads),
                    100_000,
                    at_least=False,
                    digits=0,
                ),
            ]
        ),
        table(
            ["ms", "lowest", "median", "highest"],
            [
                row("something is drawn", [each.paint for each in loads]),
                row("the models are drawn", [each.cards for each in loads]),
                row("their samples are drawn", [each.samples for each in loads]),
            ],
        ),
    ]
    pages.write("studio", "\n".join(parts))


def load(browser: Browser, url: str) -> Load:
    """Load the page once, and return when it was drawn."""
    browser.open(url)
    browser.until(lambda: browser.run("return window.drawn.samples"), "the samples")
    return Load(**browser.run(_READ))


def row(name: str, times: list[float]) -> list[str]:
    """Return a row of the table."""
    figures = min(times), statistics.median(times), max(times)
    return [name, *(f"{figure:.0f}" for figure in figures)]
