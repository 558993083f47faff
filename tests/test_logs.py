"""The log: one JSON object a line, and few writes."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from service.logs import configure_logging
from service.tracing import OFF


class Stream(io.StringIO):
    """Standard error, which takes note of what is written at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[list[str]] = []

    def write(self, text: str) -> int:
        self.writes.append([json.loads(line)["message"] for line in text.splitlines()])
        return super().write(text)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """Configure logging to a stream; what was set up before comes back."""
    root, stream = logging.getLogger(), Stream()
    before = root.handlers[:], root.level, logging._srcfile, logging.logThreads
    root.handlers = []  # or they would be closed
    monkeypatch.setattr("sys.stderr", stream)
    try:
        configure_logging("info", OFF)
        yield stream
    finally:
        root.handlers, level, logging._srcfile, logging.logThreads = before
        root.setLevel(level)
        logging.captureWarnings(False)
        logging.logProcesses = logging.logMultiprocessing = True


async def test_lines_of_one_turn_of_the_event_loop_are_one_write(stream: Stream) -> None:
    log = logging.getLogger("test")
    log.info("one")
    log.info("two", extra={"seconds": 0.5, "path": "/sämple", "where": io})
    assert stream.writes == []
    await asyncio.sleep(0)
    log.info("three")
    await asyncio.sleep(0)
    assert stream.writes == [["one", "two"], ["three"]]
    second = json.loads(stream.getvalue().splitlines()[1])
    assert (second["level"], second["logger"]) == ("info", "test")
    assert (second["seconds"], second["path"], second["where"]) == (0.5, "/sämple", str(io))


async def test_what_is_wrong_is_written_at_once_after_what_came_before(stream: Stream) -> None:
    log = logging.getLogger("test")
    log.info("before")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    assert stream.writes == [["before", "failed"]]
    assert "ValueError: broken" in json.loads(stream.getvalue().splitlines()[1])["exception"]
    await asyncio.sleep(0)
    assert sum(map(len, stream.writes)) == 2


def test_outside_of_an_event_loop_a_line_is_written_at_once(stream: Stream) -> None:
    logging.getLogger("test").info("starting")
    logging.getLogger("test").debug("unseen")
    assert stream.writes == [["starting"]]


async def test_a_log_that_nobody_reads_any_more_is_no_reason_to_stop(stream: Stream) -> None:
    def refuse(_: str) -> int:
        raise BrokenPipeError

    stream.write = refuse  # type: ignore[method-assign]
    logging.getLogger("test").info("lost")
    logging.getLogger("test").error("lost as well")
    await asyncio.sleep(0)
