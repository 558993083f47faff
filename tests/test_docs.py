"""What docs/ promises: pictures that exist, figures that are the manifests'."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from benchmarks.anomaly.page import ABOVE
from benchmarks.anomaly.scoring import compared_models
from docs import zoo
from model_zoo.sheets import CELL_PIXELS, CELLS
from service.core import manifest
from service.core.scoring import calibration

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


def test_the_page_on_the_zoo_says_what_the_manifests_say() -> None:
    manifests = zoo.read_manifests()
    written = zoo.page(manifests, zoo.read_records())
    assert zoo.PAGE.read_text() == written, "run python -m docs.zoo"
    assert all(manifest["quality"] for manifest in manifests)


def test_what_is_measured_but_not_bundled_stands_on_the_page_by_its_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zoo, "MEASURED", zoo.RECIPES)
    record = json.loads((zoo.RECORDS / "mnist-vae.json").read_text())
    _, _, section = zoo.page([], [record]).partition("## Trained, measured, not bundled")
    section, _, _ = section.partition("## Recipes for a GPU")
    assert "### `mnist-vae`" in section
    assert "[model_zoo/recipes/mnist-vae.toml](../model_zoo/recipes/mnist-vae.toml)" in section
    for figure in record["figures"]:
        assert f"| {zoo.words(figure['name'])}, {figure['unit']} | {figure['value']:.4g}" in section
    assert "not bundled\n\nTheir weights" not in zoo.page([], [])


def test_a_bar_in_a_protocol_does_not_end_the_cell_of_its_table() -> None:
    figure = {"name": "bound", "unit": "nats", "value": -1.0, "standard_error": None}
    *_, row = zoo._figures([{**figure, "published": None, "protocol": "log p(x|z)"}])
    assert row.endswith(r"| log p(x\|z) |")


def test_every_model_that_samples_is_shown_beside_training_images() -> None:
    sampling = [each for each in zoo.read_manifests() if "sample" in each["operations"]]
    for model in sampling:
        with Image.open(ROOT / "docs" / "zoo" / f"{model['name']}.png") as picture:
            if model["event"]["kind"] == "vector":
                side = 2 * CELLS * CELL_PIXELS
                assert picture.size == (2 * side, side), "run make pictures"
            else:
                height, width, _ = model["event"]["shape"]
                assert picture.size == (2 * 10 * width, 2 * 4 * height), "run make pictures"
            # A histogram has one grey for each count that occurs, an image many.
            fewest = 5 if model["event"]["kind"] == "vector" else 20
            assert len(picture.convert("L").getcolors() or []) > fewest
    assert {path.stem for path in (ROOT / "docs" / "zoo").iterdir()} == {
        model["name"] for model in sampling
    }


def test_the_table_of_operations_in_the_readme_is_written_from_the_manifests() -> None:
    readme = zoo.README.read_text()
    assert readme == zoo.with_operations(readme, zoo.read_manifests()), "run python -m docs.zoo"


def test_the_page_on_anomalies_is_about_the_artifacts_that_are_served() -> None:
    page = (ROOT / "docs" / "anomaly.md").read_text()
    scored = set(re.findall(r"^\| `([\w-]+)` \| `(sha256:\w+)` \|", page, re.M))
    manifests = map(manifest.read_manifest, compared_models(ROOT / "artifacts"))
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
