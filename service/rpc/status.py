"""The gRPC status of every error: a code, a reason, and how long to wait."""

import json
from functools import lru_cache

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc_status import rpc_status

from service import errors
from service.rpc.pb import generation_service_pb2 as pb

DOMAIN = "genserve"

# A status travels in HTTP/2 headers, of which clients take 8 KiB; a refusal may quote its input.
_MAXIMUM_TEXT_BYTES = 1000
_MAXIMUM_METADATA_ENTRIES = 2

STATUS_CODES: dict[type[errors.GenserveError], StatusCode] = {
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.MalformedRequest: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedMediaType: StatusCode.INVALID_ARGUMENT,
    errors.NotAcceptable: StatusCode.INVALID_ARGUMENT,
    errors.PayloadTooLarge: StatusCode.RESOURCE_EXHAUSTED,  # as gRPC itself answers it
    errors.InvalidImage: StatusCode.INVALID_ARGUMENT,
    errors.InvalidVector: StatusCode.INVALID_ARGUMENT,
    errors.InvalidLatent: StatusCode.INVALID_ARGUMENT,
    errors.InvalidCodes: StatusCode.INVALID_ARGUMENT,
    errors.OutOfRange: StatusCode.INVALID_ARGUMENT,
    errors.BinarisationRequired: StatusCode.INVALID_ARGUMENT,
    errors.LatentSpaceMismatch: StatusCode.INVALID_ARGUMENT,
    errors.ControlNotOffered: StatusCode.INVALID_ARGUMENT,
    errors.ConditionNotOffered: StatusCode.INVALID_ARGUMENT,
    errors.ConditionRequired: StatusCode.INVALID_ARGUMENT,
    errors.InvalidResumeToken: StatusCode.INVALID_ARGUMENT,
    errors.ResumeMismatch: StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.ModelNotFound: StatusCode.NOT_FOUND,
    # Not UNIMPLEMENTED: the server has the method, and another model offers it.
    errors.OperationNotOffered: StatusCode.FAILED_PRECONDITION,
    errors.NotCalibrated: StatusCode.FAILED_PRECONDITION,
    errors.ModelUnavailable: StatusCode.UNAVAILABLE,
    errors.ModelUnloaded: StatusCode.UNAVAILABLE,
    errors.AdministrationOff: StatusCode.PERMISSION_DENIED,
    errors.ArtifactRefused: StatusCode.FAILED_PRECONDITION,
    errors.RepositoryUnavailable: StatusCode.UNAVAILABLE,
    errors.QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyRequests: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.RequestCancelled: StatusCode.CANCELLED,
    errors.ShuttingDown: StatusCode.UNAVAILABLE,
    errors.InferenceFailed: StatusCode.INTERNAL,
}


def to_status(error: errors.GenserveError) -> rpc_status._Status:
    """Return the status that answers with an error, its details packed for `grpc-status`."""
    # Of refusals many are alike, and they come when there is no time to lose.
    many = isinstance(error, errors.QueueFull | errors.TooManyRequests)
    pack = _packed_before if many else _packed
    return pack(STATUS_CODES[type(error)], error.reason, error.message, *error.details.items())


def _packed(
    code: StatusCode, reason: str, message: str, *items: tuple[str, object]
) -> rpc_status._Status:
    entries = dict(items)
    details: list[Message] = [ErrorInfo(reason=reason, domain=DOMAIN, metadata=_metadata(entries))]
    retry_after_seconds = entries.get("retry_after_seconds")
    if isinstance(retry_after_seconds, int | float):
        delay = Duration()
        delay.FromMilliseconds(round(1000 * retry_after_seconds))
        details.append(RetryInfo(retry_delay=delay))
    return _status(code, message, details)


_packed_before = lru_cache(maxsize=256)(_packed)


def to_entry(error: errors.GenserveError) -> pb.Error:
    """Return the entry that answers one message of a stream with an error."""
    return pb.Error(
        reason=error.reason, message=_bounded(error.message), metadata=_metadata(error.details)
    )


def internal_status(request_id: str) -> rpc_status._Status:
    """Return the status for an error that nobody foresaw; what it was is in the log alone."""
    message = f"the server failed; its log says why, under request id {request_id}"
    return _status(StatusCode.INTERNAL, message, [ErrorInfo(reason="INTERNAL", domain=DOMAIN)])


def _status(code: StatusCode, message: str, details: list[Message]) -> rpc_status._Status:
    status = Status(code=code.value[0], message=_bounded(message))
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def _metadata(details: dict[str, object]) -> dict[str, str]:
    entries = list(details.items())[:_MAXIMUM_METADATA_ENTRIES]
    return {name: _bounded(_text(value)) for name, value in entries}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _bounded(text: str) -> str:
    content = text.encode()
    if len(content) <= _MAXIMUM_TEXT_BYTES:
        return text
    return content[:_MAXIMUM_TEXT_BYTES].decode(errors="ignore") + "..."
