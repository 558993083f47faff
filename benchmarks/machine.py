"""The machine: what it is, what else runs on it, and what a process takes. Reads /proc."""

import os
import platform
import time
from contextlib import suppress
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
    """Return the share of memory of a process and its children.

    It is the PSS: pages that several processes share are divided among them.
    """
    return sum(_kibibytes(process, "smaps_rollup", "Pss") for process in _family(pid)) / 1024


def resident_mebibytes(pid: int) -> float:
    """Return the resident memory of one process, shared pages in full, as `ps` shows it."""
    return _kibibytes(pid, "status", "VmRSS") / 1024


def processor_seconds(pid: int) -> float:
    """Return what a process and its children have computed so far, in seconds of one core."""
    return sum(_processor_seconds(Path(f"/proc/{process}/stat")) for process in _family(pid))


def _family(pid: int) -> list[int]:
    """Return a process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
    family = [pid]
    for member in family:  # grows meanwhile
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _kibibytes(pid: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise LookupError(f"{file} has no line '{name}:'")


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
        with suppress(OSError):  # it has just ended
            name = path.read_text().split("(", 1)[1].rsplit(")", 1)[0]
            seconds[f"{name} (process {path.parent.name})"] = _processor_seconds(path)
    return seconds


def _processor_seconds(stat: Path) -> float:
    user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / _TICKS_PER_SECOND
