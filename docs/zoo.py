"""Write docs/zoo.md and the README's table of operations from the manifests in artifacts/.

What is measured but not bundled has no manifest: the page takes it from the record that training
left. `python -m docs.zoo` writes both; `make pictures` draws the sheets that the page shows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from service.core.manifest import OPERATIONS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "zoo.md"
README = ROOT / "README.md"
START, END = "<!-- operations -->", "<!-- end of operations -->"

RECORDS = ROOT / "model_zoo" / "weights"
ANCHORS = RECORDS / "mnist-classifier-anchors.json"
RECIPES = ROOT / "model_zoo" / "recipes"
MEASURED = RECIPES / "measured"
REAL = "real test images"

BRANCHES = {
    "autoencoders": "Autoencoders",
    "autoregressive": "Autoregressive models",
    "baselines": "Baselines",
    "energy": "Energy models",
    "flows": "Flows",
    "gans": "Adversarial networks",
}

Manifest = Mapping[str, Any]
Record = Mapping[str, Any]
"""What training writes beside the weights: model, figures, splits and provenance."""

INTRODUCTION = """# The zoo

What is trained, how well, and what it offers. This page is written from the manifests of the
bundled artifacts (`python -m docs.zoo`), its pictures by the service (`make pictures`).

Figures are of the test split, with the standard error of their mean; a published figure stands
beside ours only where data and protocol are the same, and `ours - published` says how far apart
they are. Processor time is that of training on all cores together, measurements after each epoch
included. Of each pair of rows in a picture the first is drawn by the model (seed 1), the second
shows the training image nearest to each, by Euclidean distance: a model that only repeats what it
has seen would show the same picture twice. Vectors are counted in cells instead: on the left those
that the model draws, on the right those of the training split. Where their density is known, the
figure stands beside the entropy of the data, which no model comes below.
"""

NOT_BUNDLED = """## Trained, measured, not bundled

Their weights would take more room than this repository has for what they can do; what was measured
is kept.
`python -m model_zoo RECIPE` trains one again, and `python -m export --repository FOLDER RECIPE`
makes an artifact of it.
"""


def main() -> None:
    """Write the page and the table."""
    manifests = read_manifests()
    PAGE.write_text(page(manifests, read_records()), encoding="utf-8")
    README.write_text(with_operations(README.read_text("utf-8"), manifests), encoding="utf-8")


def read_manifests() -> list[Manifest]:
    """Return the manifest of every bundled artifact, by branch of the zoo, then by name."""
    paths = (ROOT / "artifacts").glob("*/1/manifest.json")
    manifests: list[Manifest] = [json.loads(path.read_text("utf-8")) for path in paths]
    return sorted(manifests, key=lambda each: (branch(each), each["name"]))


def read_records() -> list[Record]:
    """Return the record of every model that is measured but not bundled, by name."""
    names = sorted(path.stem for path in MEASURED.glob("*.toml"))
    return [json.loads((RECORDS / f"{name}.json").read_text("utf-8")) for name in names]


def branch(manifest: Manifest) -> str:
    """Return the branch of the zoo that a model's family is in: autoregressive, flows, ..."""
    return str(manifest["provenance"]["family"].partition(".")[0])


# The page


def page(manifests: Sequence[Manifest], records: Sequence[Record]) -> str:
    """Return the whole page as Markdown."""
    parts = [INTRODUCTION]
    for name, members in groupby(manifests, key=branch):
        parts.append(f"## {BRANCHES[name]}\n")
        of_branch = list(members)
        if name == "gans":
            parts.append("\n".join([*_beside_anchors(of_branch), ""]))
        parts.extend(_section(manifest) for manifest in of_branch)
    if records:
        parts.append(NOT_BUNDLED)
        parts.extend(_record_section(record) for record in records)
    parts.append("## Recipes for a GPU\n\nTheir models are not bundled.\n")
    parts.extend(
        f"- {_link(path, path.stem)}: {_summary(path)}."
        for path in sorted((RECIPES / "gpu").glob("*.toml"))
    )
    return "\n".join(parts) + "\n"


def _link(path: Path, text: str | None = None) -> str:
    """Return a link from the page to a file, called by its path unless `text` is given."""
    name = path.relative_to(ROOT).as_posix()
    return f"[{text or name}](../{name})"


def _summary(recipe: Path) -> str:
    """Return the first sentence of the comment that a recipe begins with, without its stop."""
    lines = recipe.read_text("utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    sentence, *_ = " ".join(line.removeprefix("#").strip() for line in comment).split(". ")
    return sentence.rstrip(".")


def _beside_anchors(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield the distances of samples from training images beside those of other images."""
    yield (
        "What a model without a density draws is compared with training images in the features of\n"
        "a frozen classifier (Heusel et al. 2017, arXiv:1706.08500; precision and recall by\n"
        "Kynkäänniemi et al. 2019, arXiv:1904.06991), and stands beside other images under the\n"
        "same protocol. A low distance alone proves little: 500 training images over and over\n"
        "have one, and next to no recall.\n"
    )
    yield "| images | Fréchet distance | of the real test images' | precision | recall |"
    yield "|---|---|---|---|---|"
    anchors = {
        anchor["images"]: _values(anchor["figures"])
        for anchor in json.loads(ANCHORS.read_text("utf-8"))["anchors"]
    }
    samples = {f"`{each['name']}`": _values(each["quality"]) for each in manifests}
    for images, values in (anchors | samples).items():
        distance = values["frechet_distance"]
        yield (
            f"| {images} | {distance:.1f} | {distance / anchors[REAL]['frechet_distance']:.1f} "
            f"| {values['precision']:.2f} | {values['recall']:.2f} |"
        )


def _values(figures: Sequence[Manifest]) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in figures}


def _section(manifest: Manifest) -> str:
    name, provenance = manifest["name"], manifest["provenance"]
    lines = [
        f"### `{name}`\n",
        f"{manifest['family'][0].upper()}{manifest['family'][1:]} ({_code(provenance)}). "
        f"{_size(provenance)}; {_data(manifest)}. "
        f"Offers {', '.join(manifest['operations'])}.\n",
        *_figures(manifest["quality"]),
    ]
    if "sample" in manifest["operations"]:
        lines.append(f"\n![samples of {name}, and training images near them](zoo/{name}.png)")
    return "\n".join([*lines, ""])


def _record_section(record: Record) -> str:
    name, provenance = record["model"], record["provenance"]
    recipe = MEASURED / f"{name}.toml"
    counts = _counts(record["splits"])
    lines = [
        f"### `{name}`\n",
        f"{_summary(recipe)} ({_code(provenance)}, {_link(recipe)}). "
        f"{_size(provenance)}; {provenance['dataset']} ({counts}).\n",
        *_figures(record["figures"]),
    ]
    return "\n".join([*lines, ""])


def _code(provenance: Manifest) -> str:
    """Return a link to the file of a family."""
    return _link(ROOT / "model_zoo" / f"{provenance['family'].replace('.', '/')}.py")


def _size(provenance: Manifest) -> str:
    parameters = f"{provenance['parameters']:,} parameters"
    seconds = provenance.get("processor_seconds")
    if seconds is None:
        return f"{parameters}, processor time not recorded"
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return f"{parameters}, {minutes} of processor time"


def _data(manifest: Manifest) -> str:
    """Say what was trained on, and how 8-bit levels became what the model is a distribution of."""
    preprocess = manifest["preprocess"] or {"binarisation": None, "dequantisation": None}
    rule = (
        ", each pixel drawn 0 or 1 by its grey value"
        if preprocess["binarisation"]
        else ", dequantised by uniform noise"
        if preprocess["dequantisation"]
        else ""
    )
    return f"{manifest['provenance']['dataset']}{rule} ({_counts(manifest['splits'])})"


def _counts(splits: Manifest) -> str:
    return ", ".join(f"{splits[name]['count']:,} to {name}" for name in ("fit", "select", "test"))


def _figures(quality: Sequence[Manifest]) -> Iterator[str]:
    yield "| figure | ours | published | ours - published | protocol |"
    yield "|---|---|---|---|---|"
    for figure in quality:
        published = figure["published"]
        beside = f"{published['value']} ({published['source']})" if published else "-"
        apart = f"{figure['value'] - published['value']:+.3g}" if published else "-"
        protocol = figure["protocol"].replace("|", r"\|")  # log p(x|z) would end the cell
        yield (
            f"| {words(figure['name'])}, {figure['unit']} | {measured(figure)} | {beside} "
            f"| {apart} | {protocol} |"
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
