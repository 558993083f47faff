"""Take the pictures of docs/studio/, of each view of the page, in headless Chromium.

Start a service with `make serve`, then run `make pictures`. It needs Debian's packages chromium and
chromium-driver.
"""

import io
import json
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

from tests.browser import Browser

URL = "http://127.0.0.1:8000"
FOLDER = Path(__file__).parent / "studio"
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 375, "height": 760}
COLOURS = 256  # of a palette: a screen of greys with one accent needs no more


def main() -> None:
    """Take every picture."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.show(**WIDE)
        take(browser, "models", "models")
        browser.show(**WIDE, scheme="dark")
        take(browser, "sample", "sample?model=mnist-dcgan&class=each&count=40&seed=1")
        browser.show(**WIDE, scheme="dark", motion=True)
        begin_painting(browser)
        browser.show(**WIDE)
        take(browser, "latent", "latent?z1=0.8&z2=-0.4")
        browser.show(**WIDE)
        take(browser, "score", "score?model=mnist-pixelcnn")
        browser.show(**WIDE, scheme="dark")
        run_burst(browser)
        browser.show(**NARROW)
        take(browser, "narrow", "latent?mode=interpolation&model=mnist-vae&a=7&b=20")


def begin_painting(browser: Browser) -> None:
    """Paint from the beginning of a sampled image, and stop to look half way."""
    body = json.dumps({"model": "mnist-dcgan", "class_label": 9, "seed": 5}).encode()
    request = urllib.request.Request(f"{URL}/sample", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        image = urllib.parse.quote(json.load(answer)["images"][0])
    browser.open(f"{URL}/#/paint?model=mnist-pixelcnn&count=18&rows=14&seed=3&image={image}")
    browser.find(".status", "18 images painted")
    browser.click("button.primary")
    time.sleep(0.55)
    save(browser, "paint")


def run_burst(browser: Browser) -> None:
    """Send requests, and look at the charts before they are done."""
    browser.open(f"{URL}/#/live?model=mnist-realnvp&requests=900&each=4")
    browser.find(".metric")
    time.sleep(3)
    browser.click("button.primary")
    time.sleep(5)
    save(browser, "live")


def take(browser: Browser, name: str, view: str) -> None:
    """Open a view and take its picture once it waits for nothing."""
    browser.open(f"{URL}/#/{view}")
    browser.find("h1")
    time.sleep(1)  # until what it shows first is asked for
    browser.until_still()
    save(browser, name)


def save(browser: Browser, name: str) -> None:
    """Write what is on the screen, in few colours."""
    screen = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    small = screen.quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
