"""What docs/ promises: pictures that exist, figures that are the manifests'."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from benchmarks.anomaly.page import ABOVE
from benchmarks.anomaly.scoring import likelihood_models
from service.core import calibration, manifest

ROOT = Path(__file__).parent.parent
GALLERY = (ROOT / "docs" / "gallery.md").read_text()


def test_every_picture_of_the_gallery_shows_something() -> None:
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", GALLERY)
    assert len(pictures) >= 5
    for name in pictures:
        with Image.open(ROOT / "docs" / name) as picture:
            assert len(picture.convert("L").getcolors() or []) > 50, name


def test_the_pictures_of_studio_are_there_and_small() -> None:
    page = (ROOT / "docs" / "studio.md").read_text() + (ROOT / "README.md").read_text()
    named = set(re.findall(r"studio/[a-z]+\.png", page))
    files = list((ROOT / "docs" / "studio").iterdir())
    assert named == {f"studio/{path.name}" for path in files}
    assert all(path.stat().st_size < 150_000 for path in files)
    for path in files:
        with Image.open(path) as picture:
            assert len(picture.getcolors() or []) > 50, path.name


def test_every_figure_of_the_gallery_is_the_manifests() -> None:
    table = GALLERY.partition("<!-- figures -->")[2]
    for path in (ROOT / "artifacts").glob("*/1/manifest.json"):
        manifest = json.loads(path.read_text())
        assert manifest["quality"], f"{path} states no quality"
        for figure in manifest["quality"]:
            name = figure["name"].replace("_", " ")
            row = f"| `{manifest['name']}` | {name}, {figure['unit']} | {figure['value']:.4g}"
            assert row in table, row


def test_the_page_on_anomalies_is_about_the_artifacts_that_are_served() -> None:
    page = (ROOT / "docs" / "anomaly.md").read_text()
    scored = set(re.findall(r"^\| `([\w-]+)` \| `(sha256:\w+)` \|", page, re.M))
    manifests = map(manifest.read_manifest, likelihood_models(ROOT / "artifacts"))
    served = {(each.name, each.artifact_digest) for each in manifests}
    others = {name for name, _ in scored - served}
    assert served <= scored and all("-without-" in name for name in others), "run make anomaly"


def test_the_page_on_anomalies_shows_p_values_within_their_bounds() -> None:
    page = (ROOT / "docs" / "anomaly.md").read_text()
    table = page.partition("## P-values")[2]
    assert "| combined |" in table and ABOVE not in table


def test_every_link_of_the_docs_leads_somewhere() -> None:
    for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = list(re.findall(r"`([\w/.-]+\.(?:py|md))`", text))
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "service" / name).exists(), name


@pytest.mark.parametrize("contract", [manifest, calibration], ids=["manifest", "calibration"])
def test_the_published_schema_is_the_one_that_is_checked(contract: ModuleType) -> None:
    name = contract.__name__.rpartition(".")[2]
    published = (ROOT / "docs" / f"{name}.schema.json").read_text()
    assert published == contract.json_schema(), "run make schema"
