"""Studio in real Chromium, against the real service with the bundled models."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.browser import INSTALLED, Browser, CuttingProxy, read_events, run_code
from tests.live import ROOT, LiveServer

pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="Debian's packages chromium and chromium-driver are not installed"
)
VIEWS = ("models", "sample", "paint", "latent", "score", "live")
LARGEST_VIEW = 100_000  # bytes


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(ROOT / "artifacts") as live:
        live.wait_until_ready()
        yield live


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(opened: Browser) -> Iterator[Browser]:
    """A tab without a key; whatever a test does, the page breaks neither itself nor its policy."""
    yield opened
    opened.run("if (location.protocol.startsWith('http')) sessionStorage.clear()")
    assert opened.complaints() == []
    opened.driver.get("about:blank")
    opened.show()


def shown_images(browser: Browser, selector: str) -> list[str]:
    """The base64 PNGs of the pictures on the page."""
    sources = browser.run(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one.src)", selector
    )
    return [source.removeprefix("data:image/png;base64,") for source in sources]


def pixels(png: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def snippet(browser: Browser, language: str) -> str:
    """What the page offers to be copied."""
    if not browser.all(".copy[open]"):
        browser.click(".copy summary")
    browser.click(".copy .choice button", language)
    return browser.find(".copy pre").text


# Models


def test_models_are_cards_with_figures_and_samples(browser: Browser, server: LiveServer) -> None:
    browser.open(server.url)
    card = browser.find("[data-model=mnist-realnvp]")
    assert "normalising flow · mnist" in card.text
    assert "sample\nencode\ndecode\nreconstruct\ninterpolate\nlikelihood" in card.text
    assert re.search(r"bits per dim bits/dim 1\.182 ± 0\.003 1\.06", card.text)
    browser.until(lambda: len(browser.all("[data-model=mnist-realnvp] .strip img")) == 8)
    assert len({*shown_images(browser, "[data-model=mnist-realnvp] .strip img")}) == 8
    assert len(browser.all("[data-model]")) == len(list((ROOT / "artifacts").iterdir()))


def test_a_model_is_loaded_for_its_samples_only_when_asked(
    browser: Browser, server: LiveServer
) -> None:
    browser.open(server.url)
    browser.click("[data-model=fashion-mnist-vae] button", "load it")
    browser.until(lambda: len(browser.all("[data-model=fashion-mnist-vae] .strip img")) == 8)
    states = {one["name"]: one["state"] for one in json.loads(server.get("/models")[1])["models"]}
    assert states["fashion-mnist-vae"] == "ready"
    assert states["fashion-mnist-realnvp"] == "available"


def test_the_first_view_is_small(browser: Browser, server: LiveServer) -> None:
    """Everything that is transferred until it stands, samples included."""
    browser.open(server.url)
    browser.until(lambda: len(browser.all(".strip img")) >= 40)
    sizes = browser.run(
        "return performance.getEntries().filter((one) => 'transferSize' in one)"
        ".map((one) => [one.name, one.transferSize])"
    )
    assert sum(size for _, size in sizes) < LARGEST_VIEW, sizes


# Sample


def test_the_same_address_shows_the_same_pictures(browser: Browser, server: LiveServer) -> None:
    address = f"{server.url}/#/sample?model=mnist-dcgan&seed=7&count=9&class=3&truncation=0.5"
    browser.open(address)
    browser.until(lambda: len(browser.all(".grid img")) == 9)
    first = shown_images(browser, ".grid img")
    browser.open(address)
    browser.until(lambda: len(browser.all(".grid img")) == 9)
    assert shown_images(browser, ".grid img") == first and len({*first}) == 9
    browser.click("button", "New seed")
    browser.until(lambda: shown_images(browser, ".grid img") != first)
    assert "seed=7&" not in browser.run("return location.hash")


def test_the_fields_are_what_the_model_offers(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/sample?model=mnist-dcgan")
    browser.until(lambda: len(browser.all(".grid img")) == 16)
    assert {"Class", "Temperature", "Truncation"} <= {one.text for one in browser.all("label")}
    browser.run(
        "const list = document.querySelector('select'); list.value = 'mnist-vae';"
        "list.dispatchEvent(new Event('change'))"
    )
    browser.find(".status", "16 images of mnist-vae@1")
    assert "Class" not in {one.text for one in browser.all("label")}
    assert "model=mnist-vae&" in browser.run("return location.hash")


def test_what_is_copied_from_sample_returns_the_pictures(
    browser: Browser, server: LiveServer, tmp_path: Path
) -> None:
    browser.open(f"{server.url}/#/sample?model=mnist-dcgan&seed=7&count=4&class=each")
    browser.until(lambda: len(browser.all(".grid img")) == 4)
    page = np.stack([pixels(png) for png in shown_images(browser, ".grid img")])
    run_code("curl", snippet(browser, "curl"), tmp_path)
    grid = np.asarray(Image.open(tmp_path / "images.png"))
    assert np.array_equal(grid.reshape(2, 28, 2, 28).swapaxes(1, 2).reshape(4, 28, 28), page)
    for language in ("Python", "gRPC"):
        code = snippet(browser, language).replace(":8001", f":{server.grpc_port}")
        run_code("Python", code + "\nnp.save('images.npy', images)", tmp_path)
        assert np.array_equal(np.load(tmp_path / "images.npy")[..., 0], page), language


@pytest.mark.parametrize("kind", ["PNG", "npy"])
def test_pictures_can_be_downloaded(browser: Browser, server: LiveServer, kind: str) -> None:
    browser.open(f"{server.url}/#/sample?model=mnist-vae&seed=3&count=1")
    browser.until(lambda: len(browser.all(".grid img")) == 1)
    path = browser.downloads / f"mnist-vae-seed-3.{kind.lower()}"
    browser.click(".stage button", kind)
    browser.until(lambda: path.exists() and path.stat().st_size)
    (page,) = shown_images(browser, ".grid img")
    file = Image.open(path) if kind == "PNG" else np.load(path)[0, ..., 0]
    assert np.array_equal(np.asarray(file), pixels(page))


# Paint


def test_images_are_painted_from_nothing(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/paint?model=mnist-pixelcnn&seed=5&count=3&class=8")
    browser.find(".status", "3 images painted")
    readings = dict(re.findall(r"(.+)\n(.+)", browser.find(".readings").text))
    assert readings["rows"] == "84 of 84" and readings["cuts"] == "0"
    assert int(readings["rows a second"]) > 0 and readings["first row"].endswith(" ms")
    asked = {"model": "mnist-pixelcnn", "seed": 5, "count": 3, "class_label": 8}
    assert painted(browser) == sample(server, asked)


def test_a_drawn_beginning_is_completed_in_several_ways(
    browser: Browser, server: LiveServer
) -> None:
    browser.open(f"{server.url}/#/paint?model=mnist-pixelcnn&seed=5&count=2&rows=10&from=beginning")
    browser.find(".status", "2 images painted")
    pad = browser.find(".pad canvas")
    pad.send_keys(*["\ue013"] * 3, " ", *["\ue014"] * 4, " ")  # up, draw, right, draw
    browser.until(lambda: "image=" in browser.run("return location.hash"))
    browser.click("button.primary")
    browser.until(lambda: browser.run("return document.querySelectorAll('[data-png]').length") == 2)
    one, other = (pixels(png) for png in painted(browser))
    assert np.array_equal(one[:10], other[:10]) and one[:10].max() == 255
    assert not np.array_equal(one[10:], other[10:])


def test_a_stream_that_is_cut_goes_on(browser: Browser, server: LiveServer) -> None:
    with CuttingProxy(server.http_port, after=b"event: rows", times=20) as proxy:
        browser.open(f"{proxy.url}/#/paint?model=mnist-pixelcnn&seed=6&count=4")
        browser.find(".status", "4 images painted")
        assert proxy.cuts_left == 0
        assert "The connection was cut" in browser.find(".status").text
        assert browser.find(".readings").text.endswith("cuts\n1")
        assert "112 of 112" in browser.find(".readings").text
    asked = {"model": "mnist-pixelcnn", "seed": 6, "count": 4}
    assert painted(browser) == sample(server, asked)


def test_what_is_copied_from_paint_returns_the_pictures(
    browser: Browser, server: LiveServer, tmp_path: Path
) -> None:
    browser.open(f"{server.url}/#/paint?model=mnist-pixelcnn&seed=5&count=2")
    browser.find(".status", "2 images painted")
    page = painted(browser)
    events = read_events(run_code("curl", snippet(browser, "curl"), tmp_path))
    assert events[-1]["images"] == page and events[0]["rows_total"] == 56
    run_code("Python", snippet(browser, "Python") + "\njson.dump(images, open('i', 'w'))", tmp_path)
    assert json.loads((tmp_path / "i").read_text()) == page
    code = snippet(browser, "gRPC").replace(":8001", f":{server.grpc_port}")
    run_code("Python", code + "\nnp.save('images.npy', images)", tmp_path)
    stacked = np.stack([pixels(png) for png in page])
    assert np.array_equal(np.load(tmp_path / "images.npy")[..., 0], stacked)


def painted(browser: Browser) -> list[str]:
    """The finished pictures of the easel, in base64, which must be what is drawn there."""
    found = browser.run(
        "return [...document.querySelectorAll('.easel .cell')].map((cell) => [cell.dataset.png,"
        "[...cell.firstChild.getContext('2d').getImageData(0, 0, 28, 28).data]])"
    )
    for png, drawn in found:
        assert np.array_equal(np.reshape(drawn, (28, 28, 4))[..., 0], pixels(png))
    return [png for png, _ in found]


def sample(server: LiveServer, body: dict[str, object]) -> list[str]:
    """What the service answers."""
    code = f"curl --silent --fail {server.url}/sample --json '{json.dumps(body)}'"
    answer = json.loads(run_code("curl", code, ROOT))
    images: list[str] = answer["images"]
    return images
