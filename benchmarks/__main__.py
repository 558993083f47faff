"""`make bench`: prints what serving costs as shares of the floor, with the machine it ran on.

`make bench TARGET=pixelcnn` measures painting instead; see pixelcnn.py.

Floor and server take turns within each round, so that a machine that drifts, drifts for both. It
takes under two minutes, and it refuses to run beside other load; there is no way around that,
because the figures would be about the other load.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks import machine, pixelcnn
from benchmarks.floor import Floor
from benchmarks.load import Load, describe_clients, load_grpc, load_rest
from benchmarks.server import Server, ServerFailed, running_server

IMAGES = 4
"""Images a request, and the floor's batch."""

ROUNDS = 5
STARTS = 3
_FLOOR_SECONDS = 0.5
_OTHER_BATCHES = (1, 32)


@dataclass(frozen=True)
class Case:
    """A load on the server, and what each round saw."""

    name: str
    load: Callable[[Server, int, int], Load]
    in_flight: int
    loads: list[Load] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the floor beside it

    def median(self, figure: str) -> float:
        """Return the median over the rounds of one of the figures of `Load`."""
        return float(statistics.median(getattr(load, figure) for load in self.loads))


@dataclass(frozen=True)
class Start:
    """A start from cold: a new process, though its files may be in the system's cache."""

    seconds: float
    memory_mebibytes: float


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns the exit status."""
    targets = {(): measure, ("pixelcnn",): pixelcnn.measure}
    if tuple(arguments) not in targets:
        print("usage: python -m benchmarks [pixelcnn]", file=sys.stderr)
        return 2
    try:
        machine.refuse_other_load()
        targets[tuple(arguments)]()
    except (machine.OtherLoad, ServerFailed) as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    return 0


def measure() -> None:
    """Run everything and print it. Raises OtherLoad, after printing, if others joined meanwhile."""
    work, floor = machine.OtherWork(), Floor()
    print(f"Machine: {machine.describe()}; {floor.describe()}.")
    print(f"Clients: {describe_clients()}.\n", flush=True)
    starts = [measure_start() for _ in range(STARTS)]
    with running_server() as server:
        server.check_answer(IMAGES)
        cases, floors = run_rounds(floor, server)
        latencies = compare_latencies(floor, server)
        loaded_mebibytes = server.memory_mebibytes
    print_throughput(cases, floors)
    print_latency(latencies)
    print_start(starts, loaded_mebibytes)
    print(f"Other processes: {machine.refuse_other_work(work):.2f} cores meanwhile.")


def measure_start() -> Start:
    """Start a server, look at it, and stop it."""
    with running_server() as server:
        return Start(server.start_seconds, server.memory_mebibytes)


def run_rounds(floor: Floor, server: Server) -> tuple[list[Case], dict[int, list[float]]]:
    """Return the cases, measured, and the floor's images/s by batch."""
    cases = [
        *(Case("`POST /sample`, connections:", load_rest, number) for number in (1, 8, 32)),
        *(Case("gRPC `Sample`, calls at once:", load_grpc, number) for number in (1, 32)),
    ]
    floors: dict[int, list[float]] = {batch: [] for batch in (*_OTHER_BATCHES, IMAGES)}
    for _ in range(ROUNDS):
        for batch in floors:  # the floor proper is last, just before the server
            floors[batch].append(floor.images_per_second(batch, _FLOOR_SECONDS))
        run_round(cases, floor, server, floors[IMAGES])
    return cases, floors


def run_round(cases: list[Case], floor: Floor, server: Server, floors: list[float]) -> None:
    """Measure every case once, each between two of the floor; adds to all of them."""
    for case in cases:
        before = floors[-1]
        load = case.load(server, case.in_flight, IMAGES)
        after = floor.images_per_second(IMAGES, _FLOOR_SECONDS)
        case.loads.append(load)
        case.shares.append(load.requests_per_second * IMAGES / statistics.mean((before, after)))
        floors.append(after)


def compare_latencies(floor: Floor, server: Server) -> list[tuple[float, float]]:
    """Return median milliseconds for one image, bare and served, for each round."""
    return [
        (floor.median_milliseconds(1, _FLOOR_SECONDS), load_rest(server, 1, 1).p50_ms)
        for _ in range(ROUNDS)
    ]


def print_throughput(cases: list[Case], floors: dict[int, list[float]]) -> None:
    """Print a table: the floor at each batch, then every case against it."""
    reference = statistics.median(floors[IMAGES])
    print(f"{IMAGES} images a request; medians of {ROUNDS} rounds, and the range of the shares.\n")
    print("| | images/s | share of the floor | p50 / p99 ms | client cores |")
    print("|---|---|---|---|---|")
    for batch, rates in sorted(floors.items()):
        name = f"bare ONNX Runtime, batch {batch}" + (", the floor" if batch == IMAGES else "")
        rate = statistics.median(rates)
        print(f"| {name} | {rate:.0f} | {rate / reference:.2f} | | |")
    for case in cases:
        print(format_case(case))


def format_case(case: Case) -> str:
    """Return a case as a row of the table."""
    share = f"{statistics.median(case.shares):.2f}"
    spread = f"{min(case.shares):.2f} to {max(case.shares):.2f}"
    return (
        f"| {case.name} {case.in_flight} | {case.median('requests_per_second') * IMAGES:.0f} "
        f"| {share} ({spread}) | {case.median('p50_ms'):.2f} / {case.median('p99_ms'):.2f} "
        f"| {case.median('client_cores'):.2f} |"
    )


def print_latency(latencies: list[tuple[float, float]]) -> None:
    """Print what the server adds to one image on one connection."""
    bare, served = (statistics.median(column) for column in zip(*latencies, strict=True))
    added = statistics.median(served - bare for bare, served in latencies)
    print(
        f"\nOne image on one connection: {served:.2f} ms at the median, {bare:.2f} ms bare; "
        f"serving adds {added:.2f} ms."
    )


def print_start(starts: list[Start], loaded_mebibytes: float) -> None:
    """Print the cold start, and what the server holds then and after the load."""
    seconds = statistics.median(start.seconds for start in starts)
    memory = statistics.median(start.memory_mebibytes for start in starts)
    print(
        f"Cold start: ready in {seconds:.2f} s with {memory:.0f} MiB; "
        f"{loaded_mebibytes:.0f} MiB after the load (PSS)."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
