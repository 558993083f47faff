"""Arrows point one way: what each folder may not import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    "service": {"torch", "model_zoo", "export"},
    "service/core": {
        "fastapi",
        "grpc",
        "onnxruntime",
        "service.api",
        "service.rpc",
        "service.server",
    },
    "service/runtime": {"fastapi", "grpc", "service.core", "service.api", "service.rpc"},
    "service/api": {"grpc", "onnxruntime", "service.rpc", "service.runtime"},
    "service/rpc": {"fastapi", "onnxruntime", "service.api", "service.runtime"},
    "model_zoo": {"service", "export", "onnxruntime"},
    "export": {"service"},
}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)} imports relatively"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} holds no code"
    for path in files:
        for module in imported_modules(path):
            broken = [package for package in FORBIDDEN[folder] if is_within(module, package)]
            assert not broken, f"{path.relative_to(ROOT)} imports {module}"


def test_only_one_file_imports_the_runtime() -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "service").rglob("*.py")
        if any(is_within(module, "onnxruntime") for module in imported_modules(path))
    }
    assert importers == {"service/runtime/onnx_session.py"}


def test_only_one_file_imports_opentelemetry() -> None:
    importers = {
        path.name
        for path in (ROOT / "service").rglob("*.py")
        if any(is_within(module, "opentelemetry") for module in imported_modules(path))
    }
    assert importers == {"opentelemetry_tracing.py"}


def test_leaves_import_nothing_of_the_service_but_errors() -> None:
    for name in ("errors", "metrics", "images", "tracing"):
        for module in imported_modules(ROOT / "service" / f"{name}.py"):
            assert not is_within(module, "service") or is_within(module, "service.errors")


@pytest.mark.parametrize("name", ["http", "grpc", "onnx"])
def test_no_folder_shadows_a_library(name: str) -> None:
    tracked = (
        path for path in ROOT.glob("*/**/") if not path.parts[len(ROOT.parts)].startswith(".")
    )
    assert not [path for path in tracked if path.name == name]
