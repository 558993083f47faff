"""Write docs/zoo.md and the README's table of operations from the manifests in artifacts/.

`python -m docs.zoo` writes both; `make pictures` draws the sheets that the page shows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from service.core.manifest import OPERATIONS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "zoo.md"
README = ROOT / "README.md"
START, END = "<!-- operations -->", "<!-- end of operations -->"

Manifest = Mapping[str, Any]

INTRODUCTION = """# The zoo

What is trained, how well, and what it offers. This page is written from the manifests of the
bundled artifacts (`python -m docs.zoo`), its pictures by the service (`make pictures`).

Figures are of the test split, with the standard error of their mean; a published figure stands
beside ours only where data and protocol are the same, and `ours - published` says how far apart
they are. Processor time is that of training on all cores together, measurements after each epoch
included. Of each pair of rows in a picture the first is drawn by the model (seed 1), the second
shows the training image nearest to each, by Euclidean distance: a model that only repeats what it
has seen would show the same picture twice.
"""


def main() -> None:
    """Write the page and the table."""
    manifests = read_manifests()
    PAGE.write_text(page(manifests), encoding="utf-8")
    README.write_text(with_operations(README.read_text("utf-8"), manifests), encoding="utf-8")


def read_manifests() -> list[Manifest]:
    """Return the manifest of every bundled artifact, by branch of the zoo, then by name."""
    paths = (ROOT / "artifacts").glob("*/1/manifest.json")
    manifests: list[Manifest] = [json.loads(path.read_text("utf-8")) for path in paths]
    return sorted(manifests, key=lambda each: (branch(each), each["name"]))


def branch(manifest: Manifest) -> str:
    """Return the branch of the zoo that a model's family is in: autoregressive, flows, ..."""
    return str(manifest["provenance"]["family"].partition(".")[0])


# The page


def page(manifests: Sequence[Manifest]) -> str:
    """Return the whole page as Markdown."""
    parts = [INTRODUCTION]
    for name, members in groupby(manifests, key=branch):
        parts.append(f"## {name.capitalize()}\n")
        parts.extend(_section(manifest) for manifest in members)
    return "\n".join(parts)


def _section(manifest: Manifest) -> str:
    name, provenance = manifest["name"], manifest["provenance"]
    file = f"model_zoo/{provenance['family'].replace('.', '/')}.py"
    lines = [
        f"### `{name}`\n",
        f"{manifest['family'][0].upper()}{manifest['family'][1:]} ([{file}](../{file})). "
        f"{_size(provenance)}; {_data(manifest)}. "
        f"Offers {', '.join(manifest['operations'])}.\n",
        *_figures(manifest["quality"]),
    ]
    if "sample" in manifest["operations"]:
        lines.append(f"\n![samples of {name}, and training images near them](zoo/{name}.png)")
    return "\n".join([*lines, ""])


def _size(provenance: Manifest) -> str:
    parameters = f"{provenance['parameters']:,} parameters"
    seconds = provenance.get("processor_seconds")
    if seconds is None:
        return f"{parameters}, processor time not recorded"
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return f"{parameters}, {minutes} of processor time"


def _data(manifest: Manifest) -> str:
    """Say what was trained on, and how 8-bit levels became what the model is a distribution of."""
    splits, preprocess = manifest["splits"], manifest["preprocess"]
    counts = ", ".join(f"{splits[name]['count']:,} to {name}" for name in ("fit", "select", "test"))
    rule = (
        ", each pixel drawn 0 or 1 by its grey value"
        if preprocess["binarisation"]
        else ", dequantised by uniform noise"
        if preprocess["dequantisation"]
        else ""
    )
    return f"{manifest['provenance']['dataset']}{rule} ({counts})"


def _figures(quality: Sequence[Manifest]) -> Iterator[str]:
    yield "| figure | ours | published | ours - published | protocol |"
    yield "|---|---|---|---|---|"
    for figure in quality:
        published = figure["published"]
        beside = f"{published['value']} ({published['source']})" if published else "-"
        apart = f"{figure['value'] - published['value']:+.3g}" if published else "-"
        yield (
            f"| {words(figure['name'])}, {figure['unit']} | {measured(figure)} | {beside} "
            f"| {apart} | {figure['protocol']} |"
        )


def measured(figure: Manifest) -> str:
    """Return a figure with its standard error, as text."""
    error = figure["standard_error"]
    return f"{figure['value']:.4g}" + (f" ± {error:.1g}" if error else "")


def words(name: str) -> str:
    """Return a name of the contract as people say it."""
    return name.replace("_", " ")


# The table of operations


def with_operations(text: str, manifests: Sequence[Manifest]) -> str:
    """Return a page with the table of operations by family between its marks."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n" + "\n".join(operation_table(manifests)) + f"\n{END}{after}"


def operation_table(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield the lines of the table; models that offer the same in the same way share one."""
    yield "| family | models | " + " | ".join(OPERATIONS) + " |"
    yield "|---" * (len(OPERATIONS) + 2) + "|"
    rows: dict[tuple[str, ...], list[str]] = {}
    for manifest in manifests:
        cells = tuple(_cell(manifest, operation) for operation in OPERATIONS)
        rows.setdefault((manifest["family"], *cells), []).append(f"`{manifest['name']}`")
    for (family, *cells), names in rows.items():
        yield f"| {family} | {', '.join(names)} | " + " | ".join(cells) + " |"


def _cell(manifest: Manifest, operation: str) -> str:
    """Say how a model offers an operation: a likelihood its kind, samples whether by class."""
    offered = manifest["operations"].get(operation)
    if offered is None:
        return "-"
    if kind := offered.get("kind"):
        return words(kind)
    condition = manifest["condition"]
    if operation == "sample" and condition:
        return "with or without class" if condition.get("optional") else "by class"
    return "yes"


if __name__ == "__main__":
    main()
