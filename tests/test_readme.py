"""The commands of the README, docs/painting.md and docs/likelihood.md run as they stand, against a
real server with the bundled models."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.live import LiveServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README] + [
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("painting", "likelihood")
]
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", "".join(PAGES), re.M | re.S)


@pytest.fixture(scope="module")
def server():
    with LiveServer(ROOT / "artifacts") as live:
        live.wait_until_ready()
        yield live


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: later ones use the files of earlier ones."""
    return tmp_path_factory.mktemp("readme")


def run(kind: str, block: str, server: LiveServer, folder: Path) -> str:
    for documented, actual in (("8000", server.http_port), ("8001", server.grpc_port)):
        block = block.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{actual}")
    command = (
        ["bash", "-euo", "pipefail", "-c", block] if kind == "sh" else [sys.executable, "-c", block]
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("kind", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_a_command_of_the_readme_works(
    kind: str, block: str, server: LiveServer, folder: Path
) -> None:
    output = run(kind, block, server, folder)
    if "map.png" in block:
        picture = Image.open(folder / "map.png")
        assert picture.size == (28, 28) and len(picture.getcolors() or []) > 10
    elif "/likelihood" in block:
        assert '"bits_per_dim"' in output and '"lower_bound"' in output
        assert '"p_value"' in output and '"anomalous"' in output
    if "digits.png" in block:
        picture = Image.open(folder / "digits.png")
        assert picture.size == (4 * 28, 4 * 28)
        assert len(picture.getcolors() or []) > 10, "digits have grey edges"
    if '"preview"' in block:
        done = [json.loads(line[6:])["rows_done"] for line in output.splitlines()[1:-3:3]]
        assert len(done) >= 1 and done[-1] == 28 and done == sorted(done)
    if "StreamLikelihood" in block:
        assert len(re.findall(r"^\[\d+\.\d+\]$", output, re.M)) == 3
    if "resume_token" in block:
        *rows, last = output.split("\n")[:-1]
        assert rows[-1] == "rows 56" and last == "result None"
    if "candidates" in block:
        answer = json.loads(output)
        assert len(answer["images"]) == len(answer["candidate"]) == 2
        assert answer["log_weight"] == sorted(answer["log_weight"], reverse=True)
    if "/metrics" in block:
        assert 'model="mnist-dcgan"' in output


def test_the_readme_starts_with_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^    make (\S+)", README, re.M)
    assert commands == ["serve", "test"]
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.M)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_table_of_operations_is_what_the_models_offer() -> None:
    header, _, *rows = [
        line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("|")
    ]
    operations = header[2:]
    seen = set()
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row[1]):
            seen.add(name)
            manifest = json.loads((ROOT / "artifacts" / name / "1" / "manifest.json").read_text())
            claimed = {op for op, cell in zip(operations, row[2:], strict=True) if cell != "-"}
            assert claimed == set(manifest["operations"]), name
    assert seen == {path.name for path in (ROOT / "artifacts").iterdir() if path.is_dir()}
