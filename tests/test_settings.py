"""Settings: read once, checked, documented."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import StartupError
from service.settings import Settings, read_settings


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSERVE_HTTP_PORT", "9000")
    monkeypatch.setenv("GENSERVE_GRPC_PORT", "9001")
    settings = read_settings({"http_port": "7000"})
    assert (settings.http_port, settings.grpc_port) == (7000, 9001)


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSERVE_DEFAULT_MODELS", "one, two,")
    assert read_settings({}).default_models == ("one", "two")


@pytest.mark.parametrize(
    ("name", "value"),
    [("http_port", "70000"), ("workers", "0"), ("provider", "tpu"), ("drain_seconds", "soon")],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(name: str, value: str) -> None:
    with pytest.raises(StartupError, match=f"GENSERVE_{name.upper()} is '{value}'"):
        read_settings({name: value})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().http_port = 1  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"`GENSERVE_{name.upper()}`" in documented
        assert str(field.description).split(";")[0].split(",")[0] in documented
