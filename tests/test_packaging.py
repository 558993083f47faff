"""What can't be built everywhere is at least kept honest: Dockerfile, pyproject, constraints."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def stage(name: str) -> str:
    """The lines of a build stage."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    assert found, f"the Dockerfile has no target {name}"
    return found[1]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_each_image_installs_its_extras_by_the_constraints_and_is_not_root(target: str) -> None:
    lines = stage(target)
    assert f"pip install --constraint constraints.txt '.[{target},remote,otel]'" in lines
    assert {target, "remote", "otel"} <= set(PROJECT["optional-dependencies"])
    assert re.findall(r"^USER (.+)", lines, re.M) == ["genserve"]


def test_the_image_starts_the_command_and_checks_its_health() -> None:
    base = stage("base")
    assert 'ENTRYPOINT ["genserve"]' in base and 'CMD ["serve"]' in base
    assert "genserve" in PROJECT["scripts"]
    assert "/readyz" in base


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    kept = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.+)", stage("base"), re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in kept


def test_serving_installs_neither_torch_nor_a_runtime_by_default() -> None:
    names = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    assert not names & {"torch", "onnx", "onnxruntime", "onnxruntime-gpu"}
    assert {name_of(requirement) for requirement in PROJECT["optional-dependencies"]["cpu"]} == {
        "onnxruntime"
    }


def test_every_dependency_is_pinned_by_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name_of(line) for line in lines if not line.startswith("#")}
    extras = PROJECT["optional-dependencies"]
    everything = [PROJECT["dependencies"], *(extras[name] for name in extras if name != "gpu")]
    for requirement in (requirement for group in everything for requirement in group):
        assert name_of(requirement) in pinned | {"genserve"}, f"{requirement} is not pinned"


def test_every_dependency_stands_beside_its_reason() -> None:
    """One comment a line, or one above a lone entry."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.M | re.S)
    assert block
    for line in block[1].splitlines():
        assert "#" in line, f"why is it needed: {line.strip()}"


def test_the_version_is_the_newest_in_the_changelog() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest and newest[1] == PROJECT["version"]
