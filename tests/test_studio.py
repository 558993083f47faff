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
from selenium.webdriver.common.action_chains import ActionChains

from service.images import levels_to_png
from service.keys import create_key
from tests.browser import AXE, INSTALLED, Browser, Proxy, read_events, run_code
from tests.live import ROOT, LiveServer

pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="Debian's packages chromium and chromium-driver are not installed"
)
VIEWS = (
    "models",
    "sample?model=mnist-dcgan&class=each",
    "paint?from=beginning",
    "latent",
    "latent?mode=interpolation&model=mnist-vae",
    "latent?mode=arithmetic",
    "score?model=mnist-pixelcnn",
    "live",
)
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
    return browser.text(".copy pre")


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


def test_a_model_of_vectors_shows_them_as_points_and_is_in_no_view_of_images(
    browser: Browser, server: LiveServer
) -> None:
    browser.open(server.url)
    browser.click("[data-model=checkerboard-ffjord] button", "load it")
    browser.until(lambda: len(browser.all("[data-model=checkerboard-ffjord] .strip canvas")) == 1)
    label = browser.find("[data-model=checkerboard-ffjord] canvas").get_attribute("aria-label")
    assert label == "256 vectors of checkerboard-ffjord"
    drawn = browser.run(
        "const canvas = document.querySelector('[data-model=checkerboard-ffjord] canvas');"
        "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "return data.filter((value, index) => index % 4 === 3 && value > 0).length"
    )
    assert drawn > 256
    assert not browser.all("[data-model=checkerboard-ffjord] .links a")
    browser.open(f"{server.url}/#/sample?model=checkerboard-ffjord")
    browser.until(lambda: "is a model of vectors" in browser.text(".notice.problem"))


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
    browser.until(lambda: "seed=7&" not in browser.run("return location.hash"))


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
    browser.until(lambda: "model=mnist-vae&" in browser.run("return location.hash"))


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


def test_the_address_keeps_up_with_a_slider_that_is_dragged(
    browser: Browser, server: LiveServer
) -> None:
    browser.open(f"{server.url}/#/sample?model=mnist-vae&count=1")
    browser.until(lambda: len(browser.all(".grid img")) == 1)
    browser.run(
        "const slider = document.querySelector('input[type=range]');"
        "for (let count = 1; count <= 1000; count += 1) {"
        "  slider.value = 1 + count % 60;"
        "  slider.dispatchEvent(new Event('input'));"
        "}"
    )
    browser.until(lambda: "count=41&" in browser.run("return location.hash"))
    browser.until(lambda: len(browser.all(".grid img")) == 41)


# Paint


def test_images_are_painted_from_nothing(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/paint?model=mnist-pixelcnn&seed=5&count=3&class=8")
    browser.find(".status", "3 images painted")
    readings = dict(re.findall(r"(.+)\n(.+)", browser.text(".readings")))
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
    before = painted(browser)
    browser.click("button.primary")
    browser.until(
        lambda: all(new and new != old for new, old in zip(painted(browser), before, strict=True))
    )
    one, other = (pixels(str(png)) for png in painted(browser))
    assert np.array_equal(one[:10], other[:10]) and one[:10].max() == 255
    assert not np.array_equal(one[10:], other[10:])


def test_a_stream_that_is_cut_goes_on(browser: Browser, server: LiveServer) -> None:
    with Proxy(server.http_port, after=b"event: rows", times=20) as proxy:
        browser.open(f"{proxy.url}/#/paint?model=mnist-pixelcnn&seed=6&count=4")
        browser.find(".status", "4 images painted")
        assert proxy.cuts_left == 0
        browser.find(".status", "The connection was cut")
        assert browser.text(".readings").endswith("cuts\n1")
        browser.find(".readings", "112 of 112")
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
    stacked = np.stack([pixels(str(png)) for png in page])
    assert np.array_equal(np.load(tmp_path / "images.npy")[..., 0], stacked)


def painted(browser: Browser) -> list[str | None]:
    """The finished pictures of the easel, in base64, which must be what is drawn there."""
    found = browser.run(
        "return [...document.querySelectorAll('.easel .cell')].map((cell) => [cell.dataset.png,"
        "[...cell.firstChild.getContext('2d').getImageData(0, 0, 28, 28).data]])"
    )
    for png, drawn in found:
        if png is None:
            continue  # not finished yet
        assert np.array_equal(np.reshape(drawn, (28, 28, 4))[..., 0], pixels(png))
    return [png for png, _ in found]


def sample(server: LiveServer, body: dict[str, object]) -> list[str]:
    """What the service answers."""
    code = f"curl --silent --fail {server.url}/sample --json '{json.dumps(body)}'"
    answer = json.loads(run_code("curl", code, ROOT))
    images: list[str] = answer["images"]
    return images


# Latent space


def test_the_pointer_moves_through_the_plane(
    browser: Browser, server: LiveServer, tmp_path: Path
) -> None:
    browser.open(f"{server.url}/#/latent")
    browser.find(".status", "images of mnist-vae-2d")
    browser.until(lambda: point_image(browser))
    middle = point_image(browser)
    plane = browser.find(".plane canvas")
    ActionChains(browser.driver).move_to_element_with_offset(plane, 150, -120).perform()
    browser.until(lambda: point_image(browser) != middle)
    plane.send_keys("\ue012" * 3)  # left
    browser.until(lambda: "z1=" in browser.run("return location.hash"))
    browser.until(lambda: decoded(snippet(browser, "Python"), tmp_path) == point_image(browser))
    z1, z2 = (one.text for one in browser.all(".slider output"))
    assert float(z1) > 0 and float(z2) > 0
    address = browser.run("return location.href")
    shown = point_image(browser)
    browser.open(address)
    browser.until(lambda: point_image(browser) == shown)


def point_image(browser: Browser) -> str | None:
    png: str | None = browser.run("return document.querySelector('.panel canvas')?.dataset.png")
    return png


def decoded(code: str, folder: Path) -> str:
    """The first image that a snippet of Python returns, as the PNG that the service would make."""
    run_code("Python", code + "\nnp.save('images.npy', images)", folder)
    return base64.b64encode(levels_to_png(np.load(folder / "images.npy")[0], 256)).decode()


def test_a_path_between_two_seeds(browser: Browser, server: LiveServer, tmp_path: Path) -> None:
    browser.open(f"{server.url}/#/latent?mode=interpolation&model=mnist-dcgan&class=4&a=3&b=9")
    browser.until(lambda: len(browser.all(".film img")) == 24)
    film = shown_images(browser, ".film img")
    assert shown_images(browser, ".path > img") == [film[0]]
    browser.find(".path input").send_keys("\ue010")  # End
    assert shown_images(browser, ".path > img") == [film[-1]]
    browser.click(".path button", "Play")
    browser.until(lambda: shown_images(browser, ".path > img") == [film[20]])
    browser.click(".path button", "Pause")
    rest = shown_images(browser, ".path > img")
    for language in ("Python", "gRPC"):
        code = snippet(browser, language).replace(":8001", f":{server.grpc_port}")
        assert decoded(code, tmp_path) == film[0]
        assert len(np.load(tmp_path / "images.npy")) == 24
    assert shown_images(browser, ".path > img") == rest


def test_a_path_between_two_uploaded_images(
    browser: Browser, server: LiveServer, tmp_path: Path
) -> None:
    ends = sample(server, {"model": "mnist-dcgan", "seed": 4, "count": 2})
    browser.open(f"{server.url}/#/latent?mode=interpolation&model=mnist-realnvp")
    browser.until(lambda: len(browser.all(".film img")) == 24)
    for png, key in zip(ends, "ab", strict=True):
        path = tmp_path / f"{key}.png"
        path.write_bytes(base64.b64decode(png))
        browser.all(".point input[type=file]")["ab".index(key)].send_keys(str(path))
        browser.until(lambda key=key: f"{key}-image=" in browser.run("return location.hash"))
    browser.until(lambda: shown_images(browser, ".film img")[::23] == ends, "an exact flow's ends")


def test_arithmetic_with_pictures(browser: Browser, server: LiveServer, tmp_path: Path) -> None:
    browser.open(f"{server.url}/#/latent?mode=arithmetic&model=mnist-vae&a=1&b=2&c=2")
    browser.until(lambda: len(browser.all(".frame img")) == 4)
    a, b, c, total = shown_images(browser, ".frame img")
    assert b == c != a and total == a, "a - b + b is a"
    browser.click("button[aria-label='New seed for c']")
    browser.until(lambda: shown_images(browser, ".frame img")[3] != total)
    browser.until_still()
    for language in ("Python", "gRPC"):
        code = snippet(browser, language).replace(":8001", f":{server.grpc_port}")
        assert decoded(code, tmp_path) == shown_images(browser, ".frame img")[3]
    run_code("curl", snippet(browser, "curl"), tmp_path)
    copied = np.asarray(Image.open(tmp_path / "images.png"))
    assert np.array_equal(copied, pixels(shown_images(browser, ".frame img")[3]))


# Score


def test_examples_are_scored_as_the_copied_request_says(
    browser: Browser, server: LiveServer, tmp_path: Path
) -> None:
    browser.open(f"{server.url}/#/score?model=mnist-pixelcnn")
    browser.until(lambda: len(browser.all(".scored li")) == 4)
    cards = [card.text for card in browser.all(".scored li")]
    outputs = [run_code(kind, snippet(browser, kind), tmp_path) for kind in ("curl", "Python")]
    for answer in map(json.loads, outputs):
        for card, result in zip(cards, answer["results"], strict=True):
            assert ("anomalous" if result["anomalous"] else "normal") in card.split("\n")[1]
            assert f"{float(re.findall('p-value (.+)', card)[0]):.1g}" == f"{result['p_value']:.1g}"
            shown = float(re.findall("log-likelihood\n(.+) nats", card)[0])
            assert shown == pytest.approx(result["log_likelihood"], rel=1e-4)
            assert "exact probability" in card
    assert [result["anomalous"] for result in answer["results"]] == [False, False, True, True]
    code = snippet(browser, "gRPC").replace(":8001", f":{server.grpc_port}")
    *_, p_values = run_code("Python", code + "\nprint(answer.p_value)", tmp_path).splitlines()
    assert json.loads(p_values) == [result["p_value"] for result in answer["results"]]
    figure = browser.find(".against")
    assert "5000 normal images" in figure.text and "at a rate of 1 %" in figure.text
    assert len(browser.all(".mark")) == 4 and len(browser.all(".bin")) == 60
    map_colours = "return new Set(document.querySelector('.pair canvas').getContext('2d')"
    assert browser.run(map_colours + ".getImageData(0, 0, 28, 28).data).size") > 50


def test_the_rate_decides_the_verdict(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/score?model=mnist-realnvp")
    browser.until(lambda: len(browser.all(".scored .normal")) >= 1)
    calm = len(browser.all(".scored .anomalous"))
    browser.find(".scored", "lower bound on a probability: dequantisation, 4 draws")
    rate = next(one for one in browser.all(".slider") if "False-positive" in one.text)
    rate.find_element("css selector", "input").send_keys("\ue010")  # End: 50 %
    browser.find(".against", "at a rate of 50 %")
    browser.until(lambda: len(browser.all(".scored .anomalous")) > calm)
    assert "rate=0.5" in browser.run("return location.hash")


def test_a_drawing_is_scored(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/score?model=mnist-vae")
    browser.until(lambda: len(browser.all(".scored li")) == 4)
    browser.click("details.draw summary")
    pad = browser.find(".pad canvas")
    stroke = ActionChains(browser.driver).move_to_element_with_offset(pad, 0, -70).click_and_hold()
    stroke.move_by_offset(0, 60).move_by_offset(0, 70).release().perform()
    browser.click("button", "Score the drawing")
    browser.until(lambda: len(browser.all(".scored li")) == 5)
    drawn = pixels(shown_images(browser, ".scored img")[0])
    assert (drawn[:, 13:15] == 255).sum() >= 15 and (drawn > 0).sum() < 100
    assert "lower bound on a probability: elbo" in browser.all(".scored li")[0].text
    browser.click("button[aria-label='Remove image 1']")
    browser.until(lambda: len(browser.all(".scored li")) == 4)


def test_a_model_without_calibration_gives_no_verdict(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/score?model=mnist-vae-2d")
    browser.until(lambda: len(browser.all(".scored li")) == 4)
    browser.find(".stage .notice", "no verdict")
    browser.find(".scored li", "not judged")


def test_a_model_that_has_to_be_loaded_gives_verdicts_at_once(
    browser: Browser, server: LiveServer
) -> None:
    browser.open(f"{server.url}/#/score?model=fashion-mnist-realnvp")
    browser.until(lambda: len(browser.all(".scored .anomalous")) >= 1)


# Live


def test_a_burst_moves_the_charts(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/live?model=mnist-realnvp&requests=60&each=4")
    browser.find(".metric", "Batch sizes\nno batch yet")
    browser.click("button.primary", "Start a burst")
    browser.find(".status", "60 requests answered in")
    browser.until(lambda: rows_seen(browser) == pytest.approx(240, rel=0.02), "all of its rows")
    bars = "return [...document.querySelectorAll('.metric .bin')]"
    assert max(browser.run(f"{bars}.map((one) => one.height.baseVal.value)")) > 0
    assert re.search(r"Latency\n[\d.]+ ms\n95 of 100 within", browser.text(".metric", "ms"))


def rows_seen(browser: Browser) -> float:
    """The rows that ran, by the words beside the chart of batches."""
    text = browser.text(".metric", "rows a batch")
    rows, batches = (float(found) for found in re.findall(r"([\d.]+) (?:rows|batches)", text))
    return rows * batches


# What can go wrong


def test_what_the_service_refuses_is_said_in_words(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/sample?model=mnist-nothing")
    alert = browser.find("[role=alert]")
    assert "there is no model 'mnist-nothing'" in alert.text and "MODEL_NOT_FOUND" in alert.text
    browser.open(f"{server.url}/#/sample?model=<img/src=x/onerror=alert(1)>")
    browser.find("[role=alert]", "<img/src=x/onerror=alert(1)>")
    browser.open(f"{server.url}/#/sample?model=mnist-pixelcnn&greedy=true&temperature=0.5")
    browser.find("[role=alert]", "greedy")
    browser.until_still()


def test_the_policy_keeps_other_scripts_and_other_services_out(
    browser: Browser, server: LiveServer
) -> None:
    browser.open(server.url)
    browser.find(".card")
    browser.until_still()
    assert browser.complaints() == []
    browser.run(
        "const script = document.createElement('script');"
        "script.textContent = 'window.foreign = true'; document.head.append(script);"
        "document.body.setAttribute('onclick', 'window.foreign = true'); document.body.click();"
    )
    assert browser.run("return window.foreign") is None
    elsewhere = f"return fetch('http://127.0.0.1:{server.grpc_port}/').catch(() => 'refused')"
    assert browser.run(elsewhere) == "refused"
    complaints = browser.complaints()
    assert len(complaints) >= 3
    assert sum("Content Security Policy" in one for one in complaints) >= 3


def damaged_files(folder: Path, sound: bytes) -> dict[str, Path]:
    """Files that are no image of use, by what the page says of them."""
    claim = bytearray(sound)
    claim[16:24] = (60_000).to_bytes(4, "big") * 2
    contents = {
        "is no image that this browser can read": b"Once upon a time",
        "is no image that": sound[: len(sound) // 2],
        "is 60000 by 60000 pixels": bytes(claim),
        "is 17 MB": bytes(17 * 2**20),
    }
    paths = {}
    for index, (words, content) in enumerate(contents.items()):
        paths[words] = folder / f"{index}.png"
        paths[words].write_bytes(content)
    return paths


def test_files_that_are_no_images_are_refused_in_words_and_the_others_scored(
    browser: Browser, server: LiveServer, tmp_path: Path
) -> None:
    (png,) = sample(server, {"model": "mnist-dcgan", "seed": 4})
    sound, large, red = (tmp_path / f"{name}.png" for name in ("sound", "large", "red"))
    Image.new("RGB", (28, 28), "red").save(red)
    sound.write_bytes(base64.b64decode(png))
    Image.open(sound).convert("RGB").resize((280, 140)).save(large)
    damaged = damaged_files(tmp_path, sound.read_bytes())
    browser.open(f"{server.url}/#/score?model=mnist-pixelcnn&image={'A' * 20}")
    browser.find("[role=alert]", "INVALID_IMAGE")
    browser.click("button", "Clear")
    chosen = "\n".join(map(str, [*damaged.values(), red, sound, large]))
    browser.find(".drop").find_element("css selector", "input").send_keys(chosen)
    browser.until(lambda: len(browser.all(".scored li")) == 3)
    browser.until_still()
    said = " ".join(alert.text for alert in browser.all("[role=alert]"))
    assert len(browser.all("[role=alert]")) == 4
    for words, path in damaged.items():
        assert f"“{path.name}” {words}" in said
    browser.find(".stack", "large.png: Fitted from 280 by 140 to 28 by 28 pixels")
    browser.find(".stack", "red.png: Its colours were made grey")
    assert "sound.png" not in browser.text(".stack")
    first, second, _ = map(pixels, shown_images(browser, ".scored img"))
    assert (first == 76).all() and np.array_equal(second, pixels(png))


@pytest.mark.parametrize("view", VIEWS)
def test_a_service_that_is_gone_is_said_in_words_on_every_view(
    browser: Browser, server: LiveServer, view: str
) -> None:
    with Proxy(server.http_port) as proxy:
        browser.open(f"{proxy.url}/#/{view}")
        browser.find(".plane canvas" if view == "latent" else "h1")
        browser.until_still()
        proxy.close()
        ask_again(browser, view)
        browser.find("[role=alert]", "can't be reached")
        browser.until_still()
        assert browser.text("#service-state") == "not reached"
        browser.click("#views a", "Live" if view != "live" else "Score")
        browser.find("[role=alert]", "can't be reached")
        browser.until_still()


def ask_again(browser: Browser, view: str) -> None:
    """Make the page ask the service for something."""
    if view == "models":
        browser.click("[data-model=fashion-mnist-pixelcnn] button")
    elif view == "latent":
        browser.find(".plane canvas").send_keys("\ue012")
    elif view.startswith("latent"):
        browser.click("button[aria-label^='New seed']")
    elif view.startswith("score"):
        browser.click("button", "Examples")
    else:
        browser.click("button.primary")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, str]]:
    """A server that asks for a key, and the key."""
    key, line = create_key("studio")
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(line + "\n")
    settings = {"api_key_hashes": str(path), "default_models": "mnist-vae-2d"}
    with LiveServer(ROOT / "artifacts", **settings) as live:
        live.wait_until_ready()
        yield live, key


def test_the_key_is_asked_for_and_stays_in_the_tab(
    browser: Browser, guarded: tuple[LiveServer, str], tmp_path: Path
) -> None:
    server, key = guarded
    browser.open(f"{server.url}/#/sample?model=mnist-vae-2d&count=1&seed=2")
    browser.click("dialog button", "Cancel")
    browser.find("[role=alert]", "UNAUTHENTICATED")
    browser.click("[role=alert] button", "Try again")
    browser.find("#key").send_keys("wrong\n")
    browser.find("#key-reason", "not accepted")
    browser.find("#key").send_keys(f"{key}\n")
    browser.until(lambda: len(browser.all(".grid img")) == 1)
    kept = browser.run(
        "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
    )
    assert kept == [[key], 0, ""] and key not in browser.run("return location.href")
    code = snippet(browser, "Python")
    assert key not in code
    run_code("Python", code + "\nnp.save('images.npy', images)", tmp_path, GENSERVE_API_KEY=key)
    (page,) = shown_images(browser, ".grid img")
    assert np.array_equal(np.load(tmp_path / "images.npy")[0, ..., 0], pixels(page))
    run_code("curl", snippet(browser, "curl"), tmp_path, GENSERVE_API_KEY=key)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images.png")), pixels(page))


def test_a_burst_asks_for_a_key_that_was_revoked_once(
    browser: Browser, guarded: tuple[LiveServer, str]
) -> None:
    server, key = guarded
    browser.open(f"{server.url}/#/live?requests=1e9&each=-3")
    browser.find("#key").send_keys("ключ\n")
    assert browser.run("return document.querySelector('#key').validity.patternMismatch")
    browser.find("#key").clear()
    browser.find("#key").send_keys(f" {key} \n")
    browser.find(".metric")
    assert [one.text for one in browser.all(".slider output")] == ["2000", "1"]
    browser.run("sessionStorage.setItem('genserve.key', 'revoked')")
    browser.click("dialog button", "Cancel")  # the charts ask
    browser.find("[role=alert]", "UNAUTHENTICATED")
    browser.click("button.primary", "Start a burst")
    browser.click("dialog button", "Cancel")
    browser.find(".status", "0 of 2000 requests were answered")
    assert not browser.all("dialog[open]")


def test_a_model_that_is_unloaded_while_the_page_is_open(
    browser: Browser, guarded: tuple[LiveServer, str]
) -> None:
    server, key = guarded
    browser.open(f"{server.url}/#/sample?model=mnist-vae-2d")
    browser.find("#key").send_keys(f"{key}\n")
    browser.until(lambda: len(browser.all(".grid img")) == 16)
    administer = (
        "return fetch(arguments[0], {method: 'POST', headers: {Authorization: arguments[1]}})"
        ".then((answer) => answer.status)"
    )
    bearer = f"Bearer {key}"
    assert browser.run(administer, "/models/mnist-vae-2d/unload", bearer) == 200
    browser.click("button.primary")
    browser.find("[role=alert]", "was unloaded")
    browser.until_still()
    assert browser.run(administer, "/models/mnist-vae-2d/load", bearer) == 200
    browser.click("[role=alert] button", "Try again")
    browser.until(lambda: len(browser.all(".grid img")) == 16)
    assert not browser.all("[role=alert]")


# What comes late

HOLD = """
    const [path] = arguments, fetched = fetch.bind(window);
    window.asked = [];
    const goes = new Promise((resolve) => (window.go = resolve));
    let held = false;
    window.fetch = async (...request) => {
        asked.push(request[0]);
        if (request[0] === path && !held) {
            held = true;
            await goes;
        }
        return fetched(...request);
    };
"""
"""Keeps the next request to a path from being sent until `go()`, and lists what is asked."""


def let_go(browser: Browser) -> None:
    """Send what is held, and let the page do whatever it does then."""
    browser.run("go(); return fetch('/healthz').then((answer) => answer.status)")
    browser.until_still()


def choose(browser: Browser, model: str) -> None:
    browser.run(
        "const list = document.querySelector('select'); list.value = arguments[0];"
        "list.dispatchEvent(new Event('change'))",
        model,
    )


@pytest.mark.parametrize(
    ("view", "slow", "quick"),
    [
        ("sample", "mnist-dcgan", "mnist-vae"),
        ("paint", "fashion-mnist-pixelcnn", "mnist-pixelcnn"),
        ("score", "mnist-realnvp", "mnist-vae"),
    ],
)
def test_the_model_that_was_chosen_last_is_shown(
    browser: Browser, server: LiveServer, view: str, slow: str, quick: str
) -> None:
    browser.open(f"{server.url}/#/{view}?model={quick}")
    browser.find("h1")
    browser.until_still()
    browser.run(HOLD, f"/models/{slow}")
    choose(browser, slow)
    choose(browser, quick)
    browser.until(lambda: f"/models/{quick}" in browser.run("return asked"))
    browser.until_still()
    let_go(browser)
    browser.until(lambda: f"model={quick}&" in browser.run("return `${location.hash}&`"))


@pytest.mark.parametrize(
    ("mode", "selector"), [("interpolation", ".film img"), ("arithmetic", ".frame img")]
)
def test_the_path_that_was_asked_for_last_is_shown(
    browser: Browser, server: LiveServer, mode: str, selector: str
) -> None:
    browser.open(f"{server.url}/#/latent?mode={mode}&model=mnist-vae&a=3&b=9")
    browser.until(lambda: browser.all(selector))
    browser.until_still()
    browser.run(HOLD, "/interpolate")
    for count in (1, 2):
        browser.click("button[aria-label^='New seed for']")
        browser.until(
            lambda count=count: browser.run("return asked").count("/interpolate") >= count
        )
    browser.until_still()
    last = shown_images(browser, selector)
    address = browser.run("return location.href")
    let_go(browser)
    assert shown_images(browser, selector) == last
    browser.open(address)
    browser.until(lambda: shown_images(browser, selector) == last)


def test_a_view_that_was_left_asks_for_nothing_more(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/live")
    browser.find("h1")
    browser.run(HOLD, "/sample")
    browser.run("location.hash = '#/paint?from=beginning'")
    browser.until(lambda: "/sample" in browser.run("return asked"))
    browser.run("location.hash = '#/models'")
    browser.find(".card")
    let_go(browser)
    assert not any("stream" in path for path in browser.run("return asked"))


# For everybody


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_screen_needs_no_scrolling_sideways(
    browser: Browser, server: LiveServer, view: str
) -> None:
    browser.show(width=375, height=720)
    browser.open(f"{server.url}/#/{view}")
    browser.find("h1")
    browser.until_still()
    wide = browser.run("return [document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert max(wide) <= 375
    clipped = browser.run(
        "return [...document.querySelectorAll('main :not(pre *)')].filter((one) =>"
        " one.getBoundingClientRect().right > 376 && getComputedStyle(one).position !== 'absolute')"
        ".map((one) => one.outerHTML.slice(0, 100))"
    )
    assert clipped == []


@pytest.mark.skipif(not AXE.exists(), reason="npm install --prefix build/axe axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_keeps_anybody_out(
    browser: Browser, server: LiveServer, view: str, scheme: str
) -> None:
    browser.show(scheme=scheme)
    browser.open(f"{server.url}/#/{view}")
    browser.find("h1")
    browser.until_still()
    for details in browser.all("details"):
        browser.run("arguments[0].open = true", details)
    browser.run(AXE.read_text())
    found = browser.run("return axe.run(document, {resultTypes: ['violations']})")
    assert [
        (one["id"], one["impact"], one["nodes"][0]["html"], one["nodes"][0]["any"][:1])
        for one in found["violations"]
    ] == []
    assert len(found["passes"]) > 10


def test_the_views_can_be_reached_by_keys_alone(browser: Browser, server: LiveServer) -> None:
    browser.open(f"{server.url}/#/models")
    browser.find("[data-model]")
    keys = ActionChains(browser.driver)
    keys.send_keys("\ue004" * 4).send_keys("\ue007").perform()  # skip link, brand, two views
    browser.find("h1", "Sample")
    assert browser.run("return document.activeElement.id") == "main"
    assert browser.text("#views [aria-current=page]") == "Sample"
