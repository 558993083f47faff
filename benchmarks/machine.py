"""The machine: what it is, what else runs on it, and the memory of a process. Reads /proc."""

import os
import platform
import time
from pathlib import Path

MAXIMUM_OTHER_CORES = 0.1
"""Cores that other processes may keep busy; with more, the figures would be about them."""

_LOOK_SECONDS = 3.0
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class OtherLoad(Exception):
    """Other processes keep the machine busy; the message says how busy, and which."""


class OtherWork:
    """Counts what other processes compute, from its making on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._idle = _idle_seconds()
        self._ours = _our_seconds()

    def cores(self) -> float:
        """Return the cores that others kept busy, on average; children of ours must have ended."""
        elapsed = time.monotonic() - self._started
        busy = elapsed * core_count() - (_idle_seconds() - self._idle)
        return max(0.0, (busy - (_our_seconds() - self._ours)) / elapsed)


def refuse_other_load() -> None:
    """Look at the machine for a few seconds; raises OtherLoad if it is not ours alone."""
    before, work = _seconds_by_process(), OtherWork()
    time.sleep(_LOOK_SECONDS)
    cores, after = work.cores(), _seconds_by_process()
    if cores <= MAXIMUM_OTHER_CORES:
        return
    used = {process: after[process] - before.get(process, 0.0) for process in after}
    busiest = sorted(used, key=lambda process: -used[process])[:3]
    names = ", ".join(f"{process} {used[process] / _LOOK_SECONDS:.2f}" for process in busiest)
    raise OtherLoad(
        f"other processes keep {cores:.2f} of {core_count()} cores busy, and at most "
        f"{MAXIMUM_OTHER_CORES} is allowed; the busiest are {names}; run this again without them"
    )


def refuse_other_work(work: OtherWork) -> float:
    """Return the cores that others kept busy meanwhile; raises OtherLoad if that was too much."""
    cores = work.cores()
    if cores > MAXIMUM_OTHER_CORES:
        raise OtherLoad(
            f"other processes kept {cores:.2f} cores busy during the run, and at most "
            f"{MAXIMUM_OTHER_CORES} is allowed; these figures don't count"
        )
    return cores


def describe() -> str:
    """Return processor, cores and Python in a few words."""
    return f"{_processor_name()}, {core_count()} cores, Python {platform.python_version()}"


def core_count() -> int:
    """Return the number of cores, which is also the server's number of workers."""
    return os.cpu_count() or 1


def memory_mebibytes(pid: int) -> float:
    """Return a process's share of memory (PSS: shared pages are divided among their users)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise LookupError("smaps_rollup has no line 'Pss:'")


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def _idle_seconds() -> float:
    # cpu user nice system idle iowait ..., in ticks over all cores
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / _TICKS_PER_SECOND


def _our_seconds() -> float:
    return sum(os.times()[:4])  # user and system, this process and its children that ended


def _seconds_by_process() -> dict[str, float]:
    seconds = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rsplit(")", 1)
        except OSError:  # it has just ended
            continue
        user, system = fields.split()[11:13]
        process = f"{name.split('(', 1)[1]} (process {path.parent.name})"
        seconds[process] = (int(user) + int(system)) / _TICKS_PER_SECOND
    return seconds
