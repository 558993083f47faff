"""All settings: one frozen object, read once from the environment and the command line."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import StartupError

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """What an operator may set, as `GENSERVE_<NAME>` or `--<name>`; units are in the names."""

    model_config = SettingsConfigDict(env_prefix="GENSERVE_", frozen=True, extra="forbid")

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


def read_settings(overrides: dict[str, str]) -> Settings:
    """Read the settings, `overrides` by name first, then the environment.

    Raises StartupError that names the first wrong setting and what is wrong with it.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # checked by validation
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"])
        raise StartupError(
            f"setting GENSERVE_{name.upper()} is {first['input']!r}: {first['msg']}"
        ) from error
