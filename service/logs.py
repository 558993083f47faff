"""The log: one JSON object a line, on standard error; of a trace, with its ids."""

import asyncio
import logging
import sys
import time
from functools import lru_cache

import orjson

from service.tracing import Tracing

_STANDARD = frozenset(vars(logging.makeLogRecord({})) | {"message": 0, "asctime": 0})


def configure_logging(level: str, tracing: Tracing) -> None:
    """Write records of `level` and above, of this process, in place of whatever was set up."""
    handler = _TurnHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(tracing))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # No record says these, so they need not be found out for each of them: the second line is for
    # the file, line and function that it is from.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its news are in our own records


class _TurnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes the lines of one turn of the event loop together, at its end.

    Each write is a system call, during which a worker may begin to run Python and keep the event
    loop from going on. A record that something is wrong is written at once, with those before it.
    """

    _lines = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; the caller holds the handler's lock."""
        try:
            line = self.format(record) + self.terminator
        except Exception:
            self.handleError(record)
            return
        loop = asyncio._get_running_loop() if record.levelno < logging.WARNING else None
        if loop and not self._lines:
            loop.call_soon(self.flush)
        self._lines += line
        if not loop:
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        with self.lock:  # type: ignore[union-attr]  # a handler has one
            lines, self._lines = self._lines, ""
            try:
                self.stream.write(lines)
                self.stream.flush()
            except OSError:  # there is nobody to tell: standard error itself is gone
                pass


class _JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and whatever `extra` holds."""

    def __init__(self, tracing: Tracing) -> None:
        super().__init__()
        self._tracing = tracing

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without its end."""
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        entry = {
            "time": _second(int(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._tracing.context(),
            **extra,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    """Return a time in local terms; many records are of the same second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
