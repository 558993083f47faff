"""`make bench TARGET=...`: measures, and writes a page with the machine it ran on.

Nothing is timed beside other load: there is no way around that, because the figures would be about
the other load.
"""

import sys
from collections.abc import Callable, Sequence

from benchmarks import coldstart, likelihood, machine, overload, pixelcnn, sample, soak, studio
from benchmarks.processes import ServerFailed

TARGETS: dict[str, Callable[[], None]] = {
    "sample": sample.measure,
    "likelihood": likelihood.measure,
    "overload": overload.measure,
    "coldstart": coldstart.measure,
    "soak": soak.measure,
    "pixelcnn": pixelcnn.measure,
    "studio": studio.measure,
}
UNTIMED = {"soak"}
"""Targets that count and do not time: other load only makes them slower."""


def main(arguments: Sequence[str]) -> int:
    """Measure one target, `sample` if none is named; returns the exit status."""
    target = arguments[0] if arguments else "sample"
    if target not in TARGETS or len(arguments) > 1:
        print(f"usage: python -m benchmarks [{' | '.join(TARGETS)}]", file=sys.stderr)
        return 2
    try:
        if target not in UNTIMED:
            machine.refuse_other_load()
        TARGETS[target]()
    except (machine.OtherLoad, ServerFailed) as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
