"""All settings: one table, and one frozen object of it, read once from flags, variables and a file.

`python -m service.settings` prints the table as `docs/settings.md` shows it.
"""

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.errors import StartupError

SETTINGS_FILE = "GENSERVE_SETTINGS"

_PREFIX = "GENSERVE_"
# What carries the prefix and is no setting: the settings' file, the client's key, training's data.
_OTHER_VARIABLES = {SETTINGS_FILE, "GENSERVE_API_KEY", "GENSERVE_DATA_DIR"}
# Kubernetes tells every pod of every Service; of one called genserve, or genserve-*, so:
# GENSERVE_SERVICE_HOST=10.0.0.1, GENSERVE_PORT=tcp://10.0.0.1:80, GENSERVE_PORT_80_TCP_PORT=80
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_OF_A_SERVICE = re.compile(
    r"\w+_(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT(_\d+_(TCP|UDP|SCTP))?=\w+://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """What an operator may set, as `--<name>`, `GENSERVE_<NAME>` or `<name>` in a file.

    Units are in the names.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    http_port: Port = Field(8000, description="port of the REST API; 0 picks a free one")
    grpc_port: Port = Field(8001, description="port of the gRPC API; 0 picks a free one")
    model_repository: Path | str = Field(
        Path("artifacts"),
        description="folder of artifacts, <name>/<version>/manifest.json, or the URL of one: s3://",
    )
    repository_cache: Path = Field(
        Path("~/.cache/genserve"), description="folder that a repository at a URL is mirrored into"
    )
    rescan_seconds: Annotated[float, Field(ge=0)] = Field(
        0.0, description="time between two looks for changes in the repository; 0 for none"
    )
    default_models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("mnist-dcgan", "mnist-realnvp", "mnist-vae", "mnist-vae-2d", "mnist-pixelcnn"),
        description="models loaded at the start, comma-separated; the first that offers an "
        "operation serves requests that name no model",
    )
    provider: Literal["cpu", "cuda"] = Field(
        "cpu", description="where graphs run; cuda refuses to start without a usable GPU"
    )
    workers: Count = Field(
        default_factory=lambda: os.cpu_count() or 1,
        json_schema_extra={"default": "one a core"},
        description="threads that run graphs; one a core is fastest on a CPU",
    )
    maximum_batch_rows: Count = Field(64, description="rows that run together at most")
    maximum_queued_rows: Count = Field(
        8192, description="rows that wait, and rows of one request, at most; beyond it comes a 429"
    )
    row_slots: Count = Field(
        16, description="images that a worker paints at once, row by row; more only adds latency"
    )
    maximum_waiting_images: Count = Field(
        1024, description="images that wait for a slot at most; beyond it comes a 429"
    )
    maximum_count: Count = Field(256, description="images in one request at most")
    maximum_draws: Count = Field(1000, description="noise draws for one scored image at most")
    maximum_body_bytes: Annotated[int, Field(ge=1, lt=2**31)] = Field(  # gRPC's own limit
        16 * 1024 * 1024, description="bytes of one REST body or gRPC message at most"
    )
    maximum_requests: Count = Field(
        1024, description="requests in flight at most; beyond it comes a 429"
    )
    maximum_held_bytes: Count = Field(
        128 * 1024 * 1024,
        description="bytes of the bodies and messages of requests in flight at most; beyond it "
        "comes a 429",
    )
    maximum_connections: Count = Field(
        1024, description="open connections of each transport at most; beyond it comes a 429"
    )
    default_timeout_ms: Count = Field(
        30_000,
        description="deadline of requests that set none, and of clients: for the headers of a "
        "request, for its body, and for the reading of its answer",
    )
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        20.0, description="time that accepted requests have to finish after SIGTERM"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="browser origins that may call the REST API, comma-separated; * for all"
    )
    studio: bool = Field(
        True, description="whether / is Studio, the page that shows what the models do"
    )
    api_key_hashes: Path | None = Field(
        None,
        description="file of hashed API keys, as genserve key prints them; without it anybody "
        "may call",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file of the certificate that both transports show, and its chain"
    )
    tls_private_key: Path | None = Field(
        None, description="PEM file of the certificate's private key, unencrypted"
    )
    traces: Literal["none", "otlp"] = Field(
        "none",
        description="where traces of requests go; otlp, by the variables OTEL_*, needs the extra "
        "otel",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log record that is written"
    )

    @field_validator("model_repository")
    @classmethod
    def _be_a_folder_unless_a_url(cls, value: Path | str) -> Path | str:
        return value if "://" in str(value) else Path(value)

    @field_validator("default_models", "cors_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


def read_settings(flags: Mapping[str, str], file: Path | None = None) -> Settings:
    """Read the settings: `flags` by name first, then the environment, then a TOML file.

    The file is `file`, or what GENSERVE_SETTINGS names, or none. Raises StartupError that names the
    first wrong setting as it was given: the flag, the variable, or the key and its file.
    """
    _refuse_unknown_variables()
    if file is None and SETTINGS_FILE in os.environ:
        file = Path(os.environ[SETTINGS_FILE])
    variables = EnvSettingsSource(Settings)()
    keys = _read_file(file) if file else {}
    given = {**keys, **variables, **flags}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if name in flags:
            origin = flag(name)
        elif name in variables:
            origin = variable(name)
        else:
            origin = f"{name} in {file}"
        raise StartupError(f"{origin} is {given[name]!r}: {first['msg']}") from error


def flag(name: str) -> str:
    """Return how the command line says a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return _PREFIX + name.upper()


def default(name: str) -> str:
    """Return a setting's default as an operator would write it; empty where there is none."""
    value = _schema(name).get("default")
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str("" if value is None else value)


def allowed(name: str) -> str:
    """Return which values a setting may have, in a few words; empty for any text."""
    schema = _schema(name)
    if schema.get("type") == "boolean":
        return "true, false"
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "minimum" not in schema:
        return ""
    largest = schema.get("maximum", schema.get("exclusiveMaximum", 0) - 1)
    return f"{schema['minimum']} to {largest}" if largest > 0 else f"{schema['minimum']} or more"


def table() -> str:
    """Return all settings as a table of Markdown."""
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = f"`{default(name)}`" if default(name) else ""
        cells = (f"`{variable(name)}`", shown, allowed(name), str(field.description))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _schema(name: str) -> dict[str, Any]:
    return _schemas()[name]


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]
    return found


def _read_file(file: Path) -> dict[str, Any]:
    """Return what a TOML file sets; raises StartupError."""
    try:
        file.read_bytes()  # the source would take a file that is not there for an empty one
        keys = TomlConfigSettingsSource(Settings, file).toml_data
    except OSError as error:
        raise StartupError(f"the settings {file} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"the settings {file} are no TOML: {error}") from error
    for key in keys:
        if key not in Settings.model_fields:
            raise StartupError(f"{key} in {file} is no setting; {_hint(key, str)}")
    return keys


def _refuse_unknown_variables() -> None:
    """A mistyped variable must not be passed over: it may be the one that asks for keys."""
    known = {*map(variable, Settings.model_fields), *_OTHER_VARIABLES}
    for given, value in sorted(os.environ.items()):
        name = given.upper()  # the source reads them in any case
        if not name.startswith(_PREFIX) or name in known:
            continue
        if not _OF_A_SERVICE.fullmatch(f"{name}={value}"):
            hint = _hint(name.removeprefix(_PREFIX), variable)
            raise StartupError(f"{given} is no setting; {hint}")


def _hint(wrong: str, form: Callable[[str], str]) -> str:
    close = get_close_matches(wrong.lower(), Settings.model_fields, n=1)
    return f"did you mean {form(close[0])}?" if close else "docs/settings.md lists them"


if __name__ == "__main__":
    print(table())
