"""The files of Studio as HTTP serves them, without a browser."""

import re
import tomllib
from fnmatch import fnmatch

import httpx
import pytest

from service.api.app import create_app
from service.api.studio import FOLDER, PATHS
from service.core.engine import Engine
from service.metrics import Metrics
from tests.live import ROOT


@pytest.mark.parametrize("path", PATHS)
async def test_a_file_is_served_with_its_type_and_a_strict_policy(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200 and answer.content == PATHS[path].read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    kinds = {
        ".html": "text/html",
        ".css": "text/css",
        ".js": "text/javascript",
        ".svg": "image/svg",
    }
    assert answer.headers["content-type"].startswith(kinds[PATHS[path].suffix])


async def test_a_file_that_did_not_change_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    tag = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    again = await client.get("/", headers=tag)
    assert again.status_code == 304 and not again.content
    assert again.headers["etag"] == first.headers["etag"]
    changed = await client.get("/studio/studio.css", headers=tag)
    assert changed.status_code == 200


async def test_what_is_no_file_of_the_page_is_not_found(client: httpx.AsyncClient) -> None:
    for path in ("/studio", "/studio/", "/studio/index.html", "/studio/..%2Fsettings.py"):
        answer = await client.get(path)
        assert answer.status_code == 404 and answer.json()["reason"] == "NOT_FOUND"
    assert (await client.post("/")).status_code == 405


async def test_the_page_can_be_switched_off(engine: Engine, metrics: Metrics) -> None:
    app = create_app(
        engine,
        metrics=metrics,
        maximum_body_bytes=1000,
        cors_origins=(),
        version="1.2.3",
        studio=False,
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://genserve"
    ) as client:
        for path in PATHS:
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/healthz")).status_code == 200


def test_the_page_loads_nothing_but_its_own_files_and_all_of_them() -> None:
    texts = {path: path.read_text() for path in FOLDER.iterdir()}
    named = {
        name
        for text in texts.values()
        for name in re.findall(r"""(?:/studio/|from "\./)([\w-]+\.\w+)""", text)
    }
    (listed,) = re.findall("const VIEWS = {(.+)}", texts[FOLDER / "studio.js"])
    views = {f"{name}.js" for name in re.findall(r"(\w+):", listed)}
    assert named | views | {"index.html"} == {path.name for path in texts}
    for path, text in texts.items():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, f"{path.name} names {addresses}"


def test_the_wheel_holds_every_file_of_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["service"]
    for path in FOLDER.iterdir():
        inside = path.relative_to(ROOT / "service").as_posix()
        assert any(fnmatch(inside, pattern) for pattern in patterns), path.name
