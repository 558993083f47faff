"""Bad input over REST: each is a 4xx with its reason and what is allowed, and harms nothing."""

import base64
import io
import json
import logging
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.api.app import create_app
from service.core.engine import Engine
from service.images import array_to_npy, levels_to_png
from service.metrics import Metrics
from tests.fakes import LATENT, SIDE

PNG, NPY = "image/png", "application/x-npy"
WHITE = np.full((1, SIDE, SIDE, 1), 255, np.uint8)
LEVELS = WHITE.tolist()


@pytest.fixture(autouse=True)
async def _unharmed(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[None]:
    """After each bad request a good one works, and nothing was logged as an error."""
    expected = (await client.post("/sample", json={"seed": 1})).json()["images"]
    caplog.clear()
    yield
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    good = await client.post("/sample", json={"seed": 1})
    assert good.status_code == 200 and good.json()["images"] == expected


def assert_problem(answer: httpx.Response, status: int, reason: str, *words: str) -> None:
    """Check the shape of a problem, and that its detail holds the words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert said["reason"] == reason and said["status"] == status
    assert said["type"] == "about:blank" and said["title"]
    assert said["request_id"] == answer.headers["x-request-id"]
    for word in words:
        assert word in said["detail"], f"{word!r} is not in {said['detail']!r}"


SAMPLES: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"count": 0}, "OUT_OF_RANGE", ["count is 0", "1 to 32"]),
    ({"count": 33}, "OUT_OF_RANGE", ["count is 33", "1 to 32"]),
    ({"count": 10**300}, "OUT_OF_RANGE", ["1 to 32"]),
    ({"count": -1}, "OUT_OF_RANGE", ["1 to 32"]),
    ({"count": "4"}, "INVALID_REQUEST", ["count", "integer"]),
    ({"count": True}, "INVALID_REQUEST", ["count", "integer"]),
    ({"count": 1.5}, "INVALID_REQUEST", ["count", "integer"]),
    ({"count": None}, "INVALID_REQUEST", ["count", "integer"]),
    ({"seed": -1}, "OUT_OF_RANGE", ["seed", "0 to 9007199254740991"]),
    ({"seed": 2**53}, "OUT_OF_RANGE", ["seed", "0 to 9007199254740991"]),
    ({"seed": 1.5}, "INVALID_REQUEST", ["seed", "integer"]),
    ({"seed": True}, "INVALID_REQUEST", ["seed", "integer"]),
    ({"seed": "7"}, "INVALID_REQUEST", ["seed", "integer"]),
    ({"class_label": 3}, "OUT_OF_RANGE", ["class is 3", "0 to 2"]),
    ({"class_label": -1}, "OUT_OF_RANGE", ["0 to 2"]),
    ({"class_label": [0, 1]}, "INVALID_REQUEST", ["2 classes", "1 images"]),
    ({"class_label": []}, "INVALID_REQUEST", ["0 classes"]),
    ({"class_label": [0, 1.5], "count": 2}, "INVALID_REQUEST", ["class_label[1]"]),
    ({"class_label": 0, "condition": {"class": 0}}, "INVALID_REQUEST", ["not both"]),
    (
        {"condition": {"class": 0, "class_weights": [1, 0, 0]}},
        "INVALID_REQUEST",
        ["not both"],
    ),
    ({"condition": {"klass": 0}}, "INVALID_REQUEST", ["klass", "class, class_weights"]),
    ({"condition": 3}, "INVALID_REQUEST", ["condition", "class, class_weights"]),
    ({"condition": {"class_weights": [1, 0]}}, "INVALID_REQUEST", ["[3]"]),
    ({"condition": {"class_weights": [2, -1, 0]}}, "OUT_OF_RANGE", ["sum to 1"]),
    ({"condition": {"class_weights": [[1, 0], [1]]}}, "INVALID_REQUEST", ["rectangular"]),
    ({"condition": {"class_weights": [True, False, False]}}, "INVALID_REQUEST", ["numbers"]),
    ({"temperature": -1}, "OUT_OF_RANGE", ["temperature", "0.0 to 2.0"]),
    ({"temperature": "hot"}, "INVALID_REQUEST", ["temperature", "number"]),
    ({"temperature": True}, "INVALID_REQUEST", ["temperature", "number"]),
    ({"truncation": 0}, "OUT_OF_RANGE", ["truncation", "0.01 to 10.0"]),
    ({"truncation": 1, "model": "toy-flow"}, "CONTROL_NOT_OFFERED", ["temperature"]),
    ({"class_label": 0, "model": "toy-vae"}, "CONDITION_NOT_OFFERED", ["unconditional"]),
    ({"scale": "percent"}, "INVALID_REQUEST", ["scale", "levels", "unit"]),
    ({"scale": "unit"}, "INVALID_REQUEST", ["image_format", "array"]),
    ({"return": ["pictures"]}, "INVALID_REQUEST", ["return[0]", "images", "latents"]),
    ({"return": []}, "INVALID_REQUEST", ["return"]),
    ({"image_format": "jpeg"}, "INVALID_REQUEST", ["image_format", "png", "array"]),
    ({"timeout_ms": 0}, "OUT_OF_RANGE", ["timeout_ms", "1 to 600000"]),
    ({"timeout_ms": 600_001}, "OUT_OF_RANGE", ["timeout_ms", "1 to 600000"]),
    ({"coutn": 3}, "INVALID_REQUEST", ["coutn", "count", "seed", "temperature"]),
    ({"model": 3}, "INVALID_REQUEST", ["model", "string"]),
    ({"model": ""}, "INVALID_REQUEST", ["model", "at least 1"]),
    ({"model": "toy-gan@2"}, "MODEL_NOT_FOUND", ["toy-gan"]),
    ({"model": "no-such"}, "MODEL_NOT_FOUND", ["toy-flow", "toy-gan", "toy-vae"]),
]


@pytest.mark.parametrize("fields, reason, words", SAMPLES)
async def test_a_bad_sample_request_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], reason: str, words: list[str]
) -> None:
    status = 404 if reason == "MODEL_NOT_FOUND" else 422
    assert_problem(await client.post("/sample", json=fields), status, reason, *words)


IMAGES: list[tuple[Any, str, list[str]]] = [
    ([[[[256]] * SIDE] * SIDE], "INVALID_IMAGE", ["256", "0 to 255"]),
    ([[[[-1]] * SIDE] * SIDE], "INVALID_IMAGE", ["-1", "0 to 255"]),
    ([[[[0.5]] * SIDE] * SIDE], "INVALID_IMAGE", ["float64", "unit"]),
    ([[[[10**30]] * SIDE] * SIDE], "INVALID_REQUEST", ["images", "64 bits"]),
    ([[[[True]] * SIDE] * SIDE], "INVALID_REQUEST", ["images", "numbers"]),
    ([[[["0"]] * SIDE] * SIDE], "INVALID_REQUEST", ["images", "numbers"]),
    (LEVELS[0], "INVALID_IMAGE", ["[4, 4, 1]", "[count, 4, 4, 1]"]),
    ([LEVELS], "INVALID_IMAGE", ["[count, 4, 4, 1]"]),
    ([[[[0]] * SIDE] * 5], "INVALID_IMAGE", ["[1, 5, 4, 1]", "[count, 4, 4, 1]"]),
    ([[[[0]] * SIDE] * 3 + [[[0]]]], "INVALID_REQUEST", ["rectangular"]),
    (LEVELS * 33, "OUT_OF_RANGE", ["33 images", "1 to 32"]),
    ([], "OUT_OF_RANGE", ["0 images", "1 to 32"]),
    (0, "INVALID_REQUEST", ["images"]),
    (None, "INVALID_REQUEST", ["images"]),
    ({"png": 1}, "INVALID_REQUEST", ["images"]),
    ("not base64!", "INVALID_IMAGE", ["base64"]),
    (["", LEVELS[0]], "INVALID_REQUEST", ["images"]),
    ("", "INVALID_IMAGE", ["not a readable PNG"]),
    ("aGVsbG8=", "INVALID_IMAGE", ["not a readable PNG"]),
]


@pytest.mark.parametrize("images, reason, words", IMAGES)
@pytest.mark.parametrize("path", ["/encode", "/reconstruct", "/likelihood"])
async def test_bad_images_in_json_are_refused(
    client: httpx.AsyncClient, path: str, images: Any, reason: str, words: list[str]
) -> None:
    assert_problem(await client.post(path, json={"images": images}), 422, reason, *words)


async def test_unit_images_are_within_0_and_1_and_on_levels(client: httpx.AsyncClient) -> None:
    for value, word in ((1.5, "0 to 1"), (-0.1, "0 to 1"), (0.5, "k / 255")):
        fields = {"images": [[[[value]] * SIDE] * SIDE], "scale": "unit"}
        assert_problem(await client.post("/encode", json=fields), 422, "INVALID_IMAGE", word)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_of(width: int, height: int) -> bytes:
    """A tiny file that claims a size, with a few rows of zeros."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def saved(mode: str, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="PNG")
    return buffer.getvalue()


BAD_PNGS = {
    "bomb": (png_of(50_000, 50_000), ["50000 high and 50000 wide", "takes 4 high"]),
    "absurd": (png_of(2**31 - 1, 2**31 - 1), ["takes 4 high"]),
    "empty": (png_of(0, 0), ["PNG"]),
    "truncated": (levels_to_png(WHITE[0], 256)[:-28], ["not a readable PNG"]),
    "header only": (levels_to_png(WHITE[0], 256)[:24], ["not a readable PNG"]),
    "text": (b"hello", ["not a readable PNG"]),
    "nothing": (b"", ["PNG"]),
    "alpha": (saved("RGBA"), ["RGBA", "RGB"]),
    "palette": (saved("P"), ["mode P"]),
    "16 bits": (saved("I;16"), ["I;16", "8-bit"]),
    "colour": (saved("RGB"), ["of 3 channels", "1 channels"]),
    "large": (saved("L", (5, 4)), ["5 wide", "nothing is resized"]),
}


@pytest.mark.parametrize("name", BAD_PNGS)
async def test_a_bad_png_is_refused_however_it_is_sent(
    client: httpx.AsyncClient, name: str
) -> None:
    content, words = BAD_PNGS[name]
    text = base64.b64encode(content).decode()
    answers = [
        await client.post("/encode", content=content, headers={"Content-Type": PNG}),
        await client.post("/encode", json={"images": [text]}),
        await client.post("/encode", files={"images": content}),
        await client.post("/interpolate", json=points_of({"image": text}) | {"model": "toy-vae"}),
    ]
    for answer in answers:
        assert_problem(answer, 422, "INVALID_IMAGE", *words)


def npy_of(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def npy_header(descr: str, shape: str) -> bytes:
    return npy_of(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


BAD_NPYS = {
    "pickle": (pickled(), "INVALID_IMAGE", ["integers or floats"]),
    "terabytes": (npy_header("'<f4'", "(1000000000000,)"), "PAYLOAD_TOO_LARGE", ["65536"]),
    "endless emptiness": (npy_header("'<U0'", "(1000000000000,)"), "INVALID_IMAGE", ["floats"]),
    "beyond 64 bits": (npy_header("'<f4'", f"({10**20}, 0)"), "INVALID_IMAGE", ["npy"]),
    "negative": (npy_header("'<f4'", "(-1, -4)"), "INVALID_IMAGE", ["npy"]),
    "no end": (npy_of("(" * 900), "INVALID_IMAGE", ["header"]),
    "deep": (npy_of("-" * 9000 + "1"), "INVALID_IMAGE", ["header"]),
    "complex": (array_to_npy(WHITE.astype(np.complex64)), "INVALID_IMAGE", ["complex64"]),
    "bools": (array_to_npy(WHITE > 0), "INVALID_IMAGE", ["bool"]),
    "records": (npy_header("[('a', '<f4')]", "(1,)"), "INVALID_IMAGE", ["floats"]),
    "truncated": (array_to_npy(WHITE)[:-1], "INVALID_IMAGE", ["npy"]),
    "text": (b"hello", "INVALID_IMAGE", ["npy"]),
    "nothing": (b"", "INVALID_IMAGE", ["npy"]),
    "one number": (npy_header("'<i8'", "()") + bytes(8), "INVALID_REQUEST", ["one number"]),
}


@pytest.mark.parametrize("path", ["/encode", "/decode"])
@pytest.mark.parametrize("name", BAD_NPYS)
async def test_a_bad_npy_file_is_refused(client: httpx.AsyncClient, name: str, path: str) -> None:
    content, reason, words = BAD_NPYS[name]
    status = 413 if reason == "PAYLOAD_TOO_LARGE" else 422
    answer = await client.post(path, content=content, headers={"Content-Type": NPY})
    assert_problem(answer, status, reason, *words)


async def test_npy_images_have_four_axes_and_whole_levels(client: httpx.AsyncClient) -> None:
    bad = {
        "[4, 4, 1]": WHITE[0],
        "float32": WHITE.astype(np.float32),
        "0 to 255": WHITE.astype(np.int64) + 1,
    }
    for word, array in bad.items():
        answer = await client.post(
            "/encode", content=array_to_npy(array), headers={"Content-Type": NPY}
        )
        assert_problem(answer, 422, "INVALID_IMAGE", word)


BAD_LATENTS: list[tuple[Any, str, str]] = [
    ([[1] * (LATENT + 1)], "INVALID_LATENT", "[count, 4]"),
    ([1] * LATENT, "INVALID_LATENT", "[count, 4]"),
    ([[[1] * LATENT]], "INVALID_LATENT", "[count, 4]"),
    ([], "INVALID_LATENT", "[count, 4]"),
    ([[1e39] * LATENT], "INVALID_LATENT", "float32"),
    ([[0] * LATENT] * 33, "OUT_OF_RANGE", "1 to 32"),
    ([[0, 0, 0, "0"]], "INVALID_REQUEST", "numbers"),
    ([[0] * LATENT, 0], "INVALID_REQUEST", "rectangular"),
    ([0, [0] * LATENT], "INVALID_REQUEST", "rectangular"),
    ([[[[[[[[[0]]]]]]]]], "INVALID_REQUEST", "rectangular"),
    ([[], []], "INVALID_LATENT", "[2, 0]"),
    ([[0, 0, 0, None]], "INVALID_REQUEST", "numbers"),
    ("latents", "INVALID_REQUEST", "latents"),
]


@pytest.mark.parametrize("latents, reason, word", BAD_LATENTS)
async def test_bad_latents_are_refused(
    client: httpx.AsyncClient, latents: Any, reason: str, word: str
) -> None:
    assert_problem(await client.post("/decode", json={"latents": latents}), 422, reason, word)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_latents_in_npy_are_finite(client: httpx.AsyncClient, value: float) -> None:
    content = array_to_npy(np.full((1, LATENT), value, np.float32))
    answer = await client.post("/decode", content=content, headers={"Content-Type": NPY})
    assert_problem(answer, 422, "INVALID_LATENT", "finite")


async def test_latents_of_another_space_are_refused(client: httpx.AsyncClient) -> None:
    fields = {"latents": [[0] * LATENT], "latent_space": "elsewhere"}
    answer = await client.post("/decode", json=fields)
    assert_problem(answer, 422, "LATENT_SPACE_MISMATCH", "elsewhere", "toy-gan/")


def points_of(start: dict[str, Any]) -> dict[str, Any]:
    return {"start": start, "end": {"seed": 1}}


BAD_PATHS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "INVALID_REQUEST", "exactly one of"),
    ({"start": {"seed": 1}}, "INVALID_REQUEST", "both start and end"),
    (points_of({}), "INVALID_REQUEST", "exactly one of a seed"),
    (points_of({"seed": 1, "latent": [0] * LATENT}), "INVALID_REQUEST", "exactly one of a seed"),
    (points_of({"seed": -1}), "OUT_OF_RANGE", "0 to 9007199254740991"),
    (points_of({"sead": 1}), "INVALID_REQUEST", "seed, latent, latent_space, image"),
    (
        points_of({"latent": [0] * LATENT, "latent_space": "elsewhere"}),
        "LATENT_SPACE_MISMATCH",
        "toy-gan/",
    ),
    (points_of({"latent": [0]}), "INVALID_LATENT", "[count, 4]"),
    (points_of({"image": LEVELS[0]}), "OPERATION_NOT_OFFERED", "seeds or latents"),
    (points_of({"seed": 1}) | {"steps": 1}, "OUT_OF_RANGE", "2 to 32"),
    (points_of({"seed": 1}) | {"steps": 33}, "OUT_OF_RANGE", "2 to 32"),
    (points_of({"seed": 1}) | {"mode": "cubic"}, "INVALID_REQUEST", "'slerp' or 'lerp'"),
    (points_of({"seed": 1}) | {"corners": [{"seed": 1}] * 4}, "INVALID_REQUEST", "exactly one of"),
    ({"corners": [{"seed": 1}] * 3}, "INVALID_REQUEST", "4 corners"),
    ({"corners": [{"seed": 1}] * 4, "steps": 6}, "OUT_OF_RANGE", "2 to 5"),
    ({"arithmetic": {"plus": []}}, "INVALID_REQUEST", "exactly one of"),
    ({"arithmetic": {"minus": [{"seed": 1}]}}, "INVALID_REQUEST", "arithmetic.plus"),
]


@pytest.mark.parametrize("fields, reason, word", BAD_PATHS)
async def test_a_bad_path_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], reason: str, word: str
) -> None:
    assert_problem(await client.post("/interpolate", json=fields), 422, reason, word)


async def test_a_likelihood_that_is_not_defined_is_refused(client: httpx.AsyncClient) -> None:
    grey = {"images": [[[[7]] * SIDE] * SIDE], "model": "toy-vae"}
    binary = {"images": LEVELS, "binarisation": "threshold"}
    cases = [
        (grey, "BINARISATION_REQUIRED", "threshold"),
        (grey | {"binarisation": "half"}, "INVALID_REQUEST", "'threshold' or 'stochastic'"),
        (binary | {"model": "toy-flow"}, "INVALID_REQUEST", "leave out binarisation"),
        ({"images": LEVELS, "samples": 0}, "OUT_OF_RANGE", "1 to"),
        ({"images": LEVELS, "samples": 10**9}, "OUT_OF_RANGE", "1 to"),
        ({"images": LEVELS, "model": "toy-gan"}, "OPERATION_NOT_OFFERED", "sample, decode"),
        ({"images": LEVELS, "scale": 3}, "INVALID_REQUEST", "'levels' or 'unit'"),
        ({}, "INVALID_REQUEST", "images"),
    ]
    for fields, reason, word in cases:
        assert_problem(await client.post("/likelihood", json=fields), 422, reason, word)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"count=3",
        b'{"count": 3,}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"seed": 1} trailing',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
async def test_malformed_json_is_refused(client: httpx.AsyncClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/sample", content=content, headers=headers)
    assert_problem(answer, 400, "MALFORMED_REQUEST", "not JSON")


@pytest.mark.parametrize("content", [b"3", b"[]", b"null", b'"text"', b"true"])
async def test_a_body_that_is_no_object_is_refused(
    client: httpx.AsyncClient, content: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/sample", content=content, headers=headers)
    assert_problem(answer, 422, "INVALID_REQUEST", "must be an object", "count")


async def test_every_wrong_field_is_listed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/sample", json={"count": "x", "seed": []})
    assert [error["field"] for error in answer.json()["errors"]] == ["seed", "count"]


@pytest.mark.parametrize(
    "path, content_type, accepted",
    [
        ("/sample", "text/plain", "application/json"),
        ("/sample", "application/x-www-form-urlencoded", "application/json"),
        ("/sample", PNG, "application/json"),
        ("/sample", "multipart/form-data; boundary=x", "application/json"),
        ("/decode", PNG, NPY),
        ("/encode", "image/jpeg", PNG),
        ("/encode", "", "multipart/form-data"),
    ],
)
async def test_an_unknown_media_type_is_refused(
    client: httpx.AsyncClient, path: str, content_type: str, accepted: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await client.post(path, content=b"x", headers=headers)
    assert_problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE", accepted)


@pytest.mark.parametrize(
    "path, fields, accept, offered",
    [
        ("/sample", {}, "text/html", "image/png"),
        ("/sample", {}, "image/jpeg, */*;q=0", NPY),
        ("/encode", {"images": LEVELS}, PNG, "application/json, application/x-npy"),
        ("/likelihood", {"images": LEVELS, "return": "scores"}, PNG, "holds log_likelihood_map"),
        ("/likelihood", {"images": LEVELS, "return": "scores"}, NPY, "application/json"),
        ("/sample", {"return": ["images", "latents"]}, PNG, "application/json"),
        ("/sample", {"return": ["images", "latents"]}, NPY, "application/json"),
    ],
)
async def test_an_answer_that_nobody_accepts_is_refused(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], accept: str, offered: str
) -> None:
    answer = await client.post(path, json=fields, headers={"Accept": accept})
    assert_problem(answer, 406, "NOT_ACCEPTABLE", offered)


async def test_a_png_of_unit_values_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/sample", json={"scale": "unit"}, headers={"Accept": PNG})
    assert_problem(answer, 422, "INVALID_REQUEST", "scale", NPY)


async def test_a_body_over_the_limit_is_refused_by_its_declared_length(
    client: httpx.AsyncClient,
) -> None:
    for path, content_type in (("/sample", "application/json"), ("/encode", PNG), ("/encode", NPY)):
        headers = {"Content-Type": content_type}
        answer = await client.post(path, content=bytes(64 * 1024 + 1), headers=headers)
        assert_problem(answer, 413, "PAYLOAD_TOO_LARGE", "65536 bytes")
    answer = await client.post("/encode", files={"images": bytes(64 * 1024)})
    assert_problem(answer, 413, "PAYLOAD_TOO_LARGE", "65536 bytes")


@pytest.mark.parametrize("content_type", ["application/json", PNG, "multipart/form-data"])
async def test_a_body_without_a_length_is_read_to_the_limit_and_no_further(
    client: httpx.AsyncClient, content_type: str
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        while True:
            sent += 1
            yield bytes(1024)

    headers = {"Content-Type": f"{content_type}; boundary=x"}
    answer = await client.post("/encode", content=endless(), headers=headers)
    assert_problem(answer, 413, "PAYLOAD_TOO_LARGE", "65536 bytes")
    assert sent <= 65


@pytest.mark.parametrize("length", ["0", "-1", "nonsense", "9" * 5000])
async def test_a_false_length_is_not_believed(client: httpx.AsyncClient, length: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": length}
    answer = await client.post("/sample", content=bytes(70_000), headers=headers)
    assert_problem(answer, 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    "parts, status, reason, word",
    [
        ({"data": {"coutn": "1"}}, 422, "INVALID_REQUEST", "coutn"),
        ({"data": {"seed": "true"}}, 422, "INVALID_REQUEST", "seed"),
        ({"data": {"seed": "1.5"}}, 422, "INVALID_REQUEST", "seed"),
        ({"data": {"seed": "-1"}}, 422, "OUT_OF_RANGE", "seed"),
        ({"data": {"seed": ["1", "2"]}}, 422, "INVALID_REQUEST", "seed"),
        ({"data": {"seed": ""}}, 422, "INVALID_REQUEST", "seed"),
        ({"data": {"samples": "NaN"}}, 422, "INVALID_REQUEST", "samples"),
        ({"data": {"images": "x"}}, 422, "INVALID_REQUEST", "given twice"),
        ({"data": {"model": "x" * 70_000}}, 413, "PAYLOAD_TOO_LARGE", ""),
        ({"data": {"seed": ["1"] * 101}}, 400, "MALFORMED_REQUEST", "100"),
        ({"files": [("picture", b"x")]}, 422, "INVALID_REQUEST", "images or file"),
        ({"files": [("images", b"")] * 33}, 400, "MALFORMED_REQUEST", "32"),
        ({"params": {"seed": "1"}}, 422, "INVALID_REQUEST", "query"),
    ],
)
async def test_a_bad_form_is_refused(
    client: httpx.AsyncClient, parts: dict[str, Any], status: int, reason: str, word: str
) -> None:
    good = {"files": [("images", levels_to_png(WHITE[0], 256))]}
    answer = await client.post("/likelihood", **(good | parts))
    assert_problem(answer, status, reason, word)


@pytest.mark.parametrize(
    "content_type, content",
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b"nonsense"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nno name\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n--x--"),
    ],
)
async def test_a_malformed_form_is_refused(
    client: httpx.AsyncClient, content_type: str, content: bytes
) -> None:
    headers = {"Content-Type": content_type}
    answer = await client.post("/encode", content=content, headers=headers)
    assert_problem(answer, 400, "MALFORMED_REQUEST", "form")


async def test_a_form_without_images_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = await client.post("/encode", content=b"--x--\r\n", headers=headers)
    assert_problem(answer, 422, "INVALID_REQUEST", "images")


async def test_fields_beside_a_json_body_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/sample?count=3", json={})
    assert_problem(answer, 422, "INVALID_REQUEST", "count", "query")


async def test_bad_fields_in_the_query_are_refused(client: httpx.AsyncClient) -> None:
    for query, word in (("coutn=3", "coutn"), ("count=x", "count"), ("seed=true", "seed")):
        assert_problem(await client.post(f"/sample?{query}"), 422, "INVALID_REQUEST", word)
    assert_problem(await client.post("/sample?count=33"), 422, "OUT_OF_RANGE", "1 to 32")
    png = {"content": levels_to_png(WHITE[0], 256), "headers": {"Content-Type": PNG}}
    assert_problem(await client.post("/encode?images=x", **png), 422, "INVALID_REQUEST", "twice")


async def test_an_unknown_path_or_method_is_a_problem_too(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/smaple"), 404, "NOT_FOUND", "/smaple", "/docs")
    answer = await client.get("/sample")
    assert_problem(answer, 405, "METHOD_NOT_ALLOWED", "GET", "POST")
    assert answer.headers["allow"] == "POST"
    assert_problem(await client.get("/models/no-such"), 404, "MODEL_NOT_FOUND", "toy-gan")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = (
    "model", "count", "seed", "class_label", "condition", "temperature", "truncation", "scale",
    "return", "image_format", "timeout_ms", "images", "binarisation", "samples", "class_weights",
    "show", "every_rows", "resume_token",
)  # fmt: skip
bodies = json_values | st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=st.sampled_from(["/sample", "/sample/stream", "/likelihood"]), body=bodies)
async def test_no_json_makes_the_server_fail(
    client: httpx.AsyncClient, path: str, body: object
) -> None:
    answer = await client.post(
        path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert answer.json()["reason"] and answer.json()["detail"]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content_type=st.sampled_from([PNG, NPY, "multipart/form-data; boundary=x"]),
    start=st.sampled_from([b"", levels_to_png(WHITE[0], 256), array_to_npy(WHITE), b"--x\r\n"]),
    cut=st.integers(0, 200),
    rest=st.binary(max_size=60),
)
async def test_no_bytes_make_the_server_fail(
    client: httpx.AsyncClient, content_type: str, start: bytes, cut: int, rest: bytes
) -> None:
    answer = await client.post(
        "/encode", content=start[:cut] + rest, headers={"Content-Type": content_type}
    )
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/sample", {"class_label": ["x"] * 100_000}, ["class_label[0]"]),
        ("/sample", {"class_label": [1] * 100_000}, ["4096"]),
        ("/sample", {"return": ["nothing"] * 100_000}, ["return"]),
        ("/interpolate", {"corners": [{}] * 100_000}, ["corners", "4"]),
        ("/interpolate", {"arithmetic": {"plus": [{"seed": 1}] * 100_000}}, ["plus", "64"]),
        ("/decode", {"latents": [[1]] * 100_000}, ["4096"]),
        ("/encode", {"images": [""] * 100_000}, ["4096"]),
        ("/interpolate", {"corners": [{"sead": 1}] * 4}, ["corners[0]"]),
    ],
    ids=["wrong classes", "classes", "parts", "corners", "points", "latents", "files", "sead"],
)
async def test_a_list_of_mistakes_is_read_to_its_first(
    roomy: httpx.AsyncClient, path: str, body: dict[str, object], words: list[str]
) -> None:
    """A report of every mistake in a large body once kept the server busy for half a minute."""
    answer = await roomy.post(path, json=body)
    assert_problem(answer, 422, "INVALID_REQUEST", *words)
    assert len(answer.json()["errors"]) == 1


@pytest.fixture
async def roomy(engine: Engine, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose bodies may be large."""
    app = create_app(
        engine, metrics=metrics, maximum_body_bytes=2**24, cors_origins=(), version="1.2.3"
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://genserve") as client:
        yield client
