"""What the benchmarks write: Markdown pages in benchmarks/results, and their tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.exports import ROOT
from benchmarks.floor import describe

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Target:
    """A figure that was measured, and what it is to be."""

    name: str
    measured: float
    bound: float
    at_least: bool = True  # else at most
    digits: int = 2

    @property
    def reached(self) -> bool:
        """Whether the figure, as measured and not as rounded, is within its bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def head(target: str) -> str:
    """Return how the page was made, and on what machine."""
    return (
        f"Written by `make bench TARGET={target}`. Machine: {machine.describe()}; {describe()}.\n"
        "Times belong to this machine; ratios travel better.\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def target_table(targets: Iterable[Target]) -> str:
    """Return the targets as a table that says which were reached."""
    return table(["", "measured", "target", "reached"], map(_target_row, targets))


def _target_row(target: Target) -> list[str]:
    sense = "at least" if target.at_least else "at most"
    return [
        target.name,
        f"{target.measured:.{target.digits}f}",
        f"{sense} {target.bound:g}",
        "yes" if target.reached else "**no**",
    ]


def write(target: str, text: str) -> None:
    """Print a page and write it down, in place of the previous one."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{target}.md"
    path.write_text(text, encoding="utf-8")
    print(f"Written to {path.relative_to(ROOT)}.")
