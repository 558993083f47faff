"""The command `genserve`: serve, key, models, verify, calibrate, sample, complete, score."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from service import client
from service.calibrate import NormalImages, calibrate, read_folder, read_sets
from service.core.artifact import CALIBRATIONS, load_artifact
from service.core.manifest import OPERATIONS, Manifest
from service.core.models import Model, Models
from service.core.requests import LikelihoodRequest, Limits
from service.core.scoring.calibration import Calibration, save_calibration
from service.errors import ArtifactError, GenserveError, StartupError
from service.keys import create_key
from service.metrics import Metrics
from service.progress import counted
from service.runtime.onnx_session import OnnxSession, check_installation
from service.score import find_images, score_files, write_rows
from service.server import open_repository, serve
from service.settings import Settings, allowed, default, flag, read_settings

_API_KEY = "GENSERVE_API_KEY"  # not a flag: other users of a machine see those


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a mistake is one sentence, not a traceback."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
        sys.stdout.flush()
    except (StartupError, GenserveError, client.ClientError) as error:
        print(f"genserve: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # where a file is read or written, a StartupError names it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or its last flush fails
        print(f"genserve: standard output can't be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genserve", description="Serves generative models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    # Abbreviated flags would change their meaning, or lose it, with the next setting.
    command = commands.add_parser(
        "serve", help="start the REST and gRPC servers", allow_abbrev=False
    )
    command.add_argument("--settings", type=Path, metavar="FILE", help="of settings, in TOML")
    for name in Settings.model_fields:
        command.add_argument(flag(name), dest=name, metavar="VALUE", help=_help(name))
    command.set_defaults(command=_serve)

    command = commands.add_parser("key", help="make an API key, and the line that lets it in")
    command.add_argument("name", metavar="NAME", help="of whose it is, to know its line by")
    command.set_defaults(command=_key)

    command = commands.add_parser("models", help="show the models and what each can do")
    command.add_argument("--model-repository", metavar="FOLDER")
    command.set_defaults(command=_models)

    command = commands.add_parser("verify", help="check artifacts: hashes, shapes, test vectors")
    command.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="its folder")
    command.set_defaults(command=_verify)

    command = commands.add_parser("calibrate", help="say what scores of normal images are")
    command.add_argument("model", metavar="MODEL", help="name or name@version")
    command.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="of PNG files, or a .npy file"
    )
    command.add_argument("--score-fit", type=Path, metavar="FOLDER", help="images to fit on")
    command.add_argument("--calibrate", type=Path, metavar="FOLDER", help="images to compare with")
    command.add_argument("--source", metavar="TEXT", help="where the images are from, for records")
    command.add_argument("--binarisation", choices=("threshold", "stochastic"))
    command.add_argument("--samples", type=int, help="draws of the importance-weighted bound")
    command.add_argument("--seed", type=int, default=0, help="of whatever is drawn")
    command.add_argument("--model-repository", metavar="FOLDER")
    command.set_defaults(command=_calibrate)

    command = commands.add_parser("sample", help="sample from a running service into a PNG")
    _add_generation_arguments(command)
    command.set_defaults(command=_sample)

    command = commands.add_parser("complete", help="draw the rest of a PNG, several ways")
    command.add_argument("image", type=Path, metavar="PNG", help="of which some pixels are known")
    known = command.add_mutually_exclusive_group(required=True)
    known.add_argument("--prefix-rows", type=int, help="so many of its first rows are known")
    known.add_argument("--known", type=Path, metavar="PNG", help="not black where it is known")
    command.add_argument("--candidates", type=int, help="draw so many and keep the best")
    _add_generation_arguments(command)
    command.set_defaults(command=_complete)

    command = commands.add_parser("score", help="log-likelihood of PNG images as CSV")
    _add_client_arguments(command)
    command.add_argument(
        "images", nargs="+", type=Path, metavar="PATH", help="a PNG file, or a folder of them"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="CSV to write; else printed")
    command.add_argument("--binarisation", choices=("threshold", "stochastic"))
    command.add_argument("--samples", type=int, help="draws of the importance-weighted bound")
    command.add_argument(
        "--false-positive-rate",
        type=float,
        metavar="RATE",
        help="share of normal images that may be called anomalous; the service's is 0.01",
    )
    command.set_defaults(command=_score)
    return parser


def _help(name: str) -> str:
    """Say what a setting means, which values it may have, and which it has if it is not set."""
    facts = [allowed(name), default(name) and f"default {default(name)}"]
    said = "; ".join(fact for fact in facts if fact)
    meaning = str(Settings.model_fields[name].description)
    return (f"{meaning} ({said})" if said else meaning).replace("%", "%%")


def _add_client_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--address", default="127.0.0.1:8001", help="of the gRPC server")
    command.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="connect by TLS, and trust what these sign"
    )
    command.add_argument("--model", metavar="NAME", help="name or name@version")


def _add_generation_arguments(command: argparse.ArgumentParser) -> None:
    _add_client_arguments(command)
    command.add_argument("--count", type=int, default=1)
    command.add_argument("--seed", type=int)
    command.add_argument("--class-label", type=int)
    command.add_argument("--temperature", type=float)
    command.add_argument("--truncation", type=float)
    command.add_argument("--top-k", type=int, help="most likely levels to draw each pixel from")
    command.add_argument("--top-p", type=float, help="share of probability to draw it from")
    command.add_argument("--greedy", action="store_true", default=None, help="take its likeliest")
    command.add_argument("--burn-in", type=int, help="steps of a chain before its first image")
    command.add_argument("--thinning", type=int, help="steps between images of one chain")
    command.add_argument("--chains", type=int, help="take the images from so many chains in turn")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")


def _serve(arguments: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    flags = {name: given[name] for name in Settings.model_fields if name in given}
    uvloop.run(serve(read_settings(flags, arguments.settings)))


def _key(arguments: argparse.Namespace) -> None:
    key, line = create_key(arguments.name)
    print(f"{_API_KEY}={key}", file=sys.stderr)  # apart from the line, which goes into a file
    print(line)


def _models(arguments: argparse.Namespace) -> None:
    settings = _repository_settings(arguments)
    models = _read_repository(settings).all()
    if not models:
        raise StartupError(f"there are no artifacts in '{settings.model_repository}'")
    rows = [("MODEL", "FAMILY", *OPERATIONS), *(_row(model) for model in models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    for model in models:
        if model.reason:
            print(f"{model.name}@{model.version} is refused: {model.reason}")


def _repository_settings(arguments: argparse.Namespace) -> Settings:
    repository = arguments.model_repository
    return read_settings({"model_repository": repository} if repository else {})


def _read_repository(settings: Settings) -> Models:
    return open_repository(settings, Metrics(CollectorRegistry()))


def _row(model: Model) -> tuple[str, ...]:
    offered = model.manifest.operations if model.manifest else {}
    family = model.manifest.family if model.manifest else "?"
    marks = ("yes" if operation in offered else "-" for operation in OPERATIONS)
    return (f"{model.name}@{model.version}", family, *marks)


def _verify(arguments: argparse.Namespace) -> None:
    check_installation()
    open_session = partial(OnnxSession, provider=read_settings({}).provider)
    for folder in arguments.artifacts:
        try:
            manifest, _ = load_artifact(folder, open_session)
        except ArtifactError as error:
            raise ArtifactError(f"{folder}: {error}") from error
        print(f"{folder}: {manifest.name}@{manifest.version} is sound, {manifest.artifact_digest}")


def _calibrate(arguments: argparse.Namespace) -> None:
    check_installation()
    settings = _repository_settings(arguments)
    if isinstance(settings.model_repository, str):
        raise StartupError("calibrate in a folder, and copy the calibration to the repository")
    model = _read_repository(settings).find(arguments.model)
    model.check_offers("likelihood")
    manifest, graphs = load_artifact(model.folder, partial(OnnxSession, provider=settings.provider))
    images = _normal_images(arguments, manifest)
    made = calibrate(
        manifest,
        graphs,
        images,
        LikelihoodRequest(
            binarisation=arguments.binarisation,
            samples=arguments.samples,
            seed=arguments.seed,
        ),
        limits=Limits(
            count=settings.maximum_count,
            draws=settings.maximum_draws,
            rows=settings.maximum_queued_rows,
        ),
        workers=settings.workers,
        batch_rows=settings.maximum_batch_rows,
    )
    folder = model.folder.parent / CALIBRATIONS
    try:
        path = save_calibration(folder, made)
    except OSError as error:
        raise StartupError(f"{folder} can't be written: {error.strerror}") from error
    _tell(arguments, manifest, made, path)
    if images.copies:
        print(
            f"genserve: {images.copies} of the images are copies of others; unless normal images "
            "really repeat like that, remove them: they make p-values too low",
            file=sys.stderr,
        )


def _normal_images(arguments: argparse.Namespace, manifest: Manifest) -> NormalImages:
    sets = (arguments.score_fit, arguments.calibrate)
    if arguments.folder and not any(sets):
        images = read_folder(manifest, arguments.folder)
    elif all(sets) and not arguments.folder:
        images = read_sets(manifest, *sets)
    else:
        raise StartupError("give one FOLDER of normal images, or both --score-fit and --calibrate")
    return replace(images, source=arguments.source) if arguments.source else images


def _tell(arguments: argparse.Namespace, manifest: Manifest, made: Calibration, path: Path) -> None:
    fields = {
        "model": f"{manifest.name}@{manifest.version}",
        "binarisation": arguments.binarisation,
        "samples": arguments.samples,
        "seed": made.protocol.seed or None,
        "calibration": made.id,
    }
    asked = json.dumps({name: value for name, value in fields.items() if value is not None})
    print(f"calibration {made.id} of {made.count} images: {path}")
    print(f"genserve reads it when it starts; likelihood requests that it answers: {asked}")


def _sample(arguments: argparse.Namespace) -> None:
    _write(arguments.out, client.sample(_service(arguments), **_generation(arguments)))


def _complete(arguments: argparse.Namespace) -> None:
    picture = client.complete(
        _service(arguments),
        image=_read(arguments.image),
        known=arguments.known and _read(arguments.known),
        prefix_rows=arguments.prefix_rows,
        candidates=arguments.candidates,
        **_generation(arguments),
    )
    _write(arguments.out, picture)


def _generation(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "count", "seed", "class_label", "temperature", "truncation")
    controls = ("top_k", "top_p", "greedy", "burn_in", "thinning", "chains")
    return {name: getattr(arguments, name) for name in (*names, *controls)}


def _service(arguments: argparse.Namespace) -> client.Service:
    return client.Service(arguments.address, os.environ.get(_API_KEY), arguments.ca_file)


def _score(arguments: argparse.Namespace) -> None:
    service = _service(arguments)
    paths = find_images(arguments.images)

    def ask(images: Sequence[tuple[str, bytes]]) -> list[client.Score]:
        return client.score(
            service,
            model=arguments.model,
            images=images,
            binarisation=arguments.binarisation,
            samples=arguments.samples,
            false_positive_rate=arguments.false_positive_rate,
        )

    chunks = score_files(paths, ask, arguments.samples)
    if arguments.out is None:
        rows, failed = write_rows(sys.stdout, (chunk for _, chunk in chunks))
    else:
        rows, failed = _write_csv(arguments.out, counted(chunks, len(paths), "images"))
    if failed:
        raise StartupError(f"{failed} of {rows} images have no score; the column error says why")


def _write_csv(path: Path, chunks: Iterator[list[dict[str, object]]]) -> tuple[int, int]:
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            return write_rows(file, chunks)
    except OSError as error:
        raise StartupError(f"{path} can't be written: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{path} can't be read: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StartupError(f"{path} can't be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
