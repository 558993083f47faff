"""`make bench TARGET=coldstart`: how soon the server is ready, and what it holds then.

It writes benchmarks/results/coldstart.md in under a minute, and refuses to run beside other load.
"""

import statistics
from dataclasses import dataclass

from benchmarks import machine, pages
from benchmarks.pages import Target, table
from benchmarks.server import running_server

STARTS = 5


@dataclass(frozen=True)
class Start:
    """A start of a new process, though its files may be in the system's cache."""

    seconds: float
    resident_mebibytes: float
    memory_mebibytes: float


def measure() -> None:
    """Run everything and write it down. Raises OtherLoad, writing nothing, if others joined."""
    work = machine.OtherWork()
    starts = [measure_start() for _ in range(STARTS)]
    seconds = [start.seconds for start in starts]
    resident = [start.resident_mebibytes for start in starts]
    targets = [
        Target("ready, s", max(seconds), 3.0, at_least=False),
        Target("resident memory (RSS), MiB", max(resident), 400, at_least=False, digits=0),
    ]
    memory = statistics.median(start.memory_mebibytes for start in starts)
    parts = [
        f"# Cold start\n\n{pages.head('coldstart')}",
        f"""From the command to 200 on `/readyz` with the default models, each of which has then
passed its test vectors: the slowest and largest of {STARTS} starts. The process is new; its files
may still be in the system's cache.
""",
        pages.target_table(targets),
        table(
            ["", *(f"start {number}" for number in range(1, STARTS + 1))],
            [
                ["ready, s", *(f"{each:.2f}" for each in seconds)],
                ["RSS, MiB", *(f"{each:.0f}" for each in resident)],
            ],
        ),
        f"Its share of memory (PSS) is {memory:.0f} MiB at the median.\n",
        f"Other processes: {machine.refuse_other_work(work):.2f} cores meanwhile.\n",
    ]
    pages.write("coldstart", "\n".join(parts))


def measure_start() -> Start:
    """Start a server, look at it, and stop it."""
    with running_server() as server:
        return Start(server.start_seconds, server.resident_mebibytes, server.memory_mebibytes)
