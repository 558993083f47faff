"""Many images in one request for likelihoods: npy, and zip archives of PNG files."""

import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import OutOfRange, PayloadTooLarge
from service.images import array_to_npy, levels_to_png, zip_to_files
from service.settings import Settings
from tests.calibrated import normal_images

COUNT = 2000
BODY_BYTES = 64 * 1024  # as the client fixture has it
NPY, ZIP = "application/x-npy", "application/zip"
QUERY = "/likelihood?model=toy-flow"


@pytest.fixture
def settings(settings: Settings, calibrated: tuple[Path, Any]) -> Settings:
    """The calibrated toys, and so many images in a request."""
    return settings.model_copy(update={"model_repository": calibrated[0], "maximum_count": COUNT})


def archive_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


async def post(client: httpx.AsyncClient, content: bytes, media_type: str) -> httpx.Response:
    return await client.post(QUERY, content=content, headers={"Content-Type": media_type})


IMAGES = normal_images(5, 256).astype(np.uint8)
FILES = {f"day {index}/\u00e9{index}.png": levels_to_png(image, 256) for index, image in
         enumerate(IMAGES)}  # fmt: skip


async def test_thousands_of_images_are_one_request(client: httpx.AsyncClient) -> None:
    images = normal_images(COUNT, 256, seed=5).astype(np.uint8)
    answer = await post(client, array_to_npy(images), NPY)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"]
    assert len(rows) == COUNT
    few = (await post(client, array_to_npy(images[-3:]), NPY)).json()["results"]
    for row, again in zip(rows[-3:], few, strict=True):
        assert row["log_likelihood"] == pytest.approx(again["log_likelihood"], rel=1e-5)
        assert row["p_value"] == pytest.approx(again["p_value"], abs=2 / 201)
    rate = 0.01
    slack = 3 * np.sqrt(rate * (1 - rate) * (1 / 200 + 1 / COUNT))
    assert np.mean([row["anomalous"] for row in rows]) <= rate + slack


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
async def test_an_archive_is_answered_file_by_file(client: httpx.AsyncClient, method: int) -> None:
    content = archive_of({"day 0/": b"", **FILES}, method)
    answer = await post(client, content, ZIP)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["results"]
    assert [row.pop("name") for row in rows] == list(FILES)
    assert rows == (await post(client, array_to_npy(IMAGES), NPY)).json()["results"]


async def test_an_archive_can_be_answered_as_an_array(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": ZIP, "Accept": NPY}
    answer = await client.post(QUERY, content=archive_of(FILES), headers=headers)
    assert np.load(io.BytesIO(answer.content)).shape == (5,)


def encrypted(content: bytes) -> bytes:
    """Set the flag of encryption in the first entry of the directory."""
    at = content.index(b"PK\1\2") + 8
    return content[:at] + b"\1\0" + content[at + 2 :]


def claiming(content: bytes, size: int) -> bytes:
    """Let the first entry of the directory claim another size."""
    at = content.index(b"PK\1\2") + 24
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


ONE = archive_of({"a.png": next(iter(FILES.values()))})
BAD: dict[str, tuple[bytes, int, str, str]] = {
    "no archive": (b"PK but not really", 400, "MALFORMED_REQUEST", "zip"),
    "half an archive": (ONE[: len(ONE) // 2], 400, "MALFORMED_REQUEST", "zip"),
    "no files": (archive_of({"empty/": b""}), 422, "OUT_OF_RANGE", "0 images"),
    "no picture": (archive_of({"a.txt": b"hello"}), 422, "INVALID_IMAGE", "PNG"),
    "a bomb": (archive_of({"a.png": bytes(10**7)}), 413, "PAYLOAD_TOO_LARGE", str(BODY_BYTES)),
    "a bomb that claims little": (
        claiming(archive_of({"a.png": bytes(10**7)}), 100), 400, "MALFORMED_REQUEST", "zip"
    ),
    "a claim of much": (claiming(ONE, 2**32 - 2), 413, "PAYLOAD_TOO_LARGE", str(BODY_BYTES)),
    "a password": (encrypted(ONE), 400, "MALFORMED_REQUEST", "without a password"),
    "another method": (
        archive_of({"a.png": b"x"}, zipfile.ZIP_BZIP2), 400, "MALFORMED_REQUEST", "deflate"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_archive_is_refused(client: httpx.AsyncClient, name: str) -> None:
    content, status, reason, words = BAD[name]
    assert len(content) <= BODY_BYTES
    answer = await post(client, content, ZIP)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    assert words in answer.json()["detail"]


def test_an_archive_of_more_files_than_are_allowed_is_refused_unread() -> None:
    content = archive_of({"a.png": b"", "b.png": b"", "c.png": bytes(10**6)})
    with pytest.raises(OutOfRange, match="holds 3 files; allowed are 1 to 2"):
        zip_to_files(content, maximum_files=2, maximum_bytes=10)
    with pytest.raises(PayloadTooLarge, match="claim 1000000 bytes; the limit is 10"):
        zip_to_files(content, maximum_files=3, maximum_bytes=10)


def test_an_entry_that_claims_little_is_not_decompressed_beyond_that() -> None:
    """Also where its checksum is that of the little."""
    content = claiming(archive_of({"a.png": bytes(10**8)}), 100)
    at = content.index(b"PK\1\2") + 16
    content = content[:at] + struct.pack("<I", zlib.crc32(bytes(100))) + content[at + 4 :]
    tracemalloc.start()
    try:
        files = zip_to_files(content, maximum_files=1, maximum_bytes=100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert files == [("a.png", bytes(100))]
    assert peak < 10**6


def test_an_entry_without_a_name_is_passed_over() -> None:
    content = archive_of({"a.png": b"x"}).replace(b"a.png", b"\0.png")  # names end at a zero
    assert zip_to_files(content, maximum_files=1, maximum_bytes=1) == []


def test_hidden_files_and_what_macos_adds_are_passed_over() -> None:
    names = ["__MACOSX/._a.png", ".DS_Store", "folder/.hidden/b.png", "folder/a.png"]
    content = archive_of(dict.fromkeys(names, b"x"))
    assert zip_to_files(content, maximum_files=1, maximum_bytes=1) == [("folder/a.png", b"x")]


async def test_other_operations_read_no_archives(client: httpx.AsyncClient) -> None:
    answer = await client.post("/encode", content=ONE, headers={"Content-Type": ZIP})
    assert (answer.status_code, answer.json()["reason"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@hypothesis_settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(ONE) - 1), st.integers(0, 255)), min_size=1, max_size=6
    )
)
async def test_no_damaged_archive_is_a_fault_of_the_server(
    client: httpx.AsyncClient, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(ONE)
    for at, byte in changes:
        content[at] = byte
    answer = await post(client, bytes(content), ZIP)
    assert answer.status_code < 500, answer.text
