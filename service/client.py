"""What the commands `sample`, `complete` and `score` ask of a running service, over gRPC."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

from service.images import grid, levels_to_png, png_to_levels
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub

_PNG_LEVELS = 256  # whatever the model's levels are, a PNG spreads them over these


class ClientError(Exception):
    """A service could not be reached or refused; the message is one sentence for people."""

    def __init__(
        self, message: str, reason: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason  # of the service's error; None where it is not the service's
        self.retry_after_seconds = retry_after_seconds  # None where it is no matter of time


@dataclass(frozen=True)
class Service:
    """Where a service is, and what it takes to be let in."""

    address: str  # host:port of its gRPC server
    api_key: str | None = None
    ca_file: Path | None = None  # PEM certificates to trust; without them there is no TLS


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one image, and whether the image is anomalous."""

    name: str
    log_likelihood: float  # nats
    bits_per_dim: float  # NaN where the model's images have no levels
    kind: str  # exact, lower_bound or estimate
    p_value: float | None  # of the decision score; None where no calibration holds for it
    anomalous: bool | None  # whether p_value is at most the false-positive rate


def sample(service: Service, *, class_label: int | None = None, **fields: Any) -> bytes:
    """Return one PNG of samples, in a grid about as wide as high.

    `fields` are those of a SampleRequest. Raises ClientError.
    """
    return _picture(_call(service, "Sample", **_generation(class_label), **fields))


def complete(
    service: Service,
    *,
    image: bytes,
    known: bytes | None = None,
    class_label: int | None = None,
    **fields: Any,
) -> bytes:
    """Return one PNG of completions of a PNG, in a grid about as wide as high.

    `known` is a PNG as large, of which pixels that are not black are known; `fields` are those of a
    CompleteRequest. Raises ClientError.
    """
    if known is not None:
        fields["known"] = _read_mask(known)
    content = pb.Images(png=pb.PngFiles(files=[image]))
    return _picture(_call(service, "Complete", image=content, **_generation(class_label), **fields))


def score(
    service: Service,
    *,
    model: str | None = None,
    images: Sequence[tuple[str, bytes]],
    binarisation: str | None = None,
    samples: int | None = None,
    false_positive_rate: float | None = None,
) -> list[Score]:
    """Return the scores of PNG images, given with their names, in order.

    Raises ClientError.
    """
    answer = _call(
        service,
        "Likelihood",
        model=model,
        images=pb.Images(png=pb.PngFiles(files=[content for _, content in images])),
        binarisation=binarisation and f"BINARISATION_{binarisation.upper()}",
        samples=samples,
        false_positive_rate=false_positive_rate,
    )
    kind = pb.LikelihoodKind.Name(answer.kind).removeprefix("LIKELIHOOD_KIND_").lower()
    rows = zip(
        [name for name, _ in images],
        answer.log_likelihood,
        answer.bits_per_dim or [math.nan] * len(images),
        answer.p_value or [None] * len(images),
        answer.anomalous or [None] * len(images),
        strict=True,
    )
    return [
        Score(name, log_likelihood, bits, kind, p_value, anomalous)
        for name, log_likelihood, bits, p_value, anomalous in rows
    ]


def _generation(class_label: int | None) -> dict[str, Any]:
    """Return the fields of every request for pictures."""
    labels = [] if class_label is None else [class_label]
    return {"class_label": labels, "image_format": pb.IMAGE_FORMAT_PNG}


def _read_mask(known: bytes) -> bytes:
    """Return one byte a pixel in raster order, 1 where a PNG is not black."""
    return (png_to_levels(known, _PNG_LEVELS) > 0).any(axis=2).astype(np.uint8).tobytes()


def _picture(answer: Any) -> bytes:
    """Return the images of an answer in one PNG."""
    images = [png_to_levels(content, _PNG_LEVELS) for content in answer.images.png.files]
    columns = math.ceil(math.sqrt(len(images)))
    return levels_to_png(grid(np.stack(images), columns), _PNG_LEVELS)


def _call(service: Service, method: str, **fields: Any) -> Any:
    """Call a method with the fields of its request."""
    try:
        request = getattr(pb, f"{method}Request")(**fields)
    except ValueError as error:  # a number beyond its field's bits
        raise ClientError(f"the request can't be sent: {error}") from error
    key = service.api_key
    metadata = [("authorization", f"Bearer {key}")] if key is not None else None
    with _channel(service) as channel:
        try:
            stub = GenerationServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            return getattr(stub, method)(request, metadata=metadata)
        except grpc.RpcError as error:
            raise _refusal(service.address, error) from error


def _channel(service: Service) -> grpc.Channel:
    unlimited = [("grpc.max_receive_message_length", -1)]
    if service.ca_file is None:
        return grpc.insecure_channel(service.address, options=unlimited)
    try:
        credentials = grpc.ssl_channel_credentials(service.ca_file.read_bytes())
    except OSError as error:
        raise ClientError(f"{service.ca_file} can't be read: {error.strerror}") from error
    return grpc.secure_channel(service.address, credentials, options=unlimited)


def _refusal(address: str, error: grpc.RpcError) -> ClientError:
    status = rpc_status.from_call(error)
    info, retry = ErrorInfo(), RetryInfo()
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.reason:
        delay = retry.retry_delay.ToTimedelta().total_seconds()
        wait = delay if retry.HasField("retry_delay") else None
        return ClientError(f"{info.reason}: {error.details()}", info.reason, wait)
    return ClientError(f"{address} answered {error.code().name}: {error.details()}")
