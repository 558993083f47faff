"""Settings: read once, checked, documented."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.__main__ import main
from service.errors import StartupError
from service.settings import Settings, allowed, read_settings, table

PAGE = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSERVE_DEFAULT_MODELS", "one, two,")
    assert read_settings({}).default_models == ("one", "two")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of settings, beside where the server starts."""
    monkeypatch.chdir(tmp_path)
    return Path("genserve.toml")


def test_flags_win_over_variables_and_those_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("http_port = 1\ngrpc_port = 1\nworkers = 1\n")
    monkeypatch.setenv("GENSERVE_HTTP_PORT", "2")
    monkeypatch.setenv("GENSERVE_GRPC_PORT", "2")
    settings = read_settings({"http_port": "3"}, file)
    assert (settings.http_port, settings.grpc_port, settings.workers) == (3, 2, 1)
    assert settings.row_slots == 16, "what nobody sets has its default"


def test_a_variable_names_the_file_unless_a_flag_does(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("workers = 1\n")
    Path("other.toml").write_text("workers = 2\n")
    monkeypatch.setenv("GENSERVE_SETTINGS", "other.toml")
    assert read_settings({}).workers == 2
    assert read_settings({}, file).workers == 1


def another(name: str) -> object:
    """An allowed value that is not the default."""
    if name in ("provider", "traces", "log_level"):
        return allowed(name).split(", ")[-1]
    if name == "studio":
        return False
    return 7 if allowed(name) else "somewhere"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_read_in_each_form(
    name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = another(name)
    by_flag = read_settings({name: str(value)})
    file.write_text(f"{name} = {json.dumps(value)}\n")
    by_file = read_settings({}, file)
    monkeypatch.setenv(f"GENSERVE_{name.upper()}", str(value))
    by_variable = read_settings({})
    assert by_flag == by_file == by_variable != Settings.model_construct()
    assert str(value) in str(getattr(by_flag, name))


WRONG = [
    ("http_port", "70000"),
    ("workers", "0"),
    ("provider", "tpu"),
    ("drain_seconds", "soon"),
    ("maximum_body_bytes", "9999999999"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
@pytest.mark.parametrize("form", ["flag", "variable", "file"])
def test_a_wrong_value_is_one_sentence_that_names_it_as_it_was_given(
    form: str,
    name: str,
    value: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dashed = "--" + name.replace("_", "-")
    arguments = {"flag": [dashed, value], "file": ["--settings", str(file)], "variable": []}
    file.write_text(f"{name} = {value!r}\n" if form == "file" else "")
    if form == "variable":
        monkeypatch.setenv(f"GENSERVE_{name.upper()}", value)
    origin = {"flag": dashed, "variable": f"GENSERVE_{name.upper()}", "file": f"{name} in {file}"}
    assert main(["serve", *arguments[form]]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"genserve: {origin[form]} is '{value}': Input should be")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("http_prot = 80", "http_prot in genserve.toml is no setting; did you mean http_port?"),
        ("HTTP_PORT = 80", "HTTP_PORT in genserve.toml is no setting"),
        ("[server]\nhttp_port = 80", "server in genserve.toml is no setting"),
        ("workers = [1]", "workers in genserve.toml is [1]: Input should be"),
        ("default_models = [1]", "default_models in genserve.toml is [1]: Input should be"),
        ("default_models = 1", "default_models in genserve.toml is 1: Input should be"),
        ("model_repository = 1", "model_repository in genserve.toml is 1: Input"),
        ("host = artifacts", "the settings genserve.toml are no TOML: "),
        ("host = '\udcff'", "the settings genserve.toml are no TOML: "),
    ],
)
def test_a_wrong_file_is_one_sentence(content: str, said: str, file: Path) -> None:
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(StartupError) as refusal:
        read_settings({}, file)
    assert str(refusal.value).startswith(said) and "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSERVE_SETTINGS", "nowhere.toml")
    with pytest.raises(StartupError, match=r"nowhere\.toml can't be read: No such file"):
        read_settings({})


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("GENSERVE_HTTP_PROT", "did you mean GENSERVE_HTTP_PORT?"),
        ("GENSERVE_API_KEY_HASHS", "did you mean GENSERVE_API_KEY_HASHES?"),
        ("GENSERVE_HTP_PORT", "did you mean GENSERVE_HTTP_PORT?"),
        ("genserve_quux", "docs/settings.md lists them"),
    ],
)
def test_a_mistyped_variable_is_refused(
    variable: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "80")
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == f"genserve: {variable} is no setting; {hint}\n"


def test_variables_of_others_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    of_services = {
        "GENSERVE_SERVICE_HOST": "10.0.0.11",
        "GENSERVE_SERVICE_PORT": "8000",
        "GENSERVE_SERVICE_PORT_GRPC": "8001",
        "GENSERVE_PORT": "tcp://10.0.0.11:8000",
        "GENSERVE_PORT_8000_TCP": "tcp://10.0.0.11:8000",
        "GENSERVE_PORT_8000_TCP_ADDR": "10.0.0.11",
        "GENSERVE_GPU_PORT": "tcp://10.0.0.12:8000",
    }
    others = {"GENSERVE_DATA_DIR": "data", "GENSERVE_API_KEY": "secret"}
    for name, value in (of_services | others).items():
        monkeypatch.setenv(name, value)
    read_settings({})


@pytest.mark.parametrize("wrong", ["--http-prot=80", "--http=80"])
def test_a_mistyped_or_shortened_flag_is_named(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", wrong])
    assert ended.value.code == 2
    assert f"unrecognized arguments: {wrong}" in capsys.readouterr().err


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().http_port = 1  # type: ignore[misc]


def test_the_table_of_the_docs_is_the_settings() -> None:
    _, found, rest = PAGE.partition("\n| setting |")
    shown = found.lstrip() + rest.partition("\n\n")[0]
    assert shown == table(), "put there what `python -m service.settings` prints"


def test_the_file_of_the_docs_is_read(file: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    file.write_text(example)
    settings = read_settings({}, file)
    assert settings.default_models == ("mnist-vae", "mnist-dcgan")
    assert (settings.http_port, settings.drain_seconds) == (80, 10)


def test_the_help_says_what_each_setting_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = re.sub(r"\s+", "", capsys.readouterr().out)  # lines break within words too
    for name, field in Settings.model_fields.items():
        meaning = re.sub(r"\s+", "", str(field.description))
        assert f"--{name.replace('_', '-')}VALUE{meaning}" in shown
